"""What is computed again comes just before it is read, and never past what it depends on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fpgrad.codegen.late import computed_late, conflict
from fpgrad.codegen.steps import Access, Buffer, VectorStep
from fpgrad.isa.instructions import Source

SIDE = 4
BUFFERS = [Buffer(f"b{i}", "vector", 4) for i in range(4)]


def row(read: int | None, write: int, *, again: bool = False) -> VectorStep:
    """A pass over a row of a buffer each."""
    a = Source.ZERO if read is None else Access(BUFFERS[read])
    return VectorStep((1, 1, 1), a, target=Access(BUFFERS[write]), again=again)


def test_a_step_goes_to_its_reader():
    copy, other, reader = row(None, 0, again=True), row(None, 1), row(0, 2)
    assert computed_late([copy, other, reader], SIDE) == [other, copy, reader]


def test_a_step_stays_before_what_overwrites_its_operand():
    copy, update, reader = row(1, 0, again=True), row(None, 1), row(0, 2)
    assert computed_late([copy, update, reader], SIDE) == [copy, update, reader]


@given(
    st.lists(
        st.tuples(st.none() | st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=12
    )
)
def test_steps_that_need_each_other_keep_their_order(drawn):
    steps = [row(read, write, again=again) for read, write, again in drawn]
    out = computed_late(steps, SIDE)
    place = {id(step): i for i, step in enumerate(out)}
    assert len(place) == len(steps)
    for i, first in enumerate(steps):
        for second in steps[i + 1 :]:
            if conflict(first, second, SIDE):
                assert place[id(first)] < place[id(second)]
