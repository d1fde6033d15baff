"""From functions of the graph to a program, and to the smallest machine that runs it."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from fpgrad.codegen.allocate import Need, align_up
from fpgrad.codegen.batches import apart, named, share_of
from fpgrad.codegen.control import check_memories, with_memories
from fpgrad.codegen.cores import (
    channels_shared,
    check_divided,
    divided_layers,
    per_sample,
    spread,
)
from fpgrad.codegen.divide import Pieces
from fpgrad.codegen.emit import Emitter
from fpgrad.codegen.exchange import divide_sums, room_for_sums
from fpgrad.codegen.external import Pace
from fpgrad.codegen.geometry import LEAST, UNLIMITED
from fpgrad.codegen.housekeeping import (
    CHUNK,
    housekeeping,
    image_chunks,
    metric_rows,
    own_rows,
    place_outside,
    place_persistent,
)
from fpgrad.codegen.kernels import convolution_kernels
from fpgrad.codegen.persistent import Persistent
from fpgrad.codegen.plan import CrowdedError, plan_function, plan_housekeeping
from fpgrad.codegen.rematerialise import compute_again
from fpgrad.codegen.select import Selector, select
from fpgrad.codegen.steps import Buffer, Place, VectorStep
from fpgrad.codegen.storage import Grid, Quantised, Stored
from fpgrad.codegen.stream import Limits
from fpgrad.errors import GraphError, MemoryCapacityError
from fpgrad.formats import Function
from fpgrad.formats.table import TABLED
from fpgrad.graph import Function as GraphFunction
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import TILE_BITS, Source, Unit
from fpgrad.isa.program import Entry, Program, Symbol

#: Output tiles that the queue between matrix and vector unit holds in a machine for maps.
MAP_QUEUE = 32

#: Parts of memory; what is summed in turns may take one.
PARTS = 6

#: Bands that inbox and outbox have room for, at least about.
IN_FLIGHT = 8

#: Slices of a kernel that would fill tile memory.
SLICES = 16

#: How much of vector memory what persists may take where memory is limited; the rest lives outside.
STATES = 0.4


@dataclass(frozen=True)
class Machine:
    """What the user decides about the machine; the rest follows from the model.

    Args:
        formats: number formats and tile side; its memory sizes count only with ``fixed``.
        fixed: the machine exists already: use ``formats`` as it is, or fail.
        tiles, rows, masks: tiles, rows of vector memory and of mask memory on the chip at most; what finds no room
            waits in external memory. None: as many as it takes, or with ``fixed`` as many as there are.
        inbox, outbox: rows of the buffers between external memory and the vector unit at most. What waits outside
            comes and goes through them: in smaller pieces and later, where they are small. None: likewise.
        instructions: of a unit on the chip at most; a longer program streams in from external memory. None: 4096, as
            many as a memory can have. With ``fixed``, what the machine has decides.
    """

    formats: MachineConfig = MachineConfig()
    fixed: bool = False
    tiles: int | None = None
    rows: int | None = None
    masks: int | None = None
    inbox: int | None = None
    outbox: int | None = None
    instructions: int | None = None

    @property
    def limits(self) -> Limits:
        """What the chip has room for, as far as something may be outside."""
        if not self.fixed:
            return Limits(self.tiles, self.rows, self.masks, self.inbox, self.outbox)
        m = self.formats.memory
        if not m.tile_dma:
            return Limits()
        return Limits(m.tiles, m.vector_rows, m.mask_rows, m.inbox_rows, m.outbox_rows)

    @property
    def chunk(self) -> int:
        """Rows of what persists that are moved at a time."""
        memory = self.formats.memory
        if self.fixed:
            return min(CHUNK, memory.inbox_rows, memory.outbox_rows)
        return min(CHUNK, self.inbox or CHUNK, self.outbox or CHUNK)

    @property
    def band(self) -> int:
        """Tiles of a band at most, to begin with: inbox and outbox have room for some."""
        limits = [n for n in (self.inbox, self.outbox) if n is not None and not self.fixed]
        return min((n // self.formats.side // IN_FLIGHT for n in limits), default=UNLIMITED)


def compile_functions(
    functions: Mapping[str, GraphFunction], machine: Machine | None = None
) -> Program:
    """Compile the functions of a model, which share its states, into one program.

    Args:
        functions: by entry name; each at stage "quantised".
        machine: formats, or a whole existing machine.

    Returns:
        the program; its ``config`` is the smallest machine for it, or the given one.

    Raises:
        GraphError: an expression that no pass computes, or that several cores cannot share.
        MemoryCapacityError: the given machine is too small; the message says how much is missing.
        ConfigError: its instruction memories are.
    """
    machine = machine or Machine()
    band = machine.band
    with uncollected():
        while True:
            try:
                return _compile(functions, machine, band)
            except CrowdedError as error:
                smaller = min(band, error.piece // machine.formats.side) // 2
                if smaller < LEAST:
                    raise
                band = smaller


@contextmanager
def uncollected() -> Iterator[None]:
    """Without looking for garbage in cycles: a program's hundred thousands of objects stay, and looking through them again
    and again takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _compile(functions: Mapping[str, GraphFunction], machine: Machine, band: int) -> Program:
    config = machine.formats
    together = channels_shared(functions, config.cores)  # cores compute the same samples
    if config.cores > 1 and not together:
        check_divided(functions)
    if not machine.fixed and not config.matrix.queue and has_maps(functions.values()):
        config = replace(config, matrix=replace(config.matrix, queue=MAP_QUEUE * config.side))
    # A machine that exists may have no memory for bits; they are numbers then.
    keep = Persistent(
        config.side,
        config.matrix.accumulator.safe_terms(config.matrix.tile),
        "vector" if machine.fixed and not config.memory.mask_rows else "mask",
    )
    keep.band = band
    parted = {name: apart(function) for name, function in functions.items()}
    for function in parted.values():
        keep.find_blocks(function)
        for node in function.nodes():
            if node.op == "quantise" and node.inputs[0].op == "state":
                keep.add_state_tile(node.inputs[0])
        for state in function.states:
            keep.add_state(state)
        keep.parts |= {n: p for n, p in function.parts.items() if n in keep.states}
    if machine.limits.rows is not None:
        keep.send_out(int(machine.limits.rows * STATES))
        keep.few_rows = keep.few_inputs = machine.limits.rows // PARTS
    if machine.limits.inbox is not None and machine.limits.rows is not None:
        keep.few_inputs = min(keep.few_inputs, machine.limits.inbox // PARTS)
    if machine.limits.tiles is not None:
        kernels = {k: n for f in parted.values() for k, n in convolution_kernels(f).items()}
        most = machine.limits.tiles // SLICES
        keep.send_tiles_out(kernels, int(machine.limits.tiles * STATES), most)
    selected = {name: select(function, keep) for name, function in parted.items()}
    vector_floor, tile_floor = place_persistent(keep)
    outside_first = place_outside(keep, vector_floor, config.cores)

    need = Need(vector_floor, tile_floor, machine.chunk, machine.chunk)
    emitter = Emitter(config.vector.number, config.side, config.cores, keep.outside_rows)
    entries: dict[str, Entry] = {}
    lists = [selector.out for selector in selected.values()]
    pieces: dict[Buffer, Pieces] = {}
    floors: dict[Place, int] = {"vector": vector_floor, "tile": tile_floor}
    # In one direction no more than the port takes.
    words = min(float(config.memory.dram_rate), config.memory.dram_words_per_cycle)
    pace = Pace(config.side, words / config.cores, band)
    for steps in lists:
        room = room_for_sums(steps, config.memory if machine.fixed else None)
        pieces |= divide_sums(steps, config.side, room // 4)
        if config.cores > 1 and not together:
            spread(steps, config.cores, config.side)
        if machine.limits.tiles is not None:
            compute_again(steps, config.side)
        taken, parts = plan_function(steps, config, machine.limits, floors, room, pace)
        need = need.join(taken)
        pieces |= parts
    chunks = image_chunks(keep, vector_floor, config.cores, machine.chunk)
    house = housekeeping(keep, vector_floor, config.cores, chunks)
    for steps in house:
        need = need.join(plan_housekeeping(steps, config.side, floors, pace))
    for steps in (*lists, *house):
        entries[steps.name] = emitter.entry(steps, scalar_index(functions.get(steps.name)))

    counts = {u: len(emitter.units[u]) for u in Unit}
    if not machine.fixed:
        spills = any(m.load is None for steps in lists for m in steps.moves)
        octets = any(load.octets for steps in lists for load in (*steps.loads, *steps.fetches))
        if need.tiles > 1 << TILE_BITS:
            raise MemoryCapacityError(
                f"the model needs {need.tiles} tiles on the chip, instructions address {1 << TILE_BITS}; use a smaller "
                "batch, or let what finds no room wait in external memory: config=Machine(tiles=32768, rows=65536, "
                "masks=131072), or on the command line --limit tiles=32768 --limit rows=65536 --limit masks=131072"
            )
        config = fitted(
            config,
            need,
            [s for steps in (*lists, *house) for s in steps.steps],
            spills,
            octets,
        )
        config = with_memories(config, counts, machine.instructions)
    check_fit(config, need)
    check_memories(config, counts)
    near = [s for s in keep.states.values() if not s.buffer.outside]
    symbols = [symbol(s.buffer, s.grid, s.kind) for s in near]
    kernels = [q for q in keep.state_tiles.values() if not q.buffer.outside]
    symbols += [symbol(q.buffer, q.grid, "tiles", q.transposed) for q in kernels]
    for name, selector in selected.items():
        for node, tensor in (*selector.stored.items(), *selector.quantised.items()):
            first = selector.fold.turns.get(node, 0) if selector.out.turns > 1 else None
            prefix = f"{name}: " if first is None else f"{named(name, first)}: "
            symbols += symbols_of(tensor, pieces.get(tensor.buffer), prefix)
    return Program(
        config,
        {u: tuple(i) for u, i in emitter.units.items()},
        entries,
        tuple(dict.fromkeys(symbols)),
        {u: tuple(n) for u, n in emitter.notes.items()},
        describe(functions, selected, keep, config.cores, len(chunks), outside_first, together),
    )


def has_maps(functions: Iterable[GraphFunction]) -> bool:
    """Whether there are convolutions, whose passes take the vector unit long at a time."""
    return any(node.op == "conv" for function in functions for node in function.nodes())


def scalar_index(function: GraphFunction | None) -> dict[str, int]:
    """Which element of the scalar file each scalar input is."""
    if function is None:
        return {}
    used = {x for node in function.nodes() for x in node.inputs}
    scalars = [n for n in function.inputs if n.attrs["kind"] == "scalar" and n in used]
    return {n.name: i for i, n in enumerate(scalars)}


def fitted(
    config: MachineConfig,
    need: Need,
    steps: Sequence[VectorStep],
    spills: bool,
    octets: bool,
) -> MachineConfig:
    """The smallest machine for a program, but for its instruction memories."""
    t = config.side
    functions = {s.function for s in steps}
    vector = replace(
        config.vector,
        functions=tuple(f for f in Function if f in functions and f in TABLED),
        post_multiply=any(s.d is not Source.ONE for s in steps),
        random=any(Source.RANDOM in s.operands for s in steps),
    )
    memory = replace(
        config.memory,
        vector_rows=align_up(max(need.vector_rows, t), t),
        tiles=max(need.tiles, 1),
        inbox_rows=align_up(max(need.inbox_rows, t), t),
        outbox_rows=align_up(max(need.outbox_rows, t), t),
        mask_rows=align_up(need.mask_rows, t),
        tile_dma=spills,
        bytes=octets,
    )
    return replace(config, vector=vector, memory=memory)


def check_fit(config: MachineConfig, need: Need) -> None:
    """Raise when the machine is too small.

    Raises:
        MemoryCapacityError: naming every memory that is, with what is needed and what would reduce it, or addresses
            that instructions cannot hold.
    """
    short = [
        f"memory.{name}: {wanted} needed, {getattr(config.memory, name)} there"
        for name, wanted in asdict(need).items()
        if wanted > getattr(config.memory, name)
    ]
    if short:
        raise MemoryCapacityError(
            "the model does not fit the machine: "
            + "; ".join(short)
            + ". A smaller batch size, narrower layers "
            "or an optimizer with fewer moments (SGD) need less; or raise the machine's memory"
        )
    if config.memory.vector_rows > 1 << 20 or config.memory.inbox_rows > 1 << 20:
        raise MemoryCapacityError(
            f"the model needs {config.memory.vector_rows} rows of vector memory, instructions address 1048576; "
            "use narrower layers or a larger tile side"
        )


def symbols_of(s: Stored | Quantised, pieces: Pieces | None, prefix: str) -> Iterator[Symbol]:
    """A tensor's entries in the symbol table, one for each piece."""
    kind = s.kind if isinstance(s, Stored) else "tiles"
    for first, buffer in pieces.each if pieces is not None else [(0, s.buffer)]:
        whole = symbol(buffer, s.grid, kind, s.transposed, prefix)
        yield whole if pieces is None else replace(whole, name=prefix + s.buffer.name, first=first)


def symbol(
    buffer: Buffer, grid: Grid, kind: str, transposed: bool = False, prefix: str = ""
) -> Symbol:
    """A tensor's entry in the symbol table."""
    name = buffer.name if buffer.persistent else prefix + buffer.name
    return Symbol(
        name, buffer.place, buffer.base or 0, buffer.size, grid.rows, grid.columns, kind, transposed
    )


def describe(
    functions: Mapping[str, GraphFunction],
    selected: Mapping[str, Selector],
    keep: Persistent,
    cores: int,
    chunks: int,
    outside_first: int,
    together: bool,
) -> dict[str, Any]:
    """What the host needs to know, as JSON values.

    Args:
        chunks: parts in which what persists is moved to the chip and back.
        outside_first: the row of the image where what lives outside begins.
        together: whether all cores compute the same samples.
    """
    first, size = metric_rows(keep)
    shares = 1 if together else cores
    own = {
        state.name
        for function in functions.values()
        for state in function.states
        if per_sample(state, samples_of(function))
    }
    return {
        "shares": shares,
        "layers": divided_layers(functions) if together else {},
        "image_rows": outside_first + cores * keep.outside_rows,
        "outside": [outside_first, keep.outside_rows],
        "chunks": chunks,
        "metrics": [first, size],
        "own": list(own_rows(keep)),
        "cores": [[core, s.buffer.base] for core, s in keep.cores.items()],
        "states": {
            name: {
                "base": s.buffer.base,
                "rows": s.buffer.size,
                "kind": s.kind,
                "shape": [s.grid.rows, s.grid.columns],
                "blocks": s.grid.blocks,
                "role": keep.roles[name],
                "parts": shares if name in own else 1,
                "split": asdict(keep.parts[name]) if name in keep.parts else None,
            }
            for name, s in keep.states.items()
        },
        "constants": [[b.base, values.tolist()] for b, values in keep.constant_rows.items()],
        "functions": {
            name: describe_function(functions[name], s, shares) for name, s in selected.items()
        },
    }


def samples_of(function: GraphFunction) -> int:
    """Samples of the batch, of one core."""
    for node in function.inputs:
        if node.attrs["kind"] in ("batch", "column"):
            return node.shape[0]
    raise GraphError(f"{function.name}: a function must have an input of kind 'batch' or 'column'")


def describe_function(function: GraphFunction, selector: Selector, shares: int) -> dict[str, Any]:
    """Inputs and outputs of one entry: the batch is that of all ``shares``, outputs are those of each."""
    batch = [n for n in function.inputs if n.attrs["kind"] == "batch"]
    t = selector.t
    columns = [n.name for n in function.inputs if n.attrs["kind"] == "column"]
    images = {
        n.name if (share := share_of(n)) is None else share.whole: image
        for n, image in selector.images.items()
    }
    spill = selector.out.spill_rows
    return {
        "batch_size": shares * samples_of(function),
        "inputs": [
            {"name": n.name, "columns": n.shape[1]}
            | (
                {"image": asdict(images[n.name]), "octets": bool(n.attrs["octets"])}
                if n.name in images
                else {}
            )
            for n in batch
        ],
        "columns": [columns[i : i + t] for i in range(0, len(columns), t)],
        "scalars": list(scalar_index(function)),
        "micro_batches": selector.out.turns,
        "spill": spill,
        "seed": max((x.step_stride for x in selector.out.loads if x.base == "seed"), default=0),
        "outputs": [
            {
                "name": name,
                "shape": [s.grid.rows, s.grid.columns],
                "rows": s.grid.row_count,
                "kind": s.kind,
                "transposed": s.transposed,
            }
            for name, s in selector.sent.items()
        ],
    }
