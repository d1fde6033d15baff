"""Measurements behind the project's promises: each module is a command that writes one JSON file.

``python -m benchmarks.<name>`` runs one, ``python -m benchmarks.report`` renders ``docs/benchmarks.md``
from the results.
"""

from __future__ import annotations

import os

# Before anything imports Keras: fp32 is measured on the backend that the `keras` extra installs.
os.environ.setdefault("KERAS_BACKEND", "torch")
