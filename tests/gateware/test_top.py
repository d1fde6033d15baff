"""The Verilog that is written: its ports, its digests, and that equal machines are equal texts."""

from __future__ import annotations

import dataclasses
import hashlib
import re

from fpgrad.formats import TileFormat
from fpgrad.gateware.top import CELL, HUB, NAME, write_verilog
from fpgrad.isa.config import ControlConfig, MachineConfig, MatrixConfig, MemoryConfig, VectorConfig

CONFIG = MachineConfig(
    matrix=MatrixConfig(tile=TileFormat(side=4)),
    vector=VectorConfig(functions=(), post_multiply=False, random=False),
    memory=MemoryConfig(
        vector_rows=16, tiles=4, inbox_rows=16, outbox_rows=16, dram_rows=64, dram_words_per_cycle=2
    ),
    control=ControlConfig(4, 4, 4, 4),
)


def ports(text: str) -> list[str]:
    """Names of the top module's ports."""
    header = re.search(rf"^module {NAME}\((.*?)\);", text, re.MULTILINE | re.DOTALL)
    assert header
    return sorted(name.strip() for name in header.group(1).split(","))


def test_verilog_has_flat_ports_and_its_digests(tmp_path):
    (path,) = write_verilog(CONFIG, tmp_path / "new")
    text = path.read_text()
    first, second, rest = text.split("\n", 2)
    assert first == f"// fpgrad core, configuration {CONFIG.digest}"
    assert second == f"// design {hashlib.sha256(rest.encode()).hexdigest()}"
    names = ports(text)
    assert {"clk", "rst", "running", "host_read_data", "m_axi_rdata", "m_axi_awvalid"} <= set(names)
    assert not [name for name in names if "__" in name]
    assert write_verilog(CONFIG, tmp_path / "again")[0].read_text() == text


def test_several_cores_are_instances_of_one_module(tmp_path):
    (path,) = write_verilog(dataclasses.replace(CONFIG, cores=3), tmp_path)
    text = path.read_text()
    assert ports(text)[0] == "clk"
    assert not [name for name in ports(text) if "__" in name]
    for name, instances in ((NAME, 0), (HUB, 1), (CELL, 3)):
        assert len(re.findall(rf"^module {name}\(", text, re.MULTILINE)) == 1
        assert len(re.findall(rf"^  {name} \S+ +\(", text, re.MULTILINE)) == instances
    assert re.findall(r"\.number\((2'h.)\)", text)[:3] == ["2'h0", "2'h1", "2'h2"]
