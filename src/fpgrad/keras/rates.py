"""What a Keras optimizer says of each step: its learning rates, and the scalars that follow from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops
from keras.optimizers import schedules

from fpgrad.keras.functions import Steps

__all__ = ["constants", "is_constant", "number", "step_scalars"]


def constants(optimizer: Any) -> tuple[object, ...]:
    """The optimizer's own arguments, which are constants of the compiled step."""
    names = ("momentum", "nesterov", "rho", "epsilon", "centered", "beta_1", "beta_2", "amsgrad")
    shared = ("weight_decay", "clipvalue", "clipnorm", "global_clipnorm", "use_ema")
    return tuple(getattr(optimizer, name, None) for name in (*names, *shared))


def step_scalars(steps: Steps, optimizer: Any, first: int, count: int) -> dict[str, np.ndarray]:
    """The optimizer's scalar inputs for ``count`` steps behind ``first`` others, each of shape (count,)."""
    assert steps.optimizer is not None
    rates = _learning_rates(optimizer, first, count)
    scalars = steps.optimizer.host_scalars(rates, np.arange(first, first + count))
    return {name: np.broadcast_to(values, (count,)) for name, values in scalars.items()}


def _learning_rates(optimizer: Any, first: int, count: int) -> np.ndarray:
    """The learning rate of each step: a schedule's, a function's, or the variable's."""
    rate = optimizer._learning_rate
    if is_constant(rate):
        return np.full(count, number(rate))
    if isinstance(rate, schedules.LearningRateSchedule):
        return np.array([number(rate(first + step)) for step in range(count)])
    return np.array([number(rate()) for _ in range(count)])


def is_constant(rate: Any) -> bool:
    """Whether a learning rate is a number, until somebody sets another one."""
    if isinstance(rate, schedules.LearningRateSchedule):
        return False
    return not callable(rate) or hasattr(rate, "assign")


def number(scalar: Any) -> float:
    """A Keras scalar, variable or tensor as a Python number."""
    return float(np.asarray(ops.convert_to_numpy(scalar)))
