"""The vector unit in the Amaranth simulator, between memories written in Python."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from amaranth.sim import Simulator, SimulatorContext

from fpgrad.gateware.memory import READ_LATENCY, WRITE_LATENCY
from fpgrad.gateware.vector import VectorUnit
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import Unit, Vector
from fpgrad.isa.layout import pack
from fpgrad.reference.machine import Machine


@dataclass
class Trace:
    """What the unit did: cycle numbers count from the first clock edge."""

    taken: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    writes: list[tuple[int, str, int]] = field(default_factory=list)
    saturated_vector: int = 0
    saturated_accumulator: int = 0


def run(
    config: MachineConfig,
    machine: Machine,
    instructions: Sequence[Vector],
    *,
    acc: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    acc_stall: Callable[[], bool] = lambda: False,
    source_stall: Callable[[], bool] = lambda: False,
    limit: int = 20000,
) -> Trace:
    """Execute ``instructions`` on the unit; ``machine``'s memories change as the unit writes them."""
    dut = VectorUnit(config)
    trace = Trace()
    layout = unit_layout(Unit.VECTOR)
    t = config.side

    async def bench(ctx: SimulatorContext) -> None:
        waiting, rows = deque(instructions), deque(acc)
        groups = [(dut.vector_read, machine.vector), (dut.inbox_read, machine.inbox)]
        targets = [("vector", dut.vector_write), ("outbox", dut.outbox_write)]
        if config.memory.mask_rows:
            groups.append((dut.mask_read, machine.mask))
            targets.append(("mask", dut.mask_write))
        ports = [(port, memory) for group, memory in groups for port in group]
        coming: list[deque] = [deque([None] * READ_LATENCY) for _ in ports]
        writes: deque = deque([[] for _ in range(WRITE_LATENCY - 1)])
        valid, acc_valid = False, False
        settle = 0
        for cycle in range(limit):
            # What the last edge decided.
            for (port, _), queue in zip(ports, coming, strict=True):
                row = queue.popleft()
                for lane in range(t):
                    ctx.set(port.data[lane], int(row[lane]) if row is not None else 0)
            if not valid and waiting and not source_stall():
                valid = True
                ctx.set(dut.instructions.payload, layout.from_bits(pack(waiting[0])))
            ctx.set(dut.instructions.valid, valid)
            if not acc_valid and rows and not acc_stall():
                acc_valid = True
                for lane in range(t):
                    ctx.set(dut.acc.codes[lane], int(rows[0][0][lane]))
                ctx.set(dut.acc.flags, int(sum(int(f) << n for n, f in enumerate(rows[0][1]))))
            ctx.set(dut.acc.valid, acc_valid)

            # What this cycle shows.
            if valid and ctx.get(dut.instructions.ready):
                trace.taken.append(cycle)
                waiting.popleft()
                valid = False
            if acc_valid and ctx.get(dut.acc.ready):
                rows.popleft()
                acc_valid = False
            if ctx.get(dut.done):
                trace.done.append(cycle)
            for (port, memory), queue in zip(ports, coming, strict=True):
                if not ctx.get(port.en):
                    queue.append(None)
                    continue
                trace.reads.append(cycle)
                q = ctx.get(port.address)
                first = q - q % t
                block = memory[first : first + t, q % t] if ctx.get(port.transposed) else memory[q]
                queue.append(block.copy())
            new: list = []
            for name, port in targets:
                if ctx.get(port.en):
                    address = ctx.get(port.address)
                    trace.writes.append((cycle, name, address))
                    row = np.array([ctx.get(port.data[lane]) for lane in range(t)])
                    new.append((getattr(machine, name), address, row))
            port = dut.tile_write
            if ctx.get(port.en):
                address = ctx.get(port.address)
                trace.writes.append((cycle, "tile", address))
                row = np.array([ctx.get(port.data[lane]) for lane in range(t)])
                machine.mantissas[address // t, address % t] = row
            if ctx.get(port.exponent_en):
                machine.exponents[ctx.get(port.exponent_address)] = ctx.get(port.exponent)
            writes.append(new)
            for memory, address, row in writes.popleft():
                memory[address] = row
            await ctx.tick()
            idle = not waiting and not valid and not rows and not ctx.get(dut.busy)
            settle = settle + 1 if idle else 0
            if settle > 5:
                break
        trace.saturated_vector = ctx.get(dut.saturated_vector)
        trace.saturated_accumulator = ctx.get(dut.saturated_accumulator)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return trace
