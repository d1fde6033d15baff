"""The inputs that a training or evaluation step adds to those of the model, by convention.

They stand in one place because losses, metrics, batch statistics and the host all refer to them.
Inputs that a function does not use are pruned from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpgrad.errors import GraphError
from fpgrad.graph import Function, Node
from fpgrad.graph import builder as g

SAMPLE_WEIGHT = "sample_weight"
VALID = "valid"
INV_COUNT = "inv_count"
SEED = "seed"


@dataclass(frozen=True)
class StepInputs:
    """What the host sends with each batch.

    sample_weight (N, 1): sample weight × class weight × valid. valid (N, 1): 1, or 0 for padding
    rows of a short batch. inv_count (1, 1): 1 / number of valid samples. seed: for dropout masks.
    """

    sample_weight: Node
    valid: Node
    inv_count: Node
    seed: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All of them, in the order in which they are declared."""
        return self.sample_weight, self.valid, self.inv_count, self.seed


def step_inputs(rows: int) -> StepInputs:
    """Fresh inputs for a compiled batch of `rows` samples."""
    return StepInputs(
        g.column_input(SAMPLE_WEIGHT, rows),
        g.column_input(VALID, rows),
        g.scalar_input(INV_COUNT),
        g.seed_input(SEED),
    )


def batch_rows(function: Function) -> int:
    """The compiled batch size N of a function, from its first batch input."""
    for node in function.inputs:
        if node.attrs["kind"] == "batch":
            return node.shape[0]
    raise GraphError(f"function {function.name!r} must have an input of kind 'batch'")
