"""The named pipeline from a training, evaluation or prediction function to what codegen takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fpgrad.errors import GraphError, GraphVerifyError
from fpgrad.graph import Function, verify
from fpgrad.transform.accumulate import Accumulate
from fpgrad.transform.choice import choose
from fpgrad.transform.cores import SumOverCores
from fpgrad.transform.decompose import Decompose
from fpgrad.transform.pools import MaxPoolBeforeRelu
from fpgrad.transform.products import QuantiseOperands, RowSumsOnArray
from fpgrad.transform.recompute import Recompute
from fpgrad.transform.rewrite import Pass
from fpgrad.transform.simplify import Simplify

FORWARD: tuple[Pass, ...] = (MaxPoolBeforeRelu(),)
"""On the forward function, before its mode is resolved and it is differentiated."""

LOWERING: tuple[Pass, ...] = (Decompose(), Simplify(), RowSumsOnArray(), QuantiseOperands())
"""From stage `training` to stage `quantised`, for one core."""


def lowering(cores: int, parts: int = 1, recompute: Recompute | None = None) -> tuple[Pass, ...]:
    """From stage `training` to stage `quantised`, for a machine of so many cores and by so many micro-batches."""
    *passes, last = LOWERING
    if cores > 1:
        passes.append(SumOverCores())
    if recompute is not None:
        passes.append(recompute)
    if parts > 1:
        passes.append(Accumulate(parts))
    return (*passes, last)


def run_pass(one: Pass, function: Function) -> Function:
    """Runs one pass, verified in and out; an error names the pass and the side."""
    wanted, delivered = one.stages
    try:
        verify(function, wanted)
    except GraphVerifyError as error:
        raise GraphVerifyError(f"before pass {one.name!r}: {error}") from None
    result = one.run(function)
    try:
        return verify(result, delivered)
    except GraphVerifyError as error:
        raise GraphVerifyError(f"after pass {one.name!r}: {error}") from None


def run_pipeline(
    passes: Sequence[Pass],
    function: Function,
    observe: Callable[[str, Function], None] | None = None,
) -> Function:
    """Runs `passes` in order; `observe(pass name, result)` sees each result, for dumps."""
    stage: str | None = None
    for one in passes:
        if stage is not None and one.stages[0] != stage:
            raise GraphError(f"pass {one.name!r} wants stage {one.stages[0]!r}, not {stage!r}")
        function = run_pass(one, function)
        stage = one.stages[1]
        if observe is not None:
            observe(one.name, function)
    return function


def lower(
    function: Function,
    observe: Callable[[str, Function], None] | None = None,
    cores: int = 1,
    parts: int = 1,
    recompute: Recompute | None = None,
) -> Function:
    """A function of stage `training` to stage `quantised`, ready for code generation.

    cores: of the machine. With several, the function's batch is the part that one core has.
    parts: micro-batches that a core computes one by one; the function's batch is one of them, and the result's all.
    recompute: what is computed again in the backward pass; None: nothing.
    """
    return run_pipeline(lowering(cores, parts, recompute), function, observe)


def lower_split(
    functions: Mapping[str, Function],
    cores: int,
    side: int,
    forward: str = "predict",
    judged: str = "train",
    *,
    by_rows: bool = True,
) -> dict[str, Function] | None:
    """Functions of stage `training` for the whole batch to stage `quantised`, layers divided among cores.

    cores, side: of the machine and its tiles. forward: the function that has all parameters and moving
    statistics. judged: the one that is to be fast, else the forward function. by_rows: whether maps may be
    divided by their rows. Returns None when nothing is gained by dividing.
    """
    *before, last = LOWERING
    ready = {name: run_pipeline(before, function) for name, function in functions.items()}
    judged = judged if judged in ready else forward
    choice = choose(ready, forward, judged, cores, side, by_rows=by_rows)
    if choice is None:
        return None
    passes = (choice.passed(cores), last)
    return {name: run_pipeline(passes, f) for name, f in ready.items()}
