"""Strategies for whole programs, and how a machine runs them: the same cases for every executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from tests.programs import instructions
from tests.programs.contents import contents
from tests.programs.draw import Draw
from tests.programs.machines import STEPS, bases
from tests.programs.order import assembled, ordered, queue

from fpgrad.isa.assembler import instruction_text
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.executor import Inspectable, RunResult
from fpgrad.isa.instructions import Instruction
from fpgrad.isa.program import Program

#: What a program can be made of: "matrix" comes with the passes that take its rows.
KINDS = (
    "pass",
    "tile",
    "matrix",
    "load",
    "store",
    "reduce",
    "matrix",
    "load",
    "store",
    "scalars",
    "seed",
)

#: The same where there are several cores.
KINDS_OF_CORES = (*KINDS, "sum", "sum")


@dataclass(frozen=True)
class Case:
    """A program, what is in the memories before, and the entries to run one after the other with their steps."""

    program: Program
    runs: tuple[tuple[str, int], ...]
    seed: int = 0
    odd: bool = False

    def __repr__(self) -> str:
        """Without the machine and with the fields that are not plain: what a failing test shows."""
        lines = [
            f"{unit.name.lower()} {n}: {instruction_text(i)}"
            for unit, listed in self.program.units.items()
            for n, i in enumerate(listed)
        ]
        for name, e in self.program.entries.items():
            lines.append(f"{name}: {e.start} to {e.stop}, tokens {e.tokens}")
        head = f"runs {self.runs}, seed {self.seed}, odd {self.odd}"
        return "\n  ".join([head, *lines])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The same for a falsifying example."""
        printer.text(repr(self))


def _plain(d: Draw, kind: str) -> list[Instruction]:
    if kind == "load":
        return [instructions.load(d)]
    if kind == "store":
        return [instructions.store(d)]
    if kind == "sum":
        return list(instructions.sums(d))
    return [instructions.vector(d, kind)]


def group(d: Draw, kinds: list[str], terms: int = 3) -> list[Instruction]:
    """Matrix instructions, and the passes that take their rows.

    Only when all the rows have room in the queue between the units may a pass wait for the end of a matrix
    instruction, be it by way of others.
    """
    matrices = [instructions.matrix(d, terms) for _ in range(d.one(1, 1, 2))]
    total = sum(m.outputs * m.rows for m in matrices)
    passes = instructions.taking(d, matrices)
    if total > queue(d.t):
        return [*matrices, *(instructions.untiled(d, v, matrices) for v in passes)]
    between: list[Instruction] = []
    others = [k for k in kinds if k != "matrix"]
    for _ in range(d.one(0, 0, 0, 1, 2) if others else 0):
        between += _plain(d, d.one(*others))
    return [*matrices, *between, *passes]


@st.composite
def _link(draw: Callable[[Any], Any], d: Draw, kinds: list[str]) -> list[Instruction]:
    """One draw of a kind of instruction: several instructions if they belong together."""
    d = d.within(draw)
    kind = d.one(*kinds)
    return group(d, kinds) if kind == "matrix" else _plain(d, kind)


@st.composite
def _part(draw: Callable[[Any], Any], d: Draw, length: int, kinds: list[str]) -> tuple[Any, int]:
    """An entry, and the steps it is run for."""
    d = d.within(draw)
    links = draw(st.lists(_link(d, kinds), min_size=d.int(1, max(1, length // 2)), max_size=length))
    more = {"amount": d.tokens, "extra": d.unit} if d.one(False, True) else {}
    part = ordered(d.config, [i for link in links for i in link], **more)
    return part, d.one(1, *range(1, STEPS + 1))


@st.composite
def cases(
    draw: Callable[[Any], Any],
    config: MachineConfig,
    length: int = 8,
    kinds: tuple[str, ...] | None = None,
    entries: int = 2,
    odd: bool | None = None,
) -> Case:
    """Programs of all units with one or more entries, run for one or more steps.

    Args:
        length: most draws for an entry; some make several instructions.
        kinds: what to draw; None: everything that the machine can do.
        odd: whether numbers may have codes that no instruction makes; None: drawn.
    """
    odd = draw(st.booleans()) if odd is None else odd
    d = Draw(draw, config, odd)
    kinds = kinds or (KINDS_OF_CORES if config.cores > 1 else KINDS)
    able = [k for k in kinds if k != "seed" or config.vector.random]
    parts = draw(st.lists(_part(d, length, able), min_size=1, max_size=entries))
    program = assembled(config, {f"part {n}": part for n, (part, _) in enumerate(parts)})
    runs = tuple((f"part {n}", steps) for n, (_, steps) in enumerate(parts))
    return Case(program, runs, d.int(0, 2**32 - 1), odd)


@st.composite
def products(draw: Callable[[Any], Any], config: MachineConfig, terms: int) -> Case:
    """Matrix instructions with sums so long that accumulators may saturate, whatever the order of the products."""
    d = Draw(draw, config, False)
    part = ordered(config, group(d, ["pass"], terms))
    return Case(assembled(config, {"run": part}), (("run", 1),), d.int(0, 2**32 - 1))


def once(program: Program, seed: int, odd: bool = False, steps: int = 1) -> Case:
    """A case of a program with the entry "run"."""
    return Case(program, (("run", steps),), seed, odd)


def run(executor: Inspectable, case: Case) -> list[RunResult]:
    """Load and run a case, and return what each run reports."""
    config = case.program.config
    executor.load_program(case.program)
    executor.restore(contents(config, case.seed, case.odd))
    return [executor.run(name, steps, bases(config)) for name, steps in case.runs]
