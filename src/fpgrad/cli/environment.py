"""What a command needs before it may import the Keras front end."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

from fpgrad.errors import MissingExtraError

__all__ = ["keras_frontend"]


def keras_frontend() -> ModuleType:
    """Returns `fpgrad.keras`, with a Keras backend chosen that is installed.

    Keras's own default is TensorFlow, whether it is installed or not. A choice that the user has
    made, by the environment or Keras's configuration file, stands.

    Raises:
        MissingExtraError: if Keras is not installed.
    """
    if importlib.util.find_spec("keras") is None:
        raise MissingExtraError(
            "this command reads Keras models, and Keras is not installed: "
            "pip install 'fpgrad[keras]'"
        )
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    if "KERAS_BACKEND" not in os.environ and not (home / "keras.json").exists():
        os.environ["KERAS_BACKEND"] = _installed_backend()
    import fpgrad.keras
    import fpgrad.keras.demo

    return fpgrad.keras


def _installed_backend() -> str:
    for package, backend in (("torch", "torch"), ("tensorflow", "tensorflow"), ("jax", "jax")):
        if importlib.util.find_spec(package) is not None:
            return backend
    raise MissingExtraError(
        "Keras needs a backend, and none is installed: pip install 'fpgrad[keras]' brings PyTorch"
    )
