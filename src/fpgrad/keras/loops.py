"""The loops of fit, evaluate and predict: Keras's order of events around groups of steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from fpgrad.frontend.lowered import Normaliser
from fpgrad.keras.adapters import CallbackList
from fpgrad.keras.callbacks import has_watchers, hears_of_batches, needs_every_step
from fpgrad.keras.device import Compiled, Device, Planned
from fpgrad.keras.metrics import EpochMetrics
from fpgrad.keras.pace import Pace
from fpgrad.keras.placing import Placed
from fpgrad.keras.resume import Checkpointer
from fpgrad.keras.sources import Source

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
    on_epoch: Callable[[int], None],
    checkpoint: Checkpointer | None = None,
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
        on_epoch: called after every epoch, with how many of the numbers that saturated so far did so
            in later ones.
        checkpoint: where to begin, and what each epoch leaves behind.
    """
    model = device.model
    if checkpoint is not None:
        initial_epoch = checkpoint.restore() or initial_epoch
    callbacks = _callback_list(
        callbacks, model, source, verbose=verbose, epochs=epochs, history=True
    )
    every_step = needs_every_step(callbacks, "train")
    each_group = hears_of_batches(callbacks, "train")
    watched = has_watchers(callbacks) or checkpoint is not None
    metrics = device.metrics()
    pace = Pace(
        single=every_step or metrics.wants_outputs,
        most=source.most_steps,
        name="train",
        known=device.seconds,
    )
    trainer = _Trainer(device, source, metrics, pace, unseen=not each_group)
    # Nobody changes anything between epochs, so that several may be written to the device at once.
    alone = not (every_step or watched or metrics.wants_outputs or validate is not None)
    model.stop_training = False
    logs: dict[str, Any] = {}
    callbacks.on_train_begin()
    for epoch in range(model._initial_epoch or initial_epoch, epochs):
        metrics.reset()
        callbacks.on_epoch_begin(epoch)
        for first, steps, train in trainer.epoch(epochs - epoch if alone else 1):
            if each_group:
                callbacks.on_train_batch_begin(first)
            train()
            if every_step:
                device.pull()
                metrics.publish()
            if each_group:
                callbacks.on_train_batch_end(first + steps - 1, metrics.logs())
            if model.stop_training:
                break
        if watched or epoch == epochs - 1:
            device.pull()
            metrics.publish()
        logs = metrics.logs()
        if validate is not None and model._should_eval(epoch, validation_freq):
            logs.update({f"val_{name}": value for name, value in validate(callbacks).items()})
        on_epoch(trainer.saturated_later)
        callbacks.on_epoch_end(epoch, logs)
        if checkpoint is not None:
            checkpoint.save(epoch + 1)
        if model.stop_training:
            break
    callbacks.on_train_end(logs)
    return model.history


def train_on_batch(device: Device, source: Source) -> dict[str, float]:
    """Runs one training step and returns the batch's loss and metrics, by name."""
    metrics = device.metrics()
    metrics.reset()
    _Trainer(device, source, metrics, Pace(single=True)).group(list(source.epoch()), [])
    device.pull()
    metrics.publish()
    return {name: float(value) for name, value in metrics.logs().items()}


def evaluate(device: Device, source: Source, *, callbacks: Any, verbose: Any) -> dict[str, float]:
    """Returns loss and metrics of one pass over ``source``, by name."""
    model = device.model
    callbacks = _callback_list(callbacks, model, source, verbose=verbose, epochs=1)
    metrics = device.metrics()
    single = needs_every_step(callbacks, "test")
    pace = Pace(single=single, most=source.most_steps, name="evaluate", known=device.seconds)
    model.stop_evaluating = False
    callbacks.on_test_begin()
    metrics.reset()
    for first, batches, following in _groups(source, pace):
        callbacks.on_test_batch_begin(first)
        compiled = _compiled(device, source, batches, training=True)
        for placed in _placed(source, compiled, batches, following, pace, _normaliser(compiled)):
            metrics.add(device.evaluate(compiled, placed), *placed.totals()[0])
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
    pace = Pace(single=single, most=source.most_steps, name="predict", known=device.seconds)
    model.stop_predicting = False
    callbacks.on_predict_begin()
    outputs: list[np.ndarray] = []
    for first, batches, following in _groups(source, pace):
        callbacks.on_predict_batch_begin(first)
        compiled = _compiled(device, source, batches, training=False)
        parts = _placed(source, compiled, batches, following, pace, Normaliser.COUNT)
        outputs.append(np.concatenate([device.predict(compiled, placed) for placed in parts]))
        callbacks.on_predict_batch_end(first + len(batches) - 1, {"outputs": outputs[-1]})
        if model.stop_predicting:
            break
    callbacks.on_predict_end()
    return np.concatenate(outputs)


class _Trainer:
    """Runs training epochs, in groups of batches or, where several can be planned, by the epoch.

    Args:
        device: the model on its executor.
        source: prepared training data.
        metrics: takes up the sums.
        pace: says how many steps may run before the host looks again.
        unseen: whether planned epochs may run before the one that they follow is reported.
    """

    def __init__(
        self,
        device: Device,
        source: Source,
        metrics: EpochMetrics,
        pace: Pace,
        *,
        unseen: bool = False,
    ) -> None:
        self._device = device
        self._source = source
        self._metrics = metrics
        self._pace = pace
        self._planned: Planned | None = None
        self._unseen = unseen
        self._next = 0
        self._ready: deque[Any] = deque()

    @property
    def saturated_later(self) -> int:
        """Saturations that the device has counted in epochs that are still to be reported."""
        return sum(part.saturated for part in self._ready)

    def epoch(self, alike: int) -> Iterator[tuple[int, int, Callable[[], None]]]:
        """Yields the parts of the next epoch: first step, number of steps, and what runs them.

        Args:
            alike: how many epochs, this one included, follow each other without anybody between.
        """
        if self._planned is None and alike > 1:
            self._plan(alike)
        if self._planned is not None:
            yield 0, self._planned.steps, self._planned_epoch
            return
        for first, batches, following in _groups(self._source, self._pace):
            yield first, len(batches), partial(self.group, batches, following)

    def group(self, batches: list[Any], following: list[Any]) -> None:
        """Trains on some batches, while those that follow are prepared."""
        device, source, metrics = self._device, self._source, self._metrics
        compiled = _compiled(device, source, batches, training=True)
        normaliser = _normaliser(compiled)
        for placed in _placed(source, compiled, batches, following, self._pace, normaliser):
            planned = device.plan(compiled, placed)
            (part,) = device.train(planned)
            metrics.add(part.sums, *planned.totals[0])
            if metrics.wants_outputs:
                outputs = device.outputs_of_last_step(compiled, int(placed.counts[-1]))
                metrics.add_outputs(outputs, placed)

    def _plan(self, epochs: int) -> None:
        """Writes the next epochs to the device, if that can be done and they do not take long."""
        device, source = self._device, self._source
        training = device.description(training=True).training
        if training is None or not device.rate_is_constant:
            return
        steps = source.epoch_steps(training.normaliser)
        epochs = 0 if steps is None else min(epochs, self._pace.steps // steps)
        if epochs < 2:
            return
        compiled = _compiled(device, source, (), training=True)
        if source.resident(compiled, training.normaliser):
            self._planned = device.plan(compiled, source.place_epochs(compiled, epochs), epochs)
            self._next = 0

    def _planned_epoch(self) -> None:
        planned = self._planned
        assert planned is not None
        if not self._ready:
            parts = len(planned.totals) - self._next if self._unseen else 1
            with self._pace.timing(parts * planned.steps):
                self._ready.extend(self._device.train(planned, self._next, parts))
        self._metrics.add(self._ready.popleft().sums, *planned.totals[self._next])
        self._next += 1
        if self._next == len(planned.totals):
            self._planned = None


def _compiled(
    device: Device, source: Source, batches: Sequence[Any], *, training: bool
) -> Compiled:
    return device.compiled(source.largest(batches), training=training, exact=source.exact)


def _normaliser(compiled: Compiled) -> Normaliser:
    training = compiled.lowered.training
    return Normaliser.COUNT if training is None else training.normaliser


def _groups(source: Source, pace: Pace) -> Iterator[tuple[int, list[Any], list[Any]]]:
    """Yields an epoch's batches in groups, with the number of the first step and the group that follows.

    The latter is empty at the end, and where somebody may act between two steps: nothing is read ahead of him.
    """
    first = 0
    group: list[Any] = []
    for following in _slices(source, pace):
        if pace.single:
            yield first, following, []
            first += len(following)
            continue
        if group:
            yield first, group, following
            first += len(group)
        group = following
    if group:
        yield first, group, []


def _slices(source: Source, pace: Pace) -> Iterator[list[Any]]:
    group: list[Any] = []
    for batch in source.epoch():
        group.append(batch)
        if len(group) >= min(pace.steps, source.most_steps):
            yield group
            group = []
    if group:
        yield group


def _placed(
    source: Source,
    compiled: Compiled,
    batches: list[Any],
    following: list[Any],
    pace: Pace,
    normaliser: Normaliser,
) -> Iterator[Placed]:
    """Places a group of batches, in parts where device memory has no room for all of it.

    What the caller does with a part is timed with it.
    """
    most = source.fitting(compiled, normaliser)
    parts = [batches[i : i + most] for i in range(0, len(batches), most)]
    if len(parts) == 1:
        # It may be prepared already, and is known by its identity.
        parts = [batches]
    for part in parts:
        with pace.timing(len(part)):
            placed = source.place(compiled, part, normaliser)
            if part is parts[-1] and 0 < len(following) <= most:
                source.stage(compiled, following, normaliser)
            yield placed
        source.release()


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
