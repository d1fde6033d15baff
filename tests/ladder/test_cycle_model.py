"""The emulator's cycle model against the models in plain Python that the gateware's own tests hold it to."""

from __future__ import annotations

import numpy as np
import pytest
from tests.gateware.matrix_timing import schedule
from tests.rtl.conftest import CONFIGS
from tests.rtl.dma_cycles import done_cycles
from tests.rtl.test_timing import moves, program

from fpgrad.emulator.timing import timeline
from fpgrad.formats import TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.instructions import Loops, Matrix, Source, Unit, Vector


@pytest.mark.parametrize("name", ["side 4", "side 8", "moves"])
@pytest.mark.parametrize("seed", range(20))
def test_loads_and_stores_at_once(name: str, seed: int):
    config, random = CONFIGS[name], np.random.default_rng(seed)
    loads = [moves(random, False) for _ in range(random.integers(1, 20))]
    stores = [moves(random, True) for _ in range(random.integers(1, 20))]
    units = {Unit.LOAD: tuple(loads), Unit.STORE: tuple(stores)}
    found = timeline(program(config, units), "main", 1)
    ends = tuple([r.end for r in found if r.unit is unit] for unit in units)
    assert ends == done_cycles(config, loads, stores)


@pytest.mark.parametrize("seed", range(40))
def test_products(seed: int):
    random = np.random.default_rng(seed)
    side = int(random.choice([4, 8, 16]))
    memory = MemoryConfig(
        vector_rows=side, tiles=4, inbox_rows=side, outbox_rows=side, dram_words_per_cycle=side
    )
    config = MachineConfig(MatrixConfig(TileFormat(side)), memory=memory)
    matrices = [
        Matrix(
            n2=int(random.integers(1, 3)),
            n0=int(random.integers(1, 4)),
            k1=int(random.integers(1, 4)),
            k0=int(random.integers(1, 6)),
            rows=int(random.integers(1, side + 1)),
        )
        for _ in range(random.integers(1, 12))
    ]
    take = Vector(loops=Loops(n0=sum(m.outputs * m.rows for m in matrices)), a=Source.ACC)
    units = {Unit.MATRIX: tuple(matrices), Unit.VECTOR: (take,)}
    found = [r for r in timeline(program(config, units), "main", 1) if r.unit is Unit.MATRIX]
    # The first instruction is offered in cycle 3, and the pass is there for the first row.
    wanted = schedule(matrices, side, offer=lambda cycle: cycle >= 3)
    assert [r.start for r in found] == wanted.accepted
    assert [r.end for r in found] == wanted.done


def test_cores_that_sum_wait_for_each_other():
    """A row a cycle; a chain of adders."""
    from tests.isa.test_cores import machine, sum_program

    ends = {}
    for cores in (1, 2, 3, 4):
        found = timeline(sum_program(machine(cores)), "sum", 1)
        loads = [r for r in found if r.unit is Unit.LOAD and r.index == 1]
        assert len(loads) == cores
        ends[cores] = max(r.end - r.start for r in loads)
    assert ends[1] < ends[2] < ends[3] < ends[4]
