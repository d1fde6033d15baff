"""fpgrad turns a Keras or PyTorch model into an FPGA that trains it.

``FPGA(model).fit(x, y)`` is the whole interface a newcomer needs. Importing ``fpgrad`` itself
imports no framework, no HDL and no native code, so that ``import fpgrad`` is instant and tools
that only read a program or a report never pay for the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpgrad.keras import FPGA as KerasFPGA

__all__ = ["FPGA", "__version__"]

__version__ = "0.1.0"


def FPGA(model: Any, **options: Any) -> KerasFPGA:
    """Returns the trainer for ``model``, chosen by the framework the model belongs to.

    ``options`` are those of the framework's own class: see :class:`fpgrad.keras.FPGA`.

    Raises:
        UnsupportedFrameworkError: if no front end knows the class of ``model``.
    """
    frameworks = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    # Asked first: on Keras's PyTorch backend a Keras model is a torch.nn.Module too.
    if "keras" in frameworks:
        from fpgrad.keras import FPGA as KerasFPGA

        return KerasFPGA(model, **options)

    from fpgrad.errors import UnsupportedFrameworkError

    raise UnsupportedFrameworkError(model)
