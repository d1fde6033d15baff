"""The register map: the words by which a host and a machine talk, one definition for both.

Word addresses of ``ADDRESS_BITS`` bits, words of 32 bits. The upper bits choose a region: 0 is the
control registers below, ``1 + unit`` is the instruction memory of a unit (write only), in which
instruction ``i`` is the ``INSTRUCTION_WORDS`` words from ``i * INSTRUCTION_WORDS`` on, least
significant word first. ``docs/registers.md`` is checked against this file.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from fpgrad.isa.instructions import CLASS_OF, Unit
from fpgrad.isa.layout import width

ADDRESS_BITS = 20
WORD_BITS = 32

#: log2 of the words that an instruction takes in its region, used or not.
INSTRUCTION_WORDS_LOG2 = 5
INSTRUCTION_WORDS = 1 << INSTRUCTION_WORDS_LOG2

#: log2 of the words of a region.
REGION_LOG2 = 17

#: Deepest instruction memory that fits its region.
MAX_INSTRUCTIONS = 1 << 20

#: What a machine says it is: "fpgr" in ASCII, and the version of this map.
MAGIC = 0x66706772
VERSION = 1

BASE_REGISTERS = 16


class Register(IntEnum):
    """Word addresses of control registers; those that are arrays say so."""

    MAGIC = 0x00  # read: the constant MAGIC
    VERSION = 0x01  # read: the constant VERSION
    CONTROL = 0x02  # write: a Control flag
    STATUS = 0x03  # read: Status flags
    STEPS = 0x04  # write: steps of the next run
    DIGEST = 0x08  # read: 8 words, the configuration's SHA-256, first word first, big endian
    BASE = 0x10  # write: 16 words, DRAM rows of the base registers
    START = 0x20  # write: 4 words, first instruction of each unit
    STOP = 0x24  # write: 4 words, one past the last instruction of each unit
    TOKENS = 0x28  # write: 4 words, channel[source] as four bytes, destination 0 lowest
    CYCLES = 0x40  # read: 2 words, low first: cycles of the run
    SATURATED_VECTOR = 0x42  # read: 2 words
    SATURATED_ACCUMULATOR = 0x44  # read: 2 words
    BUSY = 0x48  # read: 4 pairs of words: cycles in which each unit had an instruction
    AT = 0x50  # read: 4 words: the instruction that each unit would start next
    STEP = 0x54  # read: 4 words: the step that it belongs to
    UNIT = 0x58  # read: 4 words: UnitStatus flags


class Control(IntFlag):
    """What a write to CONTROL does."""

    START = 1  # begin a run; ignored while one is running
    STOP = 2  # abandon the run: no unit starts another instruction


class Status(IntFlag):
    """The state of a run."""

    RUNNING = 1
    ROWS_LEFT = 2  # the matrix unit holds finished rows that no pass has taken
    TOKEN_OVERFLOW = 4  # a channel held more than 255 tokens
    ADDRESS_ERROR = 8  # a load or store was outside external memory
    QUIET = 16  # the run goes on, but no unit has an instruction that it can work on
    SUMS_LEFT = 32  # the exchange holds rows that a core sent and that not all cores have taken


class UnitStatus(IntFlag):
    """What a unit is doing."""

    BUSY = 1  # it has started an instruction that is not complete
    WAITING = 2  # its next instruction waits for tokens
    FINISHED = 4  # it has completed its last step


def instruction_address(unit: Unit, index: int) -> int:
    """Address of the first word of an instruction."""
    return ((1 + unit) << REGION_LOG2) | (index << INSTRUCTION_WORDS_LOG2)


def instruction_words(unit: Unit) -> int:
    """Words that an instruction of ``unit`` uses."""
    return -(-width(CLASS_OF[unit]) // WORD_BITS)
