"""A file is written whole or not at all, and what could not be written ends in StorageError whatever the clean-up does."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from client.site_folder import Progress, SiteFolder
from shared.atomic_file import write_atomic
from shared.documents import StartingPoint, write_document
from shared.errors import StorageError
from shared.private_file import write_private
from shared.signing import SigningKey
from shared.systemd_unit import write_units

WRITERS: list[Callable[[Path], object]] = [
    lambda path: write_atomic(path, b"new"),
    lambda path: write_private(path, b"new"),
    lambda path: write_units({path.name: "new"}, path.parent),
]


def full(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_leaves_the_older_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="file: can't be written: No space left on device"):
        write(path)
    assert [one.name for one in tmp_path.iterdir()] == ["file"] and path.read_text() == "old"


@pytest.mark.parametrize("write", WRITERS)
def test_a_clean_up_that_fails_too_does_not_hide_the_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    def read_only(*_arguments: object, **_keywords: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(StorageError, match="Read-only file system"):
        write(tmp_path / "file")
    SiteFolder(tmp_path / "none").show_progress(Progress(phase="train", done=0, total=1))  # best effort


def test_a_document_that_can_not_be_written_is_no_damaged_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SigningKey.create(tmp_path / "signing.key")
    document = StartingPoint(manifest_digest="0" * 64, model_digest="0" * 64, frozen_digest="0" * 64)
    monkeypatch.setattr("shared.documents._KINDS", {StartingPoint: "test"})
    with pytest.raises(StorageError) as problem:
        write_document(tmp_path / "no" / "document.json", document, key)
    assert problem.value.code == "CONS-330"
    out = tmp_path / "document.json"
    out.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        write_document(out, document, key)
    assert out.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_the_mode_is_what_was_asked_for_less_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "private", b"x")
        write_atomic(tmp_path / "shown", b"x", mode=0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "shown").stat().st_mode) == 0o640


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomic(pipe, b"new")
        assert os.read(reader, 10) == b"new" and pipe.is_fifo()
    finally:
        os.close(reader)
