"""For all tests: no window system, one thread a process, and no process of a federation outlives the session."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, and as long as they take; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_MARK = ("CONSILIUM_TEST_SESSION", uuid.uuid4().hex)
_OURS = ("server.", "client.", "consilium-", "flower", "flwr")

os.environ[_MARK[0]] = _MARK[1]  # inherited by whatever the tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _left_running() -> dict[int, str]:
    """Processes of a federation that this session, or something that it started, has started."""
    wanted = "=".join(_MARK).encode()
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(Path(word).name.startswith(_OURS) for word in words):
                    found[int(folder.name)] = " ".join(words).strip()
    return found


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    if not sys.platform.startswith("linux"):
        return
    limit = time.monotonic() + 15
    while left := _left_running():
        assert time.monotonic() < limit, f"processes are left running: {left}"
        time.sleep(0.1)
