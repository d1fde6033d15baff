"""What the emulator holds: the machine's memories, hardly wider than they are, and tiles in few other orders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.emulator.equality import Equality
from tests.programs.cases import once
from tests.programs.machines import MACHINES, resized, with_cores
from tests.programs.order import single

from fpgrad.emulator import EmulatorExecutor
from fpgrad.formats import TileFormat
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import (
    Loops,
    Matrix,
    Source,
    Space,
    Target,
    TileStream,
    TileTarget,
    Vector,
)

#: Tiles whose forms have the same place: there are 1024.
SAME = (3, 3 + 1024, 3 + 2048)


def _bits(config: MachineConfig, bits: int) -> MachineConfig:
    matrix = replace(config.matrix, tile=TileFormat(config.side, bits))
    return replace(config, matrix=matrix, memory=replace(config.memory, tile_dma=bits <= 8))


@pytest.mark.parametrize(("bits", "mantissa"), [(2, 1), (8, 1), (9, 2), (16, 2)])
@pytest.mark.parametrize("side", [4, 16])
def test_memories_take_what_the_machine_has(side: int, bits: int, mantissa: int):
    config = _bits(MACHINES[f"T{side}"], bits)
    emulator, m = EmulatorExecutor(config), config.memory
    emulator.load_program(single(config, Vector(target=Target(Space.OUTBOX))))
    sizes = emulator.sizes()
    for name in ("vector", "inbox", "outbox"):
        assert sizes[name] == getattr(m, f"{name}_rows") * side * 4
    assert sizes["mask"] == m.mask_rows * max(1, side // 8)
    assert sizes["mantissas"] == m.tiles * side**2 * mantissa
    assert sizes["exponents"] == m.tiles * 4
    assert sizes["dram"] < 1024
    emulator.write(3, np.zeros((2, side), np.uint32))
    assert sizes["dram"] < emulator.sizes()["dram"] <= 4096 * side * 4 + 1024


@pytest.mark.parametrize("name", ["T4", "T8", "T16"])
def test_tiles_that_share_a_place_are_told_apart(name: str):
    config = resized(MACHINES[name], tiles=2100)
    t = config.side
    chain = []
    for n, tile in enumerate((*SAME, *SAME[::-1])):
        for transposed in (0, 1):
            left = TileStream(transposed, tile)
            right = TileStream(transposed, SAME[n % 3] + 1)
            chain.append(Matrix(1, 1, 1, 1, 1, 1, t, left, right))
            take = Vector(
                loops=Loops(n0=t), a=Source.ACC, target=Target(Space.VECTOR, t * (n % 4), s0=1)
            )
            # One of the tiles is written again, and asked for before and after.
            chain.append(replace(take, tile=TileTarget(1, 0, SAME[0])) if n == 4 else take)
    Equality(config).check(once(single(config, *chain), seed=2))


def test_an_instruction_may_need_more_places_than_there_are():
    config = resized(MACHINES["T4"], tiles=2100)
    far = Matrix(1, 1, 1, 1, 1, 2, 4, TileStream(0, 1, t0=2000), TileStream(0, 2, t0=2000))
    near = replace(far, streamed=TileStream(0, 2, t0=1), stationary=TileStream(0, 1, t0=1))
    take = Vector(loops=Loops(n0=4), a=Source.ACC, target=Target(Space.VECTOR, s0=1))
    chain = (far, take, near, replace(take, target=Target(Space.VECTOR, 4, s0=1)))
    Equality(config).check(once(single(config, *chain), seed=3))


def test_the_matrix_unit_does_not_run_far_ahead():
    config = resized(MACHINES["T16"], tiles=64)
    many = Matrix(1, 8, 4, 1, 1, 2, 16, TileStream(0, 0, s1=2, t0=1), TileStream(0, 32, s0=1, t0=4))
    take = Vector(loops=Loops(n1=32, n0=16), a=Source.ACC, target=Target(Space.VECTOR, s0=1))
    emulator = EmulatorExecutor(config)
    emulator.load_program(single(config, *[many, take] * 40))
    emulator.run("run", 1, [0] * 16)
    assert emulator.sizes()["accumulated"] < 3 * 1024 * 16 * 4


def test_cores_have_their_own_memories_and_share_external_memory():
    one, three = (with_cores(MACHINES["T4"], cores) for cores in (1, 3))
    sizes = []
    for config in (one, three):
        emulator = EmulatorExecutor(config)
        emulator.load_program(single(config, Vector(target=Target(Space.OUTBOX))))
        emulator.write(3, np.zeros((2, 4), np.uint32))
        sizes.append(emulator.sizes())
    assert sizes[0].keys() == sizes[1].keys()
    for name in ("vector", "inbox", "outbox", "mask", "mantissas", "exponents", "plans", "forms"):
        assert sizes[1][name] == 3 * sizes[0][name]
    for name in ("dram", "program"):
        assert sizes[1][name] == sizes[0][name]
    assert sizes[1]["exchange"] < 1024
