"""The machine's configuration: one frozen dataclass a unit. Nothing in an executor is a constant that is here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from fpgrad.errors import ConfigError, FormatError
from fpgrad.formats import (
    FP24,
    AccumulatorFormat,
    FloatFormat,
    Function,
    Table,
    TableFormat,
    TileFormat,
    make_table,
)
from fpgrad.formats.table import TABLED
from fpgrad.isa.instructions import DRAM_BITS

#: As many cores as a machine can have.
MAX_CORES = 16

#: As many beats as can wait in a queue to or from external memory.
MAX_BEATS = 512

#: Instructions that a streamed program's units are sent at once.
BURST = 4


@dataclass(frozen=True)
class MatrixConfig:
    """Matrix unit: ``tile.side**2`` MAC lanes.

    Args:
        queue: finished rows that can wait for the vector unit, a power of two; 0: enough for small models. The
            deeper it is, the longer the vector unit can be busy otherwise while the array goes on.
    """

    tile: TileFormat = TileFormat()
    accumulator: AccumulatorFormat = AccumulatorFormat()
    queue: int = 0

    @property
    def queue_rows(self) -> int:
        """Rows of the queue between matrix and vector unit."""
        return self.queue or max(32, 4 * self.tile.side)


@dataclass(frozen=True)
class VectorConfig:
    """Vector unit: ``tile.side`` lanes.

    Args:
        functions: the special functions that exist, sorted by code.
        post_multiply: whether passes can multiply by operand d.
        random: whether the random generators exist.
        ways: partial sums of a reducing pass; also the adder's latency in cycles. 4.
    """

    number: FloatFormat = FP24
    table: TableFormat = TableFormat()
    functions: tuple[Function, ...] = TABLED
    post_multiply: bool = True
    random: bool = True
    ways: int = 4


@dataclass(frozen=True)
class MemoryConfig:
    """Depths of the memories on chip, and of external memory.

    Args:
        vector_rows: rows of T numbers in vector memory; a multiple of T.
        tiles: tiles in tile memory.
        inbox_rows, outbox_rows: rows of the buffers between DMA and vector unit; multiples of T.
        mask_rows: rows of T bits in mask memory; a multiple of T, 0: there is none.
        bytes: whether LOAD can turn bytes into numbers.
        tile_dma: whether LOAD and STORE can move tiles and masks, for which mantissas must have at most 8 bits.
        dram_rows: rows of T 32-bit words in external memory.
        dram_words_per_cycle: width of the memory port in 32-bit words, a divisor of T.
        read_queue: beats that a core has room for on their way to it, a power of two from 4 to 512. It asks for no more.
        write_queue: beats that a core can collect on their way to external memory, where there are several; a power of
            two from 2 to 512.
        dram_latency: cycles from a read request to its first word.
        dram_bandwidth: words a cycle that external memory reads and writes, both together; 0 means as many as
            the port is wide, twice as many that reads and writes do not slow each other down.
        dram_refresh_interval, dram_refresh_cycles: in the last so many of so many cycles of a run external memory
            moves nothing; 0 and 0: it is never refreshed. These and the two above describe the memory that a
            machine is simulated with and for which its cycles are predicted, not the machine.
    """

    vector_rows: int = 2048
    tiles: int = 256
    inbox_rows: int = 256
    outbox_rows: int = 64
    mask_rows: int = 0
    bytes: bool = False
    tile_dma: bool = False
    dram_rows: int = 1 << 20
    dram_words_per_cycle: int = 16
    read_queue: int = 128
    write_queue: int = 64
    dram_latency: int = 20
    dram_bandwidth: float = 0
    dram_refresh_interval: int = 0
    dram_refresh_cycles: int = 0

    @property
    def dram_rate(self) -> Fraction:
        """Words that external memory moves in a cycle."""
        words = self.dram_bandwidth or self.dram_words_per_cycle
        return Fraction(words).limit_denominator(1000)

    @property
    def page_beats(self) -> int:
        """Beats between the boundaries that no burst crosses: of 4 KiB, or of 256 beats."""
        return min(256, 1024 // self.dram_words_per_cycle)


@dataclass(frozen=True)
class ControlConfig:
    """Instruction memories.

    Args:
        load, matrix, vector, store: depths, in instructions. Of a streamed program they are those of rings: powers of
            two, at least ``BURST``.
        program_rows: rows of external memory behind ``dram_rows`` from which the program streams into the rings, which
            LOAD and STORE must not reach; 0: the memories hold all of it.
    """

    load: int = 64
    matrix: int = 128
    vector: int = 512
    store: int = 64
    program_rows: int = 0

    @property
    def streamed(self) -> bool:
        """Whether the program streams in from external memory."""
        return self.program_rows > 0


@dataclass(frozen=True)
class MachineConfig:
    """Everything that defines a machine. Equal configurations give equal hardware and equal bits.

    Args:
        matrix, vector, memory, control: of each core. All cores share one external memory.
        cores: 1 to 16. All run the same program, each on memories of its own; they differ by what
            :class:`~fpgrad.isa.instructions.DramAddress` makes of their number.

    Raises:
        ConfigError: parameters that no machine can have together.
    """

    matrix: MatrixConfig = MatrixConfig()
    vector: VectorConfig = VectorConfig()
    memory: MemoryConfig = MemoryConfig()
    control: ControlConfig = field(default=ControlConfig())
    cores: int = 1

    def __post_init__(self) -> None:
        t, m = self.side, self.memory
        if not 1 <= self.cores <= MAX_CORES:
            raise ConfigError(f"cores must be 1 to {MAX_CORES}, not {self.cores}")
        if self.vector.ways != 4:
            raise ConfigError(
                f"vector.ways must be 4, the latency of the adder, not {self.vector.ways}"
            )
        if tuple(sorted(set(self.vector.functions))) != self.vector.functions:
            raise ConfigError("vector.functions must be sorted and without repetition")
        for name in ("vector_rows", "inbox_rows", "outbox_rows"):
            rows = getattr(m, name)
            if rows < t or rows % t:
                raise ConfigError(
                    f"memory.{name} must be a positive multiple of the tile side {t}, not {rows}"
                )
        if self.matrix.queue and (
            self.matrix.queue < t or self.matrix.queue & (self.matrix.queue - 1)
        ):
            raise ConfigError(
                f"matrix.queue must be 0 or a power of two from the tile side {t} on, not {self.matrix.queue}"
            )
        if m.mask_rows < 0 or m.mask_rows % t:
            raise ConfigError(
                f"memory.mask_rows must be 0 or a multiple of the tile side {t}, not {m.mask_rows}"
            )
        if m.tile_dma and (
            self.matrix.tile.mantissa_bits > 8 or self.vector.number.exponent_bits > 8
        ):
            raise ConfigError(
                "memory.tile_dma moves mantissas and exponents as bytes: the tile may have at most 8 mantissa bits, "
                "the number 8 exponent bits"
            )
        if m.tiles < 1 or m.tiles > 1 << 16:
            raise ConfigError(f"memory.tiles must be 1 to 65536, not {m.tiles}")
        if t % m.dram_words_per_cycle:
            raise ConfigError(
                f"memory.dram_words_per_cycle must divide the tile side {t}, not be {m.dram_words_per_cycle}"
            )
        for name, least in (("read_queue", 4), ("write_queue", 2)):
            beats = getattr(m, name)
            if not least <= beats <= MAX_BEATS or beats & (beats - 1):
                raise ConfigError(
                    f"memory.{name} must be a power of two from {least} to {MAX_BEATS}, not {beats}"
                )
        if not 0.01 <= m.dram_rate <= 2 * m.dram_words_per_cycle:
            raise ConfigError(
                f"memory.dram_bandwidth must be 0 or 0.01 to {2 * m.dram_words_per_cycle} words a cycle, "
                f"not {m.dram_bandwidth}"
            )
        if not 0 <= m.dram_refresh_cycles < max(1, m.dram_refresh_interval):
            raise ConfigError(
                "memory.dram_refresh_cycles must be less than dram_refresh_interval, "
                f"not {m.dram_refresh_cycles} of {m.dram_refresh_interval}"
            )
        self._check_control()
        if self.vector.number.mantissa_bits < self.matrix.tile.mantissa_bits - 2:
            raise ConfigError(
                "vector.number must have at least the mantissa bits of a tile, less two"
            )

    def _check_control(self) -> None:
        control = self.control
        if control.program_rows < 0:
            raise ConfigError(
                f"control.program_rows must be 0 or a number of rows, not {control.program_rows}"
            )
        if control.streamed and self.external_rows > 1 << DRAM_BITS:
            raise ConfigError(
                f"memory.dram_rows and control.program_rows must be at most {1 << DRAM_BITS} together, not "
                f"{self.external_rows}"
            )
        for name in ("load", "matrix", "vector", "store"):
            depth = getattr(control, name)
            if control.streamed and (depth < BURST or depth & (depth - 1)):
                raise ConfigError(
                    f"control.{name} must be a power of two from {BURST} on, the instructions of a burst, where "
                    f"programs stream in from external memory, not {depth}"
                )

    @property
    def external_rows(self) -> int:
        """Rows of external memory: those of data, and behind them those of a streamed program."""
        return self.memory.dram_rows + self.control.program_rows

    @property
    def side(self) -> int:
        """T: rows and columns of a tile, lanes of the vector unit."""
        return self.matrix.tile.side

    @property
    def read_burst(self) -> int:
        """Beats of the largest burst of reads: so small that others can be on their way meanwhile."""
        return min(self.memory.page_beats, self.memory.read_queue // 4)

    @property
    def write_burst(self) -> int:
        """Beats of the largest burst of writes. Where cores collect them, one more can be collected meanwhile."""
        page = self.memory.page_beats
        return page if self.cores == 1 else min(page, self.memory.write_queue // 2)

    @property
    def mac_lanes(self) -> int:
        """Multipliers of the matrix units of all cores."""
        return self.cores * self.side**2

    @property
    def tables(self) -> tuple[Table, ...]:
        """The function tables that this machine holds."""
        return tuple(make_table(f, self.vector.table) for f in self.vector.functions if f in TABLED)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON. A program that does not stream has no rows to be written down."""
        values = dataclasses.asdict(self)
        if not self.control.streamed:
            del values["control"]["program_rows"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MachineConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ConfigError: unknown or missing parameters.
        """
        try:
            matrix, vector = dict(values["matrix"]), dict(values["vector"])
            matrix["tile"] = TileFormat(**matrix["tile"])
            matrix["accumulator"] = AccumulatorFormat(**matrix["accumulator"])
            vector["number"] = FloatFormat(**vector["number"])
            vector["table"] = TableFormat(**vector["table"])
            vector["functions"] = tuple(Function(f) for f in vector["functions"])
            return cls(
                MatrixConfig(**matrix),
                VectorConfig(**vector),
                MemoryConfig(**values["memory"]),
                ControlConfig(**values["control"]),
                values["cores"],
            )
        except (KeyError, TypeError, ValueError, FormatError) as error:
            raise ConfigError(f"not a machine configuration: {error}") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration, in hexadecimal."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
