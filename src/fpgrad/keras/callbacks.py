"""Which callbacks must be called at every step, and which may be called once for many steps.

The machine runs thousands of steps by itself; stopping it after each one for a callback that does
nothing there would cost most of its speed.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras.src.utils import is_default

from fpgrad.keras.adapters import CallbackList

Phase = Literal["train", "test", "predict"]

_EPOCH_SAFE = (
    # Draws a bar: drawn less often.
    keras.callbacks.ProgbarLogger,
    # Looks for NaN, which the machine does not have.
    keras.callbacks.TerminateOnNaN,
)


def needs_every_step(callbacks: Any, phase: Phase) -> bool:
    """Says whether a callback of the list acts on single batches of ``phase``."""
    return any(_acts_on_batches(callback, phase) for callback in callbacks.callbacks)


def hears_of_batches(callbacks: Any, phase: Phase) -> bool:
    """Says whether a callback of the list, or the list, does anything when batches of ``phase`` run."""
    return type(callbacks) is not CallbackList or any(
        _batch_methods(callback, phase) for callback in callbacks.callbacks
    )


def has_watchers(callbacks: Any) -> bool:
    """Says whether any callback may look at the model, or change it."""
    blind = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
    return any(type(callback) not in blind for callback in callbacks.callbacks)


def _acts_on_batches(callback: Any, phase: Phase) -> bool:
    own = _batch_methods(callback, phase)
    if not own:
        return False
    known = next((cls for cls in _KNOWN if isinstance(callback, cls)), None)
    # A subclass with its own method may do anything.
    if known is None or any(
        getattr(type(callback), name) is not getattr(known, name) for name in own
    ):
        return True
    return _KNOWN[known](callback)


def _batch_methods(callback: Any, phase: Phase) -> list[str]:
    """The batch methods that a callback has of its own."""
    names = [f"on_{phase}_batch_begin", f"on_{phase}_batch_end"]
    if phase == "train":
        names += ["on_batch_begin", "on_batch_end"]
    return [name for name in names if not is_default(getattr(callback, name))]


def _by_frequency(attribute: str) -> Any:
    return lambda callback: getattr(callback, attribute) not in ("epoch", False)


_KNOWN: dict[type, Any] = {
    **dict.fromkeys(_EPOCH_SAFE, lambda _: False),
    keras.callbacks.ModelCheckpoint: _by_frequency("save_freq"),
    keras.callbacks.BackupAndRestore: _by_frequency("save_freq"),
    keras.callbacks.TensorBoard: lambda callback: (
        callback.update_freq != "epoch"
        or bool(getattr(callback, "_should_trace", False))
        or bool(callback.write_steps_per_second)
    ),
}
"""Keras's own callbacks with batch methods: whether this one is set to act on batches."""
