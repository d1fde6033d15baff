"""Small choices of the strategies: addresses, loops, operands. What is drawn shrinks to plain, short instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from tests.programs.places import depths

from fpgrad.formats import Function
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import (
    Immediate,
    Loops,
    Mask,
    RowStream,
    Source,
    Space,
    Target,
    TileStream,
    Unit,
)


class Draw:
    """Draws the parts of instructions for one machine.

    Args:
        odd: immediates may be codes that no instruction makes.
    """

    def __init__(self, draw: Callable[[Any], Any], config: MachineConfig, odd: bool = True) -> None:
        self.draw, self.config, self.t, self.odd = draw, config, config.side, odd
        self.depth = depths(config)
        #: Bases in each memory that earlier instructions had.
        self.bases: dict[str, list[int]] = {name: [] for name in self.depth}

    def within(self, draw: Callable[[Any], Any]) -> Draw:
        """The same machine, drawn from inside of a strategy."""
        inner = Draw(draw, self.config, self.odd)
        inner.bases = self.bases
        return inner

    def int(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``."""
        return self.draw(st.integers(low, high))

    def one(self, *values: Any) -> Any:
        """One of the values; shrinks to the first."""
        return self.draw(st.sampled_from(values))

    def walk(
        self, counts: tuple[int, ...], memory: str, reserve: int = 1
    ) -> tuple[int, tuple[int, ...]]:
        """A base and strides of a loop nest that stays inside a memory.

        Strides may be negative, zero, or make one loop's addresses follow the other's. The base is often one that an
        earlier instruction had, so that what one leaves another uses.

        Args:
            reserve: addresses that are used from each one on.
        """
        depth, low, high = self.depth[memory], 0, 0
        strides: list[int] = []
        for n in reversed(counts):
            if n == 1:
                strides.insert(0, self.one(0, 0, 3, -5))
                continue
            room = (depth - reserve - (high - low)) // (n - 1)
            after = high - low + reserve
            match self.one("after", "after", "before", "same", "next", "last", "tile", "any"):
                case "after":
                    s = after
                case "before":
                    s = -after
                case "same":
                    s = 0
                case "next":
                    s = 1
                case "last":
                    s = -1
                case "tile":
                    s = self.t
                case _:
                    s = self.int(-min(room, 2 * self.t), min(room, 2 * self.t))
            s = max(-room, min(room, s))
            strides.insert(0, s)
            low, high = low + min(0, (n - 1) * s), high + max(0, (n - 1) * s)
        last = depth - reserve - high
        old = sorted({max(-low, min(last, base)) for base in self.bases[memory]})
        base = self.one(*old) if old and self.one(True, False) else self.int(-low, last)
        self.bases[memory].append(base)
        return base, tuple(strides)

    def loops(self, low: int = 1, high: int | None = None) -> Loops:
        """Loops of passes, ``low`` to ``high`` (or a few more than T) in the innermost."""
        n0 = self.int(low, high) if high else self.int(low, self.t + self.one(0, 2, self.t))
        return Loops(self.one(1, 1, 2), self.one(1, 1, 2, 3), self.one(1, 2, 3), n0)

    def loops_of(self, rows: int, first: int) -> Loops:
        """Loops of ``rows`` iterations in all; often ``first`` (if it divides them) in the innermost."""
        counts: list[int] = []
        for _ in range(3):
            divisors = [n for n in range(1, rows + 1) if rows % n == 0]
            likely = [first] if not counts and rows % first == 0 else []
            counts.append(self.one(*likely, *likely, *reversed(divisors)))
            rows //= counts[-1]
        return Loops(rows, *reversed(counts))

    def immediate(self) -> Immediate:
        """A code, or the number of a scalar."""
        fmt = self.config.vector.number
        if self.one(False, True):
            return Immediate(1, self.int(0, self.t - 1))
        smallest = 0 if self.odd else 1 << fmt.mantissa_bits
        common = (fmt.one, 0, fmt.one | fmt.sign_bit, fmt.one + 1, fmt.max_code)
        return Immediate(0, self.one(*common, self.int(smallest, fmt.max_code)))

    def tokens(self) -> int:
        """Tokens for one order of two instructions."""
        return self.one(1, 1, 2, 3)

    def unit(self) -> Unit | None:
        """A unit to wait for without need, or none."""
        return self.one(None, *Unit)

    def mask(self, limit: int) -> Mask:
        """Often none."""
        return Mask(self.one(0, 0, 0, 1, 2, 3), self.int(0, min(limit, 63)))

    def spaces(self, *spaces: Space) -> list[Space]:
        """Those of the spaces that the machine has."""
        return [s for s in spaces if self.rows(s)]

    def rows(self, space: Space) -> int:
        """Rows of a memory."""
        return self.depth[space.name.lower()]

    def stream(self, loops: Loops) -> RowStream:
        """Rows to read."""
        space = self.one(*self.spaces(Space.VECTOR, Space.VECTOR, Space.INBOX, Space.MASK))
        base, strides = self.walk((loops.n3, loops.n2, loops.n1, loops.n0), space.name.lower())
        return RowStream(space, self.one(0, 0, 1), base, *strides)

    def target(self, space: Space, loops: Loops) -> Target:
        """Rows to write."""
        if space is Space.NONE:
            return Target()
        base, strides = self.walk((loops.n3, loops.n2, loops.n1, loops.n0), space.name.lower())
        return Target(space, base, *strides)

    def tiles(self, counts: tuple[int, ...]) -> TileStream:
        """Tiles to multiply."""
        base, strides = self.walk(counts, "tile")
        return TileStream(self.one(0, 1), base, *strides)

    def sources(self) -> list[Source]:
        """Sources of operands, accumulator rows left out."""
        missing = {Source.ACC} | (set() if self.config.vector.random else {Source.RANDOM})
        plain = [s for s in Source if s not in missing]
        return [Source.P0, Source.P1, *plain]

    def function(self) -> Function:
        """A function that the machine has."""
        return self.one(Function.NONE, Function.NONE, Function.RELU, *self.config.vector.functions)
