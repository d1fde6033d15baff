"""The ladder of equality for a user's model: the same steps on two executors, every word compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fpgrad.flow.build import make_executor
from fpgrad.host.session import Session
from fpgrad.isa.compare import count_differences, first_difference
from fpgrad.isa.executor import Inspectable
from fpgrad.isa.program import Program


@dataclass(frozen=True)
class Verification:
    """Outcome of a comparison.

    Args:
        words: how many numbers were compared: every word of every memory, and the metrics of each step.
        differing: how many of them differ.
        first: the first difference decoded, None when there is none.
        steps: training steps run on both.
        backends: the two executors.
    """

    words: int
    differing: int
    first: str | None
    steps: int
    backends: tuple[str, str]

    def __str__(self) -> str:
        head = f"{self.backends[0]} against {self.backends[1]}, {self.steps} training steps: "
        return (
            head
            + f"{self.differing} of {self.words} words differ"
            + (f"\n{self.first}" if self.first else "")
        )


def verify(
    program: Program,
    data: Mapping[str, ArrayLike],
    order: NDArray[np.integer],
    scalars: Mapping[str, ArrayLike],
    states: Mapping[str, ArrayLike],
    *,
    backend: str,
    against: str = "emulator",
    seeds: NDArray[np.uint64] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Verification:
    """Train the same steps from the same states on two executors and compare every memory after each step.

    Of a machine of several cores, the states of all cores must be the same, too. Stops at the first step after which
    anything differs.
    """
    sessions: list[Session] = []
    executors: list[Inspectable] = []
    for name in (backend, against):
        executor = make_executor(name, program.config, **(options or {}).get(name, {}))
        executors.append(executor)
        session = Session(program, executor)
        session.write_states(states)
        sessions.append(session)
    uploads = [s.upload(data) for s in sessions]
    words = differing = done = 0
    first: str | None = None
    for i in range(len(order)):
        step = {k: np.asarray(v)[i : i + 1] for k, v in scalars.items()}
        seed = None if seeds is None else seeds[i : i + 1]
        sums = [
            s.train(d, order[i : i + 1], step, seed) for s, d in zip(sessions, uploads, strict=True)
        ]
        left, right = (e.dump() for e in executors)
        here, of = count_differences(left, right)
        wrong = [k for k in sums[0] if sums[0][k] != sums[1][k]]
        apart = cores_apart(left, program)
        words, differing = words + of + len(sums[0]), here + len(wrong) + len(apart)
        done = i + 1
        if differing:
            first = first_difference(left, right, program) or (
                f"{wrong[0]}: {sums[0][wrong[0]]!r}, {sums[1][wrong[0]]!r}" if wrong else apart[0]
            )
            first = f"first mismatch, after step {i}: {first}"
            break
    return Verification(words, differing, first, done, (backend, against))


def cores_apart(dump: Mapping[str, NDArray[Any]], program: Program) -> list[str]:
    """Sentences that name the states which are not the same on all cores, though all should have updated them alike."""
    if program.config.cores == 1:
        return []
    found: list[str] = []
    for name, info in program.meta["states"].items():
        rows = dump["vector"][:, info["base"] : info["base"] + info["rows"]]
        others = np.flatnonzero((rows != rows[:1]).any(axis=(1, 2)))
        if info["parts"] == 1 and info["split"] is None and len(others):
            found.append(f"{name} is not the same on core 0 and core {others[0]}")
    return found
