"""The vector unit: passes over rows. This file is the specification of the vector instructions."""

from __future__ import annotations

import numpy as np

from fpgrad.errors import ExecutionError
from fpgrad.formats import blockfloat, random, smallfloat, table
from fpgrad.formats.smallfloat import Codes, Flags
from fpgrad.isa.instructions import (
    Alu,
    Immediate,
    Loops,
    Mask,
    RowStream,
    Source,
    Space,
    Target,
    Vector,
    VectorOp,
)
from fpgrad.reference.machine import Machine, check_range


def indices(loops: Loops) -> Codes:
    """i3, i2, i1 and i0 of every iteration in order, shape (4, n3*n2*n1*n0)."""
    return np.indices((loops.n3, loops.n2, loops.n1, loops.n0)).reshape(4, -1)


def walk(loops: Loops, access: RowStream | Target) -> Codes:
    """The row address of every iteration."""
    i3, i2, i1, i0 = indices(loops)
    return access.base + i3 * access.s3 + i2 * access.s2 + i1 * access.s1 + i0 * access.s0


def read_stream(machine: Machine, loops: Loops, stream: RowStream) -> Codes:
    """Rows of a memory stream, shape (iterations, T)."""
    address = walk(loops, stream)
    memory = machine.rows(stream.space)
    check_range(stream.space.name.lower(), address, len(memory))
    if stream.space is Space.MASK:
        memory = memory * machine.config.vector.number.one
    if not stream.transposed:
        return memory[address]
    t = machine.config.side
    first, column = address - address % t, address % t
    return memory[first[:, None] + np.arange(t), column[:, None]]


def immediate(machine: Machine, operand: Immediate) -> int:
    """The code of an immediate, or of the scalar that it names."""
    return int(machine.scalars[operand.value]) if operand.scalar else operand.value


def next_random(machine: Machine, rows: int) -> Codes:
    """Rows of uniform numbers in [1, 2): each lane's xorshift32 steps once a row."""
    fmt = machine.config.vector.number
    out = np.empty((rows, machine.config.side), np.int64)
    state = machine.random.astype(np.uint32)
    for r in range(rows):
        state = random.step(state)
        out[r] = random.uniform(fmt, state)
    machine.random = state.astype(np.int64)
    return out


def masked(mask: Mask, loops: Loops, index: Codes) -> Flags:
    """Where ``index`` (rows or lanes, broadcast against iterations) is masked out: from ``limit`` on, on the last
    iteration of the mask's loop."""
    i3, i2, i1, _ = indices(loops)
    last = {
        0: np.zeros(len(i1), np.bool_),
        1: i1 == loops.n1 - 1,
        2: i2 == loops.n2 - 1,
        3: i3 == loops.n3 - 1,
    }[mask.loop]
    return last[:, None] & (index >= mask.limit)


def combine(machine: Machine, alu: Alu, p: Codes, c: Codes) -> tuple[Codes, Flags]:
    """The alu: ``p`` is the product, ``c`` the third operand."""
    fmt = machine.config.vector.number
    if alu is Alu.ADD:
        return smallfloat.add(fmt, p, c)
    kp, kc = smallfloat.order_key(fmt, p), smallfloat.order_key(fmt, c)
    result = {
        Alu.PASS: lambda: p,
        Alu.MAX: lambda: np.where(kp >= kc, p, c),
        Alu.MIN: lambda: np.where(kp <= kc, p, c),
        Alu.GT: lambda: np.where(kp > kc, fmt.one, 0),
        Alu.GE: lambda: np.where(kp >= kc, fmt.one, 0),
        Alu.EQ: lambda: np.where(kp == kc, fmt.one, 0),
        Alu.GATE: lambda: np.where(kc > 0, p, 0),
    }[alu]()
    return result, np.zeros(result.shape, np.bool_)


def acc_rows(instruction: Vector) -> int:
    """How many accumulator rows an instruction takes."""
    if instruction.op is not VectorOp.PASS:
        return 0
    uses = Source.ACC in (instruction.a, instruction.b, instruction.c, instruction.d)
    return instruction.loops.count if uses else 0


def execute(machine: Machine, instruction: Vector) -> None:
    """Execute one vector instruction."""
    if instruction.op is VectorOp.PASS:
        run_pass(machine, instruction)
        return
    memory = machine.rows(instruction.p0.space)
    check_range(instruction.p0.space.name.lower(), np.array([instruction.p0.base]), len(memory))
    row = memory[instruction.p0.base].copy()
    if instruction.op is VectorOp.SCALARS:
        machine.scalars = row
    else:
        machine.random = (row << (32 - machine.config.vector.number.width)) | 1


def run_pass(machine: Machine, v: Vector) -> None:
    """``y = function(alu(±(a*b), ±c)) * d``, masked, then written as rows, as tiles, or both."""
    config, fmt = machine.config, machine.config.vector.number
    ways, t = config.vector.ways, config.side
    loops = v.loops
    rows = loops.count
    if v.reduce and loops.n0 < ways:
        raise ExecutionError(f"a reducing pass needs n0 of at least {ways}, not {loops.n0}")
    i0 = indices(loops)[3]
    never = np.zeros((rows, t), np.bool_)

    streams: dict[Source, Codes] = {}
    flags = never
    used = {v.a, v.b, v.c, v.d}
    if Source.P0 in used:
        streams[Source.P0] = read_stream(machine, loops, v.p0)
    if Source.P1 in used:
        streams[Source.P1] = read_stream(machine, loops, v.p1)
    if Source.ACC in used:
        taken = [machine.accumulated.popleft() for _ in range(rows)]
        streams[Source.ACC] = np.array([codes for codes, _ in taken])
        machine.saturated_accumulator += int(sum(over.sum() for _, over in taken))
    if Source.RANDOM in used:
        streams[Source.RANDOM] = next_random(machine, rows)
    for source, code in (
        (Source.ZERO, 0),
        (Source.ONE, fmt.one),
        (Source.I0, immediate(machine, v.i0) if Source.I0 in used else 0),
        (Source.I1, immediate(machine, v.i1) if Source.I1 in used else 0),
    ):
        streams[source] = np.full((rows, t), code, np.int64)

    product, over = smallfloat.multiply(fmt, streams[v.a], streams[v.b])
    flags = flags | over
    if v.negate_product:
        product = smallfloat.negate(fmt, product)
    if v.reduce:
        result = product.reshape(-1, loops.n0, t).copy()
        over = np.zeros_like(result, dtype=np.bool_)
        for i in range(ways, loops.n0):
            c = result[:, i - ways]
            c = smallfloat.negate(fmt, c) if v.negate_c else c
            result[:, i], over[:, i] = combine(machine, v.alu, result[:, i], c)
        result, over = result.reshape(rows, t), over.reshape(rows, t)
    else:
        c = streams[v.c]
        c = smallfloat.negate(fmt, c) if v.negate_c else c
        result, over = combine(machine, v.alu, product, c)
    flags = flags | over
    lookup = next((x for x in config.tables if x.function is v.function), None)
    result, over = table.evaluate(fmt, lookup, v.function, result)
    flags = flags | over
    if v.d is not Source.ONE:
        result, over = smallfloat.multiply(fmt, result, streams[v.d])
        flags = flags | over

    dropped = masked(v.row_mask, loops, i0[:, None]) | masked(
        v.lane_mask, loops, np.arange(t)[None, :]
    )
    result = np.where(dropped, 0, result)
    machine.saturated_vector += int((flags & ~dropped).sum())

    if v.target.space is not Space.NONE:
        write_rows(machine, loops, v.target, result, ways if v.reduce else 0)
    if v.tile.enable:
        write_tiles(machine, v, result)


def write_rows(machine: Machine, loops: Loops, target: Target, rows: Codes, ways: int) -> None:
    """Write every row, or for a reducing pass (``ways`` > 0) the last ``ways`` of each i0 loop."""
    address = walk(loops, target)
    if ways:
        i0 = indices(loops)[3]
        kept = i0 >= loops.n0 - ways
        # Iteration i0 is written as i0 % ways.
        address = (address - (i0 - i0 % ways) * target.s0)[kept]
        rows = rows[kept]
    memory = machine.rows(target.space)
    check_range(target.space.name.lower(), address, len(memory))
    if target.space is Space.MASK:
        fmt = machine.config.vector.number
        positive = smallfloat.order_key(fmt, rows) > 0
        rows = positive.astype(np.int64)
    memory[address] = rows


def write_tiles(machine: Machine, v: Vector, rows: Codes) -> None:
    """Quantise each i0 loop's rows to one tile, or with ``flow`` the rows of i1 and i0 to as many as it takes."""
    config, loops = machine.config, v.loops
    t = config.side
    if (loops.n0 > t and not v.tile.flow) or v.reduce:
        raise ExecutionError(
            f"a quantising pass needs n0 of at most {t} and must not reduce; n0 is {loops.n0}"
        )
    outer, inner, length = loops.n3 * loops.n2, loops.n1, loops.n0
    if v.tile.flow:
        length = loops.n1 * loops.n0
        inner = -(-length // t)
        padded = np.zeros((outer, inner * t, t), np.int64)
        padded[:, :length] = rows.reshape(outer, length, t)
        tiles = padded.reshape(-1, t, t)
    else:
        tiles = np.zeros((outer * inner, t, t), np.int64)
        tiles[:, :length] = rows.reshape(-1, length, t)
    i3, i2, i1 = np.indices((loops.n3, loops.n2, inner)).reshape(3, -1)
    address = v.tile.base + i3 * v.tile.s3 + i2 * v.tile.s2 + i1 * v.tile.s1
    check_range("tile", address, config.memory.tiles)
    mantissas, exponents = blockfloat.quantise(config.matrix.tile, config.vector.number, tiles)
    machine.mantissas[address], machine.exponents[address] = mantissas, exponents
