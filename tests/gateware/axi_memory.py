"""External memory behind AXI4 for benches, which also checks the rules that the core has to keep."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from fpgrad.gateware import axi

OUTPUTS = {
    "ar": ("id", "addr", "len", "size", "burst"),
    "aw": ("id", "addr", "len", "size", "burst"),
    "w": ("data", "strb", "last"),
}


class AxiMemory:
    """Serves one port and checks what is on it.

    Reads with different IDs are answered in any order and interleaved; write data may be taken before
    their address.

    Args:
        words: (n,) of uint32, read and written in place.
        beat: words a beat.
        stall: probability with which a channel is held for a cycle.
        ids: how many there are; writes have every second.
    """

    def __init__(
        self, words: np.ndarray, beat: int, stall: float = 0, seed: int = 0, *, ids: int = 2
    ) -> None:
        self.words, self.beat, self.stall, self.ids = words, beat, stall, ids
        self.random = np.random.default_rng(seed)
        self.bursts: dict[str, list[tuple[int, int]]] = {"ar": [], "aw": []}
        self.answered = 0

    def _go(self) -> bool:
        return self.stall == 0 or self.random.random() >= self.stall

    def _check_burst(self, channel: dict[str, int]) -> tuple[int, int]:
        """Its first beat and its beats."""
        size, address, beats = 4 * self.beat, channel["addr"], channel["len"] + 1
        assert 1 << channel["size"] == size
        assert channel["burst"] == axi.INCR
        assert address % size == 0
        assert address // 4096 == (address + beats * size - 1) // 4096
        return address // size, beats

    async def serve(self, ctx: Any, port: Any) -> None:
        """A testbench in the background."""

        def get(name: str) -> int:
            return ctx.get(getattr(port, f"m_axi_{name}"))

        def put(name: str, value: int) -> None:
            ctx.set(getattr(port, f"m_axi_{name}"), value)

        def outputs() -> dict[str, dict[str, int]]:
            return {
                channel: {name: get(channel + name) for name in (*names, "valid")}
                for channel, names in OUTPUTS.items()
            }

        flat = self.words.reshape(-1, self.beat)
        reads: dict[int, deque[tuple[int, bool]]] = {n: deque() for n in range(self.ids)}
        addresses: deque[tuple[int, int, int]] = deque()
        data: deque[tuple[int, bool]] = deque()
        answers: list[int] = []
        offered: tuple[int, int, bool] | None = None
        answering = False
        held: dict[str, dict[str, int]] = {}
        while True:
            # What waits must stay; what is offered must not depend on what is said in this cycle.
            now = outputs()
            for channel, was in held.items():
                assert now[channel] == was, f"{channel} changed before it was taken"
            ready = {channel: self._go() for channel in OUTPUTS}
            for channel, value in ready.items():
                put(f"{channel}ready", value)
            if offered is None and self._go():
                ids = [i for i, queue in reads.items() if queue]
                if ids:
                    number = int(self.random.choice(ids))
                    offered = (number, *reads[number].popleft())
            put("rvalid", offered is not None)
            if offered is not None:
                number, place, last = offered
                put("rid", number)
                put("rdata", int.from_bytes(flat[place].astype("<u4").tobytes(), "little"))
                put("rlast", last)
            if not answering and answers and self._go():
                # Of different IDs in any order.
                first = {number: n for n, number in reversed(list(enumerate(answers)))}
                put("bid", answers.pop(first[int(self.random.choice(list(first)))]))
                answering = True
            put("bvalid", answering)
            assert outputs() == now
            took_read = offered is not None and get("rready")
            took_answer = answering and get("bready")
            await ctx.tick()

            held = {c: now[c] for c in OUTPUTS if now[c]["valid"] and not ready[c]}
            if now["ar"]["valid"] and ready["ar"]:
                place, beats = self._check_burst(now["ar"])
                self.bursts["ar"].append((place, beats))
                reads[now["ar"]["id"]].extend((place + n, n == beats - 1) for n in range(beats))
            if now["aw"]["valid"] and ready["aw"]:
                assert now["aw"]["id"] in range(0, self.ids, 2)
                burst = self._check_burst(now["aw"])
                self.bursts["aw"].append(burst)
                addresses.append((*burst, now["aw"]["id"]))
            if now["w"]["valid"] and ready["w"]:
                assert now["w"]["strb"] == (1 << 4 * self.beat) - 1
                data.append((now["w"]["data"], bool(now["w"]["last"])))
            while addresses and len(data) >= addresses[0][1]:
                place, beats, number = addresses.popleft()
                for n in range(beats):
                    value, last = data.popleft()
                    assert last == (n == beats - 1)
                    raw = value.to_bytes(4 * self.beat, "little")
                    flat[place + n] = np.frombuffer(raw, "<u4")
                answers.append(number)
            if took_read:
                offered = None
            if took_answer:
                answering = False
                self.answered += 1
