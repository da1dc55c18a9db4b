"""Seeds: fixed by what they are for, and never shared by two draws."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from shared.seeds import derived_seed

parts = st.lists(st.one_of(st.integers(0, 10**6), st.text("abc-:1234", max_size=6)), min_size=1, max_size=5)


def test_a_seed_stays_what_it_was_in_earlier_releases() -> None:
    assert derived_seed("study", 7, "anna", 3) == 3906354138358634570


@given(parts)
def test_a_seed_fits_every_generator(names: list[str | int]) -> None:
    assert 0 <= derived_seed(*names) < 2**63
    assert derived_seed(*names) == derived_seed(*names)


@given(parts, parts)
def test_other_parts_or_another_order_give_another_seed(first: list[str | int], second: list[str | int]) -> None:
    assume(first != second)
    assert derived_seed(*first) != derived_seed(*second)


def test_a_number_and_its_text_are_different_parts() -> None:
    assert derived_seed("a", 1) != derived_seed("a", "1")
    assert derived_seed("ab", "c") != derived_seed("a", "bc")
