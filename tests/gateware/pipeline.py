"""Drives a pipeline of fixed latency with one set of operands a cycle, and collects its results."""

from collections.abc import Mapping

import numpy as np
from amaranth.hdl import Elaboratable
from amaranth.sim import Simulator, SimulatorContext
from numpy.typing import NDArray

from fpgrad.formats import FloatFormat


def stream_through(
    dut: Elaboratable,
    inputs: Mapping[str, tuple[int, NDArray[np.int64]]],
    outputs: Mapping[str, int],
) -> dict[str, NDArray[np.int64]]:
    """Run ``dut``; each input is ``(delay, values)``, each output is named with its latency."""
    count = max(len(values) for _, values in inputs.values())
    out: dict[str, list[int]] = {name: [] for name in outputs}

    async def bench(ctx: SimulatorContext) -> None:
        for cycle in range(count + max(outputs.values()) + 1):
            for name, latency in outputs.items():
                if latency <= cycle < latency + count:
                    out[name].append(ctx.get(getattr(dut, name)))
            for name, (delay, values) in inputs.items():
                if delay <= cycle < delay + count:
                    ctx.set(getattr(dut, name), int(values[cycle - delay]))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return {name: np.array(values) for name, values in out.items()}


def edge_codes(fmt: FloatFormat) -> NDArray[np.int64]:
    """Zeros (not canonical ones too), ones, smallest, largest, and their neighbours, both signs."""
    top = fmt.max_code
    smallest = 1 << fmt.mantissa_bits
    body = {0, 1, smallest - 1, smallest, smallest + 1, fmt.one - 1, fmt.one, fmt.one + 1}
    body |= {top, top - 1, top - smallest, fmt.one + smallest, 3 * smallest // 2 + fmt.one}
    codes = np.array(sorted(b for b in body if 0 <= b <= top))
    return np.concatenate([codes, codes | fmt.sign_bit])


def random_codes(fmt: FloatFormat, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Numbers of every size, many near one, many edges."""
    m = fmt.mantissa_bits
    exponent = rng.integers(0, fmt.max_exponent + 1, count)
    near = np.clip(fmt.bias + rng.integers(-4, 5, count), 0, fmt.max_exponent)
    exponent = np.where(rng.random(count) < 0.6, near, exponent)
    mantissa = rng.integers(0, 1 << m, count)
    mantissa = np.where(rng.random(count) < 0.2, mantissa & 1, mantissa)
    mantissa = np.where(rng.random(count) < 0.2, (1 << m) - 1 - (mantissa & 1), mantissa)
    codes = (rng.integers(0, 2, count) << (fmt.width - 1)) | (exponent << m) | mantissa
    edges = edge_codes(fmt)
    return np.where(rng.random(count) < 0.1, edges[rng.integers(0, len(edges), count)], codes)


def pairs(
    fmt: FloatFormat, rng: np.random.Generator, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of edges, then random pairs of which some are close to each other's negative."""
    edges = edge_codes(fmt)
    a, b = random_codes(fmt, rng, count), random_codes(fmt, rng, count)
    close = (a ^ fmt.sign_bit) + rng.integers(-2, 3, count)
    close = np.clip(close & (2 * fmt.sign_bit - 1), 0, fmt.max_code | fmt.sign_bit)
    valid = ((close >> fmt.mantissa_bits) & (fmt.max_exponent + 1)) != fmt.max_exponent + 1
    b = np.where((rng.random(count) < 0.2) & valid, close, b)
    first, second = np.repeat(edges, len(edges)), np.tile(edges, len(edges))
    return np.concatenate([first, a]), np.concatenate([second, b])
