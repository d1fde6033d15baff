"""The fpgrad command: arguments in, calls of the library out."""

from __future__ import annotations

from typing import Annotated

import typer

from fpgrad import __version__

app = typer.Typer(
    help="Turns a Keras model into a machine that trains it, and runs that machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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


def main() -> None:
    """Runs the command line; the entry point of the ``fpgrad`` script."""
    app()
