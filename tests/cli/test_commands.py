"""The command: arguments reach the library, errors are messages, statuses are right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import pytest
from typer.testing import CliRunner

from fpgrad.cli import app, main
from fpgrad.errors import (
    InvalidArgumentError,
    MissingExtraError,
    ModelFileError,
    ModelNotCompiledError,
    UnsupportedModelError,
)
from fpgrad.keras import FPGA, demo

L = keras.layers


def run(*arguments: str):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def model_file(tmp_path):
    model = keras.Sequential([L.Input((4,)), L.Dense(3, activation="softmax")], name="net")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    path = tmp_path / "model.keras"
    model.save(path)
    return path


def test_help_lists_the_commands():
    out = run("--help").stdout
    for command in ("train", "check", "estimate", "verify", "verilog"):
        assert command in out


def test_python_runs_the_package():
    ran = subprocess.run(
        [sys.executable, "-m", "fpgrad", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("fpgrad ")


def test_help_imports_no_framework():
    program = (
        "import sys; from typer.testing import CliRunner; from fpgrad.cli import app;"
        "CliRunner().invoke(app, ['--help']);"
        "print({'keras', 'torch', 'amaranth'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "set()"


def test_check_compiles(model_file):
    result = run("check", model_file)
    assert result.exit_code == 0
    assert result.stdout.startswith("model 'net' compiles; ")


def test_check_lists_everything_unsupported(tmp_path):
    conv = L.Conv2D(2, 2, kernel_constraint="max_norm", name="conv")
    model = keras.Sequential([L.Input((4, 4, 1)), conv, L.Flatten()])
    model.compile(keras.optimizers.Lion(), "mse")
    model.save(tmp_path / "model.keras")
    with pytest.raises(UnsupportedModelError) as caught:
        run("check", tmp_path / "model.keras")
    assert [problem.where for problem in caught.value.problems] == ["conv", "optimizer Lion"]


def test_check_wants_a_compiled_model(tmp_path):
    keras.Sequential([L.Input((4,)), L.Dense(2)], name="net").save(tmp_path / "model.keras")
    with pytest.raises(ModelNotCompiledError, match=r"^model 'net' must be compiled"):
        run("check", tmp_path / "model.keras")


def test_estimate_and_verify_and_verilog_on_a_real_machine(model_file, tmp_path):
    out = run("estimate", model_file, "--batch-size", "16", "--clock-mhz", "50").stdout
    assert "cycles by the cycle model for 16 samples" in out
    assert "at 50 MHz" in out
    result = run("verify", model_file, "--backend", "reference", "--steps", "1")
    assert result.exit_code == 0
    assert result.stdout.startswith("reference against emulator, 1 training steps: 0 of ")
    out = run("estimate", model_file, "--cores", "2", "--batch-size", "16").stdout
    assert "net on 2 cores, 512 MAC lanes" in out
    result = run("verify", model_file, "--backend", "reference", "--steps", "1", "--cores", "2")
    assert result.exit_code == 0
    out = run("estimate", model_file, "--schedule", "samples").stdout
    assert "Schedule: 2 micro-batches of 16 samples: as asked for" in out
    files = run("verilog", model_file, "-o", tmp_path / "out").stdout.split()
    assert {Path(file).suffix for file in files} == {".v", ".fpg"}
    assert all(Path(file).stat().st_size for file in files)


def test_limits_reach_the_machine(tmp_path):
    model = keras.Sequential(
        [L.Input((8, 8, 1)), L.Conv2D(32, 3, name="map"), L.Flatten(), L.Dense(3, name="classes")]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    file = tmp_path / "model.keras"
    model.save(file)
    whole, limited = run("estimate", file), run("estimate", file, "--limit", "tiles=900")
    assert "External memory:" in limited.stdout
    assert whole.stdout != limited.stdout
    for wrong, why in (("tyles=3", "not 'tyles'"), ("tiles", "a number"), ("tiles=0", "a number")):
        with pytest.raises(InvalidArgumentError, match=why):
            run("check", file, "--limit", wrong)


def test_files_that_hold_no_model(tmp_path):
    with pytest.raises(
        ModelFileError, match=r"^model file must exist, and .*none\.keras does not$"
    ):
        run("check", tmp_path / "none.keras")
    (tmp_path / "words.keras").write_text("not a model")
    with pytest.raises(ModelFileError, match=r"and Keras cannot read .*words\.keras"):
        run("check", tmp_path / "words.keras")


def test_errors_are_messages_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fpgrad", "check", "none.keras"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 1
    assert capsys.readouterr().err == "error: model file must exist, and none.keras does not\n"


def test_unknown_backends_are_refused(model_file):
    result = run("verify", model_file, "--backend", "gpu")
    assert result.exit_code == 2
    assert "'gpu' is not one of" in result.output


def test_verify_passes_its_arguments_and_its_status(model_file, monkeypatch):
    class Outcome:
        differing = 2

        def __str__(self):
            return "2 of 9 words differ"

    seen = {}

    def verify(self, **arguments):
        seen.update(arguments, name=self.model.name)
        return Outcome()

    monkeypatch.setattr(FPGA, "verify", verify)
    result = run("verify", model_file, "--backend", "reference", "--steps", "5", "--seed", "3")
    assert result.stdout == "2 of 9 words differ\n"
    assert result.exit_code == 1
    assert seen == {
        "name": "net",
        "backend": "reference",
        "against": "emulator",
        "steps": 5,
        "batch_size": 32,
        "seed": 3,
    }
    Outcome.differing = 0
    assert run("verify", model_file).exit_code == 0


def test_train_passes_its_arguments(monkeypatch):
    seen = {}

    def train_digits(**arguments):
        seen.update(arguments)
        return demo.Comparison(
            backend="rtl",
            accuracy=0.95,
            loss=0.2,
            keras_accuracy=0.96,
            keras_loss=0.19,
            steps=10,
            cycles_per_step=1500.0,
            seconds=1.0,
            keras_seconds=2.0,
            summary="the summary",
        )

    monkeypatch.setattr(demo, "train_digits", train_digits)
    arguments = ["--epochs", 2, "--batch-size", 16, "--backend", "rtl", "--clock-mhz", 50]
    out = run("train", *arguments).stdout.splitlines()
    assert out[1:] == [
        "the summary",
        "test accuracy: 95.00 % on the rtl, 96.00 % by Keras in fp32",
        "test loss: 0.2000 on the rtl, 0.1900 by Keras",
        "1500 cycles a training step, everything included: 30.0 µs at 50 MHz",
        "10 steps took 1.00 s on the rtl, 2.00 s in Keras on this computer",
    ]
    assert seen == {
        "epochs": 2,
        "batch_size": 16,
        "backend": "rtl",
        "seed": 0,
        "clock_hz": 50e6,
        "cores": 1,
        "schedule": "auto",
        "recompute": "auto",
    }


def test_keras_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fpgrad\[keras\]'$"):
        run("check", "model.keras")
