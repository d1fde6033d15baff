"""Training steps on chips of little memory: activations that wait in external memory against those computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from benchmarks.conv_machines import MEMORIES, Room
from benchmarks.models import formats
from benchmarks.networks import cifar_scales, conv_model, useful_macs
from benchmarks.record import RESULTS, Record, finish, recording
from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import FpgradError, MemoryCapacityError
from fpgrad.flow.estimate import dram_bytes, memories
from fpgrad.transform import recomputed

TABLE = "Kept or computed again"

SIDE, BATCH = 16, 16

NOTES = """\
* 1X of `benchmarks.conv_machines` with its ReLU, or with GELU and average pooling in place of ReLU and maxima; with
  `--more` also with SiLU, with batch normalisation (+ BN), and 2X; batch 16, one core of 256 multipliers, layer by layer;
  chips and external memories as there, but for 3,200 tiles where it says so
* recompute: as `FPGA` takes it. "never" keeps everything, "always" computes again what it can, "auto" takes the fewer
  cycles of keeping everything and of computing again what is cheaper to compute than to move. Cycles are of the cycle
  model, for a whole step; KB are all that the port moves
"""


@dataclass(frozen=True)
class Network:
    """A network and its chip."""

    name: str
    wide: int
    room: Room
    activation: str = "relu"
    normalise: bool = False

    def build(self) -> Any:
        """A compiled Keras model."""
        if self.activation == "relu":
            scales = cifar_scales(self.wide)
            return conv_model(
                (32, 32, 3), scales, normalise=self.normalise, biases=not self.normalise
            )
        return smooth_model(self.wide, self.activation)


ROOM = Room(2600, 24000, 30000)
WIDER = Room(3200, 24000, 30000)

NETWORKS = (
    Network("1X", 1, ROOM),
    Network("1X, GELU", 1, ROOM, "gelu"),
    Network("1X, GELU, 3,200 tiles", 1, WIDER, "gelu"),
)

MORE = (
    Network("1X, SiLU, 3,200 tiles", 1, WIDER, "silu"),
    Network("2X", 2, Room(5200, 36000, 45000)),
    Network("1X + BN", 1, ROOM, normalise=True),
)


def smooth_model(wide: int, activation: str) -> Any:
    """The network of so many X with another activation, and means in place of maxima."""
    import keras

    make = keras.layers
    layers: list[Any] = [make.Input((32, 32, 3))]
    for i, widths in enumerate(cifar_scales(wide), 1):
        for j, width in enumerate(widths, 1):
            layers.append(make.Conv2D(width, 3, padding="same", name=f"conv{i}_{j}"))
            layers.append(make.Activation(activation, name=f"{activation}{i}_{j}"))
        layers.append(make.AveragePooling2D(name=f"pool{i}", pool_size=2))
    layers += [make.Flatten(), make.Dense(10, activation="softmax", name="dense")]
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def run(networks: Sequence[Network] = NETWORKS, boards: Sequence[str] = tuple(MEMORIES)) -> Record:
    """Compile each network in each way, for each external memory.

    Args:
        networks: with the chip of each.
        boards: whose external memory the machines have.
    """
    with recording("recompute", networks=[n.name for n in networks], boards=list(boards)) as record:
        record.note(NOTES)
        for network in networks:
            for board in boards:
                _compare(record, network, board)
        record.count_failures()
    return record


def _compare(record: Record, network: Network, board: str) -> None:
    config = formats(SIDE)
    config = replace(config, memory=replace(config.memory, dram_bandwidth=MEMORIES[board]))
    room = network.room
    machine = Machine(config, tiles=room.tiles, rows=room.rows, masks=room.masks)
    model = network.build()
    macs = useful_macs(model) * BATCH
    for way in ("never", "auto", "always"):
        fpga = FPGA(model, config=machine, schedule="layers", recompute=way)
        title = f"{network.name}, {board}, {way}"
        try:
            program = fpga.program(batch_size=BATCH)
        except MemoryCapacityError:
            record.row(TABLE, network=network.name, memory=board, recompute=way, fits=False)
            continue
        except FpgradError as error:
            record.failed(title, error)
            continue
        cycles = cycles_per_step(program, "train")
        layers = recomputed(fpga.functions(BATCH)["train"])
        memory = program.config.memory
        record.row(
            TABLE,
            network=network.name,
            memory=board,
            recompute=way,
            fits=True,
            layers_again=len(layers),
            cycles_an_image=cycles / BATCH,
            **{"utilisation %": 100 * macs / (program.config.mac_lanes * cycles)},
            **{"KB an image": dram_bytes(program, "train") / 1e3 / BATCH},
            tiles=memory.tiles,
            rows=memory.vector_rows,
            **{"on-chip MB": sum(m.capacity_bits for m in memories(program)) / 8e6},
        )


def main(out: Path = RESULTS, more: bool = False) -> None:
    """Compare cycles with activations kept and computed again; more: of networks that take some minutes, too."""
    finish(run((*NETWORKS, *MORE) if more else NETWORKS), out)


if __name__ == "__main__":
    typer.run(main)
