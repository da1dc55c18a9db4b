"""Log lines: for machines and for people, from several processes into one file, in files of bounded size."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import logs
from shared.logs import RotatingPipe, SharedFile, log_context, set_up_logs


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    before = list(root.handlers), root.level, list(flower.handlers), flower.propagate, flower.level
    levels = {name: logging.getLogger(name).level for name in ("httpx", "alembic")}
    root.handlers = []
    yield
    root.handlers, root.level, flower.handlers, flower.propagate, flower.level = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_tells_run_round_and_site_to_machines_and_to_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = set_up_logs(tmp_path / "logs", house="site", site="anna")
    log = logging.getLogger("consilium.test")
    with log_context(run="run-7", round=2):
        log.warning("a line with a 'quote', a \"quote\" and\na second line: %s", "Jürgen")
        with log_context(round=0):
            log.info("inside")
    log.info("outside")
    first, inside, outside = lines(path)
    assert {name: first[name] for name in ("level", "logger", "site", "run", "round")} == {
        "level": "WARNING", "logger": "consilium.test", "site": "anna", "run": "run-7", "round": 2,
    }  # fmt: skip
    assert first["message"] == "a line with a 'quote', a \"quote\" and\na second line: Jürgen"
    assert str(first["time"]).endswith("+00:00")
    assert (inside["run"], inside["round"]) == ("run-7", 0)
    assert "run" not in outside and outside["site"] == "anna"
    said = capsys.readouterr().err
    assert "WARNING consilium.test [anna run-7 round 2]: a line" in said and "[anna run-7 round 0]: inside" in said


def test_an_exception_is_one_line_for_machines_and_flowers_empty_lines_are_none(tmp_path: Path) -> None:
    path = set_up_logs(tmp_path, house="coordinator", site=None)
    logging.getLogger("flwr").info("")
    try:
        raise ValueError("what went wrong")
    except ValueError:
        logging.getLogger("flwr").exception("it failed")
    (line,) = lines(path)
    assert line["message"] == "it failed" and "ValueError: what went wrong" in str(line["exception"])
    assert path.name == "coordinator.jsonl" and path.stat().st_mode & 0o077 == 0


def write_many(path: Path, name: str, count: int) -> None:
    file = SharedFile(path, maximum_bytes=1000, kept=100)
    for number in range(count):
        file.append(f"{name} {number}\n".encode())


def test_processes_and_forks_write_into_one_file_and_no_line_is_lost_or_torn(tmp_path: Path) -> None:
    """Five processes, forks of this one among them, while the file is set aside some dozens of times."""
    path = tmp_path / "log"
    shared = SharedFile(path, maximum_bytes=1000, kept=100)
    forks = []
    for number in range(3):
        child = os.fork()
        if not child:
            for line in range(700):
                shared.append(f"fork{number} {line}\n".encode())
            os._exit(0)
        forks.append(child)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=write_many, args=(path, f"other{number}", 700)) for number in range(2)]
    for other in others:
        other.start()
    for child in forks:
        os.waitpid(child, 0)
    for other in others:
        other.join()
        assert other.exitcode == 0
    files = sorted(tmp_path.glob("log*"))
    assert len(files) > 10 and all(file.stat().st_size <= 1000 for file in files)
    found = [line for file in files for line in file.read_text().splitlines()]
    expected = [f"fork{n} {i}" for n in range(3) for i in range(700)] + [
        f"other{n} {i}" for n in range(2) for i in range(700)
    ]
    assert sorted(found) == sorted(expected)


def test_threads_of_one_process_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    shared = SharedFile(path, maximum_bytes=3000, kept=100)
    threads = [
        threading.Thread(target=lambda n=n: [shared.append(f"{n}-{i}\n".encode()) for i in range(300)])  # type: ignore[misc]
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [line for file in tmp_path.glob("log*") for line in file.read_text().splitlines()]
    assert sorted(found) == sorted(f"{n}-{i}" for n in range(4) for i in range(300))


def test_only_so_many_files_are_kept_and_the_youngest_old_one_is_number_one(tmp_path: Path) -> None:
    shared = SharedFile(tmp_path / "log", maximum_bytes=10, kept=3)
    for number in range(9):
        shared.append(f"line {number}\n".encode())
    assert sorted(path.name for path in tmp_path.glob("log*")) == ["log", "log.1", "log.2"]
    assert [(tmp_path / name).read_text() for name in ("log", "log.1", "log.2")] == ["line 8\n", "line 7\n", "line 6\n"]


def test_a_full_disk_ends_nothing_and_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs(tmp_path, house="site", site="anna")

    def full(_descriptor: int, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs.os, "write", full)
        logging.getLogger("x").info("one")
        logging.getLogger("x").info("two")
    said = capsys.readouterr().err
    assert said.count("log lines are lost: No space left on device") == 1
    assert "one" in said and "two" in said


def test_a_childs_output_rotates_and_its_last_words_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "superlink.log"
    pipe = RotatingPipe(path, maximum_bytes=20_000, kept=4)
    program = "for i in range(20000): print('line', i)\nprint('without an end', end='')"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=pipe.fileno(), stderr=subprocess.STDOUT)
    assert child.wait(timeout=60) == 0
    pipe.close()
    files = [path, *(path.with_name(f"superlink.log.{number}") for number in (1, 2, 3))]
    assert sorted(path.parent.glob("superlink.log*")) == sorted(files)
    assert sum(file.stat().st_size for file in files) <= 4 * 20_000 + (1 << 17)
    told = "".join(file.read_text() for file in reversed(files))
    assert told.endswith("line 19999\nwithout an end")
    numbers = [int(line.split()[1]) for line in told.splitlines() if line.startswith("line ")]
    assert numbers == list(range(numbers[0], 20_000)), "whole lines, none left out"
