"""Layers that change a tensor's shape and not its numbers.

Nothing is moved here. A map stays a map under its new shape, until a layer needs its numbers in
another place: most often none does, because Dense reads a flattened map where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fpgrad.frontend.keras.context import Context, Grid, Value
from fpgrad.frontend.keras.maps import MIXED_FORMATS
from fpgrad.frontend.keras.options import check_layer_options
from fpgrad.frontend.keras.registry import lowers


@lowers("core.identity.Identity", "reshaping.reshape.Reshape")
def reshape(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Only the user's shape changes."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    shape = tuple(layer.compute_output_shape((context.batch_size, *x.shape))[1:])
    return replace(x, shape=shape)


@lowers("reshaping.flatten.Flatten")
def flatten(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """All numbers of a sample; channels_first puts the channels last before it."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    flat = replace(x, shape=(x.features,))
    if layer.data_format != "channels_first" or len(x.shape) == 1:
        return flat
    if len(x.shape) in (2, 3):
        wanted = Grid.of(x.shape, channels_first=True)
        if wanted.order is None and x.order is None:
            return flat
        if x.grid is not None and x.order == wanted.order:
            return replace(flat, grid=replace(x.grid, channels_first=False))
    context.report(
        layer.name,
        f"data_format='channels_first' does not fit the order of its input of shape "
        f"{(None, *x.shape)}",
        MIXED_FORMATS,
    )
    return flat
