"""Checks of the options that many layers share: each is honoured or reported by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpgrad.frontend.keras.context import Context

_CONSTRAINTS = (
    "kernel_constraint",
    "bias_constraint",
    "depthwise_constraint",
    "pointwise_constraint",
    "beta_constraint",
    "gamma_constraint",
)

_DTYPES = ("float32", "float64")


def check_layer_options(context: Context, layer: Any, arguments: Mapping[str, Any]) -> None:
    """Reports what no layer may have: constraints, quantised or mixed dtypes, call arguments."""
    for option in _CONSTRAINTS:
        if getattr(layer, option, None) is not None:
            name = type(getattr(layer, option)).__name__
            context.report(
                layer.name,
                f"{option}={name} is not supported",
                "leave constraints away, or use a regularizer",
            )
    if getattr(layer, "activity_regularizer", None) is not None:
        context.report(
            layer.name,
            f"activity_regularizer={type(layer.activity_regularizer).__name__} is not supported",
            "regularize the kernel or the bias",
        )
    if getattr(layer, "lora_rank", None) or getattr(layer, "lora_enabled", False):
        context.report(layer.name, "LoRA is not supported", "train the whole kernel")
    _check_dtype(context, layer)
    for name, value in arguments.items():
        if value is not None:
            context.report(
                layer.name,
                f"call argument {name}={value!r} is not supported",
                "call the layer with its inputs only",
            )


def _check_dtype(context: Context, layer: Any) -> None:
    policy = getattr(layer, "dtype_policy", None)
    if policy is None:
        return
    compute, variable = policy.compute_dtype, policy.variable_dtype
    if getattr(policy, "quantization_mode", None) is not None or not (
        compute == variable and compute in _DTYPES
    ):
        context.report(
            layer.name,
            f"dtype policy {policy.name!r} is not supported",
            "use dtype='float32': the machine's number formats are set by FPGA(model, config=...)",
        )
