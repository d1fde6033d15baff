"""The user's model on an executor: compiled for a batch size, its variables kept in step.

The user's Keras variables are the truth between calls. Before steps run, those that differ from
what the device was last given are written; after steps have run, the device's are read back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fpgrad.frontend.lowered import Lowered
from fpgrad.graph import Function
from fpgrad.keras.data import random_samples
from fpgrad.keras.functions import (
    OUTPUTS_STATE,
    Steps,
)
from fpgrad.keras.metrics import EpochMetrics, result_names
from fpgrad.keras.placing import Placed
from fpgrad.keras.rates import constants, is_constant, number, step_scalars
from fpgrad.keras.schedules import Scheduler
from fpgrad.keras.seeds import StepSeeds
from fpgrad.keras.shares import Shares
from fpgrad.keras.variables import Link, links_of, read_variable

__all__ = ["Compiled", "Device", "OpenSession", "Planned", "Trial"]

OpenSession = Callable[[Mapping[str, Function]], Any]
"""Opens a session for the functions of one batch size."""


@dataclass
class Compiled:
    """A session for one batch size, with the values that both sides had when last compared.

    ``shares`` says among how many cores the samples are divided: one where all have all of them.
    """

    lowered: Lowered
    steps: Steps
    session: Any
    links: tuple[Link, ...]
    rows: int
    synced: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Samples in a compiled batch, of all cores and micro-batches together."""
        return self.rows

    @cached_property
    def _inputs(self) -> frozenset[str]:
        """Names of the inputs that any function reads; the others are not uploaded."""
        functions = self.steps.functions.values()
        return frozenset(node.name for function in functions for node in function.inputs)

    @property
    def room(self) -> int:
        """Samples that device memory has room for now."""
        return self.session.room

    def pack(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Makes of samples what `upload` sends, as far as the functions read them. Any thread may."""
        return self.session.pack(self._read(arrays))

    def upload(self, arrays: Any) -> Any:
        """Puts samples, packed or not, into device memory, as far as the functions read them."""
        return self.session.upload(self._read(arrays) if isinstance(arrays, dict) else arrays)

    def _read(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k: v for k, v in arrays.items() if k in self._inputs}

    def release(self, dataset: Any) -> None:
        """Gives the memory of samples back."""
        self.session.release(dataset)

    @cached_property
    def trained(self) -> frozenset[str]:
        """States that a training step changes. The user's others are left untouched."""
        train = self.steps.functions.get("train")
        return frozenset(state.name for state, _ in train.updates) if train else frozenset()


@dataclass(frozen=True)
class Planned:
    """Training steps whose batches, scalars and seeds are on the device.

    Attributes:
        compiled: what runs them.
        plan: the session's handle.
        first: the optimizer's iterations before the first of them.
        steps: in each of the equal parts that are run one by one.
        totals: samples and their weight in each part.
        constant: whether the learning rate was a number when the steps were planned.
    """

    compiled: Compiled
    plan: Any
    first: int
    steps: int
    totals: list[tuple[int, float]]
    constant: bool


@dataclass(frozen=True)
class Trial:
    """Everything that some training steps depend on, in the terms of a session."""

    data: dict[str, np.ndarray]
    order: np.ndarray
    scalars: dict[str, np.ndarray]
    states: dict[str, np.ndarray]
    seeds: np.ndarray | None


class Device:
    """Compiles a Keras model on demand, runs steps, and moves variables.

    ``scheduler`` knows the machine's tiles and cores. ``open_program`` opens a session for a program that choosing a
    schedule has made already.
    """

    def __init__(
        self,
        model: Any,
        open_session: OpenSession,
        scheduler: Scheduler,
        open_program: Callable[[Any], Any] | None = None,
    ) -> None:
        self.model = model
        self._open_session = open_session
        self._open_program = open_program
        #: How a batch is shared among the cores.
        self.shares = Shares(model, scheduler)
        self._compiled: dict[tuple[bool, int], Compiled] = {}
        self._fingerprint: object = None
        self._ahead: Compiled | None = None
        self._iterations: tuple[Any, int] | None = None
        """The optimizer's variable and what it must be set to, while the device is ahead."""
        self.seconds: dict[str, float] = {}
        """How long a step took when last timed, by function."""
        self._seeds = StepSeeds(model)
        self._past_counts: dict[str, int] = {}
        self._names: dict[str, int] | None = None
        self.last_batch_size: int | None = None

    # Compiling ---------------------------------------------------------------------------------

    def compiled(self, batch_size: int, *, training: bool, exact: bool = False) -> Compiled:
        """Returns the model compiled for at least ``batch_size`` samples, variables written.

        Args:
            batch_size: samples that a step must hold.
            training: whether it must train and evaluate, not only predict.
            exact: whether a larger machine than needed is refused, because padding costs cycles.
        """
        self._forget_if_changed()
        samples = batch_size
        batch_size = self.shares.rows(samples, training)
        found = self._find(batch_size, training, exact)
        if found is None:
            lowered, steps = self.shares.built(samples, training)
            if steps.program is not None and self._open_program is not None:
                session = self._open_program(steps.program)
            else:
                session = self._open_session(steps.functions)
            links = links_of(self.model, lowered, steps)
            found = Compiled(lowered, steps, session, links, batch_size)
            self._compiled[training, batch_size] = found
            self.seconds.clear()
        if self._ahead is not None and self._ahead is not found:
            self.pull()
        if self._ahead is None:
            self._push(found)
        self.last_batch_size = found.batch_size
        return found

    def description(self, *, training: bool) -> Lowered:
        """Returns what the model is, without compiling it: for checks that need no machine."""
        self._forget_if_changed()
        return self.shares.description(training)

    def metrics(self) -> EpochMetrics:
        """Returns an empty accumulator for the metrics of the compiled model."""
        training = self.description(training=True).training
        assert training is not None
        if self._names is None:
            self._names = result_names(self.model, training)
        return EpochMetrics(self.model, training, self._names)

    def steps(self, batch_size: int, *, training: bool) -> Steps:
        """Returns the graph functions for a batch size, compiled only if the choice of a schedule takes it."""
        self._forget_if_changed()
        return self.shares.built(batch_size, training)[1]

    @property
    def sessions(self) -> tuple[Compiled, ...]:
        """Everything compiled so far and still in use."""
        return tuple(self._compiled.values())

    def _find(self, batch_size: int, training: bool, exact: bool) -> Compiled | None:
        fitting = [
            compiled
            for (trains, size), compiled in self._compiled.items()
            if (trains or not training) and (size == batch_size if exact else size >= batch_size)
        ]
        if self._ahead in fitting and not exact:
            return self._ahead
        return min(fitting, key=lambda compiled: compiled.batch_size, default=None)

    def _forget_if_changed(self) -> None:
        """Drops what was compiled before ``compile``, ``trainable`` or the optimizer changed."""
        model = self.model
        optimizer = getattr(model, "optimizer", None)
        fingerprint = (
            id(optimizer),
            id(getattr(model, "_compile_loss", None)),
            id(getattr(model, "_compile_metrics", None)),
            tuple(variable.trainable for variable in model.weights),
            tuple(layer.trainable for layer in model._flatten_layers()),
            constants(optimizer),
        )
        if fingerprint != self._fingerprint:
            if self._ahead is not None and self._fingerprint is not None:
                self.pull()
            for compiled in self._compiled.values():
                for name, count in compiled.session.counters.items():
                    self._past_counts[name] = self._past_counts.get(name, 0) + count
            self._compiled.clear()
            self.shares.forget()
            self._names = None
            self._fingerprint = fingerprint

    def counters(self) -> dict[str, int]:
        """The executors' counters, summed over everything that was compiled."""
        total = dict(self._past_counts)
        for compiled in self._compiled.values():
            for name, count in compiled.session.counters.items():
                total[name] = total.get(name, 0) + int(count)
        return total

    def count(self, prefix: str) -> int:
        """The sum of those `counters` whose names begin with ``prefix``."""
        every = [self._past_counts, *(c.session.counters for c in self._compiled.values())]
        return sum(
            int(n) for counters in every for name, n in counters.items() if name.startswith(prefix)
        )

    def trial(self, steps: int, batch_size: int, seed: int) -> Trial:
        """Returns random data for ``steps`` training steps from the model's present variables."""
        lowered = self.description(training=True)
        built = self.steps(batch_size, training=True)
        links = links_of(self.model, lowered, built)
        optimizer = self.model.optimizer
        first = int(number(optimizer._iterations))
        scalars = {"inv_count": np.full(steps, 1.0 / batch_size)}
        scalars.update(step_scalars(built, optimizer, first, steps))
        read = {node.name for function in built.functions.values() for node in function.inputs}
        samples = random_samples(lowered, steps * batch_size, seed)
        order = np.full((steps, self.shares.rows(batch_size, training=True)), -1)
        order[:, :batch_size] = np.arange(steps * batch_size).reshape(steps, batch_size)
        return Trial(
            data={name: array for name, array in samples.items() if name in read},
            order=order,
            scalars=scalars,
            states={
                link.state: read_variable(link).astype(np.float64) / link.scale for link in links
            },
            seeds=self._seeds.draw(first, steps) if built.seeded else None,
        )

    # Running -----------------------------------------------------------------------------------

    @property
    def rate_is_constant(self) -> bool:
        """Whether the learning rate is a number until somebody sets another one."""
        return is_constant(self.model.optimizer._learning_rate)

    def plan(self, compiled: Compiled, placed: Placed, epochs: int = 1) -> Planned:
        """Writes everything that training steps need to the device, without running them.

        Args:
            compiled: what is to run them.
            placed: their batches.
            epochs: in how many equal parts they will be run.
        """
        optimizer = self.model.optimizer
        first = self._first()
        steps = len(placed.counts)
        scalars = {"inv_count": 1.0 / placed.counts}
        scalars.update(step_scalars(compiled.steps, optimizer, first, steps))
        seeds = self._seeds.draw(first, steps) if compiled.steps.seeded else None
        with self._running(compiled):
            plan = compiled.session.plan(placed.dataset, placed.order, scalars, seeds)
        totals, constant = placed.totals(epochs), self.rate_is_constant
        return Planned(compiled, plan, first, steps // epochs, totals, constant)

    def train(self, planned: Planned, first: int = 0, parts: int = 1) -> list[Any]:
        """Runs parts of the planned steps; returns of each the sums of the metric states and saturations.

        The model and its optimizer are behind until `pull`.
        """
        with self._running(planned.compiled):
            at, steps = first * planned.steps, planned.steps
            done = planned.compiled.session.follow(planned.plan, at, steps, parts)
            at += parts * steps
            self._iterations = self.model.optimizer._iterations, planned.first + at
            if not planned.constant:
                # The user's code may look at it when it is asked for the next rate.
                self._write_iterations()
        return done

    def _first(self) -> int:
        if self._iterations is not None:
            return self._iterations[1]
        return int(number(self.model.optimizer._iterations))

    def _write_iterations(self) -> None:
        if self._iterations is not None:
            variable, number = self._iterations
            variable.assign(number)
            self._iterations = None

    def evaluate(self, compiled: Compiled, placed: Placed) -> dict[str, float]:
        """Runs evaluation steps and returns the sum of every metric state."""
        scalars = {"inv_count": 1.0 / placed.counts}
        return compiled.session.evaluate(placed.dataset, placed.order, scalars)

    def predict(self, compiled: Compiled, placed: Placed) -> np.ndarray:
        """Returns the outputs of the batches' samples, shape (samples, *output shape)."""
        (outputs,) = compiled.session.predict(placed.dataset, placed.order).values()
        return compiled.lowered.output_layout.unpack(outputs)

    def outputs_of_last_step(self, compiled: Compiled, samples: int) -> np.ndarray:
        """Returns the outputs that the last training step computed for its samples."""
        rows = compiled.session.read_states([OUTPUTS_STATE])[OUTPUTS_STATE][:samples]
        return compiled.lowered.output_layout.unpack(rows)

    @contextlib.contextmanager
    def _running(self, compiled: Compiled) -> Iterator[None]:
        """While steps run, the device is ahead of the model; after a failure nothing is known."""
        self._ahead = compiled
        try:
            yield
        except BaseException:
            compiled.synced.clear()
            self._ahead = self._iterations = None
            raise

    # Moving variables --------------------------------------------------------------------------

    def pull(self) -> None:
        """Reads trained variables back into the user's model and optimizer."""
        compiled = self._ahead
        if compiled is None:
            return
        self._write_iterations()
        trained = [link for link in compiled.links if link.state in compiled.trained]
        values = compiled.session.read_states([link.state for link in trained])
        for link in trained:
            # Exactly what the variable now reads as: float32 or float64, both hold it. A copy, for
            # the variable may have become a view of the array.
            compiled.synced[link.state] = _show(link, values[link.state]).copy()
        self._ahead = None

    def states(self, compiled: Compiled) -> dict[str, np.ndarray]:
        """The states of model and optimizer as the device has them, exact in float32; `pull` comes before.

        Sums of metrics begin anew behind it, as they do behind `restore`, so that both runs report the same.
        """
        compiled.session.begin_window()
        return compiled.session.read_states([link.state for link in compiled.links])

    def restore(self, compiled: Compiled, states: Mapping[str, np.ndarray]) -> None:
        """Sets what `states` has returned, here and in the user's variables."""
        compiled.session.begin_window()
        compiled.session.write_states(states)
        for link in compiled.links:
            _show(link, states[link.state])
            compiled.synced[link.state] = read_variable(link).copy()

    @property
    def seed_base(self) -> int:
        """That of the steps' seeds."""
        return self._seeds.base

    @seed_base.setter
    def seed_base(self, base: int) -> None:
        self._seeds.base = base

    def _push(self, compiled: Compiled) -> None:
        """Writes variables that someone has changed in the meantime, such as a callback."""
        changed: dict[str, np.ndarray] = {}
        scales: dict[str, float] = {}
        for link in compiled.links:
            value = read_variable(link)
            known = compiled.synced.get(link.state)
            if known is None or not np.array_equal(value, known):
                changed[link.state] = value.copy()
                scales[link.state] = link.scale
        if changed:
            compiled.session.write_states(
                {
                    state: value.astype(np.float64) / scales[state]
                    for state, value in changed.items()
                }
            )
            compiled.synced.update(changed)


def _show(link: Link, value: np.ndarray) -> np.ndarray:
    """Sets a variable to what a state stands for, and returns that in the state's shape."""
    value = value * np.float32(link.scale)
    link.variable.assign(link.layout.unpack(value).reshape(link.variable.shape))
    return value
