"""From a configuration to a native library that simulates the machine, kept by the digest of all that made it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

import fpgrad.formats
import fpgrad.gateware
import fpgrad.isa
from fpgrad.gateware.top import CELL, HUB, NAME, wires, write_verilog
from fpgrad.isa.config import MachineConfig
from fpgrad.rtl.tools import Tools, find_tools, run_tool

#: Called with what is being done, how many parts are done, and how many there are.
Progress = Callable[[str, int, int], None]

COMPILE_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++20",
    "-fPIC",
    "-fno-strict-aliasing",
    "-DVERILATOR=1",
    "-DVM_COVERAGE=0",
    "-DVM_SC=0",
    "-DVM_TIMING=0",
    "-DVM_TRACE=0",
    "-DVL_IGNORE_UNKNOWN_ARCH",
    "-w",
)
#: Verilator's own run time.
RUNTIME = ("verilated.cpp", "verilated_threads.cpp")

VERILATOR_FLAGS = (
    "--cc",
    "-O3",
    "--x-assign",
    "fast",
    "--x-initial",
    "fast",
    "--no-assert",
    "--threads",
    "1",
    "--output-split",
    "12000",
    "--output-split-cfuncs",
    "3000",
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
)

#: The memories and registers that :mod:`fpgrad.rtl.state` reads, and writes behind Verilator's back:
#: said to be writable, all logic behind them would be evaluated on both edges of the clock.
PUBLIC = """\
`verilator_config
public_flat_rd -module "*.vector_memory" -var "bank_*"
public_flat_rd -module "*.inbox" -var "bank_*"
public_flat_rd -module "*.outbox" -var "bank_*"
public_flat_rd -module "*.mask" -var "bank_*"
public_flat_rd -module "*.mantissas" -var "bank_*"
public_flat_rd -module "*.exponents" -var "words"
public_flat_rd -module "*.core.vector" -var "scalar*"
public_flat_rd -module "*.random" -var "state"
"""


@dataclass(frozen=True)
class Model:
    """A built machine.

    Args:
        library: the shared library.
        verilog: the design it was made from.
        built: whether this call built it, or it was there.
    """

    library: Path
    verilog: Path
    built: bool


def default_cache() -> Path:
    """Where models are kept unless the caller says otherwise."""
    return Path(platformdirs.user_cache_dir("fpgrad")) / "rtl"


def model_digest(config: MachineConfig, tools: Tools) -> str:
    """SHA-256 over everything that decides what the library does and where it can run."""
    h = hashlib.sha256()
    for text in (
        config.digest,
        tools.identity,
        importlib.metadata.version("amaranth"),
        " ".join(COMPILE_FLAGS + VERILATOR_FLAGS),
        PUBLIC,
    ):
        h.update(text.encode() + b"\0")
    for package in (fpgrad.formats, fpgrad.isa, fpgrad.gateware):
        folder = Path(str(package.__file__)).parent
        for source in sorted(folder.rglob("*.py")):
            h.update(source.relative_to(folder).as_posix().encode() + b"\0" + source.read_bytes())
    h.update((Path(__file__).parent / "model.cpp").read_bytes())
    return h.hexdigest()


def build_model(
    config: MachineConfig,
    *,
    cache: Path | None = None,
    compiler: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """The machine's library, built if the cache does not hold it.

    Any number of processes may ask for the same machine: one builds, the others wait.

    Raises:
        ToolNotFoundError: no C++ compiler, or no Verilator.
        ToolFailedError: a tool ended with an error; the message has its last lines.
    """
    tools = find_tools(compiler)
    root = cache or default_cache()
    folder = root / model_digest(config, tools)[:32]
    library, verilog = folder / "model.so", folder / f"{NAME}.v"
    if library.exists():
        return Model(library, verilog, built=False)
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if library.exists():
            return Model(library, verilog, built=False)
        with tempfile.TemporaryDirectory(prefix="build-", dir=root) as work:
            place = Path(work)
            _build(config, tools, place, progress or (lambda *_: None))
            finished = place / "finished"
            finished.mkdir()
            for name in (library.name, verilog.name):
                (place / name).rename(finished / name)
            # A folder is there whole or not at all.
            shutil.rmtree(folder, ignore_errors=True)
            finished.rename(folder)
    return Model(library, verilog, built=True)


def _build(config: MachineConfig, tools: Tools, place: Path, progress: Progress) -> None:
    progress("Verilog", 0, 1)
    source = write_verilog(config, place, reset=False)[0]
    (place / "public.vlt").write_text(PUBLIC)
    (place / "ports.h").write_text(_ports(config))
    (place / "cells.h").write_text(_cells(config))
    # Of several cores each is an object of one class, so that their number costs no time here.
    tops = (NAME,) if config.cores == 1 else (HUB, CELL)
    progress("Verilator", 0, 1)
    for top in tops:
        which = ("--top-module", top, "--Mdir", place / "obj")
        run_tool(
            [tools.verilator, *VERILATOR_FLAGS, *which, "public.vlt", source.name],
            cwd=place,
            env={"VERILATOR_ROOT": str(tools.root)},
        )
    include = tools.root / "include"
    sources = sorted((place / "obj").glob("*.cpp"), key=lambda p: -p.stat().st_size)
    sources += [Path(__file__).parent / "model.cpp"]
    places = [f"-I{place}", f"-I{place / 'obj'}", f"-I{include}", f"-I{include / 'vltstd'}"]
    done = 0

    def compile_one(path: Path) -> Path:
        nonlocal done
        target = place / f"{path.stem}.o"
        flags = [f for f in COMPILE_FLAGS if f != "-O3"] if "Slow" in path.name else COMPILE_FLAGS
        run_tool([tools.compiler, *flags, *places, "-c", path, "-o", target], cwd=place)
        done += 1
        progress("C++", done, len(sources))
        return target

    progress("C++", 0, len(sources))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        runtime = pool.submit(_runtime, tools, place.parent)
        objects = [*pool.map(compile_one, sources), *runtime.result()]
    run_tool(
        [tools.compiler, "-shared", "-o", place / "model.so", *objects, "-lpthread"], cwd=place
    )


def _runtime(tools: Tools, root: Path) -> list[Path]:
    """Verilator's own run time, compiled once for all machines of a cache."""
    include = tools.root / "include"
    places = [f"-I{include}", f"-I{include / 'vltstd'}"]
    text = "\0".join((tools.identity, *COMPILE_FLAGS))
    folder = root / f"runtime-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    names = [f"{Path(source).stem}.o" for source in RUNTIME]
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix="build-", dir=root) as work:
                finished = Path(work) / "finished"
                finished.mkdir()
                for source, name in zip(RUNTIME, names, strict=True):
                    command = [tools.compiler, *COMPILE_FLAGS, *places, "-c", include / source]
                    run_tool([*command, "-o", finished / name], cwd=finished)
                finished.rename(folder)
    return [folder / name for name in names]


def _ports(config: MachineConfig) -> str:
    """The part of the C++ model that follows from the configuration."""
    m, rate = config.memory, config.memory.dram_rate
    values = {
        "TOP": f"V{NAME if config.cores == 1 else HUB}",
        "CORES": config.cores,
        "SIDE": config.side,
        "WORDS": m.dram_words_per_cycle,
        "LATENCY": m.dram_latency,
        "DRAM_ROWS": config.external_rows,
        # Of the budget for moving words.
        "BUDGET_GAIN": rate.numerator,
        "BUDGET_BEAT": m.dram_words_per_cycle * rate.denominator,
        "REFRESH_INTERVAL": m.dram_refresh_interval,
        "REFRESH_CYCLES": m.dram_refresh_cycles,
    }
    return "".join(f"#define {name} {value}\n" for name, value in values.items())


def _cells(config: MachineConfig) -> str:
    """The models' headers, and for several cores the wires between them and the hub."""
    tops = (NAME,) if config.cores == 1 else (HUB, CELL)
    lines = [f'#include "V{top}{part}.h"' for top in tops for part in ("", "___024root")]
    cell = tops[-1]
    # Verilator's own: evaluates all logic between registers.
    lines += [
        f"using Cell = V{cell};",
        f"void V{cell}___024root___eval_settle(V{cell}___024root*);",
        f"inline void settle(Cell& cell) {{ V{cell}___024root___eval_settle(cell.rootp); }}",
    ]
    if config.cores > 1:
        lines += [f"inline void join(V{HUB}& hub, const std::unique_ptr<Cell>* cells) {{"]
        for core, there, here, is_input in wires(config):
            hub, cell = f"hub.{there}", f"cells[{core}]->{here}"
            lines.append(f"    {cell} = {hub};" if is_input else f"    {hub} = {cell};")
        lines += ["}"]
    return "\n".join([*lines, ""])
