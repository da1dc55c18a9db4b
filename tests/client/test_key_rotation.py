"""A hospital's signing key is exchanged on its ledger: a crash in between leaves one key that fits, and an auditor can follow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import hospital_with_budget
import pytest
from dying import Killed, When, dying_at
from hospital_with_budget import A_TO_D, STUDY, Hospital
from test_gate import MODEL_VALUES, answer_in, instruction_of, message_of, never, refused
from typer.testing import CliRunner

from client import gate, key_rotation, ledger
from client.cli import app
from client.joining import write_request
from client.key_rotation import revoke, rotate
from client.ledger import open_ledger, read_ledger, settle_rotation, waiting_key
from client.node import only_node
from client.own_runs import on_record
from client.site_folder import SiteFolder
from shared.audit import cli as audit_cli
from shared.documents import read_join_request
from shared.errors import InputError, LedgerError, ProcessError, StorageError
from shared.signing import PublicKey, SigningKey

anna = hospital_with_budget.anna  # the fixture
RUN = CliRunner()


def key_files(folder: SiteFolder) -> set[str]:
    return {path.name for path in (folder.path / "keys").iterdir() if "signing" in path.name}


def present(folder: SiteFolder) -> PublicKey:
    key = folder.signing_key().public
    assert (folder.path / "keys" / "signing.pub").read_text().strip() == str(key)
    return key


def test_the_ledger_goes_on_under_the_new_key(anna: Hospital) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    anna.train(STUDY, "run-1", A_TO_D, 1)
    before = present(anna.folder)
    old, new = rotate(anna.folder)
    assert (old, new) == (before, present(anna.folder)) and old != new
    assert key_files(anna.folder) == {"signing.key", "signing.pub"}
    assert (anna.folder.path / "keys" / "signing.key").stat().st_mode & 0o777 == 0o600
    anna.train(STUDY, "run-1", A_TO_D, 2)  # signed by the new key, as `answer_in` asks
    found = read_ledger(anna.folder)
    assert found is not None
    assert [link.entry.type for link in found[0].links if link.signer == new] == ["START", "SETTLE"]
    assert found[0].rules.runs["run-1"].attempts == {1: 1, 2: 1}
    assert rotate(anna.folder)[0] == new


def test_an_empty_ledger_is_begun_by_the_old_key(anna: Hospital) -> None:
    old, new = rotate(anna.folder)
    found = read_ledger(anna.folder)
    assert found is not None and anna.types() == ["GENESIS", "ROTATE"]
    assert (found[0].genesis.key, found[0].key) == (str(old), new)


def test_a_node_or_an_instruction_at_work_is_waited_for(anna: Hospital) -> None:
    before = present(anna.folder)
    with only_node(anna.folder), pytest.raises(ProcessError, match="stop it first"):
        rotate(anna.folder)
    at_work = instruction_of("train", STUDY, MODEL_VALUES)
    with (
        on_record(anna.folder.run_folder("run-1"), at_work, STUDY),
        pytest.raises(ProcessError, match="train, round 1"),
    ):
        rotate(anna.folder)
    assert present(anna.folder) == before and key_files(anna.folder) == {"signing.key", "signing.pub"}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["create", "append", "write_head 1", "write_head 2", "write_private", "replace"])
@pytest.mark.parametrize("next_act", ["open", "request", "rotate"])
def test_a_crash_at_any_step_leaves_one_key_that_fits(
    anna: Hospital, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str, when: str, next_act: str
) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    anna.train(STUDY, "run-1", A_TO_D, 1)
    old = present(anna.folder)
    with monkeypatch.context() as patched:
        patch_step(patched, step, when)
        with pytest.raises(Killed):
            rotate(anna.folder)
    on_disk = any(b"ROTATE" in one for one in payloads(anna.folder))
    if next_act == "request":
        assert write_request(anna.folder, tmp_path / "r.json").signing_key == str(present(anna.folder))
        assert read_join_request(tmp_path / "r.json").signing_key == str(present(anna.folder))
    elif next_act == "rotate":
        first, second = rotate(anna.folder)
        assert second == present(anna.folder) != old
        assert (first == old) or (step, when) == ("replace", "after")  # there it had ended, and this is another one
        assert anna.types().count("ROTATE") == (2 if first != old else 1)
    else:
        with open_ledger(anna.folder, "run-1") as opened:
            assert opened.run("run-1") is not None
    if next_act != "rotate":
        assert (present(anna.folder) != old) == on_disk
    assert key_files(anna.folder) == {"signing.key", "signing.pub"}
    anna.train(STUDY, "run-1", A_TO_D, 2)
    found = read_ledger(anna.folder)
    assert found is not None and not found[0].faults and found[0].key == present(anna.folder)


def payloads(folder: SiteFolder) -> list[bytes]:
    return [ledger.payload_of(line) for line in (folder.path / "ledger.jsonl").read_bytes().splitlines()]


def patch_step(patched: pytest.MonkeyPatch, step: str, when: When) -> None:
    """Dies before or after that step of a rotation."""
    name, _, number = step.partition(" ")
    dying = dying_at(int(number or 1) - 1, when)
    if name == "create":
        patched.setattr(key_rotation.SigningKey, "create", dying(SigningKey.create))
    elif name == "replace":
        real = Path.replace

        def replace(path: Path, target: Path) -> Path:
            return (dying(real) if path.name == "signing.key.next" else real)(path, target)

        patched.setattr(Path, "replace", replace)
    else:
        patched.setattr(ledger, name, dying(getattr(ledger, name)))


def test_a_full_disk_at_rotate_changes_nothing(anna: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    old = present(anna.folder)

    def full(*_arguments: Any) -> None:
        raise StorageError("full")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "append", full)
        with pytest.raises(StorageError):
            rotate(anna.folder)
    anna.train(STUDY, "run-1", A_TO_D, 1)
    assert present(anna.folder) == old and key_files(anna.folder) == {"signing.key", "signing.pub"}


def test_an_older_ledger_beside_a_waiting_key_does_not_undo_the_rotation(
    anna: Hospital, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    path = anna.folder.path / "ledger.jsonl"
    shutil.copy(path, tmp_path / "older")
    with monkeypatch.context() as patched:
        patch_step(patched, "write_head 2", "after")
        with pytest.raises(Killed):
            rotate(anna.folder)
    shutil.copy(path, tmp_path / "newest")
    shutil.copy(tmp_path / "older", path)
    assert refused(gate.answer(message_of("train", STUDY), anna.folder, never), anna.folder) == "CONS-261"
    assert waiting_key(anna.folder).exists()
    shutil.copy(tmp_path / "newest", path)
    assert settle_rotation(anna.folder)
    anna.train(STUDY, "run-1", A_TO_D, 1)


def test_the_old_key_back_from_a_backup_is_refused(anna: Hospital, tmp_path: Path) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    shutil.copy(anna.folder.path / "keys" / "signing.key", tmp_path / "old")
    rotate(anna.folder)
    shutil.copy(tmp_path / "old", anna.folder.path / "keys" / "signing.key")
    with pytest.raises(LedgerError):
        read_ledger(anna.folder)


def test_a_former_key_is_revoked_and_the_present_one_is_not(anna: Hospital) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    with pytest.raises(InputError, match="never rotated"):
        revoke(anna.folder, "0" * 64, "")
    old, new = rotate(anna.folder)
    for said, why in ((new.spoken, "first make a new one"), ("0" * 64, "former keys"), (old.spoken[:30], "ten groups")):
        with pytest.raises(InputError, match=why):
            revoke(anna.folder, said, "")
    assert revoke(anna.folder, old.spoken.upper(), "stolen") == old
    with pytest.raises(InputError, match="revoked already"):
        revoke(anna.folder, old.fingerprint, "")
    assert anna.types()[-2:] == ["ROTATE", "REVOKE"]
    anna.train(STUDY, "run-1", A_TO_D, 1)
    assert answer_in(gate.answer(message_of("train", STUDY), anna.folder, never), anna.folder).trained is not None


def test_an_auditor_follows_from_the_first_key_to_the_last(anna: Hospital, tmp_path: Path) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    head = tmp_path / "kept.head"
    shutil.copy(anna.folder.path / "ledger.head", head)
    old, new = rotate(anna.folder)
    revoke(anna.folder, old.spoken, "lost")
    anna.train(STUDY, "run-1", A_TO_D, 1)
    export = tmp_path / "anna.jsonl"
    assert RUN.invoke(app, ["ledger", str(anna.folder.path), "--export", str(export)]).exit_code == 0

    def audit(*arguments: str) -> int:
        return RUN.invoke(audit_cli.app, ["ledger", str(export), *arguments]).exit_code

    assert audit("--trust", old.spoken, "--head", str(head)) == 0  # a head that the former key has signed
    assert audit("--trust", old.spoken, "--head", str(anna.folder.path / "ledger.head")) == 0
    assert audit("--trust", new.spoken, "--head", str(head)) == 1  # whose ledger it is, its first key says
    lines = export.read_bytes().splitlines(keepends=True)
    export.write_bytes(b"".join(line for line in lines if b"ROTATE" not in ledger.payload_of(line)))
    assert audit("--trust", old.spoken, "--head", str(head)) == 1


def test_by_command(anna: Hospital) -> None:
    anna.prepare(STUDY, "run-1", A_TO_D)
    old = present(anna.folder)
    with pytest.raises(InputError, match="add --yes"):
        RUN.invoke(app, ["rotate-key", str(anna.folder.path)], catch_exceptions=False)
    said = RUN.invoke(app, ["rotate-key", str(anna.folder.path), "--yes"], catch_exceptions=False).output
    for words in (old.spoken, present(anna.folder).spoken, "consilium-site request", "--replace", "revoke-key"):
        assert words in said
    listed = RUN.invoke(app, ["ledger", str(anna.folder.path)], catch_exceptions=False).output
    assert old.spoken in listed and f"now {present(anna.folder).spoken}" in listed
    arguments = ["revoke-key", str(anna.folder.path), old.spoken, "--reason", "laptop stolen"]
    assert old.spoken in RUN.invoke(app, arguments, catch_exceptions=False).output
    with pytest.raises(InputError, match="200 signs"):
        RUN.invoke(app, [*arguments[:-1], "x" * 201], catch_exceptions=False)
