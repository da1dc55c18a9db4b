"""Settings of Flower that both houses share: no calls to its makers, shorter waits; and a check that what is changed is as expected.

Its fixed back-offs are most of a small round.
The names that are changed are private to Flower; its version is pinned, and a missing name ends the process before it connects.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from shared.errors import ProcessError

log = logging.getLogger("consilium.flower")

#: Environment of every Flower process: nothing is reported, no update is looked for.
QUIET_FLOWER = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

#: First and longest wait (s) for a piece of a message that its sender has announced but not yet sent; Flower's own: 1 and 10.
FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S = 0.1, 0.5


def shorten_back_off() -> None:
    """Look for announced pieces sooner, in this process. Raises ProcessError where this Flower has no such setting."""
    from flwr.supercore.inflatable import inflatable_utils

    wanted = {"initial_backoff": FIRST_BACK_OFF_S, "backoff_cap": LONGEST_BACK_OFF_S, "max_tries_per_object": None}
    for name in ("pull_objects", "pull_and_inflate_object_from_tree"):
        defaults = getattr(getattr(inflatable_utils, name, None), "__kwdefaults__", None)
        if defaults is None or not {*wanted, "max_time"} <= defaults.keys():
            raise ProcessError(f"flwr's {name} has other settings than expected: this release was made for flwr 1.41.0")
        defaults.update(wanted)  # max_time still ends a pull whose sender has gone


def allow_answers_before_all_is_sent() -> None:
    """A site that refuses a message at its first sight does not end the run, in this process. Raises ProcessError as above.

    Flower shows a message to its site before its content is there, and forgets both at the answer. Content that comes after that is an
    error to Flower, in the middle of sending what the other sites need.
    """
    from flwr.superlink.grid import http_grid

    name = "make_push_object_fn_protobuf"
    if hasattr(getattr(http_grid, name, None), "__wrapped__"):
        return
    make = require_parameters(http_grid, name, "push_object_protobuf", "node", "run_id", "session_id")
    refused = _push_error()

    @functools.wraps(make)
    def tolerant(*arguments: Any, **named: Any) -> Callable[[str, bytes], None]:
        push = make(*arguments, **named)

        def push_if_wanted(identifier: str, content: bytes) -> None:
            try:
                push(identifier, content)
            except refused:
                log.info("%s: nobody waits for it any more", identifier[:12])

        return push_if_wanted

    setattr(http_grid, name, tolerant)


def _push_error() -> type[Exception]:
    from flwr.supercore.inflatable import inflatable_utils

    found = getattr(inflatable_utils, "ObjectPushError", None)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        raise ProcessError("flwr's ObjectPushError is missing: this release was made for flwr 1.41.0")
    return found


def require_parameters(owner: ModuleType | type, name: str, *parameters: str) -> Callable[..., Any]:
    """The private function `owner.name`, which must take exactly these parameters in this order. Raises ProcessError otherwise."""
    function = getattr(owner, name, None)
    found = tuple(inspect.signature(function).parameters) if callable(function) else None
    if function is None or found != parameters:
        raise ProcessError(
            f"flwr's {owner.__name__}.{name} is not as expected ({', '.join(found or ('missing',))}): "
            "this release was made for flwr 1.41.0"
        )
    return function  # type: ignore[no-any-return]
