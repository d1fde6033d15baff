"""Constants that compiler and emulator hold of the hardware, against the hardware's own."""

from __future__ import annotations

import pytest
from tests.programs.order import DISTANCE

from fpgrad.codegen.emit import HAZARD_ROWS
from fpgrad.codegen.steps import WAYS
from fpgrad.emulator.timing import PIPELINE
from fpgrad.gateware.axi import WRITES
from fpgrad.gateware.dma import IN_FLIGHT
from fpgrad.gateware.exchange import LINK_LATENCY, LINK_QUEUE
from fpgrad.gateware.fetch import BURSTS
from fpgrad.gateware.interconnect import OWNERS
from fpgrad.gateware.issue import SETTLE, write_latency
from fpgrad.gateware.matrix import drain_latency
from fpgrad.gateware.memory import WRITE_LATENCY
from fpgrad.gateware.quantise import quantise_latency
from fpgrad.gateware.sequencer import OUTSTANDING
from fpgrad.gateware.store import STORE_QUEUE
from fpgrad.isa.config import VectorConfig


def test_rows_without_a_fence_are_far_enough_apart():
    assert write_latency(function=True, post=True) + WRITE_LATENCY <= HAZARD_ROWS
    assert DISTANCE == HAZARD_ROWS


def test_partial_sums_are_as_many_as_the_machine_makes():
    assert VectorConfig().ways == WAYS


def test_pipelines_are_as_deep_as_the_emulator_thinks():
    plain = write_latency(function=False, post=False)
    assert plain == PIPELINE.vector
    assert write_latency(function=True, post=False) - plain == PIPELINE.function
    assert write_latency(function=False, post=True) - plain == PIPELINE.multiply
    assert (PIPELINE.visible, PIPELINE.settle) == (WRITE_LATENCY, SETTLE)


def test_as_many_bursts_of_a_program_are_on_their_way():
    assert PIPELINE.fetch_bursts == BURSTS


@pytest.mark.parametrize("side", [4, 8, 16])
def test_latencies_that_depend_on_the_tile_side(side: int):
    assert drain_latency(side) == PIPELINE.drain(side)
    assert quantise_latency(side) == PIPELINE.quantise(side)


def test_what_waits_is_as_much_as_the_emulator_thinks():
    assert (PIPELINE.outstanding, PIPELINE.flight) == (OUTSTANDING, IN_FLIGHT)
    assert PIPELINE.writes == WRITES
    assert PIPELINE.store_queue == STORE_QUEUE


def test_several_cores_share_what_the_emulator_thinks():
    assert (PIPELINE.link, PIPELINE.link_queue) == (LINK_LATENCY, LINK_QUEUE)
    assert PIPELINE.owners == OWNERS
