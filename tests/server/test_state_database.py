"""The SuperLink's database does not grow with the number of rounds and runs; what is trimmed is only what nobody needs."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore import sql_mixin
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.superlink.federation import NoOpFederationManager

from server import superlink
from server.state_database import trim_database
from shared.errors import NotUpError, StorageError

VALUES = 500_000  # 2 MB a message


@pytest.fixture(autouse=True)
def our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    superlink.set_up_database()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def store_in(database: Path) -> SqlObjectStore:
    store = SqlObjectStore(str(database))
    store.initialize()
    return store


def state_in(database: Path, store: SqlObjectStore) -> SqlLinkState:
    state = SqlLinkState(str(database), NoOpFederationManager(), store)
    state.initialize()
    return state


def closed(*states: SqlObjectStore | SqlLinkState) -> None:
    """As after the SuperLink has ended."""
    for state in states:
        assert state._engine is not None
        state._engine.dispose()


def put(store: SqlObjectStore, run: int, seed: int) -> ObjectTree:
    values = np.random.default_rng(seed).standard_normal(VALUES).astype(np.float32)
    content = RecordDict({"update": ArrayRecord({"flat": Array(values)})})
    tree = get_object_tree(content)
    store.preregister(run, tree)
    for name, piece in get_all_nested_objects(content).items():
        store.put(name, piece.deflate())
    return tree


def size(database: Path) -> int:
    return sum(file.stat().st_size for file in database.parent.glob(f"{database.name}*"))


def rows(database: Path, table: str) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_many_rounds_take_no_more_room_than_a_few(database: Path) -> None:
    store = store_in(database)
    sizes = []
    for number in range(17):
        trees = [put(store, 1, 3 * number + site) for site in range(3)]
        for tree in trees:
            store.delete(tree.object_id)
        sizes.append(size(database))
    assert len(store) == 0
    assert max(sizes) <= 1.2 * max(sizes[:13]), sizes
    assert max(sizes) < 95e6, "102 MB went through it"


def test_what_killed_processes_left_is_trimmed_and_nodes_and_runs_stay(database: Path) -> None:
    store = store_in(database)
    state = state_in(database, store)
    node = state.create_node("owner", "name", b"public key", 30.0)
    for release in ("old", "new"):
        digest = state.store_fab(Fab("", os.urandom(900_000), {}))
        assert digest
        run = state.create_run(
            "consilium/consilium", "1", digest, {}, NOOP_FEDERATION_ID, None, "owner", TaskType.SERVER_APP
        )
        put(store, run, hash(release) % 1000)
    closed(state, store)
    before = size(database)
    freed = trim_database(database)
    assert freed > 4.5e6 and size(database) < before - 4.5e6
    assert size(database) < 8e6, "one bundle, small rows, and a page for each table and index"
    assert (rows(database, "objects"), rows(database, "run_objects")) == (0, 0)
    assert (rows(database, "fab"), rows(database, "run"), rows(database, "node")) == (1, 2, 1)
    store = store_in(database)
    state = state_in(database, store)
    assert state.get_node_id_by_public_key(b"public key") == node
    put(store, 9, 9)
    closed(state, store)
    assert trim_database(database) > 1.9e6
    assert trim_database(database) < 100_000, "nothing more to free"


def test_no_file_is_no_mistake_and_something_else_is_a_sentence(tmp_path: Path) -> None:
    assert trim_database(tmp_path / "none.db") == 0
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(StorageError, match=r"other\.db: can't be trimmed: file is not a database"):
        trim_database(other)


def test_a_database_that_is_in_use_is_left_alone(database: Path) -> None:
    store = store_in(database)
    tree = put(store, 1, 7)
    with pytest.raises(NotUpError, match="a SuperLink is using it"):
        trim_database(database)  # its connections are open, though idle
    assert tree.object_id in store
