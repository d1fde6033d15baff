"""Memory of a process that only trains on the emulator: no framework, no compiler, no simulation.

The parent writes a program and the data of some steps, the child runs them and says how much memory
that took. ``python -m benchmarks.footprint FOLDER`` is the child.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fpgrad.emulator import EmulatorExecutor
from fpgrad.host.session import Session
from fpgrad.isa.instructions import CLASS_OF, Unit
from fpgrad.isa.layout import width
from fpgrad.isa.program import Program

if TYPE_CHECKING:
    from fpgrad.keras.device import Trial

PROGRAM, TRIAL = "program.fpg", "trial.npz"

KINDS = ("data", "scalars", "states")


@dataclass(frozen=True)
class Footprint:
    """Bytes.

    Args:
        emulator: most that the process held at once, less what it held before the program was read.
        on_chip: contents of the machine's memories and its instructions, each once, as wide as in hardware.
        external: of external memory in use.
    """

    emulator: int
    on_chip: int
    external: int

    @property
    def ratio(self) -> float:
        """The emulator's memory over what the machine holds."""
        return self.emulator / (self.on_chip + self.external)


def measure(program: Program, trial: Trial) -> Footprint | None:
    """Train in a process of its own; None where the system does not tell how much a process holds."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        program.save(folder / PROGRAM)
        arrays: dict[str, Any] = {
            f"{kind}:{k}": v for kind in KINDS for k, v in getattr(trial, kind).items()
        }
        for name in trial.data:  # as a user has them
            arrays[f"data:{name}"] = np.asarray(trial.data[name], np.float32)
        np.savez(folder / TRIAL, order=trial.order, **arrays)
        command = [sys.executable, "-m", "benchmarks.footprint", place]
        root = Path(__file__).parents[1]
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    found = json.loads(said)
    if found is None:
        return None
    return Footprint(found["emulator"], on_chip_bytes(program), found["external"])


def on_chip_bytes(program: Program) -> int:
    """What the machine's memories hold, copies for second read ports left out."""
    config, m = program.config, program.config.memory
    t, number = config.side, config.vector.number
    rows = m.vector_rows + m.inbox_rows + m.outbox_rows + config.matrix.queue_rows
    tiles = m.tiles * (t**2 * config.matrix.tile.mantissa_bits + number.exponent_bits)
    code = sum(getattr(config.control, u.name.lower()) * width(CLASS_OF[u]) for u in Unit)
    return (rows * t * number.width + tiles + m.mask_rows * t + code) // 8


def train(folder: Path) -> dict[str, int] | None:
    """The child: what it took to read the program and to run the steps."""
    arrays = dict(np.load(folder / TRIAL))
    data, scalars, states = (
        {k.partition(":")[2]: v for k, v in arrays.items() if k.startswith(f"{kind}:")}
        for kind in KINDS
    )
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _status("VmRSS")
    program = Program.load(folder / PROGRAM)
    session = Session(program, EmulatorExecutor(program.config))
    session.write_states(states)
    placed = session.upload(data)
    session.train(placed, arrays["order"], scalars)
    after = _status("VmHWM")
    if before is None or after is None:
        return None
    rows = sum(session._memory._used.values())
    return {"emulator": after - before, "external": rows * program.config.side * 4}


def _status(name: str) -> int | None:
    """A size in bytes from what Linux says of this process."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    print(json.dumps(train(Path(sys.argv[1]))))
