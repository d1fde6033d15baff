"""What a program costs on its machine: cycles by layer and phase, utilisation, memory, what a chip must have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from fpgrad.emulator.timing import cycles_per_step
from fpgrad.formats.table import TABLED
from fpgrad.isa.area import slot_words
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import CLASS_OF, Load, Matrix, Store, Transfer, Unit, Vector
from fpgrad.isa.layout import width
from fpgrad.isa.program import Note, Program
from fpgrad.isa.registers import WORD_BITS
from fpgrad.report import LayerRow, MemoryUse, Needs, StepSummary
from fpgrad.report.summary import PHASES, Phase

NAMED: dict[str, Phase] = {phase: phase for phase in PHASES}


def machine_name(config: MachineConfig) -> str:
    """A machine in a few words."""
    tile, number = config.matrix.tile, config.vector.number
    cores = f"{config.cores} cores, " if config.cores > 1 else ""
    return (
        f"{cores}{config.mac_lanes} MAC lanes: {tile.side}x{tile.side} tiles of {tile.mantissa_bits}-bit mantissas, "
        f"fp{number.width} ({number.exponent_bits}-bit exponent, {number.mantissa_bits}-bit mantissa)"
    )


def layer_rows(program: Program, entry: str) -> list[LayerRow]:
    """Busy cycles of a core's matrix and vector unit by layer and phase, in program order."""
    side = program.config.side
    busy: dict[tuple[str, Phase], list[int]] = defaultdict(lambda: [0, 0])
    e = program.entries[entry]
    for unit, column in ((Unit.MATRIX, 0), (Unit.VECTOR, 1)):
        for i in range(e.start[unit], e.stop[unit]):
            instruction, note = program.units[unit][i], program.notes[unit][i]
            phase = NAMED.get(note.phase, "other")
            if isinstance(instruction, Matrix):
                cycles = instruction.products * side
            else:
                assert isinstance(instruction, Vector)
                cycles = instruction.loops.count
            busy[note.layer, phase][column] += cycles
    order = {name: i for i, name in enumerate(dict.fromkeys(layer for layer, _ in busy))}
    keys = sorted(busy, key=lambda k: (order[k[0]], PHASES.index(k[1])))
    return [
        LayerRow(name=n, phase=p, matrix_cycles=busy[n, p][0], vector_cycles=busy[n, p][1])
        for n, p in keys
    ]


def useful_macs(program: Program, entry: str) -> int:
    """Multiply-accumulates of one step of all cores that the model asks for, padding left out; what each core computes
    for itself and all of them alike counts once."""
    e = program.entries[entry]
    notes = program.notes[Unit.MATRIX][e.start[Unit.MATRIX] : e.stop[Unit.MATRIX]]
    cores, layers, states = program.config.cores, program.meta["layers"], program.meta["states"]

    def copies(note: Note) -> int:
        # The sum for a bias has the bias's name.
        state = states.get(note.text.split(":")[0])
        how = layers.get(note.layer)
        whole = state is not None and state["split"] is None
        alike = how == "whole" or (whole and how != "positions")
        return 1 if layers and alike else cores

    return sum(copies(note) * note.useful_macs for note in notes)


def dram_bytes(program: Program, entry: str) -> int:
    """Bytes that a step of all cores moves between external memory and the chip, those of a streamed program apart."""
    side = program.config.side
    rows = 0
    for unit in (Unit.LOAD, Unit.STORE):
        for i in transfers(program, entry, unit):
            if i.kind is Transfer.SUM:
                continue
            head = -(-i.rows // (4 * side)) if i.kind is Transfer.TILES else 0
            body = i.rows * side // 4 if i.kind is Transfer.TILES else i.rows
            rows += i.count * (head + body)
            rows += -(-i.count // side) if isinstance(i, Load) and i.gather else 0
    return program.config.cores * rows * side * 4


def program_bytes(program: Program, entry: str) -> int:
    """Bytes of instructions that a step of all cores reads from external memory."""
    config, e = program.config, program.entries[entry]
    if not config.control.streamed:
        return 0
    words = sum((e.stop[u] - e.start[u]) * slot_words(config, u) for u in Unit)
    return config.cores * 4 * words


def streaming_note(program: Program, entry: str) -> str:
    """What a step reads of a streamed program, in a sentence."""
    e, control = program.entries[entry], program.config.control
    rings = {u: getattr(control, u.name.lower()) for u in Unit}
    each = ", ".join(f"{u.name.lower()} {e.stop[u] - e.start[u]:,} ({rings[u]})" for u in Unit)
    return (
        f"Program: streams in from external memory, {program_bytes(program, entry):,} bytes a step; instructions of "
        f"each unit (and of its ring): {each}"
    )


def exchanged_rows(program: Program, entry: str) -> int:
    """Rows that each core sends to the others in a step."""
    sent = transfers(program, entry, Unit.STORE)
    return sum(i.count * i.rows for i in sent if i.kind is Transfer.SUM)


def transfers(program: Program, entry: str, unit: Unit) -> Iterator[Load | Store]:
    """The instructions of LOAD or STORE in a step."""
    e = program.entries[entry]
    for i in program.units[unit][e.start[unit] : e.stop[unit]]:
        assert isinstance(i, Load | Store)
        yield i


def memories(program: Program) -> list[MemoryUse]:
    """The memories of a core, in bits. Memories with two read ports are two copies."""
    config, m = program.config, program.config.memory
    row = config.side * config.vector.number.width
    tile = config.side**2 * config.matrix.tile.mantissa_bits + config.vector.number.exponent_bits
    bits_of = {"vector": row, "inbox": row, "outbox": row, "mask": config.side, "tile": tile}
    spaces = {
        "vector": m.vector_rows,
        "inbox": m.inbox_rows,
        "outbox": m.outbox_rows,
        "mask": m.mask_rows,
        "tile": m.tiles,
    }
    # A copy for each read port: STORE has one where it moves tiles and masks.
    more = int(m.tile_dma)
    copies = {"vector": 2, "inbox": 2, "outbox": 1, "mask": 2 + more, "tile": 2 + more}
    used: dict[str, int] = defaultdict(int)
    for s in program.symbols:
        used[s.space] = max(used[s.space], s.base + s.size)
    uses = []
    for space, depth in spaces.items():
        if not depth:
            continue
        bits = bits_of[space] * copies[space]
        label = f"{space} memory" + ("", ", two copies", ", three copies")[copies[space] - 1]
        uses.append(MemoryUse(name=label, used_bits=used[space] * bits, capacity_bits=depth * bits))
    queue = config.matrix.queue_rows * row
    uses.append(MemoryUse(name="finished rows", used_bits=queue, capacity_bits=queue))
    # Beats, of reads with a bit that says of what they are.
    beat = WORD_BITS * m.dram_words_per_cycle
    queue = m.read_queue * (beat + 1) + (m.write_queue * beat if config.cores > 1 else 0)
    uses.append(MemoryUse(name="external memory's beats", used_bits=queue, capacity_bits=queue))
    streamed = config.control.streamed
    for unit in Unit:
        bits = width(CLASS_OF[unit])
        depth = getattr(config.control, unit.name.lower())
        count = len(program.units.get(unit, ()))
        uses.append(
            MemoryUse(
                name=f"{unit.name.lower()} program" + ", ring" * streamed,
                used_bits=(min(count, depth) if streamed else count) * bits,
                capacity_bits=depth * bits,
            )
        )
    return uses


def dsp_blocks(config: MachineConfig) -> tuple[int, str]:
    """Multipliers that the machine takes, and on what the number rests."""
    side = config.side
    per_lane = 1 + config.vector.post_multiply
    tabled = any(f in TABLED for f in config.vector.functions)
    vector = config.cores * side
    lanes = vector * (per_lane + tabled)
    note = (
        f"{config.mac_lanes} for the matrix unit (one 18x18 block a lane; two lanes share a block where the target "
        f"packs them) and {lanes} for the {vector} vector lanes"
    )
    return config.mac_lanes + lanes, note


def shared_layers(program: Program) -> list[str]:
    """A sentence about how cores share the layers of a network, where they compute the same samples."""
    layers = program.meta["layers"]
    kinds = {
        "positions": "by rows of their maps",
        "outputs": "by output channels",
        "inputs": "by input channels",
        "groups": "by groups of channels",
        "whole": "whole on each core",
    }
    named = [
        f"{words} {', '.join(name for name, how in layers.items() if how == kind)}"
        for kind, words in kinds.items()
        if kind in layers.values()
    ]
    return [f"All cores compute all samples and share layers: {'; '.join(named)}"] if named else []


def summarise(
    program: Program,
    *,
    model: str = "model",
    entry: str = "train",
    clock_hz: float = 100e6,
    saturations: Mapping[str, int] | None = None,
    samples: int | None = None,
    schedule: str | None = None,
    recomputed: str | None = None,
) -> StepSummary:
    """The cost of one step of ``entry``, counted by the cycle model in the steady state of a long run.

    Args:
        samples: of the user's batch, where the compiled one is larger: the rest is padding.
        schedule: how the step goes through the batch, and why; what the program knows of it by default.
        recomputed: what is computed again for the backward pass, and why.

    Raises:
        ProgramError: no such entry.
    """
    uses = memories(program)
    compiled = int(program.meta["functions"][entry]["batch_size"])
    samples = compiled if samples is None else min(samples, compiled)
    cores = program.config.cores
    parts = int(program.meta["functions"][entry].get("micro_batches", 1))
    known = "layer by layer" if parts == 1 else f"{parts} micro-batches"
    notes: list[str] = []
    moved = dram_bytes(program, entry) / samples
    spill = cores * program.meta["functions"][entry]["spill"] * program.config.side * 4
    external = f"External memory: {moved:,.0f} bytes a sample"
    if spill:
        external += (
            f"; {spill / 1024:,.1f} KiB of tiles wait there for their use in the backward pass"
        )
    if cores > 1:
        rows = exchanged_rows(program, entry)
        notes.append(
            f"Cores: each sends the others {rows:,} rows of {program.config.side} numbers a step; busy cycles and "
            "memories are those of one core"
        )
    if program.config.control.streamed:
        notes.append(streaming_note(program, entry))
    notes += shared_layers(program)
    if samples < compiled:
        alone = program.meta["shares"] == 1
        whole = "whole tiles of samples" if alone else "equal parts for all cores"
        notes.append(f"A batch of {samples} is computed as {compiled}: {whole}")
    if recomputed is not None:
        notes.append(f"Recomputed for the backward pass: {recomputed}")
    blocks, note = dsp_blocks(program.config)
    return StepSummary(
        model=model,
        machine=machine_name(program.config),
        batch_size=samples,
        cycles=cycles_per_step(program, entry),
        useful_macs=useful_macs(program, entry) * samples // compiled,
        clock_hz=clock_hz,
        layers=tuple(layer_rows(program, entry)),
        memories=tuple(uses),
        needs=Needs(
            mac_lanes=program.config.mac_lanes,
            on_chip_bits=cores * sum(u.capacity_bits for u in uses),
            dsp_blocks=blocks,
            dsp_note=note,
        ),
        saturations=tuple((saturations or {}).items()),
        notes=(external, *notes, f"Schedule: {schedule or known}"),
    )
