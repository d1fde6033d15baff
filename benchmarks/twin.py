"""A Keras classifier trained in fp32 by plain PyTorch: what `Model.fit` does, without what it costs.

Keras on PyTorch spends most of a small convolutional network's step outside of the arithmetic. The
twin has the same weights, formulas and constants; the tests compare the two after some steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Layer = Callable[[torch.Tensor, bool], torch.Tensor]


class Twin:
    """Takes weights and optimizer of a compiled Keras model; leaves the model alone.

    Args:
        model: Sequential, of Conv2D (stride 1), BatchNormalization, ReLU, MaxPooling2D, Flatten and
            Dense, a softmax at its end; compiled with Adam or SGD and sparse_categorical_crossentropy.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._variables: list[torch.Tensor] = []
        self._trained: list[torch.Tensor] = []
        self._layers: list[Layer] = [self._layer(layer) for layer in model.layers]
        self._first = [torch.zeros_like(p) for p in self._trained]
        self._second = [torch.zeros_like(p) for p in self._trained]
        self._steps = 0

    def _layer(self, layer: Any) -> Layer:
        name = type(layer).__name__
        weights = [self._variable(v) for v in layer.weights]
        match name:
            case "Conv2D":
                assert layer.strides == (1, 1)
                kernel, bias = weights if layer.use_bias else (*weights, None)
                mode = layer.padding
                # Keras: height, width, input, output channels.
                return lambda x, _: functional.conv2d(
                    x, kernel.permute(3, 2, 0, 1), bias, padding=mode
                )
            case "BatchNormalization":
                return _normalisation(layer, *weights)
            case "ReLU":
                return lambda x, _: functional.relu(x)
            case "MaxPooling2D":
                size, stride = layer.pool_size, layer.strides
                return lambda x, _: functional.max_pool2d(x, size, stride)
            case "Flatten":
                # Keras's order: channels last.
                return lambda x, _: x.permute(0, 2, 3, 1).flatten(1)
            case "Dense":
                matrix, bias = weights
                # A softmax is part of the loss.
                return lambda x, _: torch.addmm(bias, x, matrix)
            case _:
                raise NotImplementedError(f"no twin of {name}")

    def _variable(self, variable: Any) -> torch.Tensor:
        value = np.array(variable.value.detach().cpu().numpy())
        tensor = torch.from_numpy(value).requires_grad_(bool(variable.trainable))
        self._variables.append(tensor)
        if variable.trainable:
            self._trained.append(tensor)
        return tensor

    def weights(self) -> list[NDArray[np.float32]]:
        """In the order of the model's `get_weights`."""
        return [v.detach().numpy() for v in self._variables]

    def _logits(self, x: torch.Tensor, training: bool) -> torch.Tensor:
        for layer in self._layers:
            x = layer(x, training)
        return x

    def fit(self, x: NDArray[np.float32], y: NDArray[np.int64], batch_size: int) -> float:
        """One epoch in the order of the samples; returns their mean loss."""
        samples, labels = _channels_first(x), torch.from_numpy(y)
        total = 0.0
        for start in range(0, len(samples), batch_size):
            batch = slice(start, start + batch_size)
            loss = functional.cross_entropy(self._logits(samples[batch], True), labels[batch])
            gradients = torch.autograd.grad(loss, self._trained)
            with torch.no_grad():
                self._update(gradients)
            total += loss.item() * len(labels[batch])
        return total / len(samples)

    def _update(self, gradients: tuple[torch.Tensor, ...]) -> None:
        """Keras's formulas, in which Adam's epsilon stands outside of the correction of the bias."""
        optimizer = self._model.optimizer
        self._steps += 1
        rate = float(optimizer.learning_rate.value)
        if type(optimizer).__name__ == "SGD":
            for weight, momentum, gradient in zip(
                self._trained, self._first, gradients, strict=True
            ):
                momentum.mul_(optimizer.momentum).sub_(gradient, alpha=rate)
                weight.add_(momentum)
            return
        beta_1, beta_2 = optimizer.beta_1, optimizer.beta_2
        rate *= (1 - beta_2**self._steps) ** 0.5 / (1 - beta_1**self._steps)
        for weight, first, second, gradient in zip(
            self._trained, self._first, self._second, gradients, strict=True
        ):
            first.lerp_(gradient, 1 - beta_1)
            second.lerp_(gradient.square(), 1 - beta_2)
            weight.addcdiv_(first, second.sqrt().add_(optimizer.epsilon), value=-rate)

    def evaluate(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[float, float]:
        """Mean loss and accuracy."""
        return self._evaluated(x, y)

    def evaluate_model(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[float, float]:
        """The same in fp32 for the weights that the Keras model has now."""
        mine = [v.detach().clone() for v in self._variables]
        with torch.no_grad():
            for variable, value in zip(self._variables, self._model.get_weights(), strict=True):
                variable.copy_(torch.from_numpy(value))
            found = self._evaluated(x, y)
            for variable, value in zip(self._variables, mine, strict=True):
                variable.copy_(value)
        return found

    def _evaluated(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[float, float]:
        labels = torch.from_numpy(y)
        with torch.no_grad():
            logits = self._logits(_channels_first(x), False)
            right = logits.argmax(dim=1) == labels
            return float(functional.cross_entropy(logits, labels)), float(right.double().mean())


def _channels_first(x: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _normalisation(
    layer: Any,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
) -> Layer:
    """Keras keeps the variance of the batch itself; PyTorch would keep an unbiased one."""

    def apply(x: torch.Tensor, training: bool) -> torch.Tensor:
        if not training:
            return functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, layer.epsilon)
        with torch.no_grad():
            new_variance, new_mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            mean.lerp_(new_mean, 1 - layer.momentum)
            variance.lerp_(new_variance, 1 - layer.momentum)
        return functional.batch_norm(x, None, None, gamma, beta, True, 0.0, layer.epsilon)

    return apply
