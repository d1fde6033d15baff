"""The RTL executor: the generated Verilog, compiled by Verilator, behind the same driver as a board."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fpgrad.isa.config import MachineConfig
from fpgrad.link.driver import LinkExecutor
from fpgrad.rtl.build import Progress, build_model
from fpgrad.rtl.link import VerilatedLink
from fpgrad.rtl.state import State


class RtlExecutor(LinkExecutor):
    """Runs programs on a cycle-exact simulation of the generated machine.

    Args:
        config: the machine.
        cache_dir: where built simulations are kept; the user's cache directory unless given.
        compiler: a C++ compiler to use instead of the one on the path.
        progress: called while a simulation is built, with what is being done, how many parts of it
            are done, and how many there are.
        timeout: seconds that a run may take.

    Raises:
        ToolNotFoundError: no C++ compiler, or no Verilator.
        ToolFailedError: the build failed; the message has the tool's last lines.
    """

    def __init__(
        self,
        config: MachineConfig,
        cache_dir: str | Path | None = None,
        *,
        compiler: str | None = None,
        progress: Progress | None = None,
        timeout: float = 3600.0,
    ) -> None:
        cache = None if cache_dir is None else Path(cache_dir)
        self.model = build_model(config, cache=cache, compiler=compiler, progress=progress)
        self.simulation = VerilatedLink(self.model.library, config)
        super().__init__(self.simulation, config, timeout=timeout)

    def dump(self) -> dict[str, NDArray[Any]]:
        """See :class:`fpgrad.isa.executor.Inspectable`."""
        return State(self.simulation, self.config).dump()

    def restore(self, memories: Mapping[str, NDArray[Any]]) -> None:
        """See :class:`fpgrad.isa.executor.Inspectable`."""
        State(self.simulation, self.config).restore(memories)

    def poke(self, name: str, index: int | tuple[int, ...], value: int) -> None:
        """See :class:`fpgrad.isa.executor.Inspectable`."""
        State(self.simulation, self.config).poke(name, index, value)
