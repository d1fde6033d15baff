"""From a model's functions to a running session: the one place where a backend's name becomes an executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.errors import InvalidArgumentError
from fpgrad.graph import Function
from fpgrad.host.session import Session
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.executor import Inspectable
from fpgrad.isa.program import Program


def _emulator(config: MachineConfig, **options: Any) -> Inspectable:
    from fpgrad.emulator import EmulatorExecutor

    return EmulatorExecutor(config, **options)


def _reference(config: MachineConfig, **options: Any) -> Inspectable:
    from fpgrad.reference import ReferenceExecutor

    return ReferenceExecutor(config, **options)


def _rtl(config: MachineConfig, **options: Any) -> Inspectable:
    from fpgrad.rtl import RtlExecutor

    return RtlExecutor(config, **options)


BACKENDS: dict[str, Callable[..., Inspectable]] = {
    "emulator": _emulator,
    "reference": _reference,
    "rtl": _rtl,
}


def make_executor(backend: str, config: MachineConfig, **options: Any) -> Inspectable:
    """The executor called ``backend`` for a machine.

    Raises:
        InvalidArgumentError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise InvalidArgumentError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    return BACKENDS[backend](config, **options)


def compile_model(
    functions: Mapping[str, Function], config: MachineConfig | Machine | None = None
) -> Program:
    """Compile the functions of a model, which share its states, into one program.

    Args:
        functions: by name ("train", "evaluate", "predict"), at stage "quantised".
        config: None: the default formats and the smallest machine that runs the model. A `Machine`: its formats, and
            again the smallest machine. A `MachineConfig`: this machine exactly.

    Raises:
        MemoryCapacityError: the given machine is too small; the message says what is missing.
    """
    if isinstance(config, MachineConfig):
        config = Machine(config, fixed=True)
    return compile_functions(functions, config)


def open_session(program: Program, backend: str = "emulator", **options: Any) -> Session:
    """A session that runs ``program`` on the executor called ``backend``."""
    return Session(program, make_executor(backend, program.config, **options))


def build_session(
    functions: Mapping[str, Function],
    backend: str = "emulator",
    config: MachineConfig | Machine | None = None,
    **options: Any,
) -> Session:
    """Compile functions and open a session on them."""
    return open_session(compile_model(functions, config), backend, **options)
