"""A node runs its own installed code and nothing else, whatever a coordinator submits and whoever changes files meanwhile."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.clientapp import ClientApp
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as internal
from flwr.supernode.nodestate import NodeStateFactory

import client.executor
from client import own_code
from client.door import Door
from client.executor import code_problem, refusing_app, run_only
from client.own_code import CodeWatch, OwnCode, foreign_modules
from client.site_folder import SiteFolder
from shared import release
from shared.errors import ProcessError, ReleaseError
from shared.messages import ANSWER, BODY, read_answer
from shared.own_bundle import app_bundle
from shared.profile import Profile
from shared.release import versions

PROFILE = {
    "schema": "consilium/profile/1", "site": "anna", "title": "Hospital Anna", "device": "cpu",
    "data": {"layout": "cbis_ddsm", "root": "/nowhere", "synthetic": True},
}  # fmt: skip
OWN = app_bundle()
OWN_DIGEST = hashlib.sha256(OWN).hexdigest()


def changed_by_one_byte() -> bytes:
    """A proper FAB of this release in which one byte of one module is another."""
    with zipfile.ZipFile(io.BytesIO(OWN)) as archive:
        files: dict[str, bytes | Path] = {
            name: archive.read(name) for name in archive.namelist() if not name.startswith(".info/")
        }
    gate = bytearray(files["client/gate.py"])  # type: ignore[arg-type]
    place = gate.index(b"The one door")
    gate[place] = ord("t")
    bundle: bytes = build_fab_from_files({**files, "client/gate.py": bytes(gate)})[0]
    assert bundle != OWN
    return bundle


def run_of(bundle: bytes, **changes: Any) -> Run:
    run = Run.create_empty(5)
    return replace(
        run, fab_hash=hashlib.sha256(bundle).hexdigest(), fab_id="consilium/consilium", fab_version="9.9.9",
        override_config={"run-dir": "/x", "unheard-of": "y"}, **changes,
    )  # fmt: skip


class Node:
    """Flower's own function between a message's arrival and its task, with our guard around it, and a coordinator's side that notes."""

    def __init__(self, path: Path, *, any_release: bool = False) -> None:
        self.folder = SiteFolder.create(path / "site", Profile.model_validate(PROFILE))
        self.store = ObjectStoreFactory().store()
        self.state = NodeStateFactory(objectstore_factory=ObjectStoreFactory()).state()
        self.state.set_node_id(7)
        self.fetched: list[str] = []
        self.confirmed: list[str] = []
        module = ModuleType("internal")
        module.__dict__.update(
            _pull_and_store_message=internal._pull_and_store_message, _insert_message=internal._insert_message
        )
        self.door = Door(self.folder)
        own_code.install(module, OwnCode.installed(self.folder, any_release=any_release), self.door)
        self._pull: Callable[..., int | None] = module._pull_and_store_message

    def message(self) -> tuple[Message, Any]:
        from flwr.supercore.inflatable.inflatable_object import get_object_tree

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 5, 1, 11
        message = Message(RecordDict(), dst_node_id=7, message_type="train", ttl=60.0, group_id="3")
        message.metadata.__dict__["_message_id"] = message.object_id
        self.asked = message
        self.pieces = {message.object_id: message.deflate(), message.content.object_id: message.content.deflate()}
        return message, get_object_tree(message)

    def pull(self, run: Run | BaseException, *, come: bool = True) -> int | None:
        def get_run(_number: int) -> Run:
            if isinstance(run, BaseException):
                raise run
            return run

        def get_fab(digest: str, _number: int) -> Fab:
            self.fetched.append(digest)
            return Fab(digest, b"the coordinator's bytes", {})

        return self._pull(
            state=self.state,
            object_store=self.store,
            node_config={"site-folder": str(self.folder.path)},
            receive=lambda: self.message() if come else None,
            get_run=get_run,
            get_fab=get_fab,
            pull_object=lambda _run, name: self.pieces[name],
            confirm_message_received=lambda _run, name: self.confirmed.append(name),
            trusted_entities=None,
        )

    def refusal(self) -> str | None:
        """The code of the one reply that waits to leave."""
        (reply,) = self.state.get_messages_legacy(is_reply=True)
        text = str(reply.content.config_records[ANSWER][BODY])
        assert reply.metadata.reply_to_message_id == self.asked.metadata.message_id
        answer = read_answer(text, self.folder.signing_key().public)
        assert answer.refused is not None and answer.hello.versions == versions()
        return answer.refused.code

    def tasks(self) -> int:
        return len(self.state.get_tasks())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_run_of_this_release_is_taken_with_the_sites_own_bytes_and_nothing_is_fetched(node: Node) -> None:
    assert node.pull(run_of(OWN)) == 5
    assert node.tasks() == 1 and not node.state.get_messages_legacy(is_reply=True)
    stored = node.state.get_fab(OWN_DIGEST)
    assert stored is not None and stored.content == OWN
    assert not node.fetched
    assert node.state.get_run(5).override_config == {}, "what a run is configured with changes nothing at a site"


def test_a_bundle_with_one_changed_byte_is_refused_with_a_code_and_both_are_named_in_the_sites_log(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = changed_by_one_byte()
    with caplog.at_level(logging.ERROR):
        assert node.pull(run_of(theirs)) == 5
    assert node.refusal() == "CONS-245"
    assert node.tasks() == 0 and not node.fetched
    assert node.confirmed == [node.asked.metadata.message_id], "its pieces need not be kept for this site"
    assert hashlib.sha256(theirs).hexdigest()[:16] in caplog.text and OWN_DIGEST[:16] in caplog.text
    assert "consilium/consilium 9.9.9" in caplog.text and f"installed here is {versions()['consilium']}" in caplog.text
    assert node.pull(run_of(theirs)) == 5, "and so the next time"


def test_another_bundle_under_this_releases_hash_is_never_looked_at(node: Node) -> None:
    """The coordinator's server may lie about what it holds: it isn't asked."""
    own = OwnCode(OWN)
    assert own.fab(own.admitted(run_of(OWN)).fab_hash).content == OWN
    with pytest.raises(ReleaseError):
        own.fab("0" * 64)


def test_a_run_that_is_no_training_is_refused(node: Node) -> None:
    """An agent's task would never be answered, and the node would wait for ever."""
    node.pull(run_of(OWN, primary_task_type=TaskType.AGENT_APP))
    assert node.refusal() == "CONS-240" and node.tasks() == 0


def test_what_goes_wrong_with_a_message_is_answered_with_a_code_and_does_not_end_the_node(node: Node) -> None:
    assert node.pull(RuntimeError("the server's answer made no sense")) == 5
    assert node.refusal() == "CONS-999"


def test_a_run_that_has_ended_and_an_empty_queue_are_no_trouble(node: Node) -> None:
    assert node.pull(RunNotRunningException()) is None
    assert node.pull(run_of(OWN), come=False) is None
    assert not node.state.get_messages_legacy(is_reply=True)


def test_of_a_message_whose_run_ends_while_it_comes_nothing_is_left(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(dict[str, bytes]):
        def __getitem__(self, _name: str) -> bytes:
            raise RunNotRunningException

    original = node.message

    def message() -> tuple[Message, Any]:
        came = original()
        node.pieces = Ended()
        return came

    monkeypatch.setattr(node, "message", message)
    assert node.pull(run_of(OWN)) is None
    assert not node.state.get_messages_legacy(is_reply=False)
    assert len(node.store) == 0
    assert not node.door._asked, "no answer to it may leave, and none is waited for"


def test_the_development_override_is_loud_and_recorded_and_still_runs_the_sites_own_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        node = Node(tmp_path, any_release=True)
        assert "DEVELOPMENT OVERRIDE --any-release" in caplog.text
        caplog.clear()
        theirs = changed_by_one_byte()
        assert node.pull(run_of(theirs)) == 5
        assert caplog.text.count("DEVELOPMENT OVERRIDE --any-release") == 1
    assert node.tasks() == 1
    stored = node.state.get_fab(OWN_DIGEST)
    assert stored is not None and stored.content == OWN
    (line,) = (node.folder.path / "runs" / "overrides.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["their_bundle"], record["own_bundle"]) == (hashlib.sha256(theirs).hexdigest(), OWN_DIGEST)


@pytest.mark.parametrize("name", ["_pull_and_store_message", "_insert_message"])
def test_another_flower_is_refused(node: Node, name: str) -> None:
    for other in (None, lambda state, object_store: None):
        module = ModuleType("internal")
        module.__dict__.update(
            _pull_and_store_message=internal._pull_and_store_message, _insert_message=internal._insert_message
        )
        module.__dict__[name] = other
        with pytest.raises(ProcessError, match=rf"{name} is not as expected .* flwr 1\.41\.0"):
            own_code.install(module, OwnCode(OWN), node.door)


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small installation that a test may damage."""
    root = tmp_path / "installed"
    for package in release.PACKAGES:
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text("")
    (root / "client" / "work.py").write_text("def do():\n    return 1\n")
    monkeypatch.setattr(release, "source_root", lambda: root)
    monkeypatch.setattr(own_code, "source_root", lambda: root)
    monkeypatch.setattr(own_code, "sys", ModuleType("sys"))
    own_code.sys.modules = {}  # type: ignore[misc]
    return root


def change(root: Path) -> None:
    (root / "client" / "work.py").write_text("def do():\n    return 2\n")


def add(root: Path) -> None:
    (root / "client" / "more.py").write_text("")


def remove(root: Path) -> None:
    (root / "client" / "work.py").unlink()


@pytest.mark.parametrize("damage", [change, add, remove])
def test_installed_files_that_changed_since_the_start_refuse_every_task(
    installation: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    watch = CodeWatch(tmp_path / "apps")
    assert code_problem(watch) is None
    damage(installation)
    problem = code_problem(watch)
    assert isinstance(problem, ReleaseError) and "have changed since the node was started" in str(problem)


def test_code_that_lies_where_flower_would_look_for_it_is_removed(
    installation: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unpacked = tmp_path / "apps"
    planted = unpacked / "consilium.consilium.0.1.0.deadbeef" / "client" / "app.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("raise SystemExit('not ours')")
    assert code_problem(CodeWatch(unpacked)) is None
    assert not unpacked.exists() and "it is removed, and was never run" in caplog.text


def test_modules_from_elsewhere_are_found(tmp_path: Path) -> None:
    import client.gate
    import shared.wire

    elsewhere, nowhere = ModuleType("client.gate"), ModuleType("server.rounds")
    elsewhere.__file__ = str(tmp_path / "client" / "gate.py")
    good = {"client": client, "client.gate": client.gate, "shared.wire": shared.wire, "json": json}
    assert not foreign_modules(good)
    assert foreign_modules({**good, "client.gate": elsewhere, "server.rounds": nowhere}) == [
        "client.gate",
        "server.rounds",
    ]
    assert not foreign_modules(dict(sys.modules)), "this very process"


def test_a_fork_runs_the_app_that_it_was_given_and_unpacks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = client.executor.runtime
    for name in ("install_from_fab", "get_load_client_app_fn"):
        monkeypatch.setattr(runtime, name, getattr(runtime, name))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    ours = ClientApp()
    run_only(ours)
    runtime.install_from_fab(changed_by_one_byte(), skip_prompt=True)
    load = runtime.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load("consilium/consilium", "0.1.0", "0" * 64) is ours
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(runtime, "install_from_fab", lambda path: None)
    with pytest.raises(ProcessError, match=r"install_from_fab is not as expected"):
        run_only(ours)


def test_a_task_of_changed_code_is_answered_with_the_code_245(node: Node) -> None:
    message, _ = node.message()
    reply = refusing_app(ReleaseError("changed"), node.folder)(message, None)
    answer = read_answer(str(reply.content.config_records[ANSWER][BODY]), node.folder.signing_key().public)
    assert answer.refused is not None and answer.refused.code == "CONS-245"
