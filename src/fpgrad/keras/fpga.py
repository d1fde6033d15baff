"""`FPGA`: a Keras model with Keras's own methods, trained by the machine."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fpgrad.errors import InvalidArgumentError, SaturationWarning, UnsupportedFrameworkError
from fpgrad.flow import recomputing
from fpgrad.flow.schedules import Wanted
from fpgrad.graph import Function
from fpgrad.keras import loops
from fpgrad.keras.adapters import (
    CallbackList,
    class_weights,
    split_validation,
    to_numpy,
    unpack,
)
from fpgrad.keras.data import Layout
from fpgrad.keras.device import Device, OpenSession
from fpgrad.keras.functions import Steps
from fpgrad.keras.resume import Checkpointer
from fpgrad.keras.schedules import Scheduler
from fpgrad.keras.sources import Source, open_source

__all__ = ["BACKENDS", "FPGA", "machine_of"]

Backend = Literal["emulator", "rtl", "reference"]

BACKENDS = ("emulator", "rtl", "reference")
"""Executors by name: native code, the generated hardware simulated, the specification in NumPy.
They give the same bits."""


class FPGA:
    """A Keras model that trains in hardware.

    The methods are those of ``keras.Model`` with the same arguments. The trained weights are in
    the user's model, and so are the optimizer's variables, after every epoch and every call.

    Args:
        model: a compiled Keras 3 model, Sequential or functional.
        backend: which executor runs the machine's program: "emulator", "rtl" or "reference".
        config: the machine's configuration, None for the default: a `MachineConfig` or a `Machine`.
            Each batch is shared among its cores; if it has fewer tiles of samples, the channels of
            the layers are.
        schedule: how a step goes through a core's batch: "layers", layer by layer; "samples", one tile of samples after
            the other, gradients added up; "auto", the former unless something would have to wait in external memory and
            the latter takes fewer cycles. `summary` says which it is, and why.
        recompute: whether the backward pass computes activations again instead of keeping them: "never"; "always", where
            it can; "auto", those that are cheaper to compute than to move, if something would have to wait in external
            memory and it takes fewer cycles, or if all would not fit. Results are the same bits. `summary` says what, and
            why.
        open_session: replaces backend and config: a function from the graph functions by name
            ("train", "evaluate", "predict") to a session.

    Raises:
        UnsupportedFrameworkError: if ``model`` is not a Keras model.
        InvalidArgumentError: if there is no such backend, schedule or way to recompute.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend = "emulator",
        config: Any = None,
        *,
        schedule: Wanted = "auto",
        recompute: recomputing.Wanted = "auto",
        open_session: OpenSession | None = None,
    ) -> None:
        import keras

        if not isinstance(model, keras.Model):
            raise UnsupportedFrameworkError(model)
        if backend not in BACKENDS:
            raise InvalidArgumentError(
                f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}"
            )
        self.model = model
        self.backend = backend
        self.config = config
        machine = _formats(config)
        opener = open_session or self._open_session
        compiling = open_session is None
        scheduler = Scheduler(machine.side, machine.cores, schedule, config, compiling, recompute)
        self._device = Device(model, opener, scheduler, self._open_program)

    def _open_session(self, functions: Mapping[str, Function]) -> Any:
        from fpgrad.flow.build import build_session

        return build_session(functions, self.backend, self.config)

    def _open_program(self, program: Any) -> Any:
        from fpgrad.flow.build import open_session

        return open_session(program, self.backend)

    # Keras's methods ---------------------------------------------------------------------------

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool | str = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
        *,
        checkpoint: str | Path | None = None,
    ) -> Any:
        """Trains the model; the arguments are those of ``keras.Model.fit``, and one more.

        Args:
            checkpoint: a file that each epoch leaves behind: weights, optimizer, seeds, order of the
                samples. If it is there already, its run goes on with the next epoch, to the bits that it
                would have come to without a stop. Callbacks that count, such as EarlyStopping, count anew.

        Returns:
            Keras's History. If numbers saturated in the machine, its ``history`` has the key
            "saturated": how many, epoch by epoch.

        Raises:
            ModelNotCompiledError: if ``model.compile`` was not called.
            UnsupportedModelError: with everything in the model that cannot be compiled.
            DataError: if data cannot be used (its subclasses say why). Arrays are checked before
                anything runs; a stream of batches is checked as it comes.
            CheckpointError: if the checkpoint is damaged, or of another model, machine or data set.
        """
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = split_validation(
                x, y, sample_weight, validation_split
            )
        source = self._source(
            x,
            y,
            sample_weight,
            batch_size=batch_size,
            steps=steps_per_epoch,
            shuffle=shuffle,
            class_weight=class_weight,
        )
        validation = None
        if validation_data is not None:
            validation = self._source(
                *unpack(validation_data),
                batch_size=validation_batch_size or (batch_size if source.exact else None),
                steps=validation_steps,
            )
        saturation = _Saturation(self._device)
        try:
            history = loops.fit(
                self._device,
                source,
                callbacks=callbacks,
                verbose=verbose,
                epochs=epochs,
                initial_epoch=initial_epoch,
                validate=None if validation is None else self._validator(validation),
                validation_freq=validation_freq,
                on_epoch=saturation.end_of_epoch,
                checkpoint=None if checkpoint is None else self._checkpointer(checkpoint, source),
            )
        finally:
            # Also when the user interrupts: what was trained is not lost.
            self._device.pull()
            source.close()
            if validation is not None:
                validation.close()
        saturation.report(history)
        return history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Returns loss and metrics; the arguments are those of ``keras.Model.evaluate``."""
        source = self._source(x, y, sample_weight, batch_size=batch_size, steps=steps)
        with contextlib.closing(source):
            logs = loops.evaluate(self._device, source, callbacks=callbacks, verbose=verbose)
        return logs if return_dict else self.model._flatten_metrics_in_order(logs)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> np.ndarray:
        """Returns the model's outputs, float32 of shape (samples, *output shape)."""
        source = self._source(x, batch_size=batch_size, steps=steps, with_target=False)
        with contextlib.closing(source):
            return loops.predict(self._device, source, callbacks=callbacks, verbose=verbose)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Runs one training step and returns the batch's loss and metrics."""
        self._build(x)
        if class_weight is not None:
            if sample_weight is not None:
                raise InvalidArgumentError(
                    "class_weight and sample_weight cannot both be given: multiply them into "
                    "sample_weight"
                )
            sample_weight = class_weights(to_numpy(y), class_weight)
        with contextlib.closing(self._batch(x, y, sample_weight)) as source:
            logs = loops.train_on_batch(self._device, source)
        return logs if return_dict else self.model._flatten_metrics_in_order(logs)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Returns the loss and metrics of one batch."""
        self._build(x)
        with contextlib.closing(self._batch(x, y, sample_weight)) as source:
            logs = loops.evaluate(self._device, source, callbacks=None, verbose=0)
        return logs if return_dict else self.model._flatten_metrics_in_order(logs)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """Returns the outputs of one batch."""
        return self.predict(x, verbose=0)

    # -------------------------------------------------------------------------------------------

    @property
    def counters(self) -> dict[str, int]:
        """What the executor counted since this object was made: steps, cycles, saturations."""
        return self._device.counters()

    def functions(self, batch_size: int = 32) -> Mapping[str, Function]:
        """Returns the graph functions of training for batches of ``batch_size`` samples.

        Raises:
            ModelNotCompiledError, UnsupportedModelError: as `program` does.
            InvalidArgumentError: if the schedule "samples" was asked for and a layer couples samples.
        """
        return self._device.steps(batch_size, training=True).functions

    def program(self, batch_size: int = 32) -> Any:
        """Returns the machine's program, with the machine's configuration in it.

        Raises:
            ModelNotCompiledError: if ``model.compile`` was not called.
            UnsupportedModelError: with everything in the model that cannot be compiled.
            MemoryCapacityError: if the machine given as ``config`` is too small.
            InvalidArgumentError: if the schedule "samples" was asked for and a layer couples samples.
        """
        return self._program(self._device.steps(batch_size, training=True))

    def _program(self, steps: Steps) -> Any:
        from fpgrad.flow.build import compile_model

        if steps.program is not None:
            return steps.program
        return compile_model(steps.functions, self.config)

    def summary(self, *, clock_hz: float = 100e6, batch_size: int | None = None) -> str:
        """Returns a report: cycles by layer and phase, utilisation, memory, what a chip needs.

        Args:
            clock_hz: the clock for which times are stated.
            batch_size: samples in a batch; by default that of the last step, 32 before any.
        """
        from fpgrad.flow.estimate import summarise
        from fpgrad.report import render

        samples = batch_size or self._device.last_batch_size or 32
        steps = self._device.steps(samples, training=True)
        program = self._program(steps)
        saturated = {name: n for name, n in self.counters.items() if name.startswith("saturated")}
        return render(
            summarise(
                program,
                model=self.model.name,
                clock_hz=clock_hz,
                saturations={name: n for name, n in saturated.items() if n},
                samples=samples,
                schedule=None if steps.schedule is None else str(steps.schedule),
                recomputed=None if steps.recomputation is None else str(steps.recomputation),
            )
        )

    def verify(
        self,
        *,
        backend: str | None = None,
        against: str = "emulator",
        steps: int = 3,
        batch_size: int = 32,
        seed: int = 0,
    ) -> Any:
        """Trains the same steps on random data on two executors and compares every word.

        The user's model keeps its weights.

        Args:
            backend: the first executor; by default that of this object.
            against: the second.
            steps: training steps.
            batch_size: samples in a batch.
            seed: of the data.

        Returns:
            a `fpgrad.flow.verify.Verification`.
        """
        from fpgrad.flow.verify import verify

        trial = self._device.trial(steps, batch_size, seed)
        return verify(
            self.program(batch_size),
            trial.data,
            trial.order,
            trial.scalars,
            trial.states,
            backend=backend or self.backend,
            against=against,
            seeds=trial.seeds,
        )

    def export_verilog(self, directory: str | Path, batch_size: int = 32) -> list[Path]:
        """Writes the generated design as Verilog with its program, and returns the files."""
        from fpgrad.flow.export import export_verilog

        return export_verilog(self.program(batch_size), directory)

    # Data --------------------------------------------------------------------------------------

    def _source(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        shuffle: bool | str = False,
        class_weight: dict[int, float] | None = None,
        with_target: bool = True,
    ) -> Source:
        """Opens what the user passed as data and checks it, before anything runs."""
        self._build(x)
        layout = Layout(self._device.description(training=with_target))
        source = open_source(
            x,
            y,
            sample_weight,
            batch_size=batch_size,
            steps=steps,
            shuffle=shuffle,
            class_weight=class_weight,
            with_target=with_target,
        )
        source.prepare(layout)
        source.reset()
        return source

    def _checkpointer(self, path: str | Path, source: Source) -> Checkpointer:
        formats = _formats(self.config)
        numbers = formats.matrix.tile, formats.matrix.accumulator, formats.vector, formats.cores
        return Checkpointer(Path(path), self._device, source, numbers)

    def _batch(self, x: Any, y: Any, sample_weight: Any) -> Source:
        source = self._source(x, y, sample_weight, batch_size=_samples(x))
        # Batches of any size may follow: one machine, the largest, serves them all.
        source.exact = False
        return source

    def _build(self, x: Any) -> None:
        """Gives a Sequential without Input its shapes, from arrays, as Keras does."""
        if self.model.built or not hasattr(x, "shape"):
            return
        self.model.build((None, *x.shape[1:]))

    def _validator(self, source: Source) -> Any:
        def validate(callbacks: CallbackList) -> dict[str, float]:
            source.reset()
            return loops.evaluate(self._device, source, callbacks=callbacks, verbose=0)

        return validate


def machine_of(cores: int = 1, **limits: int) -> Any:
    """Returns the ``config`` of `FPGA` for the default formats and so many cores.

    Args:
        cores: that share each batch.
        limits: room on the chip, of each core, by the names of `fpgrad.codegen.compile.Machine`: tiles, rows, masks,
            inbox, outbox, instructions.

    Raises:
        ConfigError: if no machine has as many.
        InvalidArgumentError: if there is no memory of a name.
    """
    from fpgrad.codegen.compile import Machine
    from fpgrad.isa.config import MachineConfig

    known = [field.name for field in fields(Machine) if field.name not in ("formats", "fixed")]
    if unknown := sorted(set(limits) - set(known)):
        raise InvalidArgumentError(f"limits must be of {', '.join(known)}, not {unknown[0]!r}")
    room: dict[str, Any] = dict(limits)
    return Machine(MachineConfig(cores=cores), **room)


def _formats(config: Any) -> Any:
    """What a MachineConfig, a Machine or None, the default machine, says of formats and cores."""
    from fpgrad.codegen.compile import Machine

    machine = Machine() if config is None else config
    return machine.formats if isinstance(machine, Machine) else machine


def _samples(x: Any) -> int:
    while isinstance(x, dict | list | tuple) and not np.isscalar(x):
        first = next(iter(x.values())) if isinstance(x, dict) else x[0]
        if not hasattr(first, "shape") and not isinstance(first, dict | list | tuple):
            return len(x)
        x = first
    return max(int(np.shape(x)[0]) if np.ndim(x) else 0, 1)


class _Saturation:
    """Counts the numbers that saturate, epoch by epoch."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._before = self._count()
        self._epochs: list[int] = []

    def _count(self) -> int:
        return self._device.count("saturated")

    def end_of_epoch(self, later: int) -> None:
        now = self._count() - later
        self._epochs.append(now - self._before)
        self._before = now

    def report(self, history: Any) -> None:
        total = sum(self._epochs)
        if not total:
            return
        history.history["saturated"] = list(self._epochs)
        warnings.warn(
            f"{total} numbers saturated in {len(self._epochs)} epochs: they were limited to the "
            "largest number of the machine's formats. Scale the inputs to about 1, or lower the "
            "learning rate; history.history['saturated'] says in which epochs",
            SaturationWarning,
            stacklevel=3,
        )
