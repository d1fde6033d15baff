"""What a command needs before it may import the Keras front end."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

from fpgrad.errors import MissingExtraError

__all__ = ["keras_frontend"]


def keras_frontend() -> ModuleType:
    """Returns `fpgrad.keras`, with a Keras backend chosen that is installed.

    Keras's own default is TensorFlow, installed or not, and Keras writes that default into its
    configuration file when it is first imported. So the file's choice counts only if it can be
    imported; the environment's always stands.

    Raises:
        MissingExtraError: if Keras or any backend for it is not installed.
    """
    if importlib.util.find_spec("keras") is None:
        raise MissingExtraError(
            "this command reads Keras models, and Keras is not installed: "
            "pip install 'fpgrad[keras]'"
        )
    if "KERAS_BACKEND" not in os.environ:
        os.environ["KERAS_BACKEND"] = _installed_backend(_configured_backend())
    import fpgrad.keras
    import fpgrad.keras.demo

    return fpgrad.keras


def _configured_backend() -> str:
    """The backend in Keras's configuration file, or Keras's default."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        return str(json.loads((home / "keras.json").read_text())["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def _installed_backend(preferred: str) -> str:
    for backend in (preferred, "torch", "tensorflow", "jax"):
        if importlib.util.find_spec(backend) is not None:
            return backend
    raise MissingExtraError(
        "Keras needs a backend, and none is installed: pip install 'fpgrad[keras]' brings PyTorch"
    )
