"""The loops of fit, evaluate and predict: Keras's order of events around groups of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fpgrad.frontend.lowered import Normaliser
from fpgrad.keras.adapters import CallbackList
from fpgrad.keras.callbacks import has_watchers, needs_every_step
from fpgrad.keras.device import Compiled, Device
from fpgrad.keras.metrics import EpochMetrics
from fpgrad.keras.pace import Pace
from fpgrad.keras.sources import Placed, Source

__all__ = ["evaluate", "fit", "predict", "train_on_batch"]


def fit(
    device: Device,
    source: Source,
    *,
    callbacks: Any,
    verbose: Any,
    epochs: int,
    initial_epoch: int,
    validate: Callable[[CallbackList], dict[str, float]] | None,
    validation_freq: Any,
    on_epoch: Callable[[], None],
) -> Any:
    """Trains for some epochs and returns Keras's History.

    Args:
        device: the model on its executor.
        source: prepared training data.
        callbacks: the user's callbacks, or a CallbackList.
        verbose: as in Keras.
        epochs: the number of the epoch before which to stop.
        initial_epoch: the number of the first epoch.
        validate: evaluates with the callbacks given and returns the metrics; None for no
            validation.
        validation_freq: as in Keras.
        on_epoch: called after every epoch.
    """
    model = device.model
    callbacks = _callback_list(
        callbacks, model, source, verbose=verbose, epochs=epochs, history=True
    )
    every_step = needs_every_step(callbacks, "train")
    watched = has_watchers(callbacks)
    metrics = device.metrics()
    pace = Pace(single=every_step or metrics.wants_outputs, most=source.most_steps)
    model.stop_training = False
    logs: dict[str, Any] = {}
    callbacks.on_train_begin()
    for epoch in range(model._initial_epoch or initial_epoch, epochs):
        metrics.reset()
        callbacks.on_epoch_begin(epoch)
        for first, batches in _groups(source, pace):
            callbacks.on_train_batch_begin(first)
            with pace.timing(len(batches)):
                compiled = _compiled(device, source, batches, training=True)
                _train(device, compiled, source, batches, metrics)
            if every_step:
                device.pull()
                metrics.publish()
            callbacks.on_train_batch_end(first + len(batches) - 1, metrics.logs())
            if model.stop_training:
                break
        if watched or epoch == epochs - 1:
            device.pull()
            metrics.publish()
        logs = metrics.logs()
        if validate is not None and model._should_eval(epoch, validation_freq):
            logs.update({f"val_{name}": value for name, value in validate(callbacks).items()})
        on_epoch()
        callbacks.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    callbacks.on_train_end(logs)
    return model.history


def train_on_batch(device: Device, source: Source) -> dict[str, float]:
    """Runs one training step and returns the batch's loss and metrics, by name."""
    metrics = device.metrics()
    metrics.reset()
    batches = list(source.epoch())
    _train(device, _compiled(device, source, batches, training=True), source, batches, metrics)
    device.pull()
    metrics.publish()
    return {name: float(value) for name, value in metrics.logs().items()}


def evaluate(device: Device, source: Source, *, callbacks: Any, verbose: Any) -> dict[str, float]:
    """Returns loss and metrics of one pass over ``source``, by name."""
    model = device.model
    callbacks = _callback_list(callbacks, model, source, verbose=verbose, epochs=1)
    metrics = device.metrics()
    single = needs_every_step(callbacks, "test")
    pace = Pace(single=single, most=source.most_steps)
    model.stop_evaluating = False
    callbacks.on_test_begin()
    metrics.reset()
    for first, batches in _groups(source, pace):
        callbacks.on_test_batch_begin(first)
        with pace.timing(len(batches)):
            compiled = _compiled(device, source, batches, training=True)
            placed = source.place(compiled, batches, _normaliser(compiled))
            metrics.add(device.evaluate(compiled, placed), placed)
            if metrics.wants_outputs:
                metrics.add_outputs(device.predict(compiled, placed), placed)
        callbacks.on_test_batch_end(first + len(batches) - 1, metrics.logs())
        if model.stop_evaluating:
            break
    metrics.publish()
    logs = {name: float(value) for name, value in metrics.logs().items()}
    callbacks.on_test_end(logs)
    return logs


def predict(device: Device, source: Source, *, callbacks: Any, verbose: Any) -> np.ndarray:
    """Returns the outputs for all samples of ``source``, shape (samples, *output shape)."""
    model = device.model
    callbacks = _callback_list(callbacks, model, source, verbose=verbose, epochs=1)
    single = needs_every_step(callbacks, "predict")
    pace = Pace(single=single, most=source.most_steps)
    model.stop_predicting = False
    callbacks.on_predict_begin()
    outputs: list[np.ndarray] = []
    for first, batches in _groups(source, pace):
        callbacks.on_predict_batch_begin(first)
        with pace.timing(len(batches)):
            compiled = _compiled(device, source, batches, training=False)
            placed = source.place(compiled, batches, Normaliser.COUNT)
            outputs.append(device.predict(compiled, placed))
        callbacks.on_predict_batch_end(first + len(batches) - 1, {"outputs": outputs[-1]})
        if model.stop_predicting:
            break
    callbacks.on_predict_end()
    return np.concatenate(outputs)


def _train(
    device: Device, compiled: Compiled, source: Source, batches: list[Any], metrics: EpochMetrics
) -> Placed:
    placed = source.place(compiled, batches, _normaliser(compiled))
    metrics.add(device.train(compiled, placed), placed)
    if metrics.wants_outputs:
        outputs = device.outputs_of_last_step(compiled, int(placed.counts[-1]))
        metrics.add_outputs(outputs, placed)
    return placed


def _compiled(device: Device, source: Source, batches: list[Any], *, training: bool) -> Compiled:
    return device.compiled(source.largest(batches), training=training, exact=source.exact)


def _normaliser(compiled: Compiled) -> Normaliser:
    training = compiled.lowered.training
    return Normaliser.COUNT if training is None else training.normaliser


def _groups(source: Source, pace: Pace) -> Iterator[tuple[int, list[Any]]]:
    """Yields an epoch's batches in groups, each with the number of its first step."""
    first = 0
    group: list[Any] = []
    for batch in source.epoch():
        group.append(batch)
        if len(group) >= pace.steps:
            yield first, group
            first += len(group)
            group = []
    if group:
        yield first, group


def _callback_list(
    callbacks: Any,
    model: Any,
    source: Source,
    *,
    verbose: Any,
    epochs: int,
    history: bool = False,
) -> CallbackList:
    if isinstance(callbacks, CallbackList):
        return callbacks
    made = CallbackList(
        callbacks,
        add_history=history,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=epochs,
        steps=source.num_batches,
        model=model,
    )
    # A thread per call costs more than the calls: the machine runs many steps between them.
    made._async_train = made._async_test = made._async_predict = False
    return made
