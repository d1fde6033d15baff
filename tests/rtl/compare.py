"""Two machines side by side: run the same program on both and say where they differ."""

from __future__ import annotations

import numpy as np
from tests.rtl.programs import BASE, DRAM_ROWS, random_program

from fpgrad.isa.config import MachineConfig
from fpgrad.isa.executor import RunResult
from fpgrad.isa.program import Program
from fpgrad.reference import ReferenceExecutor
from fpgrad.rtl.executor import RtlExecutor

MEMORIES = ("vector", "inbox", "outbox", "mantissas", "exponents", "scalars", "random", "dram")
ROWS = DRAM_ROWS + BASE


def reference_dump(executor: ReferenceExecutor) -> dict[str, np.ndarray]:
    out = {name: np.asarray(getattr(executor.machine, name)).astype(np.int64) for name in MEMORIES}
    out["dram"] = executor.read(0, ROWS).astype(np.int64)
    return out


def rtl_dump(executor: RtlExecutor) -> dict[str, np.ndarray]:
    out = executor.dump()
    out["dram"] = executor.read(0, ROWS).astype(np.int64)
    return out


def differences(wanted: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> list[str]:
    """One line for each memory that differs: how many elements, the first, both values."""
    out = []
    for name in MEMORIES:
        assert wanted[name].shape == got[name].shape, name
        places = np.argwhere(wanted[name] != got[name])
        if len(places):
            first = tuple(int(n) for n in places[0])
            out.append(
                f"{name}: {len(places)} differ, first {first}: "
                f"{int(wanted[name][first]):#x} and {int(got[name][first]):#x}"
            )
    return out


def run_both(
    config: MachineConfig, rtl: RtlExecutor, program: Program, words: np.ndarray, steps: int
) -> tuple[list[str], RunResult]:
    """The differences after ``steps`` steps of "main", counters included."""
    reference = ReferenceExecutor(config)
    results = []
    for executor in (reference, rtl):
        executor.load_program(program)
        executor.write(BASE, words)
        results.append(executor.run("main", steps, [BASE]))
    lines = differences(reference_dump(reference), rtl_dump(rtl))
    wanted, got = results
    for name in ("saturated_vector", "saturated_accumulator"):
        if getattr(wanted, name) != getattr(got, name):
            lines.append(f"{name}: {getattr(wanted, name)} and {getattr(got, name)}")
    return lines, got


def check_random(
    config: MachineConfig, rtl: RtlExecutor, seed: int, count: int, steps: int
) -> RunResult:
    """Run a random program on both; they must not differ in a single bit."""
    program, words = random_program(config, seed, count)
    lines, result = run_both(config, rtl, program, words, steps)
    assert not lines, f"seed {seed}: " + "; ".join(lines)
    return result
