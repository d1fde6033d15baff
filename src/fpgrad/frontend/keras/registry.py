"""The one table of layer handlers, filled by the modules that hold them."""

from __future__ import annotations

from collections.abc import Callable

from fpgrad.frontend.keras.context import Handler

LAYERS: dict[str, Handler] = {}
"""Handlers by qualified class name; `lowers` enters them.

A subclass of a Keras layer has another name and so is reported: nobody can know what its ``call``
does.
"""

_SRC = "keras.src.layers."


def lowers(*names: str) -> Callable[[Handler], Handler]:
    """Enters a handler for the classes of ``keras.src.layers`` with these qualified names."""

    def enter(handler: Handler) -> Handler:
        for name in names:
            LAYERS[name if name.startswith("keras.") else _SRC + name] = handler
        return handler

    return enter
