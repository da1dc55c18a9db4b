"""What is submitted to the SuperLink: the three packages' code, the same bytes each time, and nothing of anybody's data."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.supercore import sql_mixin

from server import superlink
from server.certificates import write_certificates
from server.superlink import Control, SuperLink
from shared.errors import ProcessError
from shared.own_bundle import app_bundle, app_declaration
from shared.release import PACKAGES

ROOT = Path(superlink.__file__).resolve().parent.parent


def files_in(bundle: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_bundle_holds_the_three_packages_code_and_the_declaration_and_nothing_else() -> None:
    files = files_in(app_bundle())
    code = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in files if not name.startswith(".info/")} == code | {"pyproject.toml"}
    assert {name for name in files if name.startswith(".info/")} <= {".info/CONTENT", ".info/METADATA"}
    for name in code:
        assert files[name] == (ROOT / name).read_bytes()


def test_the_bundle_is_the_same_bytes_in_another_process_folder_and_hour() -> None:
    program = "import sys; from shared.own_bundle import app_bundle; sys.stdout.buffer.write(app_bundle())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "TZ": "Pacific/Auckland"}
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd="/", env=environment)
    assert other.stdout == app_bundle()


def test_the_declaration_is_the_one_in_pyproject() -> None:
    declared, ours = tomllib.loads(app_declaration()), tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert declared["tool"]["flwr"]["app"] == ours["tool"]["flwr"]["app"]
    assert declared["project"]["name"] == ours["project"]["name"]


def test_a_superlink_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    certificates = write_certificates(tmp_path / "certificates", ["127.0.0.1"])
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    process.wait()
    control = Control(SuperLink(process, "127.0.0.1:1", certificates))
    try:
        with pytest.raises(ProcessError, match=r"the SuperLink ended with status 7; see logs/superlink\.log"):
            control.wait_until_ready()
    finally:
        control.close()


def test_a_superlink_that_is_silent_is_given_up(tmp_path: Path) -> None:
    certificates = write_certificates(tmp_path / "certificates", ["127.0.0.1"])
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    control = Control(SuperLink(process, "127.0.0.1:1", certificates))
    try:
        with pytest.raises(ProcessError, match=r"did not answer within 0\.3 s"):
            control.wait_until_ready(0.3)
    finally:
        control.close()
        process.kill()
        process.wait()


@pytest.fixture
def pragmas_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)


@pytest.mark.usefixtures("pragmas_restored")
def test_a_database_file_gets_the_settings_and_keeps_flowers_own(tmp_path: Path) -> None:
    superlink.set_up_database()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        sql_mixin._set_sqlite_pragmas(connection, None)
        connection.execute("CREATE TABLE t (x)")
        for name, value in (
            ("busy_timeout", 60_000),
            ("page_size", 65_536),
            ("journal_mode", "wal"),
            ("synchronous", 1),
        ):
            assert connection.execute(f"PRAGMA {name}").fetchone() == (value,)


@pytest.mark.usefixtures("pragmas_restored")
def test_another_flower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", (("journal_mode", "WAL"),))
    with pytest.raises(ProcessError, match="no busy_timeout"):
        superlink.set_up_database()
