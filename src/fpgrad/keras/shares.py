"""How a batch is shared among the cores: by samples, or by layers where there are few of them; and its functions then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fpgrad.frontend.keras import lower
from fpgrad.frontend.lowered import Lowered
from fpgrad.keras.functions import Steps, build_steps, split_steps, with_host_metrics, work
from fpgrad.keras.schedules import Scheduler

__all__ = ["Shares"]

SMALLEST_BATCH = 2
"""Samples in the smallest compiled batch: a batch of one is padded, so that batches are never rows."""


class Shares:
    """Lowers a model for batches of any size.

    Args:
        model: of Keras.
        scheduler: knows the machine's tiles and cores, and what was asked for.
    """

    def __init__(self, model: Any, scheduler: Scheduler) -> None:
        self._model = model
        self._scheduler = scheduler
        self._side, self._cores = scheduler.side, scheduler.cores
        self._descriptions: dict[bool, Lowered] = {}
        self._steps: dict[tuple[bool, int], Steps] = {}
        self._split: dict[tuple[bool, int], tuple[Lowered, Steps] | None] = {}

    def forget(self) -> None:
        """Drops what is kept: the model has changed."""
        self._descriptions.clear()
        self._steps.clear()
        self._split.clear()

    def description(self, training: bool) -> Lowered:
        """What the model is, for one sample."""
        if training not in self._descriptions:
            self._descriptions[training] = self.lowered(1, training)
        return self._descriptions[training]

    def rows(self, batch_size: int, training: bool) -> int:
        """Samples in the compiled batch that holds ``batch_size``; what is too many is padding.

        Each core has as many, or all of them where cores share channels.
        """
        if self.together(batch_size, training) is not None:
            return self._share(batch_size, training, 1)
        return self._cores * self._share(batch_size, training, self._cores)

    def _share(self, batch_size: int, training: bool, cores: int) -> int:
        """Samples that each of some cores has of a batch.

        A tile of a feature map holds samples of one position, so that a core's part fills whole tiles.
        """
        rows = max(-(-batch_size // cores), SMALLEST_BATCH)
        if self.description(training).has_maps or self._scheduler.whole_tiles:
            rows = -(-rows // self._side) * self._side
        return rows

    def built(self, batch_size: int, training: bool) -> tuple[Lowered, Steps]:
        """The model for what each core has of a batch, and its functions; those that took compiling are kept."""
        together = self.together(batch_size, training)
        if together is not None:
            return together
        rows = self._share(batch_size, training, self._cores)
        steps = self._steps.get((training, rows))
        if steps is None:
            steps = self._scheduler.steps(lambda n: self.lowered(n, training), rows)
            if steps.program is not None:
                self._steps[training, rows] = steps
        return self.lowered(rows, training), steps

    def together(self, batch_size: int, training: bool) -> tuple[Lowered, Steps] | None:
        """The model for all samples, its layers divided among the cores; None where samples are better divided.

        With fewer tiles of samples than cores, some of these would have nothing but padding. With more, layers without
        maps may still be better divided, as their optimizer then is too; it takes memory for all samples on each core.
        """
        rows = self._share(batch_size, training, 1)
        tiles = -(-rows // self._side)
        if self._cores == 1 or self._scheduler.wanted == "samples":
            return None
        has_maps = self.description(training).has_maps
        if tiles >= self._cores and (has_maps or self._scheduler.limited):
            return None
        if (training, rows) not in self._split:
            lowered = self.lowered(rows, training)
            self._split[training, rows] = None
            for by_rows in (True, False)[: 1 + has_maps]:
                steps = split_steps(lowered, self._cores, self._side, by_rows=by_rows)
                if steps is None or (tiles > 1 and not self._shorter(steps, batch_size, training)):
                    break
                # Maps that are put together may find no room.
                steps = self._scheduler.fitting(steps)
                if steps is not None:
                    self._split[training, rows] = lowered, steps
                    break
        return self._split[training, rows]

    def _shorter(self, steps: Steps, batch_size: int, training: bool) -> bool:
        """Whether these functions take fewer cycles than those for samples that are divided among the cores: counted
        roughly and, for layers without maps, then exactly."""
        rows = self._share(batch_size, training, self._cores)
        apart = build_steps(self.lowered(rows, training), self._cores)
        counted = work(steps, self._side, self._cores) < work(apart, self._side, self._cores)
        if not counted or self.description(training).has_maps:
            return counted
        return self._scheduler.shorter(steps.functions, apart.functions)

    def lowered(self, samples: int, training: bool) -> Lowered:
        """The model for so many samples, its metrics on the host where the device cannot sum them up."""
        lowered = lower(self._model, samples, training=training)
        if lowered.training is None:
            return lowered
        return replace(lowered, training=with_host_metrics(lowered.training))
