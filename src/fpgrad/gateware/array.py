"""The multiplier array: one row times a stationary tile each cycle, as T exact dot products.

The stationary tile is double-buffered: rows of the next one are written into shadow registers while
the active ones multiply; ``swap`` copies all of them at once, in the cycle in which the first row of
the next product is offered. Sums are exact integers.

Timing: a row offered in cycle c is in the operand registers in c+1, its products are registered in
c+2, and every two levels of the adder trees end in a register: the sums are valid in cycle
``c + array_latency(side)``. A shadow row offered in cycle c can be swapped from c+1 on.
"""

from typing import Any

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.formats import TileFormat


def tree_stages(side: int) -> int:
    """Registers of an adder tree over ``side`` products: one for every two levels."""
    return -(-exact_log2(side) // 2)


def array_latency(side: int) -> int:
    """Cycles from a row offered to its sums."""
    return 2 + tree_stages(side)


class MultiplierArray(wiring.Component):
    """``sums[j] = Σ_i row[i] · active[i][j]``.

    Args:
        tile: side T and mantissa bits of both operands.

    Members:
        row_en, row: a row to multiply; the array rests without one.
        swap: the shadow tile becomes the active one, for this cycle's row and later ones.
        shadow_en, shadow_index, shadow: row ``shadow_index`` of the next stationary tile.
        sums: signed dot products, ``array_latency(side)`` cycles after their row.
    """

    row: Any
    row_en: Signal
    swap: Signal
    shadow: Any
    shadow_en: Signal
    shadow_index: Signal
    sums: Any

    def __init__(self, tile: TileFormat) -> None:
        self.tile = tile
        side, width = tile.side, tile.mantissa_bits
        super().__init__(
            {
                "row_en": In(1),
                "row": In(width).array(side),
                "swap": In(1),
                "shadow_en": In(1),
                "shadow_index": In(range(side)),
                "shadow": In(width).array(side),
                "sums": Out(signed(tile.product_bits)).array(side),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Operand registers, multipliers and one adder tree a lane."""
        del platform
        m = Module()
        side, shape = self.tile.side, signed(self.tile.mantissa_bits)

        row = [Signal(shape, name=f"row_{i}", reset_less=True) for i in range(side)]
        shadow, active = (
            [
                [Signal(shape, name=f"{kind}_{i}_{j}", reset_less=True) for j in range(side)]
                for i in range(side)
            ]
            for kind in ("shadow", "active")
        )
        with m.If(self.row_en):
            m.d.sync += [row[i].eq(self.row[i]) for i in range(side)]
        for i in range(side):
            with m.If(self.shadow_en & (self.shadow_index == i)):
                m.d.sync += [shadow[i][j].eq(self.shadow[j]) for j in range(side)]
        with m.If(self.swap):
            m.d.sync += [active[i][j].eq(shadow[i][j]) for i in range(side) for j in range(side)]

        # valid[s]: stage s holds a row (0: operands, 1: products, then the trees' registers).
        valid = Signal(array_latency(side))
        m.d.sync += valid.eq((valid << 1) | self.row_en)
        terms: list[list[Value]] = []
        for j in range(side):
            products = [
                Signal(signed(2 * shape.width), name=f"product_{i}_{j}", reset_less=True)
                for i in range(side)
            ]
            with m.If(valid[0]):
                m.d.sync += [products[i].eq(row[i] * active[i][j]) for i in range(side)]
            terms.append(list(products))
        stage = 1
        while len(terms[0]) > 1:
            for j in range(side):
                terms[j] = self._add_fours(m, terms[j], valid[stage], f"sum{stage}_{j}")
            stage += 1
        m.d.comb += [self.sums[j].eq(terms[j][0]) for j in range(side)]
        return m

    def _add_fours(self, m: Module, terms: list[Value], en: Value, name: str) -> list[Value]:
        """Registered sums of up to four neighbours each, no wider than a whole dot product."""
        out: list[Value] = []
        with m.If(en):
            for n in range(0, len(terms), 4):
                group = terms[n : n + 4]
                while len(group) > 1:
                    group = [a + b for a, b in zip(group[::2], group[1::2], strict=True)]
                width = min(len(group[0]), self.tile.product_bits)
                total = Signal(signed(width), name=f"{name}_{n}", reset_less=True)
                m.d.sync += total.eq(group[0])
                out.append(total)
        return out
