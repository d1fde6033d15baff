"""Trains a small convolutional network on images of handwritten digits, on the machine generated for it."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fpgrad import FPGA

digits = load_digits()
images = digits.images[..., None].astype("uint8")  # (1797, 8, 8, 1), numbers from 0 to 16
x_train, x_test, y_train, y_test = train_test_split(images, digits.target, random_state=0)

layers = keras.layers
model = keras.Sequential(
    [
        layers.Input((8, 8, 1), dtype="uint8"),  # sent as bytes
        layers.Rescaling(1 / 16),
        layers.Conv2D(16, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])

fpga = FPGA(model)
# A multiple of 16 samples a batch: a tile holds 16 samples of one position.
fpga.fit(x_train, y_train, epochs=5, batch_size=32, validation_data=(x_test, y_test))
print(fpga.summary())
print("Test accuracy as Keras sees the trained weights:", model.evaluate(x_test, y_test)[1])
