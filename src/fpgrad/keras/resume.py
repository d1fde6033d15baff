"""A run that is stopped and goes on: everything that its next epoch depends on, in a checkpoint file.

Numbers that live on the device are saved as the device has them, not as the Keras variables that
show them: a slot's variable is the state times a factor, and where that leaves float32's normal
numbers the way back would not lead to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from fpgrad.errors import CheckpointError, CheckpointWarning
from fpgrad.host import checkpoint as files
from fpgrad.keras.device import Compiled, Device
from fpgrad.keras.sources import Source

__all__ = ["Checkpointer"]

_STATE, _VARIABLE = "state/", "variable/"


class Checkpointer:
    """Writes a checkpoint after each epoch, and takes up the one that is there.

    Args:
        path: of the file.
        device: the model on its executor.
        source: prepared training data.
        formats: the machine's number formats and cores, on which the bits depend.
    """

    def __init__(self, path: Path, device: Device, source: Source, formats: Any) -> None:
        self.path = Path(path)
        self._device = device
        self._source = source
        self._formats = formats
        if not self.path.parent.is_dir():
            raise CheckpointError(f"{self.path.parent} is no folder: make it, or give another path")

    def restore(self) -> int:
        """Puts everything back as it was, and returns how many epochs are done; 0 without a file.

        Raises:
            CheckpointError: the file is damaged, or of another model, machine or data set. Nothing is changed then.
        """
        if not self.path.exists():
            return 0
        found = files.load(self.path)
        manifest = found.manifest
        for what, mine in self._identity().items():
            if manifest["identity"].get(what) != mine:
                raise CheckpointError(
                    f"{self.path} is of a run with another {what}. Delete it to start anew, or give another path"
                )
        compiled = self._compiled(manifest["batch_size"])
        if compiled.batch_size != manifest["batch_size"]:
            raise CheckpointError(f"{self.path} is of a run with another batch size")
        for name, variable in self._variables(compiled):
            variable.assign(found.tensors[name])
        names = self._states(compiled)
        self._device.restore(
            compiled, {state: found.tensors[name] for state, name in names.items()}
        )
        self._device.seed_base = manifest["seed_base"]
        if manifest["order"] is None:
            self._warn("the order of its batches is not in the checkpoint: the data begins anew")
        self._source.order = manifest["order"]
        return int(manifest["epoch"])

    def save(self, epochs: int) -> None:
        """Writes the file after ``epochs`` epochs; the device's numbers have been read back."""
        compiled = self._compiled(self._device.last_batch_size or 0)
        names = self._states(compiled)
        states = self._device.states(compiled)
        tensors = {name: states[state] for state, name in names.items()}
        tensors |= {
            name: np.asarray(ops.convert_to_numpy(variable))
            for name, variable in self._variables(compiled)
        }
        manifest = {
            "epoch": epochs,
            "batch_size": compiled.batch_size,
            "identity": self._identity(),
            "seed_base": self._device.seed_base,
            "order": self._source.order,
        }
        files.save(self.path, files.Checkpoint(tensors, manifest))

    def _compiled(self, batch_size: int) -> Compiled:
        return self._device.compiled(batch_size, training=True, exact=self._source.exact)

    def _states(self, compiled: Compiled) -> dict[str, str]:
        """Names of tensors by state. By number: Keras gives the same model other names in the next cell of a notebook."""
        return {link.state: f"{_STATE}{i}" for i, link in enumerate(compiled.links)}

    def _variables(self, compiled: Compiled) -> Iterator[tuple[str, Any]]:
        """Names and variables of model and optimizer that no state on the device stands for."""
        model = self._device.model
        linked = {id(link.variable) for link in compiled.links}
        for kind, variables in (("model", model.weights), ("optimizer", model.optimizer.variables)):
            for number, variable in enumerate(variables):
                if id(variable) not in linked:
                    yield f"{_VARIABLE}{kind}/{number}", variable

    def _identity(self) -> dict[str, str]:
        """Digests of all that two runs must share, by what a message calls it."""
        model, optimizer = self._device.model, self._device.model.optimizer
        config = optimizer.get_config()
        # It changes during a run, and is a variable that the checkpoint has.
        config.pop("learning_rate", None)
        config.pop("name", None)
        return {
            "model": _digest([_config(model), [tuple(v.shape) for v in model.weights]]),
            "optimizer": _digest([type(optimizer).__name__, config]),
            "loss": _digest(_loss(model.loss)),
            "machine": _digest(repr(self._formats)),
            "data set or batch size": _digest(self._source.identity),
        }

    def _warn(self, what: str) -> None:
        warnings.warn(f"{self.path}: {what}", CheckpointWarning, stacklevel=4)


def _config(model: Any) -> str:
    """The model's configuration, layers by number: names of layers count up within a process."""
    text = json.dumps(model.get_config(), sort_keys=True, default=str)
    for number, layer in enumerate([model, *model._flatten_layers(include_self=False)]):
        text = text.replace(f'"{layer.name}"', f'"layer {number}"')
    return text


def _loss(loss: Any) -> Any:
    if hasattr(loss, "get_config"):
        return [type(loss).__name__, loss.get_config()]
    return loss if isinstance(loss, str) else getattr(loss, "__qualname__", repr(loss))


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
