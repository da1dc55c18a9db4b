"""How long to wait between two looks for something that may take a moment or an hour."""

from __future__ import annotations


class Pacing:
    """Waits that begin at `first_s` and grow by an eighth with each look, up to `longest_s`; `restart` when something came.

    A look costs a signed request on both ends: frequent looks make short rounds short, rare ones leave the cores to long training.
    The wait stays below an eighth of the time waited so far, so no answer is noticed much later than it had to be.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first, self._longest = first_s, longest_s
        self._next = first_s

    def wait_s(self) -> float:
        """Seconds until the next look."""
        wait = self._next
        self._next = min(wait * 1.125, self._longest)
        return wait

    def restart(self) -> None:
        self._next = self._first
