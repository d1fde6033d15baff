"""From a model's functions to a running session: the one place where a backend's name becomes an executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.errors import InvalidArgumentError
from fpgrad.graph import Function
from fpgrad.host.session import Session
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.executor import Executor
from fpgrad.isa.program import Program


def _emulator(config: MachineConfig, **options: Any) -> Executor:
    from fpgrad.emulator import EmulatorExecutor

    return EmulatorExecutor(config, **options)


def _reference(config: MachineConfig, **options: Any) -> Executor:
    from fpgrad.reference import ReferenceExecutor

    return ReferenceExecutor(config, **options)


def _rtl(config: MachineConfig, **options: Any) -> Executor:
    from fpgrad.rtl import RtlExecutor

    return RtlExecutor(config, **options)


BACKENDS: dict[str, Callable[..., Executor]] = {
    "emulator": _emulator,
    "reference": _reference,
    "rtl": _rtl,
}


def make_executor(backend: str, config: MachineConfig, **options: Any) -> Executor:
    """The executor called ``backend`` for a machine.

    Raises:
        InvalidArgumentError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise InvalidArgumentError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    return BACKENDS[backend](config, **options)


def compile_model(
    functions: Mapping[str, Function], config: MachineConfig | None = None
) -> Program:
    """Compile functions for the smallest machine, or for the machine ``config`` if one is given."""
    return compile_functions(functions, None if config is None else Machine(config, fixed=True))


def open_session(program: Program, backend: str = "emulator", **options: Any) -> Session:
    """A session that runs ``program`` on the executor called ``backend``."""
    return Session(program, make_executor(backend, program.config, **options))


def build_session(
    functions: Mapping[str, Function],
    backend: str = "emulator",
    config: MachineConfig | None = None,
    **options: Any,
) -> Session:
    """Compile functions and open a session on them."""
    return open_session(compile_model(functions, config), backend, **options)
