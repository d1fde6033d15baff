"""What every test and every executed example of the docs shares."""

from __future__ import annotations

import os

# Before anything imports Keras: PyTorch is the backend that the `keras` extra installs.
os.environ.setdefault("KERAS_BACKEND", "torch")
