"""Layers and phases, read off the names that nodes keep from the user's model."""

from __future__ import annotations

from fpgrad.graph import Node
from fpgrad.transform.recompute import AGAIN


def phase_of(node: Node) -> str:
    """The phase of the training step that a node belongs to.

    Passes name what they make for a parameter after it ("dense/kernel"), and gradients by a suffix.
    """
    if is_again(node):
        return "recompute"
    gradient = ":grad" in node.name
    if "/" in node.name:
        return "gradient" if gradient else "update"
    return "backward" if gradient else "forward"


def is_again(node: Node) -> bool:
    """Whether a node of the forward pass is computed a second time for the backward pass."""
    return node.name.endswith(AGAIN)


def layer_of(node: Node) -> str:
    """The user's layer that a node belongs to."""
    return node.name.split(":")[0].split("/")[0]
