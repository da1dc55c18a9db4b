"""The SuperLink's database file, kept from growing without end.

While a run goes on, Flower deletes each message and its pieces as they are fetched, and what was deleted is filled again: the file stays
as large as the most that was on its way at one time. What is left behind: pieces of messages that nobody fetched where a process was
killed, the bundle of every release that was ever submitted (1 MB each), and the pages themselves. `trim_database` takes them away
while no SuperLink uses the file.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from shared.errors import NotUpError, StorageError

#: What a run leaves that nobody reads once no SuperLink runs: every run has ended then, and ours are resumed from their own folder.
_LEFT_BEHIND = (
    "object_children",
    "run_objects",
    "object_push_session_pending",
    "object_push_session_roots",
    "object_push_sessions",
    "objects",
    "message_res",
    "message_ins",
    "task_message",
    "message",
    "nonce_store",
    "task_logs",
)


def trim_database(path: Path) -> int:
    """Delete what ended runs left in the SuperLink's database; nodes, runs and their states stay. Returns the bytes freed.

    Only while no SuperLink uses the file: `consilium-server up` calls it before it starts one. No file is no mistake. Raises NotUpError
    where the file is in use, StorageError where it can't be read or written.
    """
    if not path.is_file():
        return 0
    before = _size(path)
    try:
        with closing(sqlite3.connect(path, timeout=2.0, isolation_level=None)) as database:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA foreign_keys = OFF")
            database.execute("BEGIN EXCLUSIVE")
            present = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in _LEFT_BEHIND:
                if table in present:
                    database.execute(f'DELETE FROM "{table}"')
            if {"fab", "run"} <= present:
                database.execute(
                    "DELETE FROM fab WHERE fab_hash IS NOT (SELECT fab_hash FROM run ORDER BY rowid DESC LIMIT 1)"
                )
            database.execute("COMMIT")
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.OperationalError as problem:
        if "locked" in str(problem) or "busy" in str(problem):
            raise NotUpError(f"{path}: a SuperLink is using it; it can be trimmed only while none does") from None
        raise StorageError(f"{path}: can't be trimmed: {problem}") from None
    except sqlite3.DatabaseError as problem:
        raise StorageError(f"{path}: can't be trimmed: {problem}") from None
    return max(0, before - _size(path))


def _size(path: Path) -> int:
    """Bytes of the file and of SQLite's log beside it."""
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.is_file())
