"""Nothing leaves a hospital that is not on its ledger first, whatever happens in between."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_gate
from dying import Killed, When, die_while_writing
from flwr.app import Message
from test_gate import (
    MODEL_VALUES,
    answer_in,
    bytes_of,
    ending_in,
    message_of,
    never,
    refused,
    reserved,
    spoilt,
    training,
)
from test_withdrawal import STUDY
from typer.testing import CliRunner

from benchmarks.bare_run import bare_study, evaluated_answer, new_key, prepared_answer
from client import answered, gate, ledger
from client import cli as site_cli
from client.cohort import selected
from client.cohort_list import root_of
from client.gate import Result, Task
from client.ledger import accept_as_newest, open_ledger, read_ledger
from client.phantom import write_phantom
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.audit import cli as audit_cli
from shared.audit.ledger import FIGURES, UPDATES, check_against_run
from shared.audit.records import RunFiles
from shared.errors import LedgerError
from shared.ledger import chain as chain_module
from shared.ledger.entries import Entry, Reserve, Settle, Start
from shared.messages import Kind
from shared.results import SiteHello
from shared.run_records import FinalRecord, RoundRecord, RoundTiming, RunRecord
from shared.wire import Manifest, flat_digest

folder = test_gate.folder  # the fixture
RUN = CliRunner()
PREPARED = ending_in(Result(prepared=prepared_answer()))
EVALUATED = ending_in(Result(evaluated=evaluated_answer()))
NO_TIME = RoundTiming(push=0, wait=0, aggregate=0, checkpoint=0, total=0)


def entries(folder: SiteFolder) -> list[Entry]:
    found = read_ledger(folder)
    assert found is not None and not found[0].faults
    return [link.entry for link in found[0].links]


def types(folder: SiteFolder) -> list[str]:
    return [entry.type for entry in entries(folder)]


def rounds(folder: SiteFolder, *numbers: int) -> None:
    for number in numbers:
        assert answer_in(trained(folder, number), folder).trained is not None


def trained(folder: SiteFolder, number: int, work: Callable[[Task], Result] | None = None) -> Message:
    return gate.answer(message_of(round=number), folder, work or ending_in(training(spoilt(number / 10))))


def evaluated(folder: SiteFolder, work: Callable[[Task], Result] = EVALUATED) -> Message:
    return gate.answer(message_of("evaluate", round=3), folder, work)


def path_of(folder: SiteFolder) -> Path:
    return folder.path / "ledger.jsonl"


# -- what is entered, and when -------------------------------------------------------------------------------------------


def test_a_run_from_its_reservation_to_its_end(folder: SiteFolder) -> None:
    rounds(folder, 1, 2, 3)
    answer_in(evaluated(folder), folder)
    begun = ["GENESIS", "COHORT", "RESERVE", "RELEASE"]
    assert types(folder) == [*begun, *["START", "SETTLE"] * 3, "RELEASE", "CLOSE"]
    reserve = entries(folder)[2]
    assert isinstance(reserve, Reserve)
    assert (reserve.rounds, reserve.mechanism.name, reserve.study_digest) == (3, "unbounded", bare_study().digest())
    settle = entries(folder)[5]
    assert isinstance(settle, Settle) and settle.update == flat_digest(spoilt(0.1))
    for name in ("ledger.jsonl", "ledger.head", "ledger.lock"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600


def test_a_second_run_of_the_same_patients_has_the_same_cohort(folder: SiteFolder) -> None:
    reserved(folder, run="run-2")
    assert types(folder) == ["GENESIS", "COHORT", "RESERVE", "RELEASE", "RESERVE", "RELEASE"]


def test_a_round_is_on_disk_before_its_work_begins(folder: SiteFolder) -> None:
    seen: list[bytes] = []

    def work(_task: Task) -> Result:
        seen.append(path_of(folder).read_bytes())
        return training()

    trained(folder, 1, work)
    assert chain_module.read_chain(seen[0]).links[-1].entry.type == "START"


def test_every_entry_is_synchronised_before_the_answer_leaves(
    folder: SiteFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    sync, write = os.fsync, os.pwrite
    own = path_of(folder).stat().st_ino

    def noted(handle: int) -> None:
        if os.fstat(handle).st_ino == own:
            order.append("sync")
        sync(handle)

    monkeypatch.setattr(os, "pwrite", lambda *args: order.append("write") or write(*args))
    monkeypatch.setattr(os, "fsync", noted)

    def work(_task: Task) -> Result:
        order.append("work")
        return training()

    trained(folder, 1, work)
    before, after = order[: order.index("work")], order[order.index("work") :]
    for part in (before, after):
        assert "sync" in part[part.index("write") :]


def test_the_same_answer_again_enters_nothing_new(folder: SiteFolder) -> None:
    rounds(folder, 1)
    before = path_of(folder).read_bytes()
    assert answer_in(trained(folder, 1, never), folder).update_digest == flat_digest(spoilt(0.1))
    assert path_of(folder).read_bytes() == before


def test_a_round_of_a_run_that_was_never_prepared_is_refused(folder: SiteFolder) -> None:
    for kind in ("train", "evaluate"):
        assert refused(gate.answer(message_of(kind, run="run-9"), folder, never), folder) == "CONS-261"


def test_a_runs_name_can_not_be_used_for_another_study(folder: SiteFolder) -> None:
    for kind in ("prepare", "train"):
        assert refused(gate.answer(message_of(kind, bare_study(wire="bf16")), folder, never), folder) == "CONS-261"


def test_of_a_closed_run_leaves_what_had_left_and_nothing_else(folder: SiteFolder) -> None:
    rounds(folder, 1, 3)
    first = answer_in(evaluated(folder), folder).evaluated
    before = path_of(folder).read_bytes()
    assert answer_in(evaluated(folder, never), folder).evaluated == first
    assert answer_in(gate.answer(message_of("prepare"), folder, never), folder).prepared == prepared_answer()
    assert answer_in(trained(folder, 3, never), folder).update_digest == flat_digest(spoilt(0.3))
    assert refused(trained(folder, 2, never), folder) == "CONS-261"
    answered.forget(folder.run_folder("run-1"))  # a withdrawal does
    for kind in ("prepare", "evaluate"):
        assert refused(gate.answer(message_of(kind, round=3), folder, never), folder) == "CONS-261"
    assert path_of(folder).read_bytes() == before


# -- whom it was of --------------------------------------------------------------------------------------------------------


def test_a_copied_dataset_with_the_same_ids_is_the_same_cohort(tmp_path: Path, folder: SiteFolder) -> None:
    write_phantom(tmp_path / "here", patients=8, seed=1, scanner="halide", prevalence=0.5)
    shutil.copytree(tmp_path / "here", tmp_path / "elsewhere" / "renamed")
    key, roots = Tags.of(folder), []
    for root in (tmp_path / "here", tmp_path / "elsewhere" / "renamed"):
        profile = folder.profile()
        data = profile.data.model_copy(update={"root": str(root)})
        policy = profile.policy.model_copy(update={"minimum_patients": 1})
        changed = profile.model_copy(update={"data": data, "policy": policy})
        (folder.path / "site.json").write_text(changed.model_dump_json(by_alias=True))
        tags = {key.tag(record.patient) for record in selected(STUDY, folder).records}
        roots.append(root_of(tags, key))
    assert len(tags) == 8
    assert roots[0] == roots[1]
    assert root_of(tags | {key.tag("P_99999")}, key) != roots[0]
    assert root_of(tags, Tags(b"x" * 32)) != roots[0]


def test_data_that_holds_somebody_new_is_not_used_for_a_run_that_was_reserved_before(folder: SiteFolder) -> None:
    tags = [Tags.of(folder).tag(f"P_{number}") for number in range(5)]

    def of(*patients: str, kind: Kind = "train", **changes: Any) -> Message:
        result = Result(prepared=prepared_answer()) if kind == "prepare" else training()
        result = dataclasses.replace(result, patients=dict.fromkeys(patients, frozenset()))
        return gate.answer(message_of(kind, run="run-2", **changes), folder, ending_in(result))

    assert answer_in(of(*tags[:4], kind="prepare"), folder).prepared is not None
    assert answer_in(of(*tags[:3]), folder).trained is not None  # somebody has withdrawn
    for _ in range(2):  # nor is it sent when it is asked for again
        assert refused(of(*tags, round=2), folder) == "CONS-261"
    (private,) = [path for path in (folder.path / "cohorts").iterdir() if tags[0] in path.read_text()]
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert not any(tag.encode() in path_of(folder).read_bytes() for tag in tags)
    private.write_text("{}")
    assert refused(of(*tags[:3], round=3), folder) == "CONS-261"


# -- crashes ---------------------------------------------------------------------------------------------------------------


def test_a_round_that_was_killed_is_begun_again_as_another_attempt(folder: SiteFolder) -> None:
    def killed(_task: Task) -> Result:
        raise Killed

    with pytest.raises(Killed):
        trained(folder, 1, killed)
    rounds(folder, 1)
    begun = [(entry.round, entry.attempt) for entry in entries(folder) if isinstance(entry, Start | Settle)]
    assert begun == [(1, 1), (1, 2), (1, 2)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(6))
def test_a_kill_at_any_step_leaves_a_ledger_that_goes_on(
    folder: SiteFolder,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    when: When,
) -> None:
    """Steps: the two halves of START, the kept answer, the two halves of SETTLE."""
    update = training(spoilt(0.5))
    with monkeypatch.context() as patched:
        die_while_writing(patched, number, when)
        try:
            trained(folder, 1, ending_in(update))
        except Killed:
            assert number < 5
        else:
            assert number >= 5
    assert answer_in(trained(folder, 1, ending_in(update)), folder).update_digest == flat_digest(spoilt(0.5))
    run = read_ledger(folder)[0].rules.runs["run-1"]  # type: ignore[index]
    assert [one.update for one in run.updates] == [flat_digest(spoilt(0.5))]  # left once, however often it was sent
    lost_work = (number, when) in {(0, "after"), (1, "before"), (1, "after"), (2, "before")}
    assert run.attempts[1] == (2 if lost_work else 1)


@pytest.mark.parametrize("kept", [1, 100, -1])
def test_a_write_that_was_cut_off_is_dropped_and_the_ledger_goes_on(folder: SiteFolder, kept: int) -> None:
    whole = path_of(folder).read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    path_of(folder).write_bytes(whole + line[: kept if kept > 0 else len(line) - 1])
    rounds(folder, 1)
    assert path_of(folder).read_bytes().startswith(whole)
    assert types(folder)[-2:] == ["START", "SETTLE"]


@pytest.mark.parametrize("step", [0, 1])
def test_where_the_disk_is_full_nothing_leaves(
    folder: SiteFolder,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """At START no work begins; at SETTLE no update leaves."""
    write, before, calls = os.pwrite, path_of(folder).read_bytes(), iter(range(100))

    def full(handle: int, data: bytes, place: int) -> int:
        if next(calls) < step:
            return write(handle, data, place)
        write(handle, data[: len(data) // 2], place)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        reply = trained(folder, 1, never if step == 0 else None)
    assert refused(reply, folder) == "CONS-330"
    assert spoilt(0.1).tobytes() not in bytes_of(reply)
    assert types(folder)[4:] == ["START"] * step
    assert path_of(folder).read_bytes().startswith(before)
    rounds(folder, 1)
    assert types(folder)[4:] == ["START", "SETTLE"]


# -- a ledger that is not what it was --------------------------------------------------------------------------------------


def test_a_ledger_from_an_old_backup_is_refused_until_the_newest_is_back(
    folder: SiteFolder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds(folder, 1)
    old = path_of(folder).read_bytes()
    rounds(folder, 2)
    newest = path_of(folder).read_bytes()
    for content in (old, old[: len(old) // 2], b"", None):
        path_of(folder).unlink(missing_ok=True)
        if content is not None:
            path_of(folder).write_bytes(content)
        for kind in ("prepare", "train", "evaluate"):
            assert refused(gate.answer(message_of(kind, round=3), folder, never), folder) == "CONS-261"
        assert "older copy" in caplog.text and "Put the newest copy back" in caplog.text
        caplog.clear()
        with pytest.raises(LedgerError, match="is there"):
            accept_as_newest(folder)
    path_of(folder).write_bytes(newest)
    rounds(folder, 3)


def test_a_ledger_that_was_changed_is_refused(folder: SiteFolder) -> None:
    rounds(folder, 1)
    lines = path_of(folder).read_bytes().splitlines(keepends=True)
    for changed in (
        lines[:2] + lines[3:],
        [*lines[:3], lines[4], lines[3], lines[5]],
        [b"x\n", *lines],
        [*lines, lines[5]],
    ):
        path_of(folder).write_bytes(b"".join(changed))
        assert refused(trained(folder, 2, never), folder) == "CONS-261"


def test_a_history_written_anew_with_the_own_key_contradicts_the_head(folder: SiteFolder, tmp_path: Path) -> None:
    rounds(folder, 1, 2)
    kept = tmp_path / "aside"
    kept.mkdir()
    for name in ("ledger.jsonl", "ledger.head"):
        shutil.move(folder.path / name, kept / name)
    reserved(folder)
    rounds(folder, 3, 2, 1)
    shutil.copy(kept / "ledger.head", folder.path / "ledger.head")
    with pytest.raises(LedgerError, match="written anew"):
        read_ledger(folder)


def test_a_ledger_under_another_key_is_refused(folder: SiteFolder) -> None:
    other = new_key()
    text = "".join(
        chain_module.seal("ledger-entry", entry.model_dump(mode="json"), other) + "\n" for entry in entries(folder)
    )
    path_of(folder).write_text(text)
    (folder.path / "ledger.head").unlink()
    with pytest.raises(LedgerError, match="not signed by the key"):
        accept_as_newest(folder)
    assert refused(trained(folder, 1, never), folder) == "CONS-261"


def test_a_lost_head_is_written_anew_only_when_a_person_says_so(folder: SiteFolder) -> None:
    (folder.path / "ledger.head").unlink()
    assert refused(trained(folder, 1, never), folder) == "CONS-261"
    done = RUN.invoke(site_cli.app, ["ledger", str(folder.path), "--accept-as-newest"])
    assert done.exit_code == 0 and "after 4 entries" in done.output
    rounds(folder, 1)


def test_tags_under_another_key_are_not_mixed_with_the_ledgers(folder: SiteFolder) -> None:
    (folder.path / "keys" / "withdrawal.key").write_bytes(b"y" * 32)
    assert refused(trained(folder, 1, never), folder) == "CONS-261"


def test_an_entry_costs_no_verification_of_the_ones_before(
    folder: SiteFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds(folder, 1, 2, 3)
    monkeypatch.setattr(ledger, "read_chain", lambda _data: pytest.fail("every signature was verified again"))
    with open_ledger(folder, "run-1") as opened:
        run = opened.run("run-1")
        assert run is not None and sorted(run.attempts) == [1, 2, 3]


# -- what people see -------------------------------------------------------------------------------------------------------


def test_the_hospital_sees_what_was_released_and_an_auditor_can_check_it(folder: SiteFolder, tmp_path: Path) -> None:
    rounds(folder, 1, 2)
    export, earlier = tmp_path / "anna.jsonl", tmp_path / "earlier.jsonl"
    assert RUN.invoke(site_cli.app, ["ledger", str(folder.path), "--export", str(earlier)]).exit_code == 0
    rounds(folder, 3)
    answer_in(evaluated(folder), folder)
    said = RUN.invoke(site_cli.app, ["ledger", str(folder.path), "--export", str(export)], env={"COLUMNS": "300"})
    assert said.exit_code == 0
    for words in ("run-1", "3 of 3", "closed", "unbounded (no differential privacy)", "verified"):
        assert words in said.output
    (line,) = json.loads(RUN.invoke(site_cli.app, ["ledger", str(folder.path), "--json"]).output)["runs"]
    assert (line["settled"], line["evaluations"], line["closed"]) == ([1, 2, 3], 1, True)
    assert export.read_bytes() == path_of(folder).read_bytes()
    fingerprint = folder.signing_key().public.spoken

    def audit(*arguments: str) -> int:
        return RUN.invoke(audit_cli.app, ["ledger", str(export), *arguments]).exit_code

    assert audit() == 2
    assert audit("--trust", fingerprint) == 2
    assert audit("--trust", fingerprint, "--head", str(earlier)) == 0
    assert audit("--trust", fingerprint, "--head", str(folder.path / "ledger.head")) == 0
    assert audit("--trust", new_key().public.spoken) == 1


def test_a_new_sites_ledger_is_empty(tmp_path: Path, folder: SiteFolder) -> None:
    new = SiteFolder.create(tmp_path / "new", folder.profile())
    assert "nothing was released" in RUN.invoke(site_cli.app, ["ledger", str(new.path)]).output


def record_of(folder: SiteFolder) -> RunFiles:
    """The coordinator's record of the run, from what the gate let out."""
    study = bare_study()
    record = RunRecord(
        name="run", started="1", study_digest=study.digest(), state="finished", versions={}, code_digest="0" * 64, parameters=50,
        trained_parameters=50, expected=["anna"], bytes_down=0, bytes_up=0,
        sites={"anna": SiteHello(site="anna", code_digest="0" * 64, versions={})},
    )  # fmt: skip
    assert record.id == "run-1"
    found = [
        RoundRecord(
            round=0, started="", model_in=None, model_out="", prepared={"anna": prepared_answer()}, timing=NO_TIME
        )
    ]
    for number in (1, 2, 3):
        answer = answer_in(trained(folder, number), folder)
        assert answer.trained is not None and answer.update_digest is not None
        found.append(
            RoundRecord(
                round=number, started="", model_in="", model_out="", trained={"anna": answer.trained},
                update_digests={"anna": answer.update_digest}, timing=NO_TIME,
            )
        )  # fmt: skip
    final = answer_in(evaluated(folder), folder).evaluated
    assert final is not None
    final_record = FinalRecord(model="", sites={"anna": final}, timing=NO_TIME)
    start = np.asarray(MODEL_VALUES, np.float32)
    written = tuple(RoundRecord.model_validate_json(one.model_dump_json()) for one in found)
    return RunFiles(Path("run"), study, study.digest(), record, written, final_record, Manifest(()), start)


def test_a_runs_record_and_the_ledger_say_the_same_and_a_difference_is_named(folder: SiteFolder) -> None:
    files = record_of(folder)
    chain, _ = read_ledger(folder) or pytest.fail("empty")

    def against(**changes: Any) -> dict[str, tuple[str, str]]:
        found = check_against_run(chain, dataclasses.replace(files, **changes))
        return {check.name: (check.outcome, check.why) for check in found}

    assert {outcome for outcome, _ in against().values()} == {"proven"}
    second = files.rounds[2].model_copy(update={"update_digests": {"anna": "f" * 64}})
    outcome, why = against(rounds=(*files.rounds[:2], second, files.rounds[3]))[UPDATES]
    assert outcome == "violated" and "round 2" in why
    better = evaluated_answer(images=200)
    outcome, why = against(final=FinalRecord(model="", sites={"anna": better}, timing=NO_TIME))[FIGURES]
    assert outcome == "violated" and "the evaluation" in why
    other = files.run.model_copy(update={"started": "2"})
    assert against(run=other)[UPDATES] == ("violated", "run run-2 has no RESERVE, but anna stands in its record")
    assert against(run=other, rounds=(), final=None)[UPDATES][0] == "not checkable"
