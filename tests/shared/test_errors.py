"""docs/errors.md and shared/errors.py say the same."""

from __future__ import annotations

import re
from pathlib import Path

from shared import errors

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
ROW = re.compile(r"^\| (CONS-\d{3}) \| (\d) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def _classes() -> dict[str, type[errors.ConsiliumError]]:
    found = {errors.ConsiliumError.code: errors.ConsiliumError}
    waiting = [errors.ConsiliumError]
    while waiting:
        for child in waiting.pop().__subclasses__():
            waiting.append(child)
            if child.__module__ == errors.__name__:
                assert child.code not in found, f"{child} and {found.get(child.code)} have one code"
                found[child.code] = child
    return found


def test_every_code_is_on_the_page_with_its_exit_status_and_no_other_is() -> None:
    rows = {code: int(status) for code, status, _, _ in ROW.findall(PAGE.read_text())}
    expected = {code: kind.exit_code for code, kind in _classes().items()} | {errors.UNEXPECTED_CODE: 1}
    assert rows == expected


def test_no_mistake_ends_with_exit_status_0() -> None:
    assert all(kind.exit_code != 0 for kind in _classes().values())
