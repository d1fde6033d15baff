"""The top level: the core with flat port names, and its Verilog.

Names of ports hold single underscores only, because tools escape double ones.
"""

import hashlib
import re
from pathlib import Path

from amaranth._toolchain.yosys import find_yosys
from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, ClockSignal, Module
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from fpgrad.gateware.core import Core
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import COUNT_BITS, DRAM_BITS
from fpgrad.isa.registers import ADDRESS_BITS, WORD_BITS

#: Clean-up before ``opt_dff``, or it finds no enables.
_TO_VERILOG = (
    "proc -norom",
    "opt_expr",
    "opt_clean",
    "opt_dff",
    "opt_clean",
    "memory_collect",
    "attrmap -remove generator -remove top -remove src",
    "write_verilog -norename -noattr",
)
#: A simulation's memories start at zero without one line for each word.
_ZEROS = re.compile(r"\n\s*\S+\[\d+\] = \d+'h0+;")

#: The name of the top module and of the file that holds it.
NAME = "fpgrad_core"


class Top(wiring.Component):
    """A core whose ports are single signals; ``clk`` and ``rst`` (synchronous) are added to them.

    Args:
        config: the machine.
        reset: whether there is a ``rst``. A simulation starts from the registers' first values and
            is a third faster without.

    Members:
        host_address, host_write, host_data, host_read_data: the register port; a word is on
            ``host_read_data`` two cycles after its address.
        running: high during a run.
        read_request_*, read_beat_*: reading external memory; ``read_beat_<n>`` is word ``n``.
        write_request_*, write_beat_*: writing external memory.
    """

    def __init__(self, config: MachineConfig, *, reset: bool = True) -> None:
        self._config = config
        self._reset = reset
        words = range(config.memory.dram_words_per_cycle)
        super().__init__(
            {
                **({} if reset else {"clk": In(1)}),
                "host_address": In(ADDRESS_BITS),
                "host_write": In(1),
                "host_data": In(WORD_BITS),
                "host_read_data": Out(WORD_BITS),
                "running": Out(1),
                "read_request_valid": Out(1),
                "read_request_ready": In(1),
                "read_request_row": Out(DRAM_BITS),
                "read_request_rows": Out(COUNT_BITS),
                "read_beat_valid": In(1),
                "read_beat_ready": Out(1),
                **{f"read_beat_{n}": In(WORD_BITS) for n in words},
                "write_request_valid": Out(1),
                "write_request_ready": In(1),
                "write_request_row": Out(DRAM_BITS),
                "write_request_rows": Out(COUNT_BITS),
                "write_beat_valid": Out(1),
                "write_beat_ready": In(1),
                **{f"write_beat_{n}": Out(WORD_BITS) for n in words},
            }
        )

    @property
    def config(self) -> MachineConfig:
        """What the machine was made from."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Renames; a register before the host port."""
        del platform
        m = Module()
        if not self._reset:
            m.domains.sync = ClockDomain(reset_less=True)
            m.d.comb += ClockSignal().eq(self.clk)
        m.submodules.core = core = Core(self._config)
        # In a simulation, logic behind inputs is evaluated on both edges of the clock.
        m.d.sync += [
            core.host.address.eq(self.host_address),
            core.host.write.eq(self.host_write),
            core.host.data.eq(self.host_data),
        ]
        m.d.comb += [
            self.host_read_data.eq(core.host.read_data),
            self.running.eq(core.running),
            core.read_beats.valid.eq(self.read_beat_valid),
            self.read_beat_ready.eq(core.read_beats.ready),
            self.write_beat_valid.eq(core.write_beats.valid),
            core.write_beats.ready.eq(self.write_beat_ready),
        ]
        for kind, port in (("read", core.read_request), ("write", core.write_request)):
            m.d.comb += [
                getattr(self, f"{kind}_request_valid").eq(port.valid),
                port.ready.eq(getattr(self, f"{kind}_request_ready")),
                getattr(self, f"{kind}_request_row").eq(port.payload.row),
                getattr(self, f"{kind}_request_rows").eq(port.payload.rows),
            ]
        for n in range(self._config.memory.dram_words_per_cycle):
            m.d.comb += [
                core.read_beats.payload[n].eq(getattr(self, f"read_beat_{n}")),
                getattr(self, f"write_beat_{n}").eq(core.write_beats.payload[n]),
            ]
        return m


def verilog_text(config: MachineConfig, *, reset: bool = True) -> str:
    """The machine as Verilog, in one text; equal configurations give equal texts.

    Amaranth's own conversion leaves every register as a copy of a separate next value, which
    simulates up to twice as slowly; here Yosys turns them into registers with enables.
    """
    top = Top(config, reset=reset)
    ports = {
        path[0]: (value, PortDirection.Input if member.flow is In else PortDirection.Output)
        for path, member, value in top.signature.flatten(top)
    }
    text = rtlil.convert(top, name=NAME, ports=ports, emit_src=False)
    yosys = find_yosys(lambda version: version >= (0, 40))
    script = "\n".join(("read_rtlil <<rtlil", text, "rtlil", *_TO_VERILOG))
    out = yosys.run(["-q", "-"], script, ignore_warnings=True)
    return out if reset else _ZEROS.sub("", out)


def write_verilog(
    config: MachineConfig, directory: str | Path, *, reset: bool = True
) -> list[Path]:
    """Write the machine's Verilog, headed by the digests of configuration and design.

    Args:
        directory: made if it is not there.
        reset: whether the top module has a synchronous ``rst``.

    Returns:
        the files, the Verilog first.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    text = verilog_text(config, reset=reset)
    header = (
        f"// fpgrad core, configuration {config.digest}\n"
        f"// design {hashlib.sha256(text.encode()).hexdigest()}\n"
    )
    source = folder / f"{NAME}.v"
    source.write_text(header + text)
    return [source]
