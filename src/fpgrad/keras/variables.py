"""The Keras variables that a step reads and writes, each with its state on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from fpgrad.frontend.lowered import Lowered
from fpgrad.frontend.weights import KernelLayout
from fpgrad.keras.functions import Steps
from fpgrad.transform import slot_state

__all__ = ["Link", "links_of", "read_variable"]

KERAS_SLOTS = {
    "momentum": ("_momentums", "momentums"),
    "velocity": ("_velocities",),
    "velocity_hat": ("_velocity_hats",),
    "average_gradient": ("_average_gradients",),
}
"""Where Keras's optimizers keep the list of variables of a slot."""


@dataclass(frozen=True)
class Link:
    """One Keras variable and the state that holds ``variable / scale``."""

    state: str
    variable: Any
    layout: KernelLayout
    scale: float = 1.0


def read_variable(link: Link) -> np.ndarray:
    """The variable as an array of the state's shape, which may be a view of its memory."""
    value = np.asarray(ops.convert_to_numpy(link.variable.value))
    if value.dtype not in (np.float32, np.float64):
        value = value.astype(np.float64)
    return link.layout.pack(value)


def links_of(model: Any, lowered: Lowered, steps: Steps) -> tuple[Link, ...]:
    """The weights and the optimizer's slots that the functions of ``steps`` read or write."""
    links = [Link(b.state, b.variable, b.layout) for b in lowered.variables]
    if steps.optimizer is None:
        return tuple(links)
    optimizer = model.optimizer
    states = {state.name for state in steps.functions["train"].states}
    for binding in lowered.variables:
        if not binding.trainable:
            continue
        index = optimizer._get_variable_index(binding.variable)
        for slot in steps.optimizer.slots:
            name = slot_state(binding.state, slot.name)
            if name in states:
                variable = _slot_variables(optimizer, slot.name)[index]
                links.append(Link(name, variable, binding.layout, slot.scale))
    return tuple(link for link in links if link.state in states)


def _slot_variables(optimizer: Any, slot: str) -> list[Any]:
    for attribute in KERAS_SLOTS[slot]:
        if hasattr(optimizer, attribute):
            return getattr(optimizer, attribute)
    raise AssertionError(f"{type(optimizer).__name__} has no variables for {slot}")
