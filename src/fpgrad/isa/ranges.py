"""Checks before a run what hardware does not check: that addresses on chip stay inside their memories.

The reference finds these mistakes while it executes; a machine would wrap around silently. All
addresses on chip are affine in the loop counters, so that their extremes follow from the
instruction alone. Addresses of external memory depend on the run and are checked by the machine.
"""

from __future__ import annotations

from fpgrad.errors import ExecutionError
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import (
    COUNT_BITS,
    Instruction,
    Load,
    Matrix,
    RowStream,
    Source,
    Space,
    Store,
    Transfer,
    Unit,
    Vector,
    VectorOp,
)
from fpgrad.isa.program import Entry, Program


def check_entry(program: Program, entry: Entry) -> None:
    """Raise when an instruction of an entry leaves a memory, or asks for what no machine does.

    Raises:
        ExecutionError: naming unit, instruction, memory, addresses and depth.
    """
    for unit in Unit:
        instructions = program.units.get(unit, ())
        for index in range(entry.start[unit], entry.stop[unit]):
            try:
                _check(program.config, instructions[index])
            except ExecutionError as error:
                raise ExecutionError(f"{unit.name.lower()} instruction {index}: {error}") from None


def _check(config: MachineConfig, instruction: Instruction) -> None:
    match instruction:
        case Vector():
            _vector(config, instruction)
        case Matrix():
            _matrix(config, instruction)
        case Load():
            _transfer(config, instruction, "inbox", instruction.target)
        case Store():
            if instruction.kind is Transfer.BYTES:
                raise ExecutionError("STORE does not write bytes")
            _transfer(config, instruction, "outbox", instruction.source)


def _transfer(config: MachineConfig, i: Load | Store, rows: str, base: int) -> None:
    _positive("count", i.count)
    _positive("rows", i.rows)
    m = config.memory
    if i.kind is Transfer.BYTES and not m.bytes:
        raise ExecutionError("the machine's LOAD does not take bytes")
    if i.kind in (Transfer.TILES, Transfer.MASKS) and not m.tile_dma:
        raise ExecutionError("the machine does not move tiles or masks to and from external memory")
    inner = i.rows * (4 if i.kind is Transfer.BYTES else 1)
    low, high = _extent(base, (i.count, inner), (i.group_stride, i.row_stride))
    if i.kind is Transfer.TILES:
        _range("tile", low, high, m.tiles)
    elif i.kind is Transfer.MASKS:
        _range("mask", low, high + 31, m.mask_rows)
    else:
        _range(rows, low, high, getattr(m, f"{rows}_rows"))


def _vector(config: MachineConfig, v: Vector) -> None:
    if v.op is not VectorOp.PASS:
        if v.p0.space is Space.MASK:
            raise ExecutionError(f"{v.op.name} takes a row of numbers, not of masks")
        _read(config, v.p0.space, v.p0.base, v.p0.base)
        return
    counts = (v.loops.n3, v.loops.n2, v.loops.n1, v.loops.n0)
    for count in counts:
        _positive("a trip count", count)
    ways, n0 = config.vector.ways, v.loops.n0
    if v.reduce and n0 < ways:
        raise ExecutionError(f"a reducing pass needs n0 of at least {ways}, not {n0}")
    used = {v.a, v.b, v.c, v.d}
    if (v.d is not Source.ONE) and not config.vector.post_multiply:
        raise ExecutionError("the machine has no second multiplier, so d must be ONE")
    if Source.RANDOM in used and not config.vector.random:
        raise ExecutionError("the machine has no random generators")
    if v.function > 1 and v.function not in config.vector.functions:
        raise ExecutionError(f"the machine has no function {v.function.name}")
    for source, stream in ((Source.P0, v.p0), (Source.P1, v.p1)):
        if source in used:
            _read(config, stream.space, *_extent(stream.base, counts, _strides(stream)))
    if v.target.space is not Space.NONE:
        if v.target.space is Space.INBOX:
            raise ExecutionError("a pass does not write to the inbox; only LOAD does")
        written = (*counts[:3], ways if v.reduce else n0)
        strides = (v.target.s3, v.target.s2, v.target.s1, v.target.s0)
        _rows(config, v.target.space, *_extent(v.target.base, written, strides))
    if v.tile.enable:
        if (n0 > config.side and not v.tile.flow) or v.reduce:
            raise ExecutionError(
                f"a quantising pass needs n0 of at most {config.side} and must not reduce; n0 is {n0}"
            )
        inner = -(-v.loops.n1 * n0 // config.side) if v.tile.flow else v.loops.n1
        low, high = _extent(v.tile.base, (*counts[:2], inner), (v.tile.s3, v.tile.s2, v.tile.s1))
        _range("tile", low, high, config.memory.tiles)


def _matrix(config: MachineConfig, m: Matrix) -> None:
    if not 1 <= m.rows <= config.side:
        raise ExecutionError(f"a matrix instruction streams 1 to {config.side} rows, not {m.rows}")
    counts = (m.n2, m.n1, m.n0, m.k2, m.k1, m.k0)
    for count in counts:
        _positive("a trip count", count)
    if m.terms >= 1 << COUNT_BITS:
        raise ExecutionError(
            f"a matrix instruction sums at most {(1 << COUNT_BITS) - 1} products, not {m.terms}"
        )
    for s in (m.streamed, m.stationary):
        low, high = _extent(s.base, counts, (s.s2, s.s1, s.s0, s.t2, s.t1, s.t0))
        _range("tile", low, high, config.memory.tiles)


def _strides(stream: RowStream) -> tuple[int, int, int, int]:
    return stream.s3, stream.s2, stream.s1, stream.s0


def _extent(base: int, counts: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Smallest and largest address of an affine walk."""
    ends = [(n - 1) * s for n, s in zip(counts, strides, strict=True)]
    return base + sum(e for e in ends if e < 0), base + sum(e for e in ends if e > 0)


def _read(config: MachineConfig, space: Space, low: int, high: int) -> None:
    if space is Space.NONE:
        raise ExecutionError("an operand reads a memory stream whose space is NONE")
    if space is Space.OUTBOX:
        raise ExecutionError("a pass does not read the outbox; only STORE does")
    _rows(config, space, low, high)


def _rows(config: MachineConfig, space: Space, low: int, high: int) -> None:
    name = space.name.lower()
    _range(name, low, high, getattr(config.memory, f"{name}_rows"))


def _range(what: str, low: int, high: int, depth: int) -> None:
    if low < 0 or high >= depth:
        raise ExecutionError(f"{what} addresses {low} to {high} are outside its {depth} rows")


def _positive(what: str, value: int) -> None:
    if value < 1:
        raise ExecutionError(f"{what} must be at least 1, not {value}")
