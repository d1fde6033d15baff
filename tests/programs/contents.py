"""Random contents of a machine's memories."""

from __future__ import annotations

import numpy as np
from tests.programs.machines import NUMBERS, Area, areas, dram_rows

from fpgrad.formats import FloatFormat
from fpgrad.isa.config import MachineConfig


def _bits(
    rng: np.random.Generator, fmt: FloatFormat, shape: tuple[int, ...], spread: int
) -> np.ndarray:
    """Codes with exponents within ``spread`` of a random centre; zeros and short mantissas are frequent."""
    top = (1 << fmt.exponent_bits) - 1
    centre = int(rng.integers(0, top + 1)) if rng.random() < 0.3 else fmt.bias
    exponent = np.clip(centre + rng.integers(-spread, spread + 1, shape), 0, top)
    mantissa = rng.integers(0, 1 << fmt.mantissa_bits, shape)
    short = rng.random(shape) < 0.3
    mantissa = np.where(short, mantissa & ~((1 << (fmt.mantissa_bits * 2 // 3)) - 1), mantissa)
    codes = (
        (rng.integers(0, 2, shape) << (fmt.width - 1)) | (exponent << fmt.mantissa_bits) | mantissa
    )
    return np.where(rng.random(shape) < 0.1, 0, codes)


def codes(
    rng: np.random.Generator, fmt: FloatFormat, shape: tuple[int, ...], odd: bool = True
) -> np.ndarray:
    """Random codes: ordinary numbers, wide exponents, and with ``odd`` any bits (subnormals, -0, all-ones exponents).

    Without ``odd``, only codes that the machine itself produces.
    """
    kind = rng.integers(0, 4 if odd else 3)
    if kind == 3:
        return rng.integers(0, 1 << fmt.width, shape)
    out = _bits(rng, fmt, shape, (1, 4, 1 << fmt.exponent_bits)[kind])
    if not odd:
        exponent = (out >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
        out = np.where((exponent == 0) | (exponent > fmt.max_exponent), 0, out)
    return out


def tiles(
    rng: np.random.Generator, config: MachineConfig, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random tiles: mantissas (count, T, T), some all of the largest size, and exponents (count,)."""
    fmt, tile, t = config.vector.number, config.matrix.tile, config.side
    centre = int(rng.integers(0, fmt.max_exponent + 1)) if rng.random() < 0.3 else fmt.bias
    spread = int(rng.choice([0, 1, 4, 40]))
    exponents = np.clip(centre + rng.integers(-spread, spread + 1, count), 0, fmt.max_exponent)
    mantissas = rng.integers(-tile.limit, tile.limit + 1, (count, t, t))
    extreme = rng.random((count, 1, 1)) < 0.2
    sign = np.sign(mantissas[:, :1, :1] + 0.5).astype(np.int64)
    mantissas = np.where(extreme, sign * tile.limit, mantissas)
    mantissas[exponents == 0] = 0
    return mantissas, exponents


def _blocks(rng: np.random.Generator, config: MachineConfig, area: Area) -> np.ndarray:
    """An area's words: whole blocks of tiles."""
    t = config.side
    head = -(-area.tiles // (4 * t)) * 4 * t
    out = []
    for _ in range(area.blocks):
        mantissas, exponents = tiles(rng, config, area.tiles)
        octets = np.zeros(head, np.uint8)
        octets[: area.tiles] = exponents
        signed = mantissas.astype(np.int8).view(np.uint8).reshape(-1)
        out.append(np.concatenate([octets, signed]).view("<u4").reshape(-1, t))
    return np.concatenate(out)


def dram(config: MachineConfig, rng: np.random.Generator, odd: bool) -> np.ndarray:
    """External memory with every area filled."""
    fmt, t = config.vector.number, config.side
    words = np.zeros((dram_rows(config), t), np.uint32)
    each = [
        (name, area, core * area.pitch)
        for name, area in areas(config).items()
        for core in range(config.cores if area.pitch else 1)
    ]
    for name, area, further in each:
        shape = area.rows, t
        if name in ("numbers", "common"):
            values = codes(rng, fmt, shape, odd) << (32 - fmt.width)
            if odd:
                values |= rng.integers(0, 1 << (32 - fmt.width), shape)
        elif name == "words":
            values = rng.integers(0, 1 << 32, shape)
        elif name == "index":
            values = rng.integers(0, NUMBERS, shape)
        else:
            values = _blocks(rng, config, area)
        first = area.base + further
        words[first : first + area.rows] = values.astype(np.uint32)
    return words


def contents(config: MachineConfig, seed: int, odd: bool = True) -> dict[str, np.ndarray]:
    """Random contents of every memory of ``config``, by name (see ``dump`` of the executors).

    Args:
        odd: numbers may have codes that no instruction makes.
    """
    rng = np.random.default_rng(seed)
    cores = [core(config, rng, odd) for _ in range(config.cores)]
    chip = {name: np.stack([c[name] for c in cores]) for name in cores[0]}
    if config.cores == 1:
        chip = cores[0]
    return {**chip, "dram": dram(config, rng, odd)}


def core(config: MachineConfig, rng: np.random.Generator, odd: bool) -> dict[str, np.ndarray]:
    """Random contents of a core's memories."""
    fmt, m, t = config.vector.number, config.memory, config.side
    mantissas, exponents = tiles(rng, config, m.tiles)
    return {
        "vector": codes(rng, fmt, (m.vector_rows, t), odd),
        "inbox": codes(rng, fmt, (m.inbox_rows, t), odd),
        "outbox": codes(rng, fmt, (m.outbox_rows, t), odd),
        "mask": rng.integers(0, 2, (m.mask_rows, t)),
        "mantissas": mantissas,
        "exponents": exponents,
        "scalars": codes(rng, fmt, (t,), odd),
        "random": rng.integers(1, 1 << 32, t) if config.vector.random else np.ones(t, np.int64),
    }
