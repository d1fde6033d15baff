"""The emulator's cycle model against the models in plain Python that the gateware's own tests hold it to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.gateware.matrix_timing import schedule
from tests.rtl.conftest import CONFIGS
from tests.rtl.dma_cycles import done_cycles
from tests.rtl.test_timing import moves, program

from fpgrad.emulator.timing import PIPELINE, timeline
from fpgrad.formats import TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.instructions import (
    Load,
    Loops,
    Matrix,
    Source,
    Store,
    Tokens,
    Transfer,
    Unit,
    Vector,
)


@pytest.mark.parametrize("name", ["side 4", "side 8", "moves"])
@pytest.mark.parametrize("seed", range(20))
def test_loads_and_stores_at_once(name: str, seed: int):
    config, random = CONFIGS[name], np.random.default_rng(seed)
    loads = [moves(random, False) for _ in range(random.integers(1, 20))]
    stores = [moves(random, True) for _ in range(random.integers(1, 20))]
    units = {Unit.LOAD: tuple(loads), Unit.STORE: tuple(stores)}
    found = timeline(program(config, units), "main", 1)
    ends = tuple([r.end for r in found if r.unit is unit] for unit in units)
    assert ends == done_cycles(config, loads, stores, in_order=True)


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


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 4, 20])
def test_sums_over_the_cores(cores: int, rows: int):
    """A row a cycle through a chain of adders, whether LOAD waits for it or comes later."""
    config = MachineConfig(memory=MemoryConfig(vector_rows=16, tiles=1), cores=cores)
    load, store = Load(Transfer.SUM, rows=rows), Store(Transfer.SUM, rows=rows)
    found = timeline(program(config, {Unit.LOAD: (load,), Unit.STORE: (store,)}), "main", 1)
    # Read two cycles after the instruction, in the exchange three later; written and done in two.
    summed = 3 + 2 + 3 + 1 + PIPELINE.link * (cores - 1) + rows - 1
    assert [r.end for r in found if r.unit is Unit.LOAD] == [summed + 2] * cores
    if rows > 4:
        return
    late = Vector(loops=Loops(n0=200), signal=Tokens(load=1))
    load = replace(load, wait=Tokens(vector=1))
    units = {Unit.LOAD: (load,), Unit.STORE: (store,), Unit.VECTOR: (late,)}
    found = timeline(program(config, units), "main", 1)
    (start,) = {r.start for r in found if r.unit is Unit.LOAD}
    # What waited in the chain comes without a pause.
    assert {r.end for r in found if r.unit is Unit.LOAD} == {start + 2 + rows - 1 + 2}
