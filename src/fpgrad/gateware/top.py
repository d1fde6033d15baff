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
from amaranth.lib.wiring import In, Out, connect

from fpgrad.gateware.axi import AxiPort, ports
from fpgrad.gateware.core import Core
from fpgrad.isa.config import MachineConfig
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
        m_axi_*: external memory as AXI4, see :mod:`fpgrad.gateware.axi`.
    """

    def __init__(self, config: MachineConfig, *, reset: bool = True) -> None:
        self._config = config
        self._reset = reset
        super().__init__(
            {
                **({} if reset else {"clk": In(1)}),
                "host_address": In(ADDRESS_BITS),
                "host_write": In(1),
                "host_data": In(WORD_BITS),
                "host_read_data": Out(WORD_BITS),
                "running": Out(1),
                **{f"m_axi_{name}": flow(bits) for name, (flow, bits) in ports(config).items()},
            }
        )

    @property
    def config(self) -> MachineConfig:
        """What the machine was made from."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """The core and its port to external memory; a register before the host port."""
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
        ]
        m.submodules.axi = axi = AxiPort(self._config)
        for name in ("read_request", "read_beats", "write_request", "write_beats"):
            connect(m, getattr(core, name), getattr(axi, name))
        m.d.comb += [core.written.eq(axi.written), core.port_error.eq(axi.error)]
        for name, (flow, _) in ports(self._config).items():
            outside, inside = getattr(self, f"m_axi_{name}"), getattr(axi, f"m_axi_{name}")
            m.d.comb += outside.eq(inside) if flow is Out else inside.eq(outside)
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
