"""A session that evaluates the graph functions in float64: the oracle for everything above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fpgrad.graph import Function, evaluate
from fpgrad.host.session import Part

__all__ = ["ExactSession"]


class ExactSession:
    """The session protocol over `fpgrad.graph.evaluate`."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self.functions = dict(functions)
        self.counters = {
            "cycles": 0,
            "steps": 0,
            "saturated_vector": 0,
            "saturated_accumulator": 0,
        }
        self.calls: list[tuple[str, int]] = []
        self.uploads = 0
        self.released = 0
        self._states: dict[str, np.ndarray] = {}
        self._roles: dict[str, str] = {}
        for function in functions.values():
            for state in function.states:
                self._roles[state.name] = state.attrs["role"]
                self._states.setdefault(state.name, np.zeros(state.shape))
        first = next(iter(functions.values()))
        self.batch_size = next(n.shape[0] for n in first.inputs if n.attrs["kind"] == "batch")

    def write_states(self, values: Mapping[str, np.ndarray]) -> None:
        for name, value in values.items():
            assert value.shape == self._states[name].shape, name
            self._states[name] = np.array(value, dtype=np.float64)

    def read_states(self, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        chosen = self._states if names is None else names
        return {name: self._states[name].astype(np.float32) for name in chosen}

    @property
    def room(self) -> int:
        return 1 << 20

    def pack(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return inputs

    def upload(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.uploads += 1
        read = {node.name for f in self.functions.values() for node in f.inputs}
        assert set(inputs) <= read
        resident = {}
        for name, array in inputs.items():
            array = np.asarray(array, dtype=np.float64)
            if array.ndim == 1:
                array = array[:, None]
            resident[name] = np.concatenate([array, np.zeros((1, array.shape[1]))])
        return resident

    def release(self, dataset: dict[str, np.ndarray]) -> None:
        self.released += 1
        dataset.clear()

    def train(self, data, order, scalars, seeds) -> dict[str, float]:
        return self._steps("train", data, order, scalars, seeds)

    def plan(self, data, order, scalars, seeds):
        return data, order, scalars, seeds

    def follow(self, plan, first, steps, parts) -> list[Part]:
        data, order, scalars, seeds = plan
        done = []
        for at in range(first, first + parts * steps, steps):
            some = slice(at, at + steps)
            mine = {name: values[some] for name, values in scalars.items()}
            before = self.counters["saturated_vector"]
            sums = self.train(data, order[some], mine, None if seeds is None else seeds[some])
            done.append(Part(sums, self.counters["saturated_vector"] - before))
        return done

    def evaluate(self, data, order, scalars) -> dict[str, float]:
        return self._steps("evaluate", data, order, scalars, None)

    def predict(self, data, order) -> dict[str, np.ndarray]:
        function = self.functions["predict"]
        outputs: dict[str, list[np.ndarray]] = {}
        for rows in order:
            results, _ = evaluate(function, self._inputs(function, data, rows), self._of(function))
            for name, value in results.items():
                outputs.setdefault(name, []).append(value[rows >= 0])
        return {name: np.concatenate(v).astype(np.float32) for name, v in outputs.items()}

    def _of(self, function: Function) -> dict[str, np.ndarray]:
        return {state.name: self._states[state.name] for state in function.states}

    def _inputs(self, function, data, rows) -> dict[str, np.ndarray]:
        assert len(rows) == self.batch_size
        return {
            node.name: data[node.name][rows]
            for node in function.inputs
            if node.attrs["kind"] in ("batch", "column")
        }

    def _steps(self, name, data, order, scalars, seeds) -> dict[str, float]:
        function = self.functions[name]
        self.calls.append((name, len(order)))
        metrics = [s.name for s in function.states if s.attrs["role"] == "metric"]
        for metric in metrics:
            self._states[metric] = np.zeros_like(self._states[metric])
        for step, rows in enumerate(order):
            inputs = self._inputs(function, data, rows)
            for node in function.inputs:
                if node.attrs["kind"] == "scalar":
                    inputs[node.name] = scalars[node.name][step]
                elif node.attrs["kind"] == "seed":
                    assert seeds.dtype == np.uint64
                    inputs[node.name] = seeds[step]
            _, states = evaluate(function, inputs, self._of(function))
            self._states.update(states)
            self.counters["steps"] += name == "train"
        return {metric: float(self._states[metric].sum()) for metric in metrics}
