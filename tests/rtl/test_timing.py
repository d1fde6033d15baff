"""Cycles of the load and store units and of a run's ends, as the emulator counts them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.rtl.conftest import CONFIGS
from tests.rtl.dma_cycles import FIRST, done_cycles

from fpgrad.isa.instructions import DramAddress, Load, Store, Tokens, Transfer, Unit, Vector
from fpgrad.isa.program import Entry, Program


def program(config, units, tokens=((0,) * 4,) * 4):
    stop = tuple(len(units.get(u, ())) for u in Unit)
    return Program(config, units, {"main": Entry((0,) * 4, stop, tokens)})


INDEX = DramAddress(0, 900)
LOADS = [
    Load(),
    Load(rows=9),
    Load(count=5, rows=2, stride=3, group_stride=2),
    Load(count=30, rows=1, stride=1, group_stride=1),
    Load(count=1, rows=1, gather=1, index=INDEX),
    Load(count=9, rows=1, gather=1, index=INDEX),
    Load(count=40, rows=2, gather=1, index=INDEX),
]
STORES = [Store(rows=rows) for rows in (1, 2, 7, 64)]
STORES += [Store(count=7, rows=2, stride=5, target=DramAddress(0, 200))]


@pytest.mark.parametrize("name", ["side 4", "side 8"])
@pytest.mark.parametrize("load", LOADS)
def test_load(machines, name, load):
    config, rtl = CONFIGS[name], machines(name)
    rtl.load_program(program(config, {Unit.LOAD: (load,)}))
    for steps in (1, 3):
        dones, _ = done_cycles(config, [load] * steps, [])
        assert rtl.run("main", steps, [0]).cycles == dones[-1] + 1


@pytest.mark.parametrize("name", ["side 4", "side 8"])
@pytest.mark.parametrize("store", STORES)
def test_store(machines, name, store):
    config, rtl = CONFIGS[name], machines(name)
    rtl.load_program(program(config, {Unit.STORE: (store,)}))
    for steps in (1, 4):
        _, dones = done_cycles(config, [], [store] * steps)
        assert rtl.run("main", steps, [0]).cycles == dones[-1] + 1


@pytest.mark.parametrize("name", ["side 4", "side 8"])
def test_one_beat(machines, name):
    """What the documentation says; further beats and instructions follow one a cycle."""
    config, rtl = CONFIGS[name], machines(name)
    per_row = config.side // config.memory.dram_words_per_cycle
    for unit, instruction, cycles in (
        (Unit.LOAD, Load(rows=20), config.memory.dram_latency + 10),
        (Unit.STORE, Store(rows=20), 9),
    ):
        rtl.load_program(program(config, {unit: (instruction,)}))
        for steps in (1, 10):
            wanted = FIRST + cycles + 20 * steps * per_row - 1 + 1
            assert rtl.run("main", steps, [0]).cycles == wanted


def moves(random: np.random.Generator, store: bool) -> Load | Store:
    """Any transfer that stays inside; its group strides do not matter for its cycles."""
    kind = Transfer(random.choice([0, 2, 3] if store else [0, 0, 1, 2, 3]))
    most = {Transfer.ROWS: 20, Transfer.BYTES: 10, Transfer.TILES: 30, Transfer.MASKS: 3}[kind]
    rows, count = int(random.integers(1, most + 1)), int(random.choice([1, 2, 3, 10]))
    row_stride = 32 if kind is Transfer.MASKS else 1
    at = DramAddress(0, int(random.integers(0, 300)))
    stride = int(random.integers(0, 40))
    shape = {"kind": kind, "count": count, "rows": rows, "stride": stride, "row_stride": row_stride}
    if store:
        return Store(target=at, **shape)
    return Load(source=at, gather=int(random.integers(0, 3) == 0), index=INDEX, **shape)


@pytest.mark.parametrize("seed", range(20))
def test_moves_at_once(machines, seed):
    """Reads and writes share a slow memory; what STORE writes is zeros, so that the numbers of groups stay zero."""
    config, rtl = CONFIGS["moves"], machines("moves")
    random = np.random.default_rng(seed)
    loads = [moves(random, False) for _ in range(random.integers(1, 20))]
    stores = [moves(random, True) for _ in range(random.integers(1, 20))]
    units = {Unit.LOAD: tuple(loads), Unit.STORE: tuple(stores)}
    rtl.load_program(program(config, units))
    dones = done_cycles(config, loads, stores)
    assert rtl.run("main", 1, [0]).cycles == max(dones[0][-1], dones[1][-1]) + 1


def test_a_token_is_there_in_the_cycle_after_done(machines):
    config, rtl = CONFIGS["side 4"], machines("side 4")
    load, store = Load(signal=Tokens(store=1)), Store(wait=Tokens(load=1))
    rtl.load_program(program(config, {Unit.LOAD: (load,), Unit.STORE: (store,)}))
    (loaded,), _ = done_cycles(config, [load], [])
    _, (stored,) = done_cycles(config, [], [store])
    assert rtl.run("main", 1, [0]).cycles == loaded + 1 + (stored - FIRST) + 1


def test_a_pass_of_one_row(machines):
    """Taken in cycle 3, addresses in 4, written 10 later, done 1 later."""
    config, rtl = CONFIGS["side 4"], machines("side 4")
    rtl.load_program(program(config, {Unit.VECTOR: (Vector(),)}))
    assert rtl.run("main", 1, []).cycles == FIRST + 1 + 10 + 1 + 1
    # Passes of one row follow each other in every cycle.
    assert rtl.run("main", 40, []).cycles == FIRST + 39 + 1 + 10 + 1 + 1
