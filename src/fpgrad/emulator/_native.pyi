# What native/module.cpp exports.

from typing import Any

import numpy as np
from numpy.typing import NDArray

class Fault(Exception): ...

def field_names(unit: int) -> list[str]: ...
def available_levels() -> list[str]: ...
def follow(
    load: NDArray[np.int64],
    matrix: NDArray[np.int64],
    vector: NDArray[np.int64],
    store: NDArray[np.int64],
    start: list[int],
    stop: list[int],
    tokens: list[list[int]],
    steps: int,
    bases: list[int],
    clockwork: dict[str, int],
) -> NDArray[np.int64]: ...

class Native:
    def __init__(
        self,
        numbers: dict[str, int],
        tables: dict[int, tuple[list[int], list[int]]],
        threads: int,
        level: str,
    ) -> None: ...
    def load_program(
        self,
        load: NDArray[np.int64],
        matrix: NDArray[np.int64],
        vector: NDArray[np.int64],
        store: NDArray[np.int64],
    ) -> None: ...
    def write(self, row: int, words: NDArray[np.uint32]) -> None: ...
    def read(self, row: int, rows: int) -> NDArray[np.uint32]: ...
    def run(self, *arguments: Any) -> Any: ...
    def saturated(self) -> tuple[list[int], list[int], list[int]]: ...
    def touched(self) -> int: ...
    def dump(self, name: str, core: int) -> NDArray[np.int64]: ...
    def sizes(self) -> dict[str, int]: ...
    def restore(self, name: str, core: int, first: int, contents: NDArray[np.int64]) -> None: ...
