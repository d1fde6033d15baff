"""Multiplier and alu against the integer arithmetic of the formats, on edges and random codes."""

import numpy as np
import pytest
from tests.gateware.pipeline import pairs, stream_through

from fpgrad.formats import BF16, FP24, FloatFormat, smallfloat
from fpgrad.gateware.smallfloat import (
    ALU_LATENCY,
    MULTIPLY_LATENCY,
    AluPipeline,
    Multiplier,
)
from fpgrad.isa.instructions import Alu

FORMATS = [FP24, BF16, FloatFormat(3, 2), FloatFormat(5, 10), FloatFormat(8, 23), FloatFormat(2, 1)]
ids = "e{0.exponent_bits}m{0.mantissa_bits}".format


def combine(fmt: FloatFormat, alu: int, p: np.ndarray, c: np.ndarray):
    """The alu of the vector unit, written again from its instruction's docstring."""
    kp, kc = smallfloat.order_key(fmt, p), smallfloat.order_key(fmt, c)
    results = {
        Alu.PASS: p,
        Alu.ADD: smallfloat.add(fmt, p, c)[0],
        Alu.MAX: np.where(kp >= kc, p, c),
        Alu.MIN: np.where(kp <= kc, p, c),
        Alu.GT: np.where(kp > kc, fmt.one, 0),
        Alu.GE: np.where(kp >= kc, fmt.one, 0),
        Alu.EQ: np.where(kp == kc, fmt.one, 0),
        Alu.GATE: np.where(kc > 0, p, 0),
    }
    flags = smallfloat.add(fmt, p, c)[1] if alu == Alu.ADD else np.zeros(p.shape, bool)
    return results[Alu(alu)], flags


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_multiplier(fmt):
    rng = np.random.default_rng(1)
    a, b = pairs(fmt, rng, 2500)
    negate = rng.integers(0, 2, len(a))
    clear = rng.random(len(a)) < 0.1
    product, over = smallfloat.multiply(fmt, np.where(clear, 0, a), b)
    product = np.where(negate == 1, smallfloat.negate(fmt, product), product)
    out = stream_through(
        Multiplier(fmt),
        {"a": (0, a), "b": (0, b), "clear": (0, clear.astype(np.int64)), "negate": (1, negate)},
        {"product": MULTIPLY_LATENCY, "saturated": MULTIPLY_LATENCY},
    )
    np.testing.assert_array_equal(out["product"], product)
    np.testing.assert_array_equal(out["saturated"], over)


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
@pytest.mark.parametrize("alu", list(Alu), ids=[a.name for a in Alu])
def test_alu(fmt, alu):
    rng = np.random.default_rng(2)
    p, c = pairs(fmt, rng, 2000 if alu is Alu.ADD else 300)
    p = np.where(smallfloat.split(fmt, p)[1] == 0, 0, p)
    negate = rng.integers(0, 2, len(p))
    signed_c = np.where(negate == 1, smallfloat.negate(fmt, c), c)
    expected, flags = combine(fmt, alu, p, signed_c)
    out = stream_through(
        AluPipeline(fmt),
        {
            "product": (0, p),
            "addend": (0, c),
            "addend_zero": (0, (smallfloat.split(fmt, c)[1] == 0).astype(int)),
            "negate": (0, negate),
            "alu": (0, np.full(len(p), int(alu))),
        },
        {"result": ALU_LATENCY, "saturated": ALU_LATENCY},
    )
    np.testing.assert_array_equal(out["result"], expected)
    np.testing.assert_array_equal(out["saturated"], flags)


@pytest.mark.parametrize("fmt", [FP24, FloatFormat(3, 2)], ids=ids)
def test_alu_feeds_its_result_back_after_four_cycles(fmt):
    rng = np.random.default_rng(3)
    rows = 64
    p, _ = pairs(fmt, rng, rows)
    p = p[-rows:]
    p = np.where(smallfloat.split(fmt, p)[1] == 0, 0, p)
    first = np.arange(rows) < ALU_LATENCY
    hold = (~first) & ((np.arange(rows) // 4) % 3 == 2)
    expected = p.copy()
    for i in range(ALU_LATENCY, rows):
        back = expected[i - ALU_LATENCY]
        expected[i] = (
            back if hold[i] else smallfloat.add(fmt, p[i], smallfloat.negate(fmt, back))[0]
        )
    out = stream_through(
        AluPipeline(fmt),
        {
            "product": (0, p),
            "negate": (0, np.ones(rows, int)),
            "alu": (0, np.where(first, int(Alu.PASS), int(Alu.ADD))),
            "feedback": (0, (~first).astype(int)),
            "hold": (0, hold.astype(int)),
        },
        {"result": ALU_LATENCY},
    )
    np.testing.assert_array_equal(out["result"], expected)
