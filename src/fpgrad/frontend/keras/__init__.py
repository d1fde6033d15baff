"""The Keras front end: a compiled Keras 3 model to a forward graph and a description of training.

Handlers are keyed by qualified class name. Everything that cannot be compiled is collected over
the whole model and reported at once.
"""

from fpgrad.frontend.keras.lower import lower
from fpgrad.frontend.keras.model import supported_layers

__all__ = ["lower", "supported_layers"]
