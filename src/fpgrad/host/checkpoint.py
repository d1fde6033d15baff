"""Checkpoint files: tensors and a manifest in one safetensors file, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpgrad.errors import CheckpointError

__all__ = ["Checkpoint", "load", "save"]

#: Of the manifest's fields; a reader refuses another one.
VERSION = 1

_KEY = "fpgrad"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        tensors: arrays by name.
        manifest: what JSON can hold.
    """

    tensors: Mapping[str, NDArray[Any]]
    manifest: Mapping[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a file in one move: whoever reads ``path`` finds the old contents or the new ones.

    Raises:
        OSError: the place cannot be written; what was there is still there.
    """
    from safetensors.numpy import save as serialise

    tensors = {name: np.asarray(array, order="C") for name, array in checkpoint.tensors.items()}
    manifest = json.dumps({**checkpoint.manifest, "version": VERSION, "digest": _digest(tensors)})
    data = serialise(tensors, {_KEY: manifest})
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    _settle(path.parent)


def load(path: Path) -> Checkpoint:
    """Read a file that :func:`save` wrote.

    Raises:
        CheckpointError: the file is not there, is cut off or damaged, or is not fpgrad's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no whole checkpoint: {error}. Delete it, or take an older copy"
        ) from error
    if _KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file that fpgrad has not written")
    manifest = json.loads(metadata[_KEY])
    version, digest = manifest.pop("version", None), manifest.pop("digest", None)
    if version != VERSION:
        raise CheckpointError(
            f"{path} has version {version}, this fpgrad reads version {VERSION}: use the one that wrote it"
        )
    if digest != _digest(tensors):
        raise CheckpointError(
            f"{path} is damaged: its numbers do not have the digest that was written with them"
        )
    return Checkpoint(tensors, manifest)


def _digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _settle(folder: Path) -> None:
    """Make a new name in a folder survive a loss of power, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
