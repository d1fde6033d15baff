"""The text form of a function: one line a node, printed and parsed without loss.

Golden tests compare it, people read it between passes, and a bug report can carry it::

    function "forward" {
      %0 = input {"kind": "batch"} (4, 3) "x"
      %1 = state {"role": "parameter", "trainable": true} (3, 2) "dense/kernel"
      %2 = matmul %0, %1 {"ta": false, "tb": false} (4, 2) "dense"
      output "dense" %2
    }

Attributes are JSON; a constant whose elements are all equal prints its value once, windows print as
`"28->14 taps 3 stride 2 pad 1"`, and a state of one block does not mention it. What each core has a part
of is in lines such as `part "dense/kernel" {"whole": [3, 4], "rows": null, "columns": [[[0, 2]], [[2, 4]]]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fpgrad.errors import GraphError, GraphTextError
from fpgrad.graph.node import Function, Node, Shape
from fpgrad.graph.parts import Parts
from fpgrad.graph.window import Window

_NODE = re.compile(
    r"%(?P<id>\d+) = (?P<op>\w+)(?: (?P<inputs>%\d+(?:, %\d+)*))?(?: (?P<attrs>\{.*\}))?"
    r' \((?P<rows>\d+), (?P<cols>\d+)\) (?P<name>"(?:[^"\\]|\\.)*")'
)
_HEADER = re.compile(r'function (?P<name>"(?:[^"\\]|\\.)*") \{')
_OUTPUT = re.compile(r'output (?P<name>"(?:[^"\\]|\\.)*") %(?P<id>\d+)')
_PART = re.compile(r'part (?P<name>"(?:[^"\\]|\\.)*") (?P<parts>\{.*\})')
_UPDATE = re.compile(r"update %(?P<state>\d+) = %(?P<id>\d+)")


_PAIRS = ("shape", "places", "rows")
"""Attributes that are two numbers."""


def print_function(function: Function) -> str:
    """The text form, ending in a newline; equal functions print equal text."""
    numbers = {node: i for i, node in enumerate(function.nodes())}
    lines = [f"function {json.dumps(function.name)} {{"]
    for node, i in numbers.items():
        operands = ", ".join(f"%{numbers[x]}" for x in node.inputs)
        parts = [f"  %{i} =", node.op, operands, _print_attrs(node)]
        parts += [f"({node.shape[0]}, {node.shape[1]})", json.dumps(node.name)]
        lines.append(" ".join(part for part in parts if part))
    lines += [f"  output {json.dumps(name)} %{numbers[node]}" for name, node in function.outputs]
    lines += [f"  update %{numbers[s]} = %{numbers[node]}" for s, node in function.updates]
    lines += [
        f"  part {json.dumps(name)} {json.dumps(asdict(parts))}"
        for name, parts in function.parts.items()
    ]
    return "\n".join([*lines, "}", ""])


def parse_function(text: str) -> Function:
    """The function that `text` prints; GraphTextError with the line that cannot be read.

    The result is not verified: call `verify` with the stage it should be in.
    """
    nodes: dict[int, Node] = {}
    name: str | None = None
    outputs: list[tuple[str, Node]] = []
    updates: list[tuple[Node, Node]] = []
    parts: dict[str, Parts] = {}
    closed = False
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line:
            continue
        try:
            if name is None:
                name = json.loads(_match(_HEADER, line)["name"])
            elif closed:
                raise GraphTextError("text after the closing brace")
            elif line == "}":
                closed = True
            elif line.startswith("output "):
                match = _match(_OUTPUT, line)
                outputs.append((json.loads(match["name"]), nodes[int(match["id"])]))
            elif line.startswith("part "):
                match = _match(_PART, line)
                parts[json.loads(match["name"])] = Parts(**_tuples(json.loads(match["parts"])))
            elif line.startswith("update "):
                match = _match(_UPDATE, line)
                updates.append((nodes[int(match["state"])], nodes[int(match["id"])]))
            else:
                match = _match(_NODE, line)
                if int(match["id"]) in nodes:
                    raise GraphTextError(f"%{match['id']} is defined twice")
                nodes[int(match["id"])] = _parse_node(match, nodes)
        except KeyError as error:
            raise GraphTextError(f"line {number}: %{error} is not defined before") from None
        except (GraphError, ValueError, TypeError) as error:
            raise GraphTextError(f"line {number}: {error}: {line!r}") from None
    if name is None or not closed:
        raise GraphTextError('text must be one function "name" { ... } with its closing brace')
    return Function(
        name,
        tuple(n for n in nodes.values() if n.op == "input"),
        tuple(n for n in nodes.values() if n.op == "state"),
        tuple(outputs),
        tuple(updates),
        parts,
    )


def _tuples(value: Any) -> Any:
    """Lists of JSON as tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _match(pattern: re.Pattern[str], line: str) -> Mapping[str, Any]:
    match = pattern.fullmatch(line)
    if match is None:
        raise GraphTextError("line does not have the form of a node, output, part or update")
    return match.groupdict()


def _print_attrs(node: Node) -> str:
    if not node.attrs:
        return ""
    attrs = dict(node.attrs)
    if node.op == "const":
        first = float(node.value.flat[0])
        # Compared as bits, so that -0.0 survives.
        same = bool(np.all(node.value.view(np.uint64) == node.value.view(np.uint64).flat[0]))
        attrs["value"] = first if same else node.value.tolist()
    if "windows" in attrs:
        attrs["windows"] = [str(window) for window in attrs["windows"]]
    if node.op == "state" and attrs.get("blocks") == 1:
        del attrs["blocks"]
    if node.op == "input" and not attrs.get("octets"):
        attrs.pop("octets", None)
    if node.op == "unfold" and attrs.get("cores") == 1:
        del attrs["cores"]
    return json.dumps(attrs)


def _parse_node(match: Mapping[str, Any], nodes: Mapping[int, Node]) -> Node:
    shape: Shape = (int(match["rows"]), int(match["cols"]))
    attrs: dict[str, Any] = json.loads(match["attrs"]) if match["attrs"] else {}
    if match["op"] == "const":
        value = np.array(np.broadcast_to(np.asarray(attrs["value"], dtype=np.float64), shape))
        value.setflags(write=False)
        attrs["value"] = value
    elif match["op"] == "state":
        attrs.setdefault("blocks", 1)
    elif match["op"] == "input":
        attrs.setdefault("octets", False)
    else:
        attrs |= {key: tuple(attrs[key]) for key in _PAIRS if key in attrs}
    if "windows" in attrs:
        attrs["windows"] = tuple(map(Window.parse, attrs["windows"]))
    if match["op"] == "unfold":
        attrs.setdefault("cores", 1)
    ids = [int(x.strip()[1:]) for x in match["inputs"].split(",")] if match["inputs"] else []
    return Node(match["op"], tuple(nodes[i] for i in ids), attrs, shape, json.loads(match["name"]))
