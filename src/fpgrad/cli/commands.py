"""The commands, each a call of the library with its arguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fpgrad import __version__
from fpgrad.cli.environment import keras_frontend
from fpgrad.errors import FpgradError, InvalidArgumentError

__all__ = ["app", "main"]


app = typer.Typer(
    help="Turns a Keras model into a machine that trains it, and runs that machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL.keras", help="What model.save wrote.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples in a training step.")]
ClockMHz = Annotated[float, typer.Option(min=0.001, help="The clock for which times are stated.")]
Cores = Annotated[int, typer.Option(min=1, help="Cores that share each batch.")]
Schedule = Annotated[
    Literal["auto", "layers", "samples"],
    typer.Option(help="A batch layer by layer, or sample tile by sample tile."),
]
Recompute = Annotated[
    Literal["auto", "never", "always"],
    typer.Option(help="Whether the backward pass computes activations again."),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="MEMORY=N",
        help="Room on the chip, once for each of tiles, rows, masks, inbox, outbox, instructions. What finds none "
        "waits in external memory.",
    ),
]
Backend = Annotated[Literal["emulator", "rtl", "reference"], typer.Option(help="The executor.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fpgrad {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Turns a Keras model into a machine that trains it, and runs that machine."""


@app.command()
def train(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training samples.")] = 10,
    batch_size: BatchSize = 32,
    backend: Backend = "emulator",
    seed: Annotated[int, typer.Option(help="Of initial weights and order of samples.")] = 0,
    clock_mhz: ClockMHz = 100.0,
    cores: Cores = 1,
    schedule: Schedule = "auto",
    recompute: Recompute = "auto",
) -> None:
    """Train a 32-64-10 network on scikit-learn's digits, here and in Keras, and compare."""
    keras_frontend()
    from fpgrad.keras.demo import train_digits

    result = train_digits(
        epochs=epochs,
        batch_size=batch_size,
        backend=backend,
        seed=seed,
        clock_hz=clock_mhz * 1e6,
        cores=cores,
        schedule=schedule,
        recompute=recompute,
    )
    typer.echo()
    typer.echo(result.summary)
    for line in result.lines(clock_mhz * 1e6):
        typer.echo(line)


@app.command()
def check(
    model: ModelFile,
    batch_size: BatchSize = 32,
    cores: Cores = 1,
    schedule: Schedule = "auto",
    recompute: Recompute = "auto",
    limit: Limits = None,
) -> None:
    """Compile a model, or list everything in it that is not supported."""
    fpga = _fpga(model, cores, schedule, recompute, limit)
    program = fpga.program(batch_size)
    typer.echo(f"model {fpga.model.name!r} compiles; program {program.digest}")


@app.command()
def estimate(
    model: ModelFile,
    batch_size: BatchSize = 32,
    clock_mhz: ClockMHz = 100.0,
    cores: Cores = 1,
    schedule: Schedule = "auto",
    recompute: Recompute = "auto",
    limit: Limits = None,
) -> None:
    """Say what training a model costs: cycles, MAC lanes, memory, before any synthesis."""
    fpga = _fpga(model, cores, schedule, recompute, limit)
    typer.echo(fpga.summary(clock_hz=clock_mhz * 1e6, batch_size=batch_size))


@app.command()
def verify(
    model: ModelFile,
    backend: Backend = "rtl",
    against: Annotated[
        Literal["emulator", "rtl", "reference"],
        typer.Option(help="The executor to compare with."),
    ] = "emulator",
    steps: Annotated[int, typer.Option(min=1, help="Training steps on random data.")] = 3,
    batch_size: BatchSize = 32,
    seed: Annotated[int, typer.Option(help="Of the random data.")] = 0,
    cores: Cores = 1,
    schedule: Schedule = "auto",
    recompute: Recompute = "auto",
    limit: Limits = None,
) -> None:
    """Run the same training steps on two executors and compare every word."""
    outcome = _fpga(model, cores, schedule, recompute, limit).verify(
        backend=backend, against=against, steps=steps, batch_size=batch_size, seed=seed
    )
    typer.echo(str(outcome))
    if outcome.differing:
        raise typer.Exit(1)


@app.command()
def verilog(
    model: ModelFile,
    directory: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where to.")],
    batch_size: BatchSize = 32,
    cores: Cores = 1,
    schedule: Schedule = "auto",
    recompute: Recompute = "auto",
    limit: Limits = None,
) -> None:
    """Write the generated design as Verilog, and the program that trains the model on it."""
    for path in _fpga(model, cores, schedule, recompute, limit).export_verilog(
        directory, batch_size
    ):
        typer.echo(str(path))


def _fpga(
    model: Path, cores: int, schedule: str, recompute: str, limits: Sequence[str] | None
) -> Any:
    """A saved model on the smallest machine of the default formats, with so many cores and no more room."""
    frontend = keras_frontend()
    config = frontend.machine_of(cores, **dict(_limit(text) for text in limits or ()))
    return frontend.FPGA(
        frontend.load_model(model), config=config, schedule=schedule, recompute=recompute
    )


def _limit(text: str) -> tuple[str, int]:
    """A memory and its size, from the text of an option."""
    name, _, number = text.partition("=")
    if not number.isdecimal() or int(number) == 0:
        raise InvalidArgumentError(
            f"--limit must be a memory's name and a number, such as tiles=4096, not {text!r}"
        )
    return name, int(number)


def main() -> None:
    """Runs the command line; the entry point of the ``fpgrad`` script.

    What fpgrad raises on purpose is a message to the user and needs no traceback.
    """
    try:
        app()
    except FpgradError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
