"""Flower's waits are shortened where this Flower has them, and nowhere else."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects
from flwr.superlink.grid import http_grid

from shared.errors import ProcessError
from shared.flower_settings import allow_answers_before_all_is_sent, shorten_back_off


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    functions = (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree)
    before = [dict(function.__kwdefaults__ or {}) for function in functions]
    make = http_grid.make_push_object_fn_protobuf
    http_grid.make_push_object_fn_protobuf = inspect.unwrap(make)  # other tests of this process have changed it
    yield
    http_grid.make_push_object_fn_protobuf = make
    for function, defaults in zip(functions, before, strict=True):
        function.__kwdefaults__ = defaults


def test_a_piece_that_is_not_there_yet_is_asked_for_soon() -> None:
    """Flower's own first wait is a second, doubling; five waits of ours are less than three seconds."""
    shorten_back_off()
    asked = 0

    def pull(_identifier: str) -> bytes:
        nonlocal asked
        asked += 1
        if asked < 6:
            raise ObjectUnavailableError("a")
        return b"content"

    begun = time.monotonic()
    assert pull_objects(["a"], pull) == {"a": b"content"}
    assert time.monotonic() - begun < 10


def test_a_pull_still_has_an_end() -> None:
    shorten_back_off()

    def pull(_identifier: str) -> bytes:
        raise ObjectUnavailableError("a")

    with pytest.raises(ObjectPullError):
        pull_objects(["a"], pull, max_time=0.05)


@pytest.mark.parametrize("change", [{}, {"initial_backoff": 1, "backoff_cap": 10}])
def test_another_flower_is_refused(change: dict[str, Any]) -> None:
    inflatable_utils.pull_objects.__kwdefaults__ = change  # type: ignore[attr-defined]
    with pytest.raises(ProcessError, match=r"pull_objects has other settings than expected: .* flwr 1\.41\.0"):
        shorten_back_off()


def pushing(stored: bool) -> list[str]:
    """What Flower's own sender has asked to be stored, where the SuperLink says `stored` of the first piece."""
    asked: list[str] = []

    def push(request: Any) -> Any:
        asked.append(request.object_id)
        return SimpleNamespace(stored=stored or len(asked) > 1)

    function = http_grid.make_push_object_fn_protobuf(push, http_grid.Node(), 1, "session")
    inflatable_utils.push_object_contents_from_iterable([("a", b"1"), ("b", b"2")], function, max_concurrent_pushes=1)
    return asked


def test_a_site_that_has_answered_already_keeps_nobody_from_getting_the_rest() -> None:
    with pytest.raises(inflatable_utils.ObjectPushError):
        pushing(stored=False)
    allow_answers_before_all_is_sent()
    allow_answers_before_all_is_sent()
    assert pushing(stored=False) == ["a", "b"]


def test_another_flower_has_no_such_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_grid, "make_push_object_fn_protobuf", lambda other: other)
    with pytest.raises(ProcessError, match=r"make_push_object_fn_protobuf is not as expected"):
        allow_answers_before_all_is_sent()
