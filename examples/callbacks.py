"""Regression with Keras's callbacks: early stopping, a learning-rate schedule, checkpoints."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import tempfile
from pathlib import Path

import keras
from sklearn.datasets import load_diabetes

from fpgrad import FPGA

x, y = load_diabetes(return_X_y=True)
x = (x / x.std(axis=0)).astype("float32")
y = ((y - y.mean()) / y.std()).astype("float32")[:, None]

inputs = keras.layers.Input((10,))
hidden = keras.layers.Dense(32, activation="gelu", kernel_regularizer="l2")(inputs)
hidden = keras.layers.LayerNormalization()(hidden)
outputs = keras.layers.Dense(1)(keras.layers.Concatenate()([inputs, hidden]))
model = keras.Model(inputs, outputs)
model.compile(
    optimizer=keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    loss=keras.losses.Huber(),
    metrics=["mae"],
)

with tempfile.TemporaryDirectory() as folder:
    best = Path(folder) / "best.keras"
    history = FPGA(model).fit(
        x,
        y,
        epochs=40,
        validation_split=0.25,
        callbacks=[
            keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau(patience=2),
            keras.callbacks.ModelCheckpoint(best, save_best_only=True),
        ],
    )
    print("Stopped after", len(history.epoch), "epochs; best model in a file of", end=" ")
    print(best.stat().st_size, "bytes")
