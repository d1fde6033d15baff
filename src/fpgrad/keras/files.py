"""Models in files."""

from __future__ import annotations

import warnings
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
        with warnings.catch_warnings():
            # A model saved before any training: there is nothing of its optimizer to load.
            warnings.filterwarnings("ignore", r"[\s\S]*the saved optimizer has 2 variables")
            return keras.saving.load_model(path)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ModelFileError(
            f"model file must be one that model.save wrote, and Keras cannot read {path}: {error}"
        ) from error
