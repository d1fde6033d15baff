"""One program for several cores: where each finds its samples and seeds, and leaves what only it has.

All else lies in one place for all cores: they load the same weights, and store the same. Cores share either the
samples of a batch or the channels of the layers; then all load the same samples, and store the same outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from fpgrad.codegen.names import layer_of, phase_of
from fpgrad.codegen.steps import StepList
from fpgrad.codegen.storage import ceil_div
from fpgrad.errors import GraphError
from fpgrad.graph import ALL_SUM, PICK, SPREAD, STACK, Function, Node, Parts, describe
from fpgrad.isa.config import MachineConfig
from fpgrad.transform import partial_sums


def channels_shared(functions: Mapping[str, Function], cores: int) -> bool:
    """Whether cores share channels, not samples.

    Raises:
        GraphError: tensors are in parts for another number of cores.
    """
    for name, function in functions.items():
        for tensor, parts in function.parts.items():
            if parts.cores != cores:
                raise GraphError(
                    f"{name}: {tensor!r} is in parts for {parts.cores} cores, the machine has {cores}; lower the "
                    "functions with their number"
                )
    return any(function.parts or shared_maps(function) for function in functions.values())


def shared_maps(function: Function) -> set[Node]:
    """The tensors of which each core has a band of rows: what is made of bands, up to what puts them together."""
    found: set[Node] = set()
    for node in function.nodes():
        made = node.op in (PICK, STACK) or (node.op == "unfold" and node.attrs["cores"] > 1)
        follows = node.op not in (ALL_SUM, SPREAD, "flatten", "conv_weight") and any(
            x in found and x.shape[0] > 1 for x in node.inputs
        )
        summed = (node.op == "matmul" and node.attrs["ta"]) or node.op.startswith("reduce")
        if made or (follows and not summed):
            found.add(node)
    return found


def divided_layers(functions: Mapping[str, Function]) -> dict[str, str]:
    """How cores share the work of each layer, in the order of the forward pass: by "positions" of its map, or its kernel
    by "outputs", "inputs" or "groups" of channels; of none, it is "whole" on each."""
    found: dict[str, str] = {}
    for function in functions.values():
        maps = shared_maps(function)
        for node in function.nodes():
            if node.op not in ("matmul", "conv") or phase_of(node) != "forward":
                continue
            for x in node.inputs:
                (kernel,) = x.inputs
                if kernel.op == "state":
                    turned = node.attrs["tb" if node.op == "matmul" else "transposed_weights"]
                    how = _how(function.parts.get(kernel.name), bool(turned))
                    how = "positions" if node in maps else how
                    found.setdefault(layer_of(kernel), how)
    return found


def _how(parts: Parts | None, turned: bool) -> str:
    if parts is None:
        return "whole"
    if parts.rows is not None and parts.columns is not None:
        return "groups"
    return "inputs" if (parts.rows is None) == turned else "outputs"


def spread(steps: StepList, cores: int, side: int) -> None:
    """Give each core rows of its own of what comes and goes with every step.

    Of a step's order of samples, seeds and outputs, the rows of core c lie behind those of core c - 1.
    """
    for load in (*steps.loads, *steps.fetches):
        if load.index is not None:
            rows = load.index_stride or ceil_div(load.groups, side)
            load.index_stride, load.index_core_stride = cores * rows, rows
        elif load.base == "seed":
            load.step_stride, load.core_stride = cores, 1
    for store in steps.stores:
        store.step_stride, store.core_stride = cores * store.step_stride, store.step_stride


def input_cycles(steps: StepList, config: MachineConfig) -> int:
    """Cycles in which external memory sends all cores the inputs of a step."""
    rows = sum(load.groups * load.rows for load in (*steps.loads, *steps.fetches))
    return config.cores * rows * config.side // config.memory.dram_words_per_cycle


def check_divided(functions: Mapping[str, Function]) -> None:
    """Raise unless the functions are those of one of several cores.

    Raises:
        GraphError: one of them has a sum over samples that is not summed over cores.
    """
    for name, function in functions.items():
        missing = partial_sums(function)
        if missing:
            raise GraphError(
                f"{name}: {describe(missing[0])} must be summed over the cores of the machine; lower the function with "
                "their number"
            )


def per_sample(state: Node, samples: int) -> bool:
    """Whether a state has a number (or a row) a sample: then each core has another part of it."""
    return state.attrs["role"] == "metric" and state.shape[0] == samples
