"""The training-graph IR: frozen nodes, one record per op, verifier per stage, text form.

`builder` makes nodes (`from fpgrad.graph import builder as g`).
"""

from fpgrad.graph import builder
from fpgrad.graph.bands import PICK, SPREAD, STACK
from fpgrad.graph.batches import JOIN, TAKE
from fpgrad.graph.evaluate import evaluate, evaluate_cores, evaluate_node
from fpgrad.graph.node import INPUT_KINDS, STATE_ROLES, Function, Node, Shape, topological
from fpgrad.graph.ops import ALL_SUM, OPS
from fpgrad.graph.parts import Parts
from fpgrad.graph.record import OpRecord
from fpgrad.graph.text import parse_function, print_function
from fpgrad.graph.verify import STAGES, describe, verify
from fpgrad.graph.window import Window, Windows

__all__ = [
    "ALL_SUM",
    "INPUT_KINDS",
    "JOIN",
    "OPS",
    "PICK",
    "SPREAD",
    "STACK",
    "STAGES",
    "STATE_ROLES",
    "TAKE",
    "Function",
    "Node",
    "OpRecord",
    "Parts",
    "Shape",
    "Window",
    "Windows",
    "builder",
    "describe",
    "evaluate",
    "evaluate_cores",
    "evaluate_node",
    "parse_function",
    "print_function",
    "topological",
    "verify",
]
