"""A session: a program on an executor, states and data sets in its memories, steps run by the thousand.

The host is not part of a step. It writes data and per-step scalars to external memory, starts as many steps as it
wants, and reads sums back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fpgrad.errors import DataError, DataShapeError, InvalidArgumentError
from fpgrad.formats import splitmix64
from fpgrad.host import pack
from fpgrad.host.memory import RowAllocator
from fpgrad.isa.executor import Executor, RunResult
from fpgrad.isa.program import Program

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


class Session:
    """Runs a program. Not safe for use from several threads."""

    def __init__(self, program: Program, executor: Executor) -> None:
        self.program = program
        self.executor = executor
        self.meta = program.meta
        self.side = program.config.side
        self.number = program.config.vector.number
        self.counters: dict[str, int] = {
            "cycles": 0, "steps": 0, "saturated_vector": 0, "saturated_accumulator": 0, "saturated_host": 0,
        }  # fmt: skip
        self._image = np.zeros((self.meta["image_rows"], self.side), np.float32)
        self._memory = RowAllocator(program.config.memory.dram_rows, self.side)
        self._scratch: dict[str, tuple[int, int]] = {}
        self._window: tuple[str, int] = (
            "",
            0,
        )  # the entry whose metrics the device holds, and after how many steps
        self._so_far: dict[str, float] = {}
        executor.load_program(program)
        self._image_row = self._memory.reserve(max(1, len(self._image)))
        for base, values in self.meta["constants"]:
            rows = np.asarray(values, np.float32)
            self._image[base : base + len(rows)] = rows
        self._send_image()

    # Memory -------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """The compiled batch size N."""
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

    def _write(self, row: int, values: NDArray[np.float32]) -> None:
        words, over = pack.to_words(self.number, values)
        self.counters["saturated_host"] += over
        self.executor.write(row, words.reshape(-1, self.side))

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
            if array.size != info["shape"][0] * info["shape"][1]:
                raise DataShapeError(
                    f"{name} must have shape {tuple(info['shape'])}, not {array.shape}"
                )
            if not np.all(np.isfinite(array)):
                raise DataError(f"{name} must be finite; it holds NaN or infinity")
            staged.append((info, array))
        self._fetch_image()
        for info, array in staged:
            base = info["base"]
            self._image[base : base + info["rows"]] = pack.state_rows(array, info, self.side)
        self._send_image()

    def read_states(self, names: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        """States by name (default: all), float32, of the states' shapes."""
        infos = {
            name: self._state(name)
            for name in (names if names is not None else self.meta["states"])
        }
        self._fetch_image()
        out: dict[str, NDArray[np.float32]] = {}
        for name, info in infos.items():
            rows = self._image[info["base"] : info["base"] + info["rows"]]
            out[name] = pack.tensor(
                rows, tuple(info["shape"]), info["kind"], False, info["blocks"]
            ).copy()
        return out

    def _state(self, name: str) -> Mapping[str, Any]:
        try:
            return self.meta["states"][name]
        except KeyError:
            raise InvalidArgumentError(
                f"state must be one of {', '.join(self.meta['states'])}, not {name!r}"
            ) from None

    def _send_image(self) -> None:
        self._write(self._image_row, self._image)
        for i in range(self.meta["chunks"]):
            self.executor.run(f"load/{i}", 1, [self._image_row])
        self.executor.run("quantise", 1, [])

    def _fetch_image(self) -> None:
        for i in range(self.meta["chunks"]):
            self.executor.run(f"store/{i}", 1, [self._image_row])
        self._image = self._read(self._image_row, len(self._image))

    # Data ---------------------------------------------------------------------------------------

    def upload(self, inputs: Mapping[str, ArrayLike]) -> Dataset:
        """Put samples into device memory.

        Args:
            inputs: by input name, (n, F) for batch inputs, (n,) or (n, 1) for per-sample columns. Columns that are
                not given are zero for every sample. Bytes stay bytes where the program takes them.

        Raises:
            DataError: an input of bytes holds other numbers than 0 to 255.
            DataShapeError: arrays of different length or width. InvalidArgumentError: unknown names.
        """
        arrays = {k: _numbers(v) for k, v in inputs.items()}
        lengths = {k: len(v) for k, v in arrays.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise DataShapeError(f"inputs must have the same number of samples, not {lengths}")
        samples = next(iter(lengths.values()))
        data = Dataset(samples, {})
        known: set[str] = set()
        for function in self.meta["functions"].values():
            for info in function["inputs"]:
                known.add(info["name"])
                self._upload_batch(data, info, arrays)
            for group, names in enumerate(function["columns"]):
                known.update(names)
                self._upload_columns(data, f"columns {group}", names, arrays)
        unknown = sorted(set(arrays) - known)
        if unknown:
            self.release(data)
            raise InvalidArgumentError(f"inputs must be among {sorted(known)}, not {unknown}")
        return data

    def release(self, data: Dataset) -> None:
        """Give a data set's memory back; it cannot be used any more."""
        for first in data.rows.values():
            self._memory.release(first)
        data.rows.clear()

    def _upload_batch(
        self, data: Dataset, info: Mapping[str, Any], arrays: Mapping[str, NDArray]
    ) -> None:
        name, columns = info["name"], info["columns"]
        if name in data.rows or name not in arrays:
            return
        array = arrays[name].reshape(data.samples, -1)
        if array.shape[1] != columns:
            raise DataShapeError(
                f"{name} must have {columns} features a sample, not {array.shape[1]}"
            )
        if "image" in info:
            array = pack.bordered(array, info["image"])
        if info.get("octets"):
            words = pack.sample_octets(_octets(name, array), self.side)
            data.rows[name] = self._memory.reserve(words.shape[0] * words.shape[1])
            self.executor.write(data.rows[name], words.reshape(-1, self.side))
            return
        rows = pack.sample_rows(array, self.side)
        data.rows[name] = self._memory.reserve(rows.shape[0] * rows.shape[1])
        self._write(data.rows[name], rows)

    def _upload_columns(
        self, data: Dataset, group: str, names: list[str], arrays: Mapping[str, NDArray]
    ) -> None:
        key = f"{group}: {','.join(names)}"
        if key in data.rows:
            return
        rows = np.zeros((data.samples + 1, self.side), np.float32)
        for lane, name in enumerate(names):
            if name in arrays:
                rows[: data.samples, lane] = arrays[name].reshape(data.samples)
        data.rows[key] = self._memory.reserve(len(rows))
        self._write(data.rows[key], rows)

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
        return self._metrics("train", data, order, scalars, seeds)

    def evaluate(
        self,
        data: Dataset,
        order: NDArray[np.integer],
        scalars: Mapping[str, ArrayLike] | None = None,
    ) -> dict[str, float]:
        """Metric sums over the samples of ``order``; weights stay as they are."""
        return self._metrics("evaluate", data, order, scalars or {}, None)

    def predict(self, data: Dataset, order: NDArray[np.integer]) -> dict[str, NDArray[np.float32]]:
        """Outputs for the samples of ``order``, padding left out, by output name."""
        bases = self._prepare("predict", data, order, {}, None)
        steps = len(order)
        places = {}
        for info in self.meta["functions"]["predict"]["outputs"]:
            places[info["name"]] = self._space(f"output {info['name']}", steps * info["rows"])
        self._run("predict", steps, bases | places)
        real = np.asarray(order).reshape(-1) >= 0
        out: dict[str, NDArray[np.float32]] = {}
        for info in self.meta["functions"]["predict"]["outputs"]:
            rows = self._read(places[info["name"]], steps * info["rows"]).reshape(
                steps, info["rows"], self.side
            )
            shape = (info["shape"][0], info["shape"][1])
            whole = pack.tensor(rows, shape, info["kind"], info["transposed"])
            out[info["name"]] = whole.reshape(-1, shape[1])[real]
        return out

    def _metrics(
        self,
        entry: str,
        data: Dataset,
        order: NDArray[np.integer],
        scalars: Mapping[str, ArrayLike],
        seeds: NDArray[np.uint64] | None,
    ) -> dict[str, float]:
        order = np.asarray(order)
        bases = self._prepare(entry, data, order, scalars, seeds)
        sums = dict.fromkeys(self._metric_names(), 0.0)
        done, registers = 0, self.program.entries[entry].bases
        while done < len(order):
            if self._window[0] != entry or self._window[1] >= WINDOW:
                if sums:
                    self.executor.run("reset", 1, [])
                self._window = (entry, 0)
                self._so_far = dict.fromkeys(sums, 0.0)
            steps = min(len(order) - done, WINDOW - self._window[1])
            self._run(entry, steps, self._advance(registers, bases, done, order))
            self._window = (entry, self._window[1] + steps)
            done += steps
            now = self._read_metrics()
            for name in sums:
                sums[name] += now[name] - self._so_far[name]
            self._so_far = now
        return sums

    def _metric_names(self) -> list[str]:
        return [name for name, info in self.meta["states"].items() if info["role"] == "metric"]

    def _advance(
        self, names: Sequence[str], bases: Mapping[str, int], done: int, order: NDArray[np.integer]
    ) -> dict[str, int]:
        """Bases for a run that begins after ``done`` steps: what comes with each step moves on."""
        rows = {"order": -(-order.shape[1] // self.side), "scalars": 1, "seed": 1}
        return {name: bases[name] + done * rows.get(name, 0) for name in names}

    def _read_metrics(self) -> dict[str, float]:
        first, size = self.meta["metrics"]
        if not size:
            return {}
        place = self._space("metrics", size)
        self._run("metrics", 1, {"metrics": place}, count=False)
        rows = self._read(place, size)
        sums: dict[str, float] = {}
        for name in self._metric_names():
            info = self.meta["states"][name]
            at = info["base"] - first
            values = pack.tensor(
                rows[at : at + info["rows"]], tuple(info["shape"]), info["kind"], False
            )
            sums[name] = float(values.astype(np.float64).sum())
        return sums

    def _prepare(
        self,
        entry: str,
        data: Dataset,
        order: NDArray[np.integer],
        scalars: Mapping[str, ArrayLike],
        seeds: NDArray[np.uint64] | None,
    ) -> dict[str, int]:
        """Write order, scalars and seeds to device memory; the bases by register name."""
        info = self.meta["functions"][entry]
        steps, n = np.shape(order)
        if n != info["batch_size"]:
            raise DataShapeError(f"order must have {info['batch_size']} samples a step, not {n}")
        bases = {x["name"]: data.rows[x["name"]] for x in info["inputs"]}
        for group, names in enumerate(info["columns"]):
            bases[f"columns {group}"] = data.rows[f"columns {group}: {','.join(names)}"]
        t = self.side
        padded = np.full((steps, -(-n // t) * t), -1, np.int64)
        padded[:, :n] = order
        numbers = np.where(padded < 0, data.samples, padded)
        if numbers.size and numbers.max() > data.samples:
            raise DataShapeError(
                f"order names sample {numbers.max()}, the data set has {data.samples}"
            )
        bases["order"] = self._space("order", numbers.size // t)
        self.executor.write(bases["order"], numbers.astype(np.uint32).reshape(-1, t))
        if info["scalars"]:
            rows = np.zeros((steps, t), np.float32)
            for lane, name in enumerate(info["scalars"]):
                if name not in scalars:
                    raise InvalidArgumentError(
                        f"scalars must hold {name!r}; given are {sorted(scalars)}"
                    )
                rows[:, lane] = np.asarray(scalars[name], np.float64)
            bases["scalars"] = self._space("scalars", steps)
            self._write(bases["scalars"], rows)
        if info["spill"]:
            bases["spill"] = self._space("spill", info["spill"])
        if info["seed"]:
            if seeds is None:
                raise InvalidArgumentError("seeds must be given: the model draws random numbers")
            bases["seed"] = self._space("seed", steps)
            self.executor.write(bases["seed"], lane_seeds(np.asarray(seeds, np.uint64), t))
        return bases

    def _run(
        self, entry: str, steps: int, bases: Mapping[str, int], count: bool = True
    ) -> RunResult:
        registers = self.program.entries[entry].bases
        result = self.executor.run(entry, steps, [bases[name] for name in registers])
        self.counters["saturated_vector"] += result.saturated_vector
        self.counters["saturated_accumulator"] += result.saturated_accumulator
        if count:
            self.counters["cycles"] += result.cycles
            self.counters["steps"] += steps
        return result


def lane_seeds(seeds: NDArray[np.uint64], lanes: int) -> NDArray[np.uint32]:
    """Words for the generators of each lane, (steps, lanes), from one seed a step."""
    return (splitmix64(seeds, np.arange(1, lanes + 1)) >> np.uint64(32)).astype(np.uint32)


def _numbers(values: ArrayLike) -> NDArray:
    """As float32, or as the bytes that they are."""
    array = np.asarray(values)
    return array if array.dtype == np.uint8 else array.astype(np.float32, copy=False)


def _octets(name: str, values: NDArray) -> NDArray[np.uint8]:
    """Whole numbers from 0 to 255 as bytes."""
    if values.dtype == np.uint8:
        return values
    octets = np.clip(values, 0, 255).astype(np.uint8)
    if not np.array_equal(octets, values):
        raise DataError(f"{name} must hold whole numbers from 0 to 255: the model takes bytes")
    return octets
