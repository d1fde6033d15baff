"""The rules a function keeps at each stage of compilation, checked between all passes."""

from __future__ import annotations

from collections.abc import Sequence

from fpgrad.errors import GraphError, GraphVerifyError
from fpgrad.graph.batches import JOIN, TAKE
from fpgrad.graph.node import Function, Node
from fpgrad.graph.ops import LEAF_ATTRS, OPS
from fpgrad.graph.window import taps

STAGES = ("forward", "training", "machine", "quantised")
"""In order: a front end's model; with modes expanded and updates; machine ops only; with operands
of products quantised. Each stage keeps the rules of those before it, except that only `forward`
may hold dropouts and batch_norm."""

MODE_OPS = ("dropout", "spatial_dropout", "batch_norm")
"""Ops whose meaning depends on training or inference; resolved before stage `training`."""


def verify(function: Function, stage: str) -> Function:
    """Returns `function` when it keeps the rules of `stage`; GraphVerifyError lists all breaches."""
    if stage not in STAGES:
        raise GraphError(f"stage must be one of {STAGES}, not {stage!r}")
    problems: list[str] = []
    nodes = function.nodes()
    _check_declarations(function, nodes, problems)
    for node in nodes:
        _check_node(node, problems)
        _check_stage(node, stage, problems)
    if stage == "forward" and function.updates:
        problems.append("a forward function has no updates; those come with the training step")
    if stage == "quantised":
        _check_sharing(nodes, problems)
    if problems:
        listed = "\n  ".join(problems)
        raise GraphVerifyError(f"function {function.name!r} is not {stage}:\n  {listed}")
    return function


def describe(node: Node) -> str:
    """A node for an error message: op, shape, and the user's name."""
    return f"{node.op} {node.shape} of {node.name!r}"


def _check_declarations(function: Function, nodes: Sequence[Node], problems: list[str]) -> None:
    for what, declared in (("input", function.inputs), ("state", function.states)):
        taken: set[str] = set()
        for node in declared:
            if node.op != what:
                problems.append(f"{describe(node)} is declared as {what}")
            if node.name in taken or not node.name:
                problems.append(f"{what} name {node.name!r} must be unique and not empty")
            taken.add(node.name)
        problems.extend(
            f"{describe(node)} is used but not declared"
            for node in nodes
            if node.op == what and node not in declared
        )
    batch = {n.shape[0] for n in function.inputs if n.attrs.get("kind") in ("batch", "column")}
    if len(batch) > 1:
        problems.append(f"batch and column inputs must have equal rows, not {sorted(batch)}")
    known = {n.name: n for n in (*function.inputs, *function.states)}
    for name, parts in function.parts.items():
        if name not in known:
            problems.append(f"parts of {name!r}, which is no input or state")
        elif parts.shape != known[name].shape:
            problems.append(f"a part of {describe(known[name])} must be {parts.shape}")
    names = [name for name, _ in function.outputs]
    if len(set(names)) != len(names):
        problems.append(f"output names must be unique, not {names}")
    updated: set[Node] = set()
    for target, value in function.updates:
        if target not in function.states:
            problems.append(f"update of {describe(target)}, which is not a declared state")
        if target in updated:
            problems.append(f"{describe(target)} is updated twice")
        updated.add(target)
        if target.shape != value.shape:
            problems.append(
                f"new value of state {target.name!r} must be {target.shape}, not {describe(value)}"
            )


def _check_node(node: Node, problems: list[str]) -> None:
    if node.is_leaf:
        attrs: tuple[str, ...] = LEAF_ATTRS[node.op]
        expected_arity: int | None = 0
    elif node.op in OPS:
        attrs, expected_arity = OPS[node.op].attrs, OPS[node.op].arity
    else:
        problems.append(f"{describe(node)}: there is no such op")
        return
    if set(attrs) != set(node.attrs):
        problems.append(f"{describe(node)} must have attributes {attrs}, not {tuple(node.attrs)}")
        return
    if expected_arity is not None and len(node.inputs) != expected_arity:
        problems.append(f"{describe(node)} takes {expected_arity} operands, not {len(node.inputs)}")
        return
    if node.is_leaf:
        if node.op == "const" and node.value.shape != node.shape:
            problems.append(f"{describe(node)} holds a value of shape {node.value.shape}")
        if node.op == "state":
            blocks = node.attrs["blocks"]
            if blocks < 1 or node.shape[0] % blocks:
                problems.append(f"{describe(node)} must have rows of equal blocks, not {blocks}")
        return
    try:
        shape = OPS[node.op].shape([x.shape for x in node.inputs], node.attrs)
    except GraphError as error:
        problems.append(f"{describe(node)}: {error}")
        return
    if shape != node.shape:
        problems.append(f"{describe(node)} must have the shape {shape}")
    seeds = [x for x in node.inputs if x.attrs.get("kind") == "seed"]
    if (node.op == "uniform") != bool(seeds):
        problems.append(f"{describe(node)}: a seed feeds uniform, and nothing else does")
    _check_samples(node, problems)
    if OPS[node.op].product:
        _check_blocks(node, problems)


def _check_samples(node: Node, problems: list[str]) -> None:
    """What reads inputs as they lie in memory, and what only the end of a step may do."""
    (x, *_) = node.inputs
    whole = x.inputs[0] if x.op == TAKE else x
    if node.op == "unfold" and whole.attrs.get("kind") != "batch":
        problems.append(f"{describe(node)}: only batch inputs unfold, not {describe(x)}")
    if node.op == TAKE and not (
        x.attrs.get("kind") in ("batch", "column") or x.attrs.get("role") == "metric"
    ):
        problems.append(
            f"{describe(node)}: samples are taken of inputs and metrics, not of {describe(x)}"
        )
    problems.extend(
        f"{describe(node)}: {describe(x)} is an output or a state's new value, no operand"
        for x in node.inputs
        if x.op == JOIN
    )


def _check_blocks(node: Node, problems: list[str]) -> None:
    """The layout of a kernel is that of its product: a block for each tap, or one."""
    for i, operand in enumerate(node.inputs):
        leaf = operand.inputs[0] if operand.op == "quantise" else operand
        wanted = taps(node.attrs["windows"]) if node.op == "conv" and i == 1 else 1
        if leaf.op == "state" and leaf.attrs.get("blocks") != wanted:
            problems.append(
                f"{describe(node)}: blocks of {describe(leaf)} must be {wanted},"
                f" not {leaf.attrs.get('blocks')}"
            )


def _check_stage(node: Node, stage: str, problems: list[str]) -> None:
    if node.is_leaf or node.op not in OPS:
        return
    if stage != "forward" and node.op in MODE_OPS:
        problems.append(f"{describe(node)} must be resolved for training or inference before")
    elif stage in ("machine", "quantised") and not OPS[node.op].machine:
        problems.append(f"{describe(node)} is not an op of the machine and must be decomposed")
    if stage == "quantised":
        problems.extend(
            f"{describe(node)}: operands of products, and only those, are quantised,"
            f" not {describe(operand)}"
            for operand in node.inputs
            if OPS[node.op].product != (operand.op == "quantise")
        )
    elif node.op == "quantise":
        problems.append(f"{describe(node)} appears before stage quantised")


def _check_sharing(nodes: Sequence[Node], problems: list[str]) -> None:
    seen: set[Node] = set()
    for node in nodes:
        if node.op == "quantise":
            if node.inputs[0] in seen:
                problems.append(f"{describe(node)}: its operand is quantised twice")
            seen.add(node.inputs[0])
