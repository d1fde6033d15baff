"""Cycles of the load and store units and of a run's ends, as the emulator counts them."""

from __future__ import annotations

import pytest
from tests.rtl.conftest import CONFIGS

from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Load, Store, Tokens, Unit, Vector
from fpgrad.isa.program import Entry, Program

#: The cycle after START's pulse in which the first instruction is taken.
FIRST = 3


def load_cycles(config: MachineConfig, load: Load) -> int:
    """Cycles from the one in which a load is taken to its done."""
    t, latency = config.side, config.memory.dram_latency
    per_row = t // config.memory.dram_words_per_cycle
    blocks = -(-load.count // t)
    order: list[tuple[str, int]] = []
    index_rows = blocks if load.gather else 0
    order += [("index", b) for b in range(min(2, index_rows))]
    for block in range(blocks):
        order += [("group", block)] * min(t, load.count - block * t)
        if block + 2 < index_rows:
            order.append(("index", block + 2))
    ask, end = 5, 0
    got: dict[int, int] = {}
    for kind, block in order:
        if kind == "group" and load.gather:
            ask = max(ask, got[block])
        first = max(ask + 3 + latency, end + 1)
        end = first + per_row * (load.rows if kind == "group" else 1) - 1
        if kind == "index":
            got[block] = end + 2
        ask += 1
    return end + 3


def store_cycles(config: MachineConfig, store: Store) -> int:
    """Cycles from the one in which a store is taken to its done."""
    return 6 + store.rows * config.side // config.memory.dram_words_per_cycle


def program(config, units, tokens=((0,) * 4,) * 4):
    stop = tuple(len(units.get(u, ())) for u in Unit)
    return Program(config, units, {"main": Entry((0,) * 4, stop, tokens)})


@pytest.mark.parametrize("name", ["side 4", "side 8"])
@pytest.mark.parametrize(
    "load",
    [
        Load(),
        Load(rows=9),
        Load(count=5, rows=2, stride=3),
        Load(count=30, rows=1, stride=1),
        Load(count=1, rows=1, gather=1),
        Load(count=8, rows=3, gather=1),
        Load(count=9, rows=1, gather=1),
        Load(count=40, rows=2, gather=1),
        Load(count=100, rows=1, gather=1),
    ],
)
def test_load(machines, name, load):
    config, rtl = CONFIGS[name], machines(name)
    rtl.load_program(program(config, {Unit.LOAD: (load,)}))
    once = load_cycles(config, load)
    assert rtl.run("main", 1, [0]).cycles == FIRST + once + 1
    # The unit takes its next instruction in the cycle after done.
    assert rtl.run("main", 3, [0]).cycles == FIRST + 3 * (once + 1)


@pytest.mark.parametrize("name", ["side 4", "side 8"])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_store(machines, name, rows):
    config, rtl = CONFIGS[name], machines(name)
    rtl.load_program(program(config, {Unit.STORE: (Store(rows=rows),)}))
    once = store_cycles(config, Store(rows=rows))
    assert rtl.run("main", 1, [0]).cycles == FIRST + once + 1
    assert rtl.run("main", 4, [0]).cycles == FIRST + 4 * (once + 1)


def test_a_token_is_there_in_the_cycle_after_done(machines):
    config, rtl = CONFIGS["side 4"], machines("side 4")
    load, store = Load(signal=Tokens(store=1)), Store(wait=Tokens(load=1))
    rtl.load_program(program(config, {Unit.LOAD: (load,), Unit.STORE: (store,)}))
    wanted = FIRST + load_cycles(config, load) + 1 + store_cycles(config, store) + 1
    assert rtl.run("main", 1, [0]).cycles == wanted


def test_a_pass_of_one_row(machines):
    """Taken in cycle 3, addresses in 4, written 10 later, done 1 later."""
    config, rtl = CONFIGS["side 4"], machines("side 4")
    rtl.load_program(program(config, {Unit.VECTOR: (Vector(),)}))
    assert rtl.run("main", 1, []).cycles == FIRST + 1 + 10 + 1 + 1
    # Passes of one row follow each other in every cycle.
    assert rtl.run("main", 40, []).cycles == FIRST + 39 + 1 + 10 + 1 + 1
