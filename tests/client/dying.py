"""A hospital's process that is killed at one of its steps: a step is one call of a function that was wrapped for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import pytest

from client import gate, ledger

Act = Callable[..., Any]
When = Literal["before", "after"]


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def dying_at(number: int, when: When) -> Callable[[Act], Act]:
    """What wraps functions so that, of all their calls together, the one of this `number` (from 0) dies before or after its work."""
    steps = itertools.count()

    def wrapped(act: Act) -> Act:
        def step(*args: Any, **named: Any) -> Any:
            mine = next(steps) == number
            if mine and when == "before":
                raise Killed
            done = act(*args, **named)
            if mine:
                raise Killed
            return done

        return step

    return wrapped


def die_while_writing(patched: pytest.MonkeyPatch, number: int, when: When) -> None:
    """Before or after the n-th of: writes of entries, of the ledger's head, and of the kept answer."""
    wrapped = dying_at(number, when)
    for module, name in ((ledger, "append"), (ledger, "write_head"), (gate, "keep")):
        patched.setattr(module, name, wrapped(getattr(module, name)))
