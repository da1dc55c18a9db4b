"""Waits grow while nothing comes, and never make an answer much later than it had to be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.pacing import Pacing


@given(first=st.floats(0.01, 0.5), factor=st.floats(1, 50), looks=st.integers(1, 300))
def test_waits_grow_from_the_first_to_the_longest_and_stay_a_share_of_the_time_waited(
    first: float, factor: float, looks: int
) -> None:
    pacing, waited, before = Pacing(first, first * factor), 0.0, 0.0
    for look in range(looks):
        wait = pacing.wait_s()
        assert before <= wait <= first * factor
        assert look == 0 or wait <= first + waited / 8 + 1e-9
        waited, before = waited + wait, wait


def test_something_that_came_starts_the_waits_anew() -> None:
    pacing = Pacing(0.1, 1.0)
    waits = [pacing.wait_s() for _ in range(30)]
    pacing.restart()
    assert (waits[0], waits[-1], pacing.wait_s()) == (0.1, 1.0, 0.1)
