"""The host port: the gateware's end of the register map in :mod:`fpgrad.isa.registers`."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from fpgrad.gateware.dma import Bases
from fpgrad.gateware.leave import COUNTER_BITS as SATURATED_BITS
from fpgrad.gateware.sequencer import STEP_BITS, InstructionWrite, index_bits
from fpgrad.gateware.tokens import CHANNEL_BITS, UNITS, Channels
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import DRAM_BITS
from fpgrad.isa.registers import (
    ADDRESS_BITS,
    BASE_REGISTERS,
    INSTRUCTION_WORDS_LOG2,
    MAGIC,
    REGION_LOG2,
    VERSION,
    WORD_BITS,
    Register,
)
from fpgrad.isa.registers import Control as Command

#: Width of the counters of a run; at 100 MHz they last for weeks.
COUNTER_BITS = 48

HostPort = wiring.Signature(
    {
        "address": Out(ADDRESS_BITS),
        "write": Out(1),
        "data": Out(WORD_BITS),
        "read_data": In(WORD_BITS),
    }
)

UnitState = data.StructLayout({"busy": 1, "waiting": 1, "finished": 1})


def control_signature(config: MachineConfig) -> wiring.Signature:
    """What all cores are told: pulses that begin and abandon a run, what it uses, and a word for each unit's instruction
    memory, or where a streamed program is."""
    index = index_bits(config)
    program: dict[str, wiring.Member] = {
        "write": Out(1).array(UNITS),
        "write_data": Out(InstructionWrite),
    }
    if config.control.streamed:
        program = {"program": Out(DRAM_BITS).array(UNITS)}
    return wiring.Signature(
        {
            "go": Out(1),
            "halt": Out(1),
            "steps": Out(STEP_BITS),
            "start": Out(index).array(UNITS),
            "stop": Out(index).array(UNITS),
            "tokens": Out(Channels).array(UNITS),
            "bases": Out(Bases),
            **program,
        }
    )


def _where(config: MachineConfig) -> dict[str, wiring.Member]:
    """Where each unit is."""
    return {
        "at": Out(index_bits(config)).array(UNITS),
        "at_step": Out(STEP_BITS).array(UNITS),
        "state": Out(UnitState).array(UNITS),
    }


def core_status(config: MachineConfig) -> wiring.Signature:
    """What a core says: status as in :class:`fpgrad.isa.registers.Status`, counters, and where each unit is."""
    return wiring.Signature(
        {
            "running": Out(1),
            "rows_left": Out(1),
            "token_overflow": Out(1),
            "address_error": Out(1),
            "quiet": Out(1),
            "saturated_vector": Out(SATURATED_BITS),
            "saturated_accumulator": Out(SATURATED_BITS),
            **_where(config),
        }
    )


def chip_status(config: MachineConfig) -> wiring.Signature:
    """What a host reads."""
    return wiring.Signature(
        {
            "running": Out(1),
            "rows_left": Out(1),
            "token_overflow": Out(1),
            "address_error": Out(1),
            "quiet": Out(1),
            "sums_left": Out(1),
            "cycles": Out(COUNTER_BITS),
            "saturated_vector": Out(COUNTER_BITS),
            "saturated_accumulator": Out(COUNTER_BITS),
            "busy_cycles": Out(COUNTER_BITS).array(UNITS),
            **_where(config),
        }
    )


class Registers(wiring.Component):
    """Turns the host's word writes and reads into the core's signals.

    A write takes effect in the cycle after it; the word at ``address`` is on ``read_data`` from the
    cycle after.

    Members:
        host: the port.
        control: what the host wrote.
        status: what it reads.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "host": In(HostPort),
                "control": Out(control_signature(config)),
                "status": In(chip_status(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Write decoders and one registered read multiplexer."""
        del platform
        m = Module()
        self._writes(m)
        # Two levels of choice, both registered elsewhere than in the core's critical paths.
        word = Signal(WORD_BITS)
        m.d.sync += self.host.read_data.eq(word)
        with m.Switch(self.host.address):
            for address, value in self._readable():
                with m.Case(address):
                    m.d.comb += word.eq(value)
        return m

    def _writes(self, m: Module) -> None:
        address, value, control = self.host.address, self.host.data, self.control
        region = address[REGION_LOG2:]
        to_registers = Signal()
        m.d.comb += to_registers.eq(self.host.write & (region == 0))
        m.d.sync += [control.go.eq(0), control.halt.eq(0)]
        with m.If(to_registers), m.Switch(address[:REGION_LOG2]):
            with m.Case(Register.CONTROL):
                starts = (value & Command.START).bool()
                m.d.sync += [
                    control.go.eq(starts & ~self.status.running & ~control.go),
                    control.halt.eq((value & Command.STOP).bool()),
                ]
            with m.Case(Register.STEPS):
                m.d.sync += control.steps.eq(value)
            for n in range(BASE_REGISTERS):
                with m.Case(Register.BASE + n):
                    m.d.sync += control.bases[n].eq(value[:DRAM_BITS])
            for unit in range(UNITS):
                with m.Case(Register.START + unit):
                    m.d.sync += control.start[unit].eq(value)
                with m.Case(Register.STOP + unit):
                    m.d.sync += control.stop[unit].eq(value)
                with m.Case(Register.TOKENS + unit):
                    m.d.sync += [
                        control.tokens[unit][k].eq(value[CHANNEL_BITS * k :][:CHANNEL_BITS])
                        for k in range(UNITS)
                    ]
            if self._config.control.streamed:
                for unit in range(UNITS):
                    with m.Case(Register.PROGRAM + unit):
                        m.d.sync += control.program[unit].eq(value[:DRAM_BITS])
        if self._config.control.streamed:
            return
        word_bits = INSTRUCTION_WORDS_LOG2
        m.d.sync += [
            control.write_data.word.eq(address[:word_bits]),
            control.write_data.index.eq(address[word_bits:REGION_LOG2]),
            control.write_data.data.eq(value),
        ]
        for unit in range(UNITS):
            m.d.sync += control.write[unit].eq(self.host.write & (region == 1 + unit))

    def _readable(self) -> list[tuple[int, Value]]:
        s = self.status
        status = Cat(
            s.running, s.rows_left, s.token_overflow, s.address_error, s.quiet, s.sums_left
        )
        out: list[tuple[int, Value]] = [
            (Register.MAGIC, Const(MAGIC)),
            (Register.VERSION, Const(VERSION)),
            (Register.STATUS, status),
        ]
        digest = bytes.fromhex(self._config.digest)
        for n in range(8):
            word = int.from_bytes(digest[4 * n : 4 * n + 4], "big")
            out.append((Register.DIGEST + n, Const(word, WORD_BITS)))
        pairs = [
            (Register.CYCLES, s.cycles),
            (Register.SATURATED_VECTOR, s.saturated_vector),
            (Register.SATURATED_ACCUMULATOR, s.saturated_accumulator),
        ]
        pairs += [(Register.BUSY + 2 * u, s.busy_cycles[u]) for u in range(UNITS)]
        for address, counter in pairs:
            out += [(address, counter[:WORD_BITS]), (address + 1, counter[WORD_BITS:])]
        for u in range(UNITS):
            out += [
                (Register.AT + u, s.at[u]),
                (Register.STEP + u, s.at_step[u]),
                (Register.UNIT + u, s.state[u].as_value()),
            ]
        return out


class RunCounters(wiring.Component):
    """Counts while a run lasts: its cycles, and the cycles in which each unit has an instruction.

    Members:
        clear: zeroes the counters.
        running, busy: what is counted.
        cycles, busy_cycles: the counts.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "clear": In(1),
                "running": In(1),
                "busy": In(1).array(UNITS),
                "cycles": Out(COUNTER_BITS),
                "busy_cycles": Out(COUNTER_BITS).array(UNITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """One adder a counter."""
        del platform
        m = Module()
        pairs = [(self.running, self.cycles), *zip(self.busy, self.busy_cycles, strict=True)]
        for enable, count in pairs:
            m.d.sync += count.eq(Mux(self.clear, 0, count + enable))
        return m
