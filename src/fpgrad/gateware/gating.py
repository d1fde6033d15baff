"""Clocks that stand still while nothing happens, in simulations only: what has no edge costs no time there.

A pipeline computes the same either way: what it holds where no row is has no meaning. Hardware gets
the one clock; a simulator evaluates all logic behind a register whenever its clock has an edge.
"""

from typing import TypeVar

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    DomainRenamer,
    Module,
    Signal,
    Value,
    ValueLike,
)
from amaranth.lib import wiring

Part = TypeVar("Part", bound=wiring.Component)


class Simulation:
    """The platform of a design that is only simulated, without reset."""


def gate(m: Module, platform: object, name: str, active: ValueLike, *, lingering: int = 0) -> None:
    """In a simulation, add the clock domain ``name`` to ``m`` and to all below it.

    Args:
        m: where the clock is made.
        platform: as given to ``elaborate``; without a :class:`Simulation` nothing is added.
        name: of the domain.
        active: the clock has an edge at the end of those cycles in which it is set,
        lingering: and of so many after each of them.
    """
    if not isinstance(platform, Simulation):
        return
    active = Value.cast(active)
    if lingering:
        before = Signal(lingering, name=f"{name}_lingering")
        m.d.sync += before.eq(Cat(active, before))
        active = active | before.any()
    # At a rising edge ``active`` changes, which must not become an edge of this clock.
    falling = f"{name}_falling"
    m.domains += [
        ClockDomain(name, reset_less=True),
        ClockDomain(falling, reset_less=True, clk_edge="neg"),
    ]
    enable = Signal(name=f"{name}_enable")
    m.d.comb += [
        ClockSignal(falling).eq(ClockSignal()),
        ClockSignal(name).eq(ClockSignal() & enable),
    ]
    m.d[falling] += enable.eq(active)


def gated(part: Part, platform: object, name: str) -> Part:
    """``part`` in the clock domain ``name`` of :func:`gate`; unchanged if not in a simulation."""
    return DomainRenamer(name)(part) if isinstance(platform, Simulation) else part
