"""Trains a small classifier of handwritten digits on the machine generated for it."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fpgrad import FPGA

x, y = load_digits(return_X_y=True)
x = (x.reshape(-1, 32, 2).mean(axis=2) / 16).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=0)

model = keras.Sequential(
    [
        keras.layers.Input((32,)),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])

fpga = FPGA(model)
fpga.fit(x_train, y_train, epochs=10, validation_data=(x_test, y_test))
print(fpga.summary())
print("Test accuracy as Keras sees the trained weights:", model.evaluate(x_test, y_test)[1])
