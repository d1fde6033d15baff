"""The function pipeline against the tables' integer arithmetic."""

import numpy as np
import pytest
from tests.gateware.pipeline import edge_codes, random_codes, stream_through

from fpgrad.formats import BF16, FP24, FloatFormat, TableFormat, make_table, table
from fpgrad.formats.table import TABLED
from fpgrad.gateware.function import FUNCTION_LATENCY, FunctionPipeline

FORMATS = [FP24, BF16, FloatFormat(3, 2), FloatFormat(5, 10), FloatFormat(8, 23), FloatFormat(2, 1)]
ids = "e{0.exponent_bits}m{0.mantissa_bits}".format


def check(fmt, form, functions, count, seed):
    rng = np.random.default_rng(seed)
    tables = tuple(make_table(f, form) for f in functions)
    edges = edge_codes(fmt)
    argument = np.concatenate([np.tile(edges, len(functions)), random_codes(fmt, rng, count)])
    which = np.concatenate(
        [np.repeat(np.arange(len(functions)), len(edges)), rng.integers(0, len(functions), count)]
    )
    value, flags = np.zeros(len(which), np.int64), np.zeros(len(which), bool)
    for i, function in enumerate(functions):
        chosen = which == i
        value[chosen], flags[chosen] = table.evaluate(fmt, tables[i], function, argument[chosen])
    out = stream_through(
        FunctionPipeline(fmt, tables),
        {"argument": (0, argument), "function": (0, np.array([int(functions[i]) for i in which]))},
        {"value": FUNCTION_LATENCY, "saturated": FUNCTION_LATENCY},
    )
    wrong = np.flatnonzero((out["value"] != value) | (out["saturated"] != flags))
    assert not len(wrong), (functions[which[wrong[0]]], hex(argument[wrong[0]]), len(wrong))


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_all_functions(fmt):
    check(fmt, TableFormat(), TABLED, 3000, 1)


@pytest.mark.parametrize("function", TABLED, ids=[f.name for f in TABLED])
@pytest.mark.parametrize("form", [TableFormat(8, 8), TableFormat(64, 15)], ids=["8x8", "64x15"])
def test_a_function_alone(function, form):
    check(FP24, form, (function,), 400, 2)


def test_refuses_no_table():
    with pytest.raises(ValueError, match="tables must hold at least one function's table"):
        FunctionPipeline(FP24, ())
