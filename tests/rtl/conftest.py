"""Small machines, built when they are first asked for and kept in the user's cache between sessions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.programs.machines import resized, with_cores

from fpgrad.formats import BF16, AccumulatorFormat, TableFormat, TileFormat
from fpgrad.formats.table import Function
from fpgrad.isa.config import ControlConfig, MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.rtl.executor import RtlExecutor

CONFIGS = {
    # The default formats, and a memory port narrower than a row.
    "side 4": MachineConfig(
        matrix=MatrixConfig(tile=TileFormat(side=4)),
        memory=MemoryConfig(
            vector_rows=128,
            tiles=24,
            inbox_rows=128,
            outbox_rows=64,
            mask_rows=96,
            bytes=True,
            tile_dma=True,
            dram_rows=1024,
            dram_words_per_cycle=2,
        ),
        control=ControlConfig(32, 64, 128, 32),
    ),
    # Everything else than the default: formats, tables, depths that are no powers of two.
    "side 8": MachineConfig(
        matrix=MatrixConfig(
            tile=TileFormat(side=8, mantissa_bits=6), accumulator=AccumulatorFormat(24, 1)
        ),
        vector=VectorConfig(
            number=BF16,
            table=TableFormat(segments=8, coefficient_bits=9),
            functions=(Function.EXP2, Function.RECIPROCAL, Function.TANH),
        ),
        memory=MemoryConfig(
            vector_rows=136,
            tiles=19,
            inbox_rows=120,
            outbox_rows=72,
            mask_rows=72,
            bytes=True,
            tile_dma=True,
            dram_rows=1024,
            dram_words_per_cycle=8,
        ),
        control=ControlConfig(33, 65, 130, 31),
    ),
    # Every kind of move, and external memory at its worst.
    "moves": MachineConfig(
        matrix=MatrixConfig(tile=TileFormat(side=4)),
        vector=VectorConfig(functions=(), post_multiply=False, random=False),
        memory=MemoryConfig(
            vector_rows=64,
            tiles=40,
            inbox_rows=64,
            outbox_rows=64,
            mask_rows=128,
            bytes=True,
            tile_dma=True,
            dram_rows=1024,
            dram_words_per_cycle=2,
            dram_latency=13,
            dram_bandwidth=1.3,
            dram_refresh_interval=97,
            dram_refresh_cycles=11,
        ),
        control=ControlConfig(32, 64, 128, 32),
    ),
    # As little as possible.
    "bare": MachineConfig(
        matrix=MatrixConfig(tile=TileFormat(side=4, mantissa_bits=4)),
        vector=VectorConfig(functions=(), post_multiply=False, random=False),
        memory=MemoryConfig(
            vector_rows=64,
            tiles=12,
            inbox_rows=64,
            outbox_rows=64,
            dram_rows=1024,
            dram_words_per_cycle=4,
        ),
        control=ControlConfig(32, 64, 128, 32),
    ),
}

_MOVES, _BARE = CONFIGS["moves"], CONFIGS["bare"]
CONFIGS |= {
    # Whatever a core can do with external memory, which is slow.
    "two cores": with_cores(replace(_MOVES, vector=VectorConfig(functions=())), 2),
    # Queues to and from external memory as short as can be.
    "three cores": with_cores(resized(_BARE, read_queue=4, write_queue=2), 3),
}
CONFIGS |= {
    # Programs that stream in from external memory, through rings of a burst and more.
    "streamed": replace(_MOVES, control=ControlConfig(8, 4, 16, 8, program_rows=1 << 16)),
    "two cores streamed": replace(
        resized(CONFIGS["two cores"], read_queue=16, write_queue=8),
        control=ControlConfig(4, 8, 8, 4, program_rows=4096),
    ),
}

#: The everyday machines; "bare" only where there is time to build it.
NAMES = [pytest.param(name, marks=pytest.mark.long) if name == "bare" else name for name in CONFIGS]


@pytest.fixture(scope="session")
def machines():
    """The executor of a configuration by name, built when it is first asked for."""
    built: dict[str, RtlExecutor] = {}

    def get(name: str) -> RtlExecutor:
        if name not in built:
            built[name] = RtlExecutor(CONFIGS[name])
        return built[name]

    return get
