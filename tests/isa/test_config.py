"""The machine's configuration: external memory's speed, and values that no machine can have."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from fpgrad.errors import ConfigError
from fpgrad.isa.config import MachineConfig, MemoryConfig


@pytest.mark.parametrize(
    ("bandwidth", "rate"), [(0, 16), (32, 32), (1.3, Fraction(13, 10)), (1 / 3, Fraction(1, 3))]
)
def test_the_rate_of_external_memory(bandwidth, rate):
    config = MachineConfig(memory=MemoryConfig(dram_bandwidth=bandwidth))
    assert config.memory.dram_rate == rate
    assert MachineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("bandwidth", [-1, 0.001, 33])
def test_rates_that_no_port_has(bandwidth):
    with pytest.raises(ConfigError) as caught:
        MachineConfig(memory=MemoryConfig(dram_bandwidth=bandwidth))
    assert str(caught.value) == (
        f"memory.dram_bandwidth must be 0 or 0.01 to 32 words a cycle, not {bandwidth}"
    )


@pytest.mark.parametrize(
    ("name", "least", "beats"),
    [("read_queue", 4, 2), ("read_queue", 4, 100), ("write_queue", 2, 1), ("write_queue", 2, 1024)],
)
def test_queues_that_no_port_has(name, least, beats):
    with pytest.raises(ConfigError) as caught:
        MachineConfig(memory=MemoryConfig(**{name: beats}))
    assert str(caught.value) == (
        f"memory.{name} must be a power of two from {least} to 512, not {beats}"
    )


@pytest.mark.parametrize(
    ("cores", "words", "queues", "bursts"),
    [
        (1, 16, (128, 64), (32, 64)),
        (2, 16, (128, 64), (32, 32)),
        (2, 16, (512, 512), (64, 64)),
        (4, 1, (4, 2), (1, 1)),
        (1, 1, (512, 2), (128, 256)),
    ],
)
def test_bursts_leave_room_for_others(cores, words, queues, bursts):
    memory = MemoryConfig(dram_words_per_cycle=words, read_queue=queues[0], write_queue=queues[1])
    config = MachineConfig(memory=memory, cores=cores)
    assert (config.read_burst, config.write_burst) == bursts


@pytest.mark.parametrize(("interval", "cycles"), [(0, 1), (10, 10), (10, -1)])
def test_refresh_must_leave_time(interval, cycles):
    with pytest.raises(ConfigError) as caught:
        MachineConfig(
            memory=MemoryConfig(dram_refresh_interval=interval, dram_refresh_cycles=cycles)
        )
    assert str(caught.value) == (
        f"memory.dram_refresh_cycles must be less than dram_refresh_interval, not {cycles} of {interval}"
    )
