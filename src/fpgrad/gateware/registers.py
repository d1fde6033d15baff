"""The host port: the gateware's end of the register map in :mod:`fpgrad.isa.registers`."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from fpgrad.gateware.dma import Bases
from fpgrad.gateware.sequencer import INDEX_BITS, STEP_BITS, InstructionWrite
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
    Control,
    Register,
)

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


class Registers(wiring.Component):
    """Turns the host's word writes and reads into the core's signals.

    A write takes effect in the cycle after it; the word at ``address`` is on ``read_data`` from the
    cycle after.

    Members:
        host: the port.
        go, halt: pulses: begin and abandon a run.
        steps, start, stop, tokens, bases: what the next run uses.
        write, write_data: a word for each unit's instruction memory.
        running, rows_left, token_overflow, address_error, quiet: status, as in ``isa.registers``.
        cycles, saturated_vector, saturated_accumulator, busy_cycles: counters.
        at, at_step, state: where each unit is.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "host": In(HostPort),
                "go": Out(1),
                "halt": Out(1),
                "steps": Out(STEP_BITS),
                "start": Out(INDEX_BITS).array(UNITS),
                "stop": Out(INDEX_BITS).array(UNITS),
                "tokens": Out(Channels).array(UNITS),
                "bases": Out(Bases),
                "write": Out(1).array(UNITS),
                "write_data": Out(InstructionWrite),
                "running": In(1),
                "rows_left": In(1),
                "token_overflow": In(1),
                "address_error": In(1),
                "quiet": In(1),
                "cycles": In(COUNTER_BITS),
                "saturated_vector": In(COUNTER_BITS),
                "saturated_accumulator": In(COUNTER_BITS),
                "busy_cycles": In(COUNTER_BITS).array(UNITS),
                "at": In(INDEX_BITS).array(UNITS),
                "at_step": In(STEP_BITS).array(UNITS),
                "state": In(UnitState).array(UNITS),
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
        address, value = self.host.address, self.host.data
        region = address[REGION_LOG2:]
        to_registers = Signal()
        m.d.comb += to_registers.eq(self.host.write & (region == 0))
        m.d.sync += [self.go.eq(0), self.halt.eq(0)]
        with m.If(to_registers), m.Switch(address[:REGION_LOG2]):
            with m.Case(Register.CONTROL):
                m.d.sync += [
                    self.go.eq((value & Control.START).bool() & ~self.running & ~self.go),
                    self.halt.eq((value & Control.STOP).bool()),
                ]
            with m.Case(Register.STEPS):
                m.d.sync += self.steps.eq(value)
            for n in range(BASE_REGISTERS):
                with m.Case(Register.BASE + n):
                    m.d.sync += self.bases[n].eq(value[:DRAM_BITS])
            for unit in range(UNITS):
                with m.Case(Register.START + unit):
                    m.d.sync += self.start[unit].eq(value)
                with m.Case(Register.STOP + unit):
                    m.d.sync += self.stop[unit].eq(value)
                with m.Case(Register.TOKENS + unit):
                    m.d.sync += [
                        self.tokens[unit][k].eq(value[CHANNEL_BITS * k :][:CHANNEL_BITS])
                        for k in range(UNITS)
                    ]
        word_bits = INSTRUCTION_WORDS_LOG2
        m.d.sync += [
            self.write_data.word.eq(address[:word_bits]),
            self.write_data.index.eq(address[word_bits:REGION_LOG2]),
            self.write_data.data.eq(value),
        ]
        for unit in range(UNITS):
            m.d.sync += self.write[unit].eq(self.host.write & (region == 1 + unit))

    def _readable(self) -> list[tuple[int, Value]]:
        status = Cat(
            self.running,
            self.rows_left,
            self.token_overflow,
            self.address_error,
            self.quiet,
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
            (Register.CYCLES, self.cycles),
            (Register.SATURATED_VECTOR, self.saturated_vector),
            (Register.SATURATED_ACCUMULATOR, self.saturated_accumulator),
        ]
        pairs += [(Register.BUSY + 2 * u, self.busy_cycles[u]) for u in range(UNITS)]
        for address, counter in pairs:
            out += [(address, counter[:WORD_BITS]), (address + 1, counter[WORD_BITS:])]
        for u in range(UNITS):
            out += [
                (Register.AT + u, self.at[u]),
                (Register.STEP + u, self.at_step[u]),
                (Register.UNIT + u, self.state[u].as_value()),
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
