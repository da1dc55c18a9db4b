"""consilium-audit on a run that the coordinator made: each kind of tampering is named, and nothing is called proven without its file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from benchmarks.bare_run import new_key, staged_study
from benchmarks.ledgered_run import LedgeredFederation, plain_study
from shared.audit.named_models import check_named_models, read_model_file
from shared.audit.records import RunFiles, read_run, stored_model
from shared.audit.run import audit_run
from shared.audit.signatures import ANSWERS, INSTRUCTIONS, PREVIOUS, WRITERS
from shared.audit.trust import COORDINATOR, read_trust, trust_lines
from shared.audit.verdict import Check, exit_status
from shared.canonical import digest, file_digest
from shared.errors import InputError
from shared.provenance import Provenance, with_provenance
from shared.signing import PublicKey
from shared.study import Study
from shared.wire import Manifest, unflatten


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of three sites, updates kept."""
    return conducted(tmp_path_factory.mktemp("original"))


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def conducted(path: Path) -> Path:
    return LedgeredFederation.make(path, plain_study(rounds=3, keep_updates=True)).conduct()


def fingerprints(path: Path) -> list[str]:
    """Of the coordinator and the sites of this run, as they read them out by telephone."""
    record = read_run(path).run
    keys = {COORDINATOR: str(record.coordinator_key), **record.site_keys}
    return [f"{name} {PublicKey.read(key).spoken}" for name, key in keys.items()]


def outcomes(path: Path, trusted: list[str] | None = None) -> dict[str, str]:
    return {check.name: check.outcome for check in audit_run(read_run(path), read_trust(trusted or [])).checks}


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def test_an_untouched_run_is_proven_but_for_who_wrote_it(run: Path) -> None:
    checks = audit_run(read_run(run)).checks
    assert {check.name for check in checks if check.outcome != "proven"} == {"who wrote the records"}
    assert exit_status(checks) == 2


def test_with_the_fingerprints_at_hand_everything_is_proven(run: Path) -> None:
    assert set(outcomes(run, fingerprints(run)).values()) == {"proven"}


def test_a_run_that_was_forged_as_a_whole_is_rejected(run: Path, tmp_path: Path) -> None:
    """Consistent in itself, signed with the forger's own keys."""
    forged = conducted(tmp_path / "forged")
    new_sites = {site: str(new_key().public) for site in read_run(forged).run.site_keys}
    assert set(outcomes(forged, fingerprints(forged)).values()) == {"proven"}
    assert (
        outcomes(forged, [line for line in fingerprints(run) if line.startswith("coordinator")])[WRITERS] == "violated"
    )
    _edit(forged / "run.json", lambda body: body.update(site_keys=new_sites))
    found = outcomes(forged, fingerprints(run))
    assert (found[WRITERS], found[ANSWERS]) == ("violated", "violated")


def test_a_key_is_trusted_as_its_owners_only(run: Path) -> None:
    swapped = [
        line.replace("anna ", "x ").replace("berta ", "anna ").replace("x ", "berta ") for line in fingerprints(run)
    ]
    assert outcomes(run, swapped)[WRITERS] == "violated"
    assert outcomes(run, [line.partition(" ")[2] for line in swapped])[WRITERS] == "proven", (
        "without names they are anybody's"
    )


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


SIGNED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a hospital's counts changed in the record": (
        ANSWERS,
        lambda run: _edit(run / "rounds/0003/round.json", lambda body: body["trained"]["anna"].update(images=7)),
    ),
    "a hospital's figure changed in the record": (
        ANSWERS,
        lambda run: _edit(run / "evaluation.json", lambda body: body["sites"]["berta"].update(images=7)),
    ),
    "an answer of another round": (
        ANSWERS,
        lambda run: _copy(
            run / "rounds/0001/signed/anna.train.answer.json", run / "rounds/0002/signed/anna.train.answer.json"
        ),
    ),
    "an answer of another hospital": (
        ANSWERS,
        lambda run: _copy(
            run / "rounds/0002/signed/berta.train.answer.json", run / "rounds/0002/signed/anna.train.answer.json"
        ),
    ),
    "an update that another hospital signed": (
        ANSWERS,
        lambda run: _edit(
            run / "rounds/0003/round.json",
            lambda body: body["update_digests"].update(anna=body["update_digests"]["berta"]),
        ),
    ),
    "an instruction of another round": (
        INSTRUCTIONS,
        lambda run: _copy(
            run / "rounds/0001/signed/anna.train.instruction.json",
            run / "rounds/0002/signed/anna.train.instruction.json",
        ),
    ),
    "an instruction with one changed sign": (
        INSTRUCTIONS,
        lambda run: _edit(
            run / "rounds/0002/signed/anna.train.instruction.json",
            lambda body: body.update(
                payload=body["payload"][:40] + ("A" if body["payload"][40] != "A" else "B") + body["payload"][41:]
            ),
        ),
    ),
    "a record written again by the coordinator": (
        PREVIOUS,
        lambda run: _edit(run / "rounds/0001/round.json", lambda body: body["timing"].update(wait=0.0)),
    ),
    "another coordinator's key": (
        INSTRUCTIONS,
        lambda run: _edit(run / "run.json", lambda body: body.update(coordinator_key=str(new_key().public))),
    ),
}


@pytest.mark.parametrize("name", SIGNED)
def test_what_was_signed_and_what_is_on_record_must_be_the_same(run: Path, name: str) -> None:
    check, tamper = SIGNED[name]
    tamper(run)
    assert outcomes(run)[check] == "violated"


def test_a_signed_answer_that_is_missing_is_named(run: Path) -> None:
    (run / "rounds/0002/signed/berta.train.answer.json").unlink()
    found = next(check for check in audit_run(read_run(run)).checks if check.name == ANSWERS)
    assert found.outcome == "not checkable"
    assert "berta.train.answer.json of round 2" in found.why


def test_trust_is_read_from_fingerprints_and_files(tmp_path: Path) -> None:
    key, other = new_key().public, new_key().public
    path = tmp_path / "trusted"
    path.write_text(f"# by telephone, 12 May\n\n{trust_lines([('anna', key)])}{other.fingerprint}  # whoever\n")
    trust = read_trust([str(path)])
    assert trust is not None
    assert trust.vouches(key, "anna") and not trust.vouches(key, "berta")
    assert trust.vouches(other, "anna") and trust.vouches(other, "berta")
    spoken = read_trust([key.spoken.replace(" ", "-").upper()])
    assert spoken is not None and spoken.vouches(key, "anybody")
    assert read_trust([]) is None
    path.write_text("anna 1234\n")
    with pytest.raises(InputError, match=r"trusted:1: expected 'NAME FINGERPRINT'"):
        read_trust([str(path)])
    path.write_text("# nobody\n")
    with pytest.raises(InputError, match="no fingerprint"):
        read_trust([str(path)])
    with pytest.raises(InputError, match="neither a fingerprint"):
        read_trust(["1234"])


def audit(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, in a process that has no PyTorch and no Flower."""
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "flwr"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
sys.argv = ["consilium-audit", *sys.argv[1:]]
from shared.audit.cli import main
main()
"""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_bundle_is_all_that_an_auditor_needs_and_nothing_else(run: Path, tmp_path: Path) -> None:
    (run / "logs").mkdir(exist_ok=True)
    (run / "logs" / "superlink.log").write_text("a word that is nobody's business")
    (run / "sites" / "anna" / "keys").mkdir(parents=True)
    (run / "sites" / "anna" / "keys" / "signing.key").write_text("a key that must not leave")
    packed, again, trusted = tmp_path / "run.zip", tmp_path / "again.zip", tmp_path / "trusted"
    trusted.write_text("\n".join(fingerprints(run)))
    assert audit("bundle", run, "--out", packed).returncode == 0
    assert audit("bundle", run, "--out", again).returncode == 0
    assert packed.read_bytes() == again.read_bytes()
    assert b"nobody's business" not in packed.read_bytes() and b"must not leave" not in packed.read_bytes()
    shutil.rmtree(run)
    done = audit("verify", packed, "--trust", trusted, "--json", "--html", tmp_path / "audit.html")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {check["outcome"] for check in json.loads(done.stdout)["checks"]} == {"proven"}
    page = (tmp_path / "audit.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count(">Proven<") == len(json.loads(done.stdout)["checks"])


def test_a_bundle_with_a_strange_or_a_damaged_file_is_refused(run: Path, tmp_path: Path) -> None:
    packed = tmp_path / "run.zip"
    assert audit("bundle", run, "--out", packed).returncode == 0
    whole = packed.read_bytes()
    with zipfile.ZipFile(packed, "a") as more:
        more.writestr("../outside.json", "{}")
    done = audit("verify", packed)
    assert done.returncode == 3 and "'../outside.json', which belongs to no bundle" in done.stderr
    assert not (tmp_path.parent / "outside.json").exists()
    packed.write_bytes(whole[: len(whole) // 2])
    done = audit("verify", packed)
    assert done.returncode == 3 and "not a bundle" in done.stderr and "Traceback" not in done.stderr


def test_a_violated_audit_says_so_on_its_page(run: Path, tmp_path: Path) -> None:
    _edit(run / "rounds/0003/round.json", lambda body: body["trained"]["anna"].update(images=7))
    _edit(run / "run.json", lambda body: body.update(reason="<b>not markup</b>"))
    done = audit("verify", run, "--html", tmp_path / "audit.html")
    page = (tmp_path / "audit.html").read_text()
    assert done.returncode == 1
    assert ">Violated<" in page and "Don't rely on this run" in page.replace("&#39;", "'")
    assert "<b>not markup" not in page


TAMPERING: dict[str, tuple[str, Callable[[Path], object]]] = {
    "another study": (
        "the study is the one that the run names",
        lambda run: _edit(run / "study.json", lambda body: body.update(seed=body["seed"] + 1)),
    ),
    "other code at one site": (
        "every site ran the coordinator's code",
        lambda run: _edit(run / "run.json", lambda body: body["sites"]["anna"].update(code_digest="1" * 64)),
    ),
    "a round taken out": (
        "every round is on record",
        lambda run: (run / "rounds" / "0002" / "round.json").unlink(),
    ),
    "a round that starts elsewhere": (
        "each round starts from the model that the round before ended in",
        lambda run: _edit(run / "rounds" / "0002" / "round.json", lambda body: body.update(model_in="2" * 64)),
    ),
    "a model exchanged": (
        "stored models are the ones on record",
        lambda run: (run / "rounds" / "0003" / "model.safetensors").write_bytes(
            (run / "rounds" / "0002" / "model.safetensors").read_bytes()
        ),
    ),
    "a site taken out of a round": (
        "sites were weighted as the study says",
        lambda run: _edit(run / "rounds" / "0001" / "round.json", lambda body: body["trained"].pop("clara")),
    ),
    "an update exchanged": (
        "the models are what the updates add up to",
        lambda run: np.save(
            run / "rounds" / "0001" / "updates" / "anna.npy",
            np.load(run / "rounds" / "0001" / "updates" / "berta.npy"),
        ),
    ),
    "an evaluation of another model": (
        "the evaluation is of the last model",
        lambda run: _edit(run / "evaluation.json", lambda body: body.update(model="3" * 64)),
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_named(run: Path, name: str) -> None:
    check, tamper = TAMPERING[name]
    tamper(run)
    assert outcomes(run)[check] == "violated"


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in three stages, whose momentum would move what is held."""
    study = staged_study([], ["w"], ["b"], optimiser={"name": "fedavgm"}, keep_updates=True)
    return LedgeredFederation.make(tmp_path_factory.mktemp("staged"), study).conduct()


def test_a_run_in_stages_is_proven_from_updates_without_what_was_held(staged: Path) -> None:
    assert set(outcomes(staged, fingerprints(staged)).values()) == {"proven"}
    updates = [np.load(staged / "rounds" / f"000{number}" / "updates" / "anna.npy") for number in (1, 2, 3)]
    assert [update.shape for update in updates] == [(205,), (5,), (200,)]


def test_an_update_with_what_its_stage_holds_is_named(staged: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(staged, tmp_path / "run"))
    path = run / "rounds" / "0002" / "updates" / "berta.npy"
    np.save(path, np.concatenate([np.zeros(200, np.float32), np.load(path)]))
    (found,) = [
        check for check in audit_run(read_run(run)).checks if check.name == "the models are what the updates add up to"
    ]
    assert found.outcome == "violated"
    assert "round 2: the stored update of berta has the shape (205,)" in found.why
    assert "5 values: those of the layers that its stage does not hold" in found.why


def test_a_model_in_which_something_held_has_moved_is_found(staged: Path, tmp_path: Path) -> None:
    """The same records of a study that says that nothing is held in round 2 don't add up."""
    run = Path(shutil.copytree(staged, tmp_path / "run"))
    _edit(run / "study.json", lambda body: body["training"]["stages"][2].update(freeze=["w"]))
    (found,) = [
        check for check in audit_run(read_run(run)).checks if check.name == "the models are what the updates add up to"
    ]
    assert found.outcome == "violated" and "round 3" in found.why


def test_a_missing_update_is_not_checkable_and_named(run: Path) -> None:
    (run / "rounds" / "0002" / "updates" / "berta.npy").unlink()
    found = next(
        check for check in audit_run(read_run(run)).checks if check.name == "the models are what the updates add up to"
    )
    assert found.outcome == "not checkable"
    assert "berta" in found.why
    assert "round 2" in found.why


def test_a_starting_model_that_was_exchanged_breaks_the_chain(run: Path) -> None:
    (run / "model" / "initial.safetensors").write_bytes((run / "rounds" / "0003" / "model.safetensors").read_bytes())
    assert outcomes(run)["each round starts from the model that the round before ended in"] == "violated"


@pytest.mark.parametrize("name", ["run.json", "study.json", "model/manifest.json", "model/initial.safetensors"])
def test_a_file_that_is_missing_or_damaged_is_named(run: Path, name: str) -> None:
    (run / name).write_bytes(b"{]")
    with pytest.raises(InputError, match=Path(name).name):
        read_run(run)


def test_exit_statuses() -> None:
    proven, open_, violated = (Check("x", outcome, "y") for outcome in ("proven", "not checkable", "violated"))
    assert [exit_status([proven]), exit_status([proven, open_]), exit_status([open_, violated])] == [0, 2, 1]


def test_the_command_needs_no_pytorch_and_prints_json(run: Path) -> None:
    done = audit("verify", run, "--json")
    assert done.returncode == 2, done.stderr
    assert {check["outcome"] for check in json.loads(done.stdout)["checks"]} == {"proven", "not checkable"}


def test_a_run_of_an_older_release_whose_study_had_fewer_keys_is_the_same_study(run: Path) -> None:
    """A key that a later release added stands in no older file, and must not change what was approved."""
    _edit(run / "study.json", lambda study: study.pop("description"))
    older = digest(json.loads((run / "study.json").read_text()))
    _edit(run / "run.json", lambda record: record.update(study_digest=older))
    name = "the study is the one that the run names"
    (found,) = [check for check in audit_run(read_run(run)).checks if check.name == name]
    assert (found.outcome, "this release knows more keys" in found.why) == ("proven", True)


def test_a_model_that_a_study_names_is_held_against_the_run_that_it_comes_from(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = read_run(original)
    last = stored_model(earlier, 3)
    assert last is not None
    said = Provenance(
        study=json.loads((original / "study.json").read_text()), run=earlier.run.id, round=3, ancestors=("older",)
    )

    def checked(tensors: dict[str, Any], said: Provenance, runs: list[RunFiles], *, given: bool = True) -> Check:
        path = tmp_path / "model.safetensors"
        path.write_bytes(with_provenance(save(tensors), said))
        weights = {"file": path.name, "sha256": file_digest(path), "source": "a run", "origin": "federation"}
        study = Study.model_validate({**said.study, "model": {**said.study["model"], "weights": weights}})
        (check,) = check_named_models(replace(earlier, study=study), [read_model_file(path)] if given else [], runs)
        return check

    tensors = {name: values.copy() for name, values in unflatten(last, earlier.manifest).items()}
    proven = checked(tensors, said, [earlier])
    assert proven.outcome == "proven" and f"{earlier.run.id} after round 3, which built on older" in proven.why
    assert checked(tensors, said, [earlier], given=False).outcome == "not checkable"
    assert checked(tensors, said, []).outcome == "not checkable"
    assert checked(tensors, said.model_copy(update={"run": "another"}), [earlier]).outcome == "not checkable"
    assert (
        checked(tensors, said.model_copy(update={"study": {**said.study, "seed": 99}}), [earlier]).outcome == "violated"
    )
    first = next(iter(tensors))
    tensors[first] += 1
    assert checked(tensors, said, [earlier]).outcome == "violated"
    pieces = {f"layer{number}.weight": piece for number, piece in enumerate(np.array_split(last, 5))}
    many = replace(earlier, manifest=Manifest.of(pieces))
    monkeypatch.setattr("shared.audit.named_models.stored_model", lambda _run, _round: last)
    assert checked(pieces, said, [many]).outcome == "proven"
    without_heads = {name: pieces[name] for name in list(pieces)[:3]}
    proven = checked(without_heads, said, [many])
    assert proven.outcome == "proven" and "layer3 and layer4 left out" in proven.why
    lacking = checked({name: pieces[name] for name in list(pieces)[:2]}, said, [many])
    assert lacking.outcome == "violated" and "lacks 3 of its trained layers" in lacking.why
    assert checked({"elsewhere": last}, said, [earlier]).outcome == "violated"
    assert check_named_models(earlier, [], []) == []
