"""A session: a program on an executor, states and data sets in its memories, steps run by the thousand.

The host is not part of a step. It writes data and per-step scalars to external memory, starts as many steps as it
wants, and reads sums back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fpgrad.errors import DataError, DataShapeError, InvalidArgumentError
from fpgrad.formats import splitmix64
from fpgrad.host import pack
from fpgrad.host.memory import RowAllocator
from fpgrad.host.samples import Packed, Packing, Piece
from fpgrad.isa.executor import Executor, RunResult
from fpgrad.isa.program import Program

#: Bytes of external memory that are packed at once.
PIECE = 1 << 18

#: Steps over which the device sums metrics before the host takes the sums and resets them. Where windows begin does not
#: depend on how many steps a call runs, so the sums do not either; and a lane of a sum adds few enough numbers to stay
#: accurate.
WINDOW = 256


@dataclass
class Dataset:
    """Arrays resident in external memory: DRAM rows by input name, and the number of samples."""

    samples: int
    rows: dict[str, int]
    columns: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Steps with their order, scalars and seeds in device memory, until the session plans others.

    Args:
        entry: of the program.
        steps: how many there are.
        bases: the entry's base registers for the first step.
        strides: rows by which each moves on with a step.
    """

    entry: str
    steps: int
    bases: tuple[int, ...]
    strides: tuple[int, ...]

    def at(self, step: int) -> list[int]:
        """The base registers for a run that begins with ``step``."""
        return [base + step * stride for base, stride in zip(self.bases, self.strides, strict=True)]


@dataclass(frozen=True)
class Part:
    """What came of some steps.

    Args:
        sums: over the steps, of the metric states by name, in float64.
        saturated: how many numbers were limited to the largest.
    """

    sums: dict[str, float]
    saturated: int


class Session:
    """Runs a program. Not safe for use from several threads."""

    def __init__(self, program: Program, executor: Executor) -> None:
        self.program = program
        self.executor = executor
        self.meta = program.meta
        self.side = program.config.side
        self.number = program.config.vector.number
        self.cores = program.config.cores
        # Into how many parts the samples of a batch are divided: one where all cores compute all of them.
        self.shares: int = self.meta["shares"]
        self.counters: dict[str, int] = {
            "cycles": 0, "steps": 0, "saturated_vector": 0, "saturated_accumulator": 0, "saturated_host": 0,
        }  # fmt: skip
        self._packing = Packing(program.meta, self.number, self.side)
        self._memory = RowAllocator(program.config.memory.dram_rows, self.side)
        self._scratch: dict[str, tuple[int, int]] = {}
        self._window: tuple[str, int] = (
            "",
            0,
        )  # the entry whose metrics the device holds, and after how many steps
        self._so_far: dict[str, float] = {}
        self._plan: Plan | None = None
        executor.load_program(program)
        image = np.zeros((self.meta["image_rows"], self.side), np.float32)
        self._image_row = self._memory.reserve(max(1, len(image)))
        for base, values in self.meta["constants"]:
            rows = np.asarray(values, np.float32)
            image[base : base + len(rows)] = rows
        for core, base in self.meta["cores"]:
            image[base + core * self.meta["own"][1]] = 1.0
        self._send_image(image)

    # Memory -------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """The compiled batch size N, of all cores together."""
        return next(iter(self.meta["functions"].values()))["batch_size"]

    def _space(self, name: str, rows: int) -> int:
        """Scratch rows of at least this size, made again when they are too few."""
        first, size = self._scratch.get(name, (0, 0))
        if size < rows:
            if size:
                self._memory.release(first)
            size = max(rows, 2 * size)
            first = self._memory.reserve(size)
            self._scratch[name] = first, size
        return first

    def _words(self, values: NDArray[np.float32]) -> NDArray[np.uint32]:
        words, over = pack.to_words(self.number, values)
        self.counters["saturated_host"] += over
        return words

    def _read(self, row: int, rows: int) -> NDArray[np.float32]:
        return pack.from_words(self.number, self.executor.read(row, rows))

    # States -------------------------------------------------------------------------------------

    def write_states(self, values: Mapping[str, ArrayLike]) -> None:
        """Set states by name; arrays of the states' shapes. Other states keep what they hold.

        Raises:
            InvalidArgumentError: an unknown name. DataShapeError: another shape. DataError: NaN or infinity.
        """
        staged: list[tuple[Mapping[str, Any], NDArray[np.float32]]] = []
        for name, value in values.items():
            info = self._state(name)
            array = np.asarray(value, np.float32)
            shape = pack.whole_shape(info)
            if array.size != shape[0] * shape[1]:
                raise DataShapeError(f"{name} must have shape {shape}, not {array.shape}")
            if not np.all(np.isfinite(array)):
                raise DataError(f"{name} must be finite; it holds NaN or infinity")
            staged.append((info, array))
        image = self._fetch_image()
        for info, array in staged:
            parts = pack.parts_of(array.reshape(pack.whole_shape(info)), info)
            for core, base in enumerate(self._places(info)):
                rows = pack.state_rows(parts[core % len(parts)], info, self.side)
                image[base : base + info["rows"]] = rows
        self._send_image(image)

    def read_states(self, names: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        """States by name (default: all), float32, of the states' shapes."""
        infos = {
            name: self._state(name)
            for name in (names if names is not None else self.meta["states"])
        }
        image = self._fetch_image()
        out: dict[str, NDArray[np.float32]] = {}
        for name, info in infos.items():
            rows = [image[base : base + info["rows"]] for base in self._places(info)]
            parts = pack.tensor(
                np.stack(rows), tuple(info["shape"]), info["kind"], False, info["blocks"]
            )
            out[name] = pack.whole(parts, info)
        return out

    def _places(self, info: Mapping[str, Any]) -> list[int]:
        """Where a state is in the image: once for each core where it has its own, or lives outside; else once."""
        far = info["base"] >= self.meta["outside"][0] and self.meta["outside"][1] > 0
        own = info["role"] == "metric" or info["split"] is not None
        stride = self.meta["outside" if far else "own"][1]
        return [info["base"] + core * stride for core in range(self.cores if far or own else 1)]

    def _state(self, name: str) -> Mapping[str, Any]:
        try:
            return self.meta["states"][name]
        except KeyError:
            raise InvalidArgumentError(
                f"state must be one of {', '.join(self.meta['states'])}, not {name!r}"
            ) from None

    def _send_image(self, image: NDArray[np.float32]) -> None:
        some = max(1, PIECE // (4 * self.side))
        for start in range(0, len(image), some):
            words = self._words(image[start : start + some])
            self.executor.write(self._image_row + start, words)
        for i in range(self.meta["chunks"]):
            self.executor.run(f"load/{i}", 1, [self._image_row])
        names = self.program.entries["quantise"].bases
        self.executor.run("quantise", 1, [self._image_row] * len(names))

    def _fetch_image(self) -> NDArray[np.float32]:
        for i in range(self.meta["chunks"]):
            self.executor.run(f"store/{i}", 1, [self._image_row])
        return self._read(self._image_row, self.meta["image_rows"])

    # Data ---------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many samples :meth:`upload` would find room for now, beside what running steps takes."""
        spill = self.cores * max(info["spill"] for info in self.meta["functions"].values())
        spill -= self._scratch.get("spill", (0, 0))[1]
        # An eighth is for orders, scalars, outputs, and a few samples of another data set.
        rows = self._memory.largest * 7 // 8 - max(0, spill)
        # A sample of zeros follows the last.
        return max(0, rows // self._packing.width - 1)

    def pack(self, inputs: Mapping[str, ArrayLike]) -> Packed:
        """Samples as the words that :meth:`upload` sends; another thread may do it while steps run.

        Args:
            inputs: as in :meth:`upload`.

        Raises:
            as :meth:`upload`.
        """
        return self._packing.pack(inputs)

    def upload(self, inputs: Mapping[str, ArrayLike] | Packed) -> Dataset:
        """Put samples into device memory.

        Args:
            inputs: by input name, (n, F) for batch inputs, (n,) or (n, 1) for per-sample columns. Columns that are
                not given are zero for every sample. Bytes stay bytes where the program takes them. Or what
                :meth:`pack` made of them.

        Raises:
            DataError: an input of bytes holds other numbers than 0 to 255.
            DataShapeError: arrays of different length or width. InvalidArgumentError: unknown names.
            MemoryCapacityError: there is no room for so many.
        """
        if isinstance(inputs, Packed):
            data = Dataset(inputs.samples, {})
            self.counters["saturated_host"] += inputs.saturated
            parts = [(k, width, iter([words])) for k, (width, words) in inputs.pieces.items()]
        else:
            samples, pieces = self._packing.pieces(inputs)
            data = Dataset(samples, {})
            parts = [(piece.key, piece.width, self._words_of(piece)) for piece in pieces]
        try:
            for key, width, words in parts:
                at = data.rows[key] = self._memory.reserve((data.samples + 1) * width)
                for some in words:
                    self.executor.write(at, some)
                    at += len(some)
                self.executor.write(at, np.zeros((width, self.side), np.uint32))
        except BaseException:
            self.release(data)
            raise
        return data

    def _words_of(self, piece: Piece) -> Iterator[NDArray[np.uint32]]:
        """The rows of all samples, some at a time: without a second copy of them all."""
        some = max(1, PIECE // (4 * self.side * piece.width))
        for start in range(0, len(piece.array), some):
            words, over = piece.rows(piece.array[start : start + some])
            self.counters["saturated_host"] += over
            yield words

    def release(self, data: Dataset) -> None:
        """Give a data set's memory back; it cannot be used any more."""
        for first in data.rows.values():
            self._memory.release(first)
        data.rows.clear()

    # Running ------------------------------------------------------------------------------------

    def train(
        self,
        data: Dataset,
        order: NDArray[np.integer],
        scalars: Mapping[str, ArrayLike],
        seeds: NDArray[np.uint64] | None = None,
    ) -> dict[str, float]:
        """Run one training step for each row of ``order``, without the host in between.

        Args:
            order: (steps, N) sample numbers; -1 is a padding row.
            scalars: (steps,) for each scalar input of the step.
            seeds: (steps,) seeds of the random generators, if the model has any.

        Returns:
            sums over all steps of the metric states, by name, in float64.
        """
        plan = self.plan(data, order, scalars, seeds)
        return self.follow(plan, 0, plan.steps)[0].sums

    def plan(
        self,
        data: Dataset,
        order: NDArray[np.integer],
        scalars: Mapping[str, ArrayLike],
        seeds: NDArray[np.uint64] | None = None,
    ) -> Plan:
        """Write down training steps without running them; the arguments are those of :meth:`train`.

        The plan holds until the session is given other steps of any kind.
        """
        return self._prepare("train", data, order, scalars, seeds)

    def follow(self, plan: Plan, first: int, steps: int, parts: int = 1) -> list[Part]:
        """Run planned steps in equal parts that follow each other.

        Args:
            plan: the last one that this session made.
            first: the first step, counted from 0.
            steps: in each part.
            parts: how many parts; reading the sums of many at once takes less time.

        Raises:
            InvalidArgumentError: the session has been given other steps since, or the plan ends before.
        """
        if plan is not self._plan:
            raise InvalidArgumentError("plan must be the last one that this session made")
        last = first + parts * steps
        if not 0 <= first <= last <= plan.steps:
            raise InvalidArgumentError(
                f"steps must be among the plan's {plan.steps}, not {first} to {last}"
            )
        return self._metrics(plan, first, steps, parts)

    def begin_window(self) -> None:
        """Let the next steps' metrics be summed from zero; what was summed before has been reported."""
        self._window = ("", 0)

    def evaluate(
        self,
        data: Dataset,
        order: NDArray[np.integer],
        scalars: Mapping[str, ArrayLike] | None = None,
    ) -> dict[str, float]:
        """Metric sums over the samples of ``order``; weights stay as they are."""
        plan = self._prepare("evaluate", data, order, scalars or {}, None)
        return self._metrics(plan, 0, plan.steps, 1)[0].sums

    def predict(self, data: Dataset, order: NDArray[np.integer]) -> dict[str, NDArray[np.float32]]:
        """Outputs for the samples of ``order``, padding left out, by output name."""
        steps = len(order)
        places = {}
        for info in self.meta["functions"]["predict"]["outputs"]:
            rows = steps * self.shares * info["rows"]
            places[info["name"]] = self._space(f"output {info['name']}", rows)
        plan = self._prepare("predict", data, order, {}, None, places)
        self._run("predict", steps, plan.bases)
        real = np.asarray(order).reshape(-1) >= 0
        out: dict[str, NDArray[np.float32]] = {}
        for info in self.meta["functions"]["predict"]["outputs"]:
            parts = steps * self.shares
            rows = self._read(places[info["name"]], parts * info["rows"]).reshape(
                parts, info["rows"], self.side
            )
            shape = (info["shape"][0], info["shape"][1])
            whole = pack.tensor(rows, shape, info["kind"], info["transposed"])
            out[info["name"]] = whole.reshape(-1, shape[1])[real]
        return out

    def _metrics(self, plan: Plan, first: int, steps: int, parts: int) -> list[Part]:
        size = self.cores * self.meta["metrics"][1]
        # A look at the sums ends each part and each window.
        place = self._space("metrics", size * (parts + parts * steps // WINDOW + 1)) if size else 0
        window, so_far = self._window, self._so_far
        # An error or interrupt leaves sums that nobody knows.
        self._window = ("", 0)
        looks: list[tuple[int, bool]] = []  # the part, and whether sums began at zero
        saturated: list[int] = []
        at = first
        for part in range(parts):
            before = self._saturated()
            stop = first + (part + 1) * steps
            while at < stop:
                fresh = window[0] != plan.entry or window[1] >= WINDOW
                if fresh:
                    if size:
                        self.executor.run("reset", 1, [])
                    window = (plan.entry, 0)
                some = min(stop - at, WINDOW - window[1])
                self._run(plan.entry, some, plan.at(at))
                window = (plan.entry, window[1] + some)
                at += some
                if size:
                    self._run("metrics", 1, [place + len(looks) * size], count=False)
                looks.append((part, fresh))
            saturated.append(self._saturated() - before)
        sums = [dict.fromkeys(self._metric_states, 0.0) for _ in range(parts)]
        if size and looks:
            seen = self._seen(place, len(looks))
            for i, (part, fresh) in enumerate(looks):
                now = {name: values[i] for name, values in seen.items()}
                for name, value in now.items():
                    sums[part][name] += value - (0.0 if fresh else so_far[name])
                so_far = now
        self._window, self._so_far = window, so_far
        return [Part(s, n) for s, n in zip(sums, saturated, strict=True)]

    @cached_property
    def _metric_states(self) -> dict[str, Mapping[str, Any]]:
        states = self.meta["states"].items()
        return {name: info for name, info in states if info["role"] == "metric"}

    def _saturated(self) -> int:
        return self.counters["saturated_vector"] + self.counters["saturated_accumulator"]

    def _seen(self, place: int, looks: int) -> dict[str, list[float]]:
        """The sums at each look, by metric state."""
        first, size = self.meta["metrics"]
        rows = self._read(place, looks * self.cores * size)
        rows = rows.reshape(looks, self.cores, size, self.side)
        seen: dict[str, list[float]] = {}
        for name, info in self._metric_states.items():
            at = info["base"] - first
            mine = rows[:, : info["parts"], at : at + info["rows"]]
            values = pack.tensor(mine, tuple(info["shape"]), info["kind"], False)
            seen[name] = values.reshape(looks, -1).astype(np.float64).sum(axis=1).tolist()
        return seen

    def _prepare(
        self,
        entry: str,
        data: Dataset,
        order: NDArray[np.integer],
        scalars: Mapping[str, ArrayLike],
        seeds: NDArray[np.uint64] | None,
        places: Mapping[str, int] | None = None,
    ) -> Plan:
        """Write order, scalars and seeds to device memory. ``places`` are bases for results, by register name."""
        self._plan = None
        order = np.asarray(order)
        info = self.meta["functions"][entry]
        steps, n = np.shape(order)
        if n != info["batch_size"]:
            raise DataShapeError(f"order must have {info['batch_size']} samples a step, not {n}")
        bases = {x["name"]: data.rows[x["name"]] for x in info["inputs"]} | dict(places or {})
        for group, names in enumerate(info["columns"]):
            bases[f"columns {group}"] = data.rows[f"columns {group}: {','.join(names)}"]
        t = self.side
        if order.size and order.max() > data.samples:
            raise DataShapeError(
                f"order names sample {order.max()}, the data set has {data.samples}"
            )
        each = n // self.shares
        order = order.reshape(steps, self.shares, each)
        core_rows = -(-each // t)
        index_rows = self.shares * core_rows
        numbers = np.full((steps, self.shares, core_rows * t), data.samples, np.uint32)
        np.copyto(numbers[:, :, :each], order, where=order >= 0, casting="unsafe")
        bases["order"] = self._space("order", steps * index_rows)
        self.executor.write(bases["order"], numbers.reshape(-1, t))
        if info["scalars"]:
            rows = np.zeros((steps, t), np.uint32)
            for lane, name in enumerate(info["scalars"]):
                if name not in scalars:
                    raise InvalidArgumentError(
                        f"scalars must hold {name!r}; given are {sorted(scalars)}"
                    )
                values = np.broadcast_to(np.asarray(scalars[name], np.float32), (steps,))
                rows[:, lane] = self._words(values)
            bases["scalars"] = self._space("scalars", steps)
            self.executor.write(bases["scalars"], rows)
        bases["image"] = self._image_row
        if info["spill"]:
            bases["spill"] = self._space("spill", self.cores * info["spill"])
        if info["seed"]:
            if seeds is None:
                raise InvalidArgumentError("seeds must be given: the model draws random numbers")
            bases["seed"] = self._space("seed", steps * info["seed"])
            words = lane_seeds(np.asarray(seeds, np.uint64), info["seed"] * t)
            self.executor.write(bases["seed"], words.reshape(-1, t))
        moves = {"order": index_rows, "scalars": 1, "seed": info["seed"]}
        registers = self.program.entries[entry].bases
        self._plan = Plan(
            entry,
            steps,
            tuple(bases[name] for name in registers),
            tuple(moves.get(name, 0) for name in registers),
        )
        return self._plan

    def _run(self, entry: str, steps: int, bases: Sequence[int], count: bool = True) -> RunResult:
        result = self.executor.run(entry, steps, bases)
        self.counters["saturated_vector"] += result.saturated_vector
        self.counters["saturated_accumulator"] += result.saturated_accumulator
        if count:
            self.counters["cycles"] += result.cycles
            self.counters["steps"] += steps
        return result


def lane_seeds(seeds: NDArray[np.uint64], lanes: int) -> NDArray[np.uint32]:
    """Words for the generators of each lane of all cores, (steps, lanes), from one seed a step."""
    return (splitmix64(seeds, np.arange(1, lanes + 1)) >> np.uint64(32)).astype(np.uint32)
