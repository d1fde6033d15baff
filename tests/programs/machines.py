"""Random programs' machines by name, and where their data lie in external memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fpgrad.formats import FP24, AccumulatorFormat, FloatFormat, TableFormat, TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig

#: Most steps of a run for which addresses in external memory stay inside their area.
STEPS = 3

#: Index words of gathers are below this.
NUMBERS = 8

#: The fewest DRAM rows of a machine for random programs, for each of its cores.
DRAM_ROWS = 512


def machine(
    side: int = 4,
    number: FloatFormat = FP24,
    mantissa_bits: int = 8,
    accumulator: AccumulatorFormat | None = None,
    table: TableFormat | None = None,
    mask_rows: int = 96,
) -> MachineConfig:
    """A machine with small memories, and whatever units and moves its formats allow."""
    return MachineConfig(
        MatrixConfig(TileFormat(side, mantissa_bits), accumulator or AccumulatorFormat()),
        VectorConfig(number, table or TableFormat()),
        MemoryConfig(
            vector_rows=8 * side,
            tiles=20,
            inbox_rows=4 * side,
            outbox_rows=4 * side,
            mask_rows=mask_rows,
            bytes=mask_rows > 0,
            tile_dma=mantissa_bits <= 8,
            dram_rows=DRAM_ROWS,
            dram_words_per_cycle=min(side, 4),
        ),
    )


#: The default's formats in every size, and formats that differ in every parameter.
MACHINES: dict[str, MachineConfig] = {
    "T4": machine(4),
    "T8": machine(8),
    "T16": machine(16),
    "T32": machine(32),
    "bf16": machine(4, FloatFormat(8, 7), 8, AccumulatorFormat(24, 1)),
    "fp32": machine(8, FloatFormat(8, 23), 10, AccumulatorFormat(48, 8), TableFormat(64, 15), 16),
    "E5": machine(4, FloatFormat(5, 10), 6, AccumulatorFormat(20, 0), TableFormat(8, 8)),
    "E8M14": machine(
        16, FloatFormat(8, 14), 12, AccumulatorFormat(32, 2), TableFormat(32, 12), mask_rows=0
    ),
    "narrow": machine(4, FloatFormat(2, 3), 2, AccumulatorFormat(20, 16)),
}


@dataclass(frozen=True)
class Area:
    """Rows of external memory that hold one kind of data.

    Args:
        register: the base register that says where the area is.
        base: its first row.
        rows: its rows.
        span: what is read or written starts at a multiple of this many rows.
        tiles: most tiles of a block, 0 if it holds none.
        pitch: rows from a core's area of its own to the next core's; 0: all read the same, and nobody writes it.
    """

    register: int
    base: int
    rows: int
    span: int = 1
    tiles: int = 0
    pitch: int = 0

    @property
    def blocks(self) -> int:
        """Blocks of ``span`` rows."""
        return self.rows // self.span


def block_rows(side: int, tiles: int) -> int:
    """DRAM rows of a block of tiles: their exponents, then their mantissas."""
    return -(-tiles // (4 * side)) + tiles * side // 4


def areas(config: MachineConfig) -> dict[str, Area]:
    """The areas by name, those of the first core.

    numbers: codes of the machine's float format; words: any bits; index: numbers of groups; blocks: blocks of a few
    tiles; long: blocks whose exponents need a second row, if small tiles are that many;
    common: numbers that nobody writes, if there are several cores.
    """
    t = config.side
    sizes = {"numbers": (96, 1, 0), "words": (48, 1, 0), "index": (8, 1, 0)}
    if config.memory.tile_dma:
        few, many = min(4 * t, 4), 4 * t + 2
        sizes["blocks"] = (8 * block_rows(t, few), block_rows(t, few), few)
        long = block_rows(t, many)
        if many <= config.memory.tiles and long <= 24:
            sizes["long"] = (4 * long, long, many)
    if config.cores > 1:
        sizes["common"] = (24, 1, 0)
    registers = {"numbers": 2, "words": 0, "index": 15, "blocks": 7, "long": 4, "common": 9}
    out: dict[str, Area] = {}
    base = 1
    for name, (rows, span, tiles) in sizes.items():
        shared = name in ("index", "common")
        pitch = 0 if shared or config.cores == 1 else rows + 1
        out[name] = Area(registers[name], base, rows, span, tiles, pitch)
        base += max(rows + 1, config.cores * pitch)
    assert base <= min(dram_rows(config), config.memory.dram_rows)
    return out


def dram_rows(config: MachineConfig) -> int:
    """Rows of external memory that random programs touch."""
    return DRAM_ROWS * config.cores


def with_cores(config: MachineConfig, cores: int) -> MachineConfig:
    """The machine with so many cores."""
    return replace(resized(config, dram_rows=DRAM_ROWS * cores), cores=cores)


def bases(config: MachineConfig) -> list[int]:
    """The base registers that random programs are run with."""
    values = [0] * 16
    for area in areas(config).values():
        values[area.register] = area.base
    return values


def resized(config: MachineConfig, **memory: int) -> MachineConfig:
    """The machine with other depths."""
    return replace(config, memory=replace(config.memory, **memory))
