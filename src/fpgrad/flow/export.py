"""The generated design as Verilog files."""

from __future__ import annotations

from pathlib import Path

from fpgrad.isa.program import Program


def export_verilog(program: Program, directory: str | Path) -> list[Path]:
    """Write the machine of ``program`` as Verilog, and the program as a file for it.

    Returns:
        the files written.
    """
    from fpgrad.gateware.top import write_verilog

    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    files = list(write_verilog(program.config, target))
    program.save(target / "program.fpg")
    return [*files, target / "program.fpg"]
