"""Every exception class of fpgrad, so that a caller can catch by cause without importing a layer.

This module imports nothing of fpgrad. A message says what was wanted, what came, where in the
user's model, and what to do about it. Add a class next to its kin; derive it from the group a
caller would catch, and from the built-in class a Python programmer would expect, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class FpgradError(Exception):
    """Base of everything that fpgrad raises on purpose."""


# What the user passed --------------------------------------------------------------------------


class InvalidArgumentError(FpgradError, ValueError):
    """An argument or option has a value that is refused; the message names both."""


class DataError(FpgradError, ValueError):
    """Training data cannot be used as it came."""


class DataShapeError(DataError):
    """An array's shape does not fit the model."""


class NonFiniteDataError(DataError):
    """An array holds NaN or infinity, which do not exist inside the machine."""


class LabelError(DataError):
    """A class label is outside the range of the model's classes."""


# The user's model ------------------------------------------------------------------------------


class ModelError(FpgradError):
    """The user's model cannot be trained as it stands."""


class ModelNotCompiledError(ModelError):
    """The model has no loss or optimizer: ``model.compile`` was not called."""


class ModelFileError(ModelError, ValueError):
    """A file holds no model that the framework can read, or is not there."""


class UnsupportedFrameworkError(ModelError, TypeError):
    """No front end knows the class of the object given as a model."""

    def __init__(self, model: object) -> None:
        cls = type(model)
        super().__init__(f"model must be a Keras 3 model, not {cls.__module__}.{cls.__qualname__}")


@dataclass(frozen=True)
class Problem:
    """One thing in a user's model that cannot be compiled.

    ``where`` is the user's own name for the place (a layer, the optimizer, the loss), ``what`` is
    what stands there and is not supported, and ``remedy`` is what would work instead.
    """

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.where}: {self.what}{remedy}"


class UnsupportedModelError(ModelError):
    """The model uses layers or options that cannot be compiled; every one of them is listed."""

    def __init__(self, problems: Iterable[Problem], model: str = "the model") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        things = "1 unsupported thing" if count == 1 else f"{count} unsupported things"
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"{model} cannot be compiled, {things}:{lines}")


# Number formats, graphs and programs -----------------------------------------------------------


class FormatError(FpgradError, ValueError):
    """A number format's parameters, or numbers offered to a format, are outside its range."""


class GraphError(FpgradError):
    """A training graph breaks a rule of its stage; the message names node, op and rule."""


class GraphVerifyError(GraphError):
    """A function fails the check between two passes; every breach is listed."""


class GraphTextError(GraphError, ValueError):
    """The text form of a function cannot be parsed; the message gives the line."""


class ConfigError(FpgradError, ValueError):
    """A machine configuration is inconsistent or outside what can be built."""


class ProgramError(FpgradError):
    """A program cannot be used."""


class ProgramFileError(ProgramError, ValueError):
    """A program file is truncated, corrupted, or of another version."""


class ProgramMismatchError(ProgramError):
    """A program was made for another machine than the one that is to run it."""


class MemoryCapacityError(FpgradError):
    """A model does not fit the machine's memory; the message says how much is needed and what
    would reduce it."""


# Executors and tools ---------------------------------------------------------------------------


class ExecutionError(FpgradError, RuntimeError):
    """An executor stopped in the middle of a program."""


class LinkError(FpgradError, ConnectionError):
    """A machine does not answer, or not as it should; the message says what to look at."""


class BoardResetError(LinkError):
    """A machine was reset in the middle of its work: what it held is lost. A checkpoint brings it back."""


class CheckpointError(FpgradError, ValueError):
    """A checkpoint is damaged, or of another run than the one that was to go on."""


class ToolNotFoundError(FpgradError, RuntimeError):
    """A tool that a backend or a build needs is not installed; the message says how to get it."""


class ToolFailedError(FpgradError, RuntimeError):
    """A tool of a backend or a build ended with an error; the message carries its last lines."""


class ExecutorMismatchError(FpgradError):
    """Two executors of one program differ; the message decodes the first difference."""


class MissingExtraError(FpgradError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class SaturationWarning(UserWarning):
    """Numbers were limited to the largest of the machine's formats; the message says how many."""


class StreamedDataWarning(UserWarning):
    """A data set has no room in device memory, and is sent again in every epoch; the message says what would help."""


class CheckpointWarning(UserWarning):
    """Something of a run could not be brought back from its checkpoint; the message says what."""
