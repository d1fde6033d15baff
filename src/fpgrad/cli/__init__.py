"""The fpgrad command: arguments in, calls of the library out."""

from fpgrad.cli.commands import app, main

__all__ = ["app", "main"]
