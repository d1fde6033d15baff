"""Models in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fpgrad.errors import ModelFileError

__all__ = ["load_model"]


def load_model(path: str | Path) -> Any:
    """Returns the Keras model in a ``.keras`` file, compiled if it was saved compiled.

    Raises:
        ModelFileError: if there is no such file, or Keras cannot read it.
    """
    import keras

    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"model file must exist, and {path} does not")
    try:
        return keras.saving.load_model(path)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ModelFileError(
            f"model file must be one that model.save wrote, and Keras cannot read {path}: {error}"
        ) from error
