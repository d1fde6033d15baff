"""Gradient transforms: the small pure pieces that optimizers are composed of.

Each takes the update so far (first the gradient) and its slots, and gives the next update and the
slots' new values. The last update of a chain is added to the parameter. What changes from step to
step is computed by the host in float64 and comes in as scalars.

Slots are scaled so that a step takes few passes of the vector unit, which does (a*b + c)*d in one;
`Slot.scale` says how to get Keras's value back. A moving average v = beta*v + (1 - beta)*q is kept
without its factor 1 - beta, and where q is itself a product also with the decay of the next step
already applied: S' = (g*g + S)*beta is one pass, where beta*S + g*g would be two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fpgrad.errors import InvalidArgumentError
from fpgrad.graph import Node
from fpgrad.graph import builder as g

Rates: TypeAlias = float | NDArray[np.float64]
"""Learning rates, or scalars made of them: one number, or one for each of several steps."""

Iterations: TypeAlias = int | NDArray[np.integer[Any]]
"""Numbers of steps, from 0."""


@dataclass(frozen=True)
class Slot:
    """A tensor that an optimizer keeps beside each parameter, zero at the start.

    name: Keras's name of the variable. scale: Keras's value = scale × the stored one.
    """

    name: str
    scale: float = 1.0


Slots = Mapping[str, Node]


class UpdateTransform(Protocol):
    """One piece of an optimizer."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The tensors kept beside each parameter."""
        ...

    def host_scalars(self, learning_rate: Rates, iteration: Iterations, /) -> dict[str, Rates]:
        """The scalars of the step with 0-based number `iteration`, in float64."""
        ...

    def update(self, update: Node, slots: Slots, scalars: Slots, /) -> tuple[Node, dict[str, Node]]:
        """(next update, new values of all slots)."""
        ...


@dataclass(frozen=True)
class ClipByValue:
    """Limits each element to [-limit, limit]."""

    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0.0:
            raise InvalidArgumentError(f"clipvalue must be positive, not {self.limit!r}")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """None."""
        return ()

    def host_scalars(self, _learning_rate: Rates, _iteration: Iterations, /) -> dict[str, Rates]:
        """None."""
        return {}

    def update(
        self, update: Node, _slots: Slots, _scalars: Slots, /
    ) -> tuple[Node, dict[str, Node]]:
        """Min and max."""
        return g.maximum(g.minimum(update, self.limit), -self.limit), {}


@dataclass(frozen=True)
class ScaleByLearningRate:
    """Multiplies by step_size = -learning_rate*factor."""

    factor: float = 1.0

    @property
    def slots(self) -> tuple[Slot, ...]:
        """None."""
        return ()

    def host_scalars(self, learning_rate: Rates, _iteration: Iterations, /) -> dict[str, Rates]:
        """step_size."""
        return {"step_size": -learning_rate * self.factor}

    def update(
        self, update: Node, _slots: Slots, scalars: Slots, /
    ) -> tuple[Node, dict[str, Node]]:
        """One multiplication."""
        return g.mul(update, scalars["step_size"]), {}


@dataclass(frozen=True)
class Trace:
    """Momentum, after the learning rate: m' = momentum*m + u; gives m', or momentum*m' + u.

    The slot holds momentum*m. sign: Keras's variable is sign × m (RMSprop subtracts its momentum,
    SGD adds it).
    """

    momentum: float
    nesterov: bool = False
    sign: float = 1.0

    def __post_init__(self) -> None:
        _check_unit("momentum", self.momentum, closed=True)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum, decayed once more."""
        return (Slot("momentum", self.sign / (self.momentum or 1.0)),)

    def host_scalars(self, _learning_rate: Rates, _iteration: Iterations, /) -> dict[str, Rates]:
        """None."""
        return {}

    def update(
        self, update: Node, slots: Slots, _scalars: Slots, /
    ) -> tuple[Node, dict[str, Node]]:
        """S' = (u + S)*momentum; gives S'/momentum, or S' + u with Nesterov."""
        decayed = _accumulate(slots["momentum"], self.momentum, update)
        if self.nesterov:
            return g.add(update, decayed), {"momentum": decayed}
        return g.mul(decayed, 1.0 / (self.momentum or 1.0)), {"momentum": decayed}


@dataclass(frozen=True)
class ScaleByRms:
    """g/sqrt(v + epsilon), with v the moving mean of g², less the squared moving mean of g if
    centered; times sqrt(1 - rho)/sqrt(rho), which `step_factor` undoes.
    """

    rho: float
    epsilon: float
    centered: bool = False

    def __post_init__(self) -> None:
        _check_unit("rho", self.rho)

    @property
    def step_factor(self) -> float:
        """What the step size has to be multiplied by."""
        return math.sqrt((self.rho or 1.0) / (1.0 - self.rho))

    @property
    def slots(self) -> tuple[Slot, ...]:
        """velocity*rho/(1 - rho), and average_gradient/(1 - rho) when centered."""
        velocity = Slot("velocity", (1.0 - self.rho) / (self.rho or 1.0))
        return (
            (velocity, Slot("average_gradient", 1.0 - self.rho)) if self.centered else (velocity,)
        )

    def host_scalars(self, _learning_rate: Rates, _iteration: Iterations, /) -> dict[str, Rates]:
        """None."""
        return {}

    def update(
        self, update: Node, slots: Slots, _scalars: Slots, /
    ) -> tuple[Node, dict[str, Node]]:
        """V' = (g² + V)*rho; A' = rho*A + g; g*rsqrt(V' - k*A'² + epsilon*rho/(1-rho))."""
        decay = self.rho or 1.0
        velocity = _accumulate(slots["velocity"], self.rho, g.mul(update, update))
        new = {"velocity": velocity}
        variance = velocity
        if self.centered:
            average = g.add(g.mul(slots["average_gradient"], self.rho), update)
            new["average_gradient"] = average
            squared = g.mul(g.mul(average, average), decay * (1.0 - self.rho))
            # Never negative in exact arithmetic; rounding must not make it so.
            variance = g.maximum(g.sub(velocity, squared), 0.0)
        root = g.rsqrt(g.add(variance, self.epsilon * decay / (1.0 - self.rho)))
        return g.mul(root, update), new


@dataclass(frozen=True)
class ScaleByAdam:
    """The whole of Adam but the addition: -alpha*m/(sqrt(v) + epsilon).

    epsilon_inside: compute m/sqrt(v + epsilon²) instead, one pass less. The two agree but where
    sqrt(v) is near epsilon, so it is meant for epsilons far below the gradients (1e-7); pass False
    for large ones.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False
    epsilon_inside: bool = True

    def __post_init__(self) -> None:
        _check_unit("beta_1", self.beta_1)
        _check_unit("beta_2", self.beta_2)

    @property
    def _velocity_scale(self) -> float:
        return (1.0 - self.beta_2) / (self.beta_2 or 1.0)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """momentum/(1-beta_1), velocity*beta_2/(1-beta_2), with amsgrad velocity_hat likewise."""
        momentum = Slot("momentum", 1.0 - self.beta_1)
        velocity = Slot("velocity", self._velocity_scale)
        if self.amsgrad:
            return momentum, velocity, Slot("velocity_hat", self._velocity_scale)
        return momentum, velocity

    def host_scalars(self, learning_rate: Rates, iteration: Iterations, /) -> dict[str, Rates]:
        """step_size = -lr*sqrt(1 - beta_2^t)/(1 - beta_1^t) * (1-beta_1)*sqrt(beta_2/(1-beta_2))."""
        t = iteration + 1
        corrected = np.sqrt(1.0 - self.beta_2**t) / (1.0 - self.beta_1**t)
        scale = (1.0 - self.beta_1) / math.sqrt(self._velocity_scale)
        return {"step_size": -learning_rate * corrected * scale}

    def update(self, update: Node, slots: Slots, scalars: Slots, /) -> tuple[Node, dict[str, Node]]:
        """M' = beta_1*M + g; V' = (g² + V)*beta_2; step_size*M'*rsqrt(V' + epsilon²/scale)."""
        momentum = g.add(g.mul(slots["momentum"], self.beta_1), update)
        velocity = _accumulate(slots["velocity"], self.beta_2, g.mul(update, update))
        new = {"momentum": momentum, "velocity": velocity}
        if self.amsgrad:
            velocity = g.maximum(slots["velocity_hat"], velocity)
            new["velocity_hat"] = velocity
        if self.epsilon_inside:
            inverse = g.rsqrt(g.add(velocity, self.epsilon**2 / self._velocity_scale))
        else:
            root = g.unary("sqrt", velocity)
            inverse = g.reciprocal(g.add(root, self.epsilon / math.sqrt(self._velocity_scale)))
        return g.mul(g.mul(inverse, momentum), scalars["step_size"]), new


def _accumulate(previous: Node, decay: float, term: Node) -> Node:
    """(term + previous)*decay, where `previous` has been decayed already."""
    return g.mul(g.add(term, previous), decay) if decay else term


def _check_unit(name: str, value: float, closed: bool = False) -> None:
    if not (0.0 <= value < 1.0 or (closed and value == 1.0)):
        raise InvalidArgumentError(
            f"{name} must be in [0, 1{']' if closed else ')'}, not {value!r}"
        )
