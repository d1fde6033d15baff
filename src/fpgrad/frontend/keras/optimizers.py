"""Keras's optimizers: every argument is carried over, or reported by name.

The learning rate is not carried over: it is read from the optimizer before every step, so that
schedules and callbacks act.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpgrad.errors import Problem
from fpgrad.frontend.lowered import OptimizerSpec

_SRC = "keras.src.optimizers."

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    f"{_SRC}sgd.SGD": ("sgd", ("momentum", "nesterov")),
    f"{_SRC}rmsprop.RMSprop": ("rmsprop", ("rho", "momentum", "epsilon", "centered")),
    f"{_SRC}adam.Adam": ("adam", ("beta_1", "beta_2", "epsilon", "amsgrad")),
    f"{_SRC}adamw.AdamW": ("adam", ("beta_1", "beta_2", "epsilon", "amsgrad")),
}
"""Optimizer classes: the kind, and the arguments that are its own.

AdamW is Adam with weight decay in Keras: every optimizer's ``weight_decay`` is decoupled.
"""

_SHARED = ("weight_decay", "clipvalue")

_REFUSED = {
    "clipnorm": "use clipvalue: a norm needs the whole gradient before its first element",
    "global_clipnorm": "use clipvalue: a norm needs the whole gradient before its first element",
    "use_ema": "average the weights yourself with a callback",
    "gradient_accumulation_steps": "use a larger batch_size instead",
    "loss_scale_factor": "leave it away: gradients have 8-bit exponents and do not underflow",
}


def lower_optimizer(
    optimizer: Any, parameters: Mapping[str, Any]
) -> tuple[OptimizerSpec | None, list[Problem]]:
    """Returns the optimizer's description and what of it is not supported.

    Args:
        optimizer: the Keras optimizer of a compiled model.
        parameters: the trainable Keras variables by the names of their states.
    """
    name = type(optimizer).__name__
    where = f"optimizer {name}"
    found = _kind_of(type(optimizer))
    if found is None:
        supported = ", ".join(key.rpartition(".")[2] for key in KINDS)
        return None, [Problem(where, "is not supported", f"use one of {supported}")]
    kind, own = found
    problems = [
        Problem(where, f"{option}={getattr(optimizer, option)!r} is not supported", remedy)
        for option, remedy in _REFUSED.items()
        if getattr(optimizer, option, None)
    ]
    arguments = {option: getattr(optimizer, option) for option in (*own, *_SHARED)}
    excluded: set[str] = set()
    if arguments["weight_decay"]:
        excluded = {
            state
            for state, variable in parameters.items()
            if not optimizer._use_weight_decay(variable)
        }
    return OptimizerSpec(kind, arguments, frozenset(excluded)), problems


def _kind_of(cls: type) -> tuple[str, tuple[str, ...]] | None:
    """The kind of an optimizer class.

    Some backends put a class of their own, with the same name and meaning, below Keras's.
    """
    if not cls.__module__.startswith("keras.src."):
        return None
    for base in cls.__mro__:
        found = KINDS.get(f"{base.__module__}.{base.__qualname__}")
        if found is not None and base.__name__ == cls.__name__:
            return found
    return None
