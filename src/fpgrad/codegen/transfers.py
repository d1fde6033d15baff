"""What LOAD and STORE do in an entry, and the tokens by which the other units and they wait for each other.

Each of the two does its transfers in order, so that one token can stand for several: of what is needed by the same
step, or before it, only the last transfer gives one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

from fpgrad.codegen.allocate import lifetimes
from fpgrad.codegen.exchange import in_order
from fpgrad.codegen.steps import (
    MASK_ROWS,
    Buffer,
    Exchange,
    LoadStep,
    Move,
    StepList,
    StoreStep,
)
from fpgrad.errors import GraphError, MemoryCapacityError
from fpgrad.isa.instructions import TOKEN_BITS, DramAddress, Load, Store, Tokens, Transfer

#: Tokens by unit name, for each vector instruction.
Counts: TypeAlias = list[dict[str, int]]

TEXT = {"tile": "tiles", "mask": "masks", "inbox": "rows", "outbox": "rows"}


class Transfers:
    """The instructions of LOAD and STORE for one entry.

    Args:
        sizes: with several cores, the rows of each core's part of an area of external memory.
        waits, signals: tokens of each pass, to which those for LOAD and STORE are added.
    """

    def __init__(
        self,
        steps: StepList,
        side: int,
        sizes: Mapping[str, int],
        waits: Counts,
        signals: Counts,
    ) -> None:
        self.steps, self.side, self.sizes = steps, side, sizes
        self.waits, self.signals = waits, signals
        self.registers: dict[str, int] = {}
        self.loads: list[tuple[Load, str, str]] = []
        self.stores: list[tuple[Store, str, str]] = []
        self.life = lifetimes(steps.steps)
        self.sums = in_order(steps, self.life)
        moves = (m for m in steps.moves if m.kind == "store")
        self.gone = sorted(moves, key=lambda m: (m.at, m.until))

    def register(self, name: str) -> int:
        """The base register that an array of external memory has."""
        return self.registers.setdefault(name, len(self.registers))

    def load(self) -> int:
        """Inputs in the order of their first use, each when the step before has read its buffer; then what comes back
        from external memory, each when its place is free, and sums over the cores, which need no token (see
        `exchange`).

        Returns:
            tokens from VECTOR to LOAD at the start.
        """
        inputs = sorted(self.steps.loads, key=lambda x: self.span(x.buffer))
        moves = back(self.steps)
        spans = [self.span(load.buffer) for load in inputs]
        done = list(accumulate((last for _, last in spans), max))
        starts = sorted({m.at for m in moves})
        late = range(len(inputs), len(inputs) + len(starts))
        channel = Channel([*done, *(at - 1 for at in starts)], late)
        tokens = dict(zip(starts, late, strict=True))
        order: list[tuple[int, int, Move | Exchange]] = [(m.at - 1, m.until, m) for m in moves]
        order += [(self.life[e.out][1], 0, e) for e in self.sums]
        order.sort(key=lambda x: x[:2])
        queue: list[LoadStep | Move | Exchange] = [*inputs, *(x for _, _, x in order)]
        to_vector = [x for x in queue if not is_tile(x)]
        first = {id(x): self.first_use(x) for x in to_vector}
        telling = [to_vector[i] for i in leaders([first[id(x)] for x in to_vector])]
        for item in telling:
            step = first[id(item)]
            self.waits[step]["load"] = self.waits[step].get("load", 0) + 1
        told = {id(x) for x in (*telling, *leading_tiles(self.steps))}
        awaited = awaited_stores(moves, self.gone)
        for i, item in enumerate(queue):
            signal = int(id(item) in told)
            if isinstance(item, LoadStep):
                self.loads.append(self.input(item, channel.wait(i), signal))
            elif isinstance(item, Exchange):
                self.loads.append((sum_load(item, signal), item.into.name, "sum"))
            else:
                token = tokens.pop(item.at, None)
                count = 0 if token is None else channel.wait(token)
                wait = Tokens(vector=count, store=int(id(item) in awaited))
                if item.load is not None:
                    self.loads.append(self.input(item.load, count, signal))
                else:
                    self.loads.append(self.returning(item, wait, signal))
        for step in channel.steps:
            self.signals[step]["load"] = self.signals[step].get("load", 0) + 1
        return channel.initial

    def span(self, buffer: Buffer) -> tuple[int, int]:
        """First and last step that touches a buffer."""
        if buffer not in self.life:
            raise GraphError(f"{buffer.name} is never used")
        return self.life[buffer]

    def first_use(self, item: LoadStep | Move | Exchange) -> int:
        """The first pass that reads what a load brings."""
        if isinstance(item, Move):
            return item.until
        if isinstance(item, Exchange):
            return self.life[item.into][0]
        return self.span(item.buffer)[0]

    def input(self, load: LoadStep, count: int, signal: int) -> tuple[Load, str, str]:
        """A load of what the host has prepared."""
        index = DramAddress()
        if load.index is not None:
            stride = load.index_stride or -(-load.groups // self.side)
            first, core_stride = load.first // self.side, load.index_core_stride
            index = DramAddress(self.register(load.index), first, stride, core_stride)
        source = DramAddress(
            self.register(load.base), load.offset, load.step_stride, load.core_stride
        )
        instruction = Load(
            kind=Transfer.BYTES if load.octets else Transfer.ROWS,
            count=load.groups,
            rows=load.rows,
            source=source,
            stride=load.stride or load.rows,
            gather=int(load.index is not None),
            index=index,
            target=base(load.buffer) + load.place,
            group_stride=load.group_stride or load.rows,
            row_stride=load.row_stride,
            wait=Tokens(vector=count),
            signal=Tokens(vector=signal),
        )
        return instruction, load.buffer.name, load.base

    def returning(self, move: Move, wait: Tokens, signal: int) -> tuple[Load, str, str]:
        """A load of what was stored."""
        instruction = Load(
            source=self.outside(move),
            stride=move.block,
            target=base(move.buffer) + move.inside,
            wait=wait,
            signal=Tokens(matrix=signal) if is_tile(move) else Tokens(vector=signal),
            **transfer(move),
        )
        return instruction, move.buffer.name, TEXT[move.buffer.place]

    def store(self) -> int:
        """Each store after the last step that writes its buffer. A buffer of the outbox is written again when the
        store of the step before is done, the place of what went out when it has gone.

        Returns:
            tokens from STORE to VECTOR at the start.
        """
        end = len(self.steps.steps)
        out: list[tuple[int, int, StoreStep | Move]] = []
        for store in self.steps.stores:
            first, last = self.span(store.buffer)
            out.append((last, first, store))
        out += [(m.at, m.until, m) for m in self.gone]
        out.sort(key=lambda x: x[:2])
        parts = [(self.life[e.out][1], 0, e) for e in self.sums]
        # Outputs tell for themselves; of the others, those after whose place nothing is needed as soon.
        mine = [m for _, _, m in out if isinstance(m, Move)]
        told = {id(mine[i]) for i in leaders([m.until for m in mine])}
        telling = [x for x in out if isinstance(x[2], StoreStep) or id(x[2]) in told]
        late = {i for i, (_, until, x) in enumerate(telling) if isinstance(x, Move) and until < end}
        channel = Channel([last for last, _, _ in telling], late)
        awaited = awaited_stores(back(self.steps), self.gone).values()
        items = sorted([*out, *parts], key=lambda x: x[:2])
        for last in dict.fromkeys(last for last, _, _ in items):
            self.signals[last]["store"] = self.signals[last].get("store", 0) + 1
        before = -1
        for last, _, item in items:
            wait, before = Tokens(vector=int(last != before)), last
            if isinstance(item, Exchange):
                self.stores.append((sum_store(item, wait), item.out.name, "sum"))
            elif isinstance(item, StoreStep):
                self.stores.append((self.output(item, wait), item.base, item.base))
            else:
                signal = Tokens(vector=int(id(item) in told), load=int(id(item) in awaited))
                instruction = Store(
                    source=base(item.buffer) + item.inside,
                    target=self.outside(item),
                    stride=item.block,
                    wait=wait,
                    signal=signal,
                    **transfer(item),
                )
                self.stores.append((instruction, item.buffer.name, TEXT[item.buffer.place]))
        for i in sorted(range(len(telling)), key=lambda i: telling[i][1] % end):
            step = telling[i][1] % end
            count = channel.wait(i)
            if count:
                self.waits[step]["store"] = self.waits[step].get("store", 0) + count
        return channel.initial

    def output(self, item: StoreStep, wait: Tokens) -> Store:
        """A store of what the host reads."""
        address = DramAddress(
            self.register(item.base), item.offset, item.step_stride, item.core_stride
        )
        return Store(
            rows=item.rows,
            source=base(item.buffer),
            target=address,
            wait=wait,
            signal=Tokens(vector=1),
        )

    def outside(self, move: Move) -> DramAddress:
        """Where in external memory a move begins; every core has an area of its own."""
        return DramAddress(self.register(move.area), move.row, 0, self.sizes.get(move.area, 0))


def is_tile(item: LoadStep | Move | Exchange) -> bool:
    """Whether a load brings tiles, for MATRIX, and not rows or masks for VECTOR."""
    return isinstance(item, Move) and item.buffer.place == "tile"


def leaders(uses: Sequence[int]) -> list[int]:
    """Of transfers in order, with the step that needs each, those after which none is needed as soon.

    Where a step waits for one of them, all that it needs of the others is there too.
    """
    found: list[int] = []
    for i in reversed(range(len(uses))):
        if not found or uses[i] < uses[found[-1]]:
            found.append(i)
    return found[::-1]


def leading_tiles(steps: StepList) -> list[Move]:
    """Loads of tiles that tell MATRIX."""
    tiles = [move for move in back(steps) if is_tile(move)]
    return [tiles[i] for i in leaders([move.until for move in tiles])]


def awaited_stores(moves: Sequence[Move], gone: Sequence[Move]) -> dict[int, int]:
    """Loads that wait for a store, each with the store, by identity: the last of those that it comes after.

    Args:
        moves: loads in order. gone: stores in order.
    """
    position = {id(store): i for i, store in enumerate(gone)}
    last, found = -1, {}
    for move in moves:
        i = max((position[id(store)] for store in move.after), default=-1)
        if i > last:
            found[id(move)], last = id(gone[i]), i
    return found


class Channel:
    """The tokens of a channel that repeats every step: a waiting instruction takes all that were promised before the
    one it needs.

    Args:
        steps: when each token comes, by the pass that sends it.
        late: tokens that are waited for in the step in which they come; the others come for the next step.
    """

    def __init__(self, steps: list[int], late: Collection[int] = ()) -> None:
        self.steps = steps
        order = sorted(range(len(steps)), key=lambda i: (steps[i], i))
        self._position = {i: at + 1 for at, i in enumerate(order)}
        self._late = late
        # What a step leaves over is the same for each, the one before the first included.
        self._taken = max((self._position[i] for i in late), default=0)
        self.initial = len(steps) - self._taken

    def wait(self, i: int) -> int:
        """How many tokens to take to have the ``i``-th; to be asked in the order of waiting."""
        needed = self._position[i] + (len(self.steps) if i in self._late else 0)
        count = tokens_of(max(0, needed - self._taken))
        self._taken += count
        return count


def tokens_of(count: int) -> int:
    """A number of tokens that one instruction waits for.

    Raises:
        GraphError: more than its field holds.
    """
    if count >= 1 << TOKEN_BITS:
        raise GraphError(f"an instruction would wait for {count} tokens at once")
    return count


def sum_load(e: Exchange, signal: int) -> Load:
    """The sums' way to the inbox."""
    rows, target = e.rows, base(e.into)
    return Load(kind=Transfer.SUM, rows=rows, target=target, signal=Tokens(vector=signal))


def sum_store(e: Exchange, wait: Tokens) -> Store:
    """A core's part, sent to the others."""
    return Store(kind=Transfer.SUM, rows=e.rows, source=base(e.out), wait=wait)


def back(steps: StepList) -> list[Move]:
    """Moves that bring something back, in the order in which they begin."""
    return sorted((m for m in steps.moves if m.kind == "load"), key=lambda m: (m.at, m.until))


def transfer(move: Move) -> dict[str, Any]:
    """What LOAD and STORE have in common."""
    if move.buffer.place == "mask":
        rows, step = move.size // MASK_ROWS, MASK_ROWS
        kind = Transfer.MASKS
    else:
        rows, step = move.size, 1
        kind = Transfer.TILES if move.buffer.place == "tile" else Transfer.ROWS
    return {
        "kind": kind,
        "count": move.count,
        "rows": rows,
        "group_stride": move.size,
        "row_stride": step,
    }


def base(buffer: Buffer) -> int:
    """The buffer's place.

    Raises:
        MemoryCapacityError: it was never placed (a fault of the compiler).
    """
    if buffer.base is None:
        raise MemoryCapacityError(f"{buffer.name} has no place in {buffer.place} memory")
    return buffer.base
