"""Optimizers as compositions of gradient transforms, with the semantics of Keras 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fpgrad.errors import InvalidArgumentError
from fpgrad.graph import Node
from fpgrad.graph import builder as g
from fpgrad.graph.ops import Array
from fpgrad.transform.updates import (
    ClipByValue,
    Iterations,
    Rates,
    ScaleByAdam,
    ScaleByLearningRate,
    ScaleByRms,
    Slot,
    Trace,
    UpdateTransform,
)

DECAY = "decay"


@dataclass(frozen=True)
class Optimizer:
    """A chain of transforms whose result is added to the parameter.

    name: prefix of its scalar inputs. weight_decay: decoupled, W - W*weight_decay*learning_rate
    before the update, on parameters whose name is not in `undecayed`.
    """

    name: str
    chain: tuple[UpdateTransform, ...]
    weight_decay: float = 0.0
    undecayed: frozenset[str] = field(default_factory=frozenset)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The tensors kept beside each parameter, of the parameter's shape, zero at the start."""
        return tuple(slot for part in self.chain for slot in part.slots)

    def states(self, parameter: Node) -> dict[str, Node]:
        """The slots of one parameter as states of its shape and blocks, by slot name."""
        return {
            slot.name: g.state(
                slot_state(parameter.name, slot.name),
                parameter.shape,
                role="slot",
                blocks=parameter.attrs["blocks"],
            )
            for slot in self.slots
        }

    def host_scalars(self, learning_rate: Rates, iteration: Iterations) -> dict[str, Rates]:
        """The step's scalar inputs by input name, in float64.

        learning_rate: that of this step. iteration: steps done before it, as Keras's
        `optimizer.iterations`; numbers, or arrays with one number a step. Pure, so that a schedule or callback may change either.
        """
        scalars: dict[str, Rates] = {}
        for part in self.chain:
            scalars.update(part.host_scalars(learning_rate, iteration))
        if self.weight_decay:
            scalars[DECAY] = 1.0 - learning_rate * self.weight_decay
        return {self.input_name(name): value for name, value in scalars.items()}

    def scalar_inputs(self) -> dict[str, Node]:
        """Inputs of kind scalar, by the name the transforms use."""
        prefix = len(self.input_name(""))
        return {name[prefix:]: g.scalar_input(name) for name in self.host_scalars(0.0, 0)}

    def input_name(self, scalar: str) -> str:
        """The name of a scalar's input, such as "adam/step_size"."""
        return f"{self.name}/{scalar}"

    def update(
        self,
        parameter: Node,
        gradient: Node,
        states: Mapping[str, Node],
        scalars: Mapping[str, Node],
    ) -> tuple[Node, dict[str, Node]]:
        """(new parameter, new values of the slots by slot name)."""
        with g.naming(parameter.name):
            update = gradient
            new: dict[str, Node] = {}
            for part in self.chain:
                update, changed = part.update(update, states, scalars)
                new.update(changed)
            base = parameter
            if self.weight_decay and parameter.name not in self.undecayed:
                base = g.mul(parameter, scalars[DECAY])
            return g.add(update, base), new

    def to_keras(self, slot: str, stored: Array) -> Array:
        """A slot's value as Keras holds it."""
        return np.asarray(stored, dtype=np.float64) * self._scale(slot)

    def from_keras(self, slot: str, value: Array) -> Array:
        """What to store for a slot to which Keras gives `value`."""
        return np.asarray(value, dtype=np.float64) / self._scale(slot)

    def _scale(self, name: str) -> float:
        for slot in self.slots:
            if slot.name == name:
                return slot.scale
        names = [slot.name for slot in self.slots]
        raise InvalidArgumentError(f"slot of {self.name!r} must be one of {names}, not {name!r}")


def slot_state(parameter: str, slot: str) -> str:
    """The name of a slot's state, such as "dense/kernel:velocity"."""
    return f"{parameter}:{slot}"


def sgd(
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float | None = None,
    clipvalue: float | None = None,
    undecayed: frozenset[str] = frozenset(),
    name: str = "sgd",
) -> Optimizer:
    """keras.optimizers.SGD: m = momentum*m - lr*g; W + m, or W + momentum*m - lr*g (Nesterov)."""
    trace = (Trace(momentum, nesterov),) if momentum else ()
    chain = (*_clip(clipvalue), ScaleByLearningRate(), *trace)
    return Optimizer(name, chain, weight_decay or 0.0, undecayed)


def rmsprop(
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-7,
    centered: bool = False,
    weight_decay: float | None = None,
    clipvalue: float | None = None,
    undecayed: frozenset[str] = frozenset(),
    name: str = "rmsprop",
) -> Optimizer:
    """keras.optimizers.RMSprop: m = momentum*m + lr*g/sqrt(v + epsilon); W - m."""
    scale = ScaleByRms(rho, epsilon, centered)
    trace = (Trace(momentum, sign=-1.0),) if momentum > 0.0 else ()
    chain = (*_clip(clipvalue), scale, ScaleByLearningRate(scale.step_factor), *trace)
    return Optimizer(name, chain, weight_decay or 0.0, undecayed)


def adam(
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    amsgrad: bool = False,
    weight_decay: float | None = None,
    clipvalue: float | None = None,
    undecayed: frozenset[str] = frozenset(),
    epsilon_inside: bool = True,
    name: str = "adam",
) -> Optimizer:
    """keras.optimizers.Adam; `epsilon_inside` as in ScaleByAdam."""
    scale = ScaleByAdam(beta_1, beta_2, epsilon, amsgrad, epsilon_inside)
    return Optimizer(name, (*_clip(clipvalue), scale), weight_decay or 0.0, undecayed)


def adamw(
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    amsgrad: bool = False,
    weight_decay: float = 0.004,
    clipvalue: float | None = None,
    undecayed: frozenset[str] = frozenset(),
    epsilon_inside: bool = True,
    name: str = "adamw",
) -> Optimizer:
    """keras.optimizers.AdamW: Adam with decoupled weight decay by default."""
    return adam(
        beta_1, beta_2, epsilon, amsgrad, weight_decay, clipvalue, undecayed, epsilon_inside, name
    )


def _clip(clipvalue: float | None) -> tuple[UpdateTransform, ...]:
    # Keras takes None and 0 alike for "no clipping".
    return (ClipByValue(clipvalue),) if clipvalue else ()
