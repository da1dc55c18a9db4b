"""A patient who withdraws is in no later instruction, is named in no file that the site keeps, and moves nobody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from publications import profile_of
from typer.testing import CliRunner

import client.withdrawal as withdrawal_module
from benchmarks.bare_run import study_values
from client import answered, evaluation_work, work
from client.cli import app
from client.cohort import OpenCohort, _require_classes, open_cohort, selected
from client.data import cache, packs
from client.data.packs import open_pack
from client.data.registry import open_holding
from client.data.selection import choose
from client.data.splits import PARTS
from client.gate import Result, Task
from client.kept_scores import load_scores
from client.own_runs import own_runs
from client.phantom import write_phantom
from client.roll import load_roll
from client.site_folder import SiteFolder
from client.withdrawal import withdraw
from client.withdrawn import Tags, normalised, withdrawn, withdrawn_tags
from shared.errors import DataError, InputError, PolicyError
from shared.messages import Instruction, Kind
from shared.models import build_network
from shared.models.state import travelling_arrays
from shared.release import Release
from shared.study import Study
from shared.wire import Manifest, encode, flat_digest, flatten

STUDY = Study.model_validate(
    {
        **study_values(rounds=2),
        "task": {
            "classes": {"benign": ["BENIGN", "BENIGN_WITHOUT_CALLBACK"], "malignant": ["MALIGNANT"]},
            "positive_class": "malignant",
            "unit": "finding",
        },
        "data": {"split": {"train": 0.5, "validation": 0.2, "test": 0.3}},
        "preprocessing": {"region": "finding", "size": 32, "channels": 3},
        "model": {"name": "resnet18"},
        "training": {
            "local_epochs": 1, "batch_size": 16, "optimiser": "adam", "learning_rate": 1e-4, "loss": "binary_cross_entropy",
        },
        "evaluation": {"resamples": 100},
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "anna"
    write_phantom(root, patients=24, seed=1, scanner="halide", prevalence=0.5)
    return root


@pytest.fixture(scope="module")
def filled_cache(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `STUDY`, prepared once for all tests."""
    site = SiteFolder.create(tmp_path_factory.mktemp("cache") / "anna", profile_of(root=str(data), minimum_patients=1))
    opened(site)
    return site.cache


def with_cache(site: SiteFolder, filled_cache: Path) -> SiteFolder:
    shutil.copytree(filled_cache, site.cache)
    return site


@pytest.fixture
def folder(data: Path, tmp_path: Path, filled_cache: Path) -> SiteFolder:
    profile = profile_of(root=str(data), minimum_patients=20)
    return with_cache(SiteFolder.create(tmp_path / "anna", profile), filled_cache)


def opened(folder: SiteFolder, run: str = "run-1", study: Study = STUDY) -> OpenCohort:
    return open_cohort(study, folder, folder.run_folder(run))


def parts_by_key(cohort: OpenCohort) -> dict[str, str]:
    return {cohort.keys[row]: part for part in PARTS for row in cohort.parts[part]}


def patients_of(folder: SiteFolder) -> dict[str, set[str]]:
    """Keys of the records of each patient."""
    found: dict[str, set[str]] = {}
    for record in open_holding(folder.profile(), unit="finding").records:
        found.setdefault(record.patient, set()).add(record.key)
    return found


def somebody_in(folder: SiteFolder, part: str) -> tuple[str, set[str]]:
    """A patient of that part, with the keys of the patient's records."""
    cohort = selected(STUDY, folder)
    places = {cohort.records[row].key: place for place in PARTS for row in cohort.parts[place]}
    return next(
        (patient, keys) for patient, keys in patients_of(folder).items() if {places.get(key) for key in keys} == {part}
    )


def files_naming(folder: SiteFolder, names: set[str]) -> list[Path]:
    """Files of the folder whose bytes hold one of the names; NumPy keeps text as UTF-32."""
    patterns = [name.encode(coding) for name in names for coding in ("utf-8", "utf-32-le")]
    return [
        path for path in folder.path.rglob("*") if path.is_file() and any(one in contents(path) for one in patterns)
    ]


def contents(path: Path) -> bytes:
    if path.suffix != ".npz":
        return path.read_bytes()
    with np.load(path) as stored:
        return b"".join(stored[name].tobytes() for name in stored.files)


# -- who is out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_nobody_else_changes_part(folder: SiteFolder, part: str) -> None:
    before = parts_by_key(opened(folder))
    patient, keys = somebody_in(folder, part)
    withdraw(folder, patient)
    expected = {key: place for key, place in before.items() if key not in keys}
    assert parts_by_key(opened(folder)) == expected  # the run that goes on
    assert parts_by_key(opened(folder, "run-2")) == expected  # a new run


def test_everybody_is_divided_as_if_nobody_had_withdrawn(folder: SiteFolder) -> None:
    """For each patient in turn, by tables alone."""
    holding = open_holding(folder.profile(), unit="finding")
    whole = choose(STUDY, holding, minimum_patients=1)
    place = {whole.records[row].key: part for part in PARTS for row in whole.parts[part]}
    for patient in sorted({record.patient for record in holding.records}):
        less = choose(STUDY, holding, minimum_patients=1, withdrawn=lambda name, gone=patient: name == gone)
        assert {less.records[row].key: part for part in PARTS for row in less.parts[part]} == {
            record.key: place[record.key] for record in whole.records if record.patient != patient
        }
        assert [less.labels[i] for i in range(len(less.records))] == [
            whole.labels[i] for i, record in enumerate(whole.records) if record.patient != patient
        ]
        assert len(np.unique(less.patients)) == len(np.unique(whole.patients)) - 1


def test_the_others_keep_their_own_pixels(folder: SiteFolder) -> None:
    before = opened(folder)
    pixels = {key: before.store.images[row].copy() for row, key in enumerate(before.keys)}
    patient, keys = somebody_in(folder, "train")
    withdraw(folder, patient)
    for cohort in (opened(folder), opened(folder, "run-2")):
        for part in PARTS:
            for row in cohort.parts[part]:
                np.testing.assert_array_equal(cohort.store.images[row], pixels[cohort.keys[row]])
        assert not keys & set(cohort.keys)


def test_a_withdrawn_patients_images_are_not_opened(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SiteFolder.create(tmp_path / "anna", profile_of(root=str(data), minimum_patients=20))
    patient, _ = somebody_in(folder, "train")
    withdraw(folder, patient)
    seen: list[Path] = []

    def seeing(image: Path, masks: tuple[Path, ...], _recipe: Any, *_seen: Any) -> np.ndarray[Any, Any]:
        seen.extend([image, *masks])
        return np.zeros((1, 32, 32), np.uint8)

    monkeypatch.setattr(cache, "prepare", seeing)
    opened(folder)
    records = open_holding(folder.profile(), unit="finding").records
    own = {path for record in records if record.patient == patient for path in (record.image, *record.masks)}
    assert own and not own & set(seen)
    assert {record.image for record in records} - own <= set(seen)


def test_too_few_patients_that_are_left_are_refused(data: Path, tmp_path: Path, filled_cache: Path) -> None:
    profile = profile_of(root=str(data), minimum_patients=24)
    folder = with_cache(SiteFolder.create(tmp_path / "anna", profile), filled_cache)
    opened(folder)
    patient, _ = somebody_in(folder, "train")
    withdraw(folder, patient)
    for run in ("run-1", "run-2"):
        with pytest.raises(PolicyError):
            opened(folder, run)


def test_spellings_of_one_id_are_one_patient(folder: SiteFolder) -> None:
    tags = Tags.of(folder)
    assert len({tags.tag(one) for one in ("P_00012", " p_00012 ", "P_00012\n", "Ｐ_00012")}) == 1
    assert len({tags.tag(one) for one in ("Mueller, Anna", "MUELLER,  ANNA")}) == 1
    assert tags.tag("P_00012") != tags.tag("P_00013")
    assert normalised("Ａ  b") == "a b"


def test_another_hospitals_tags_are_others(folder: SiteFolder, tmp_path: Path) -> None:
    other = SiteFolder.create(tmp_path / "berta", profile_of("berta"))
    assert Tags.of(folder).tag("P_00012") != Tags.of(other).tag("P_00012")
    assert Tags.of(folder).tag("P_00012") == Tags.of(folder).tag("P_00012")


def test_an_unknown_patient_is_said_so_and_nothing_is_written(folder: SiteFolder) -> None:
    with pytest.raises(InputError, match="no patient 'P_99999' here"):
        withdraw(folder, "P_99999")
    assert withdrawn(folder) == []


def test_a_damaged_list_or_another_key_stops_everything(folder: SiteFolder) -> None:
    patient, _ = somebody_in(folder, "train")
    withdraw(folder, patient)
    key = folder.path / "keys" / "withdrawal.key"
    own = key.read_bytes()
    for spoil, repair in (
        (lambda: key.write_bytes(b"x" * 32), lambda: key.write_bytes(own)),
        (key.unlink, lambda: key.write_bytes(own)),
        (lambda: (folder.path / "withdrawn.json").write_text("{"), lambda: None),
    ):
        spoil()
        with pytest.raises(InputError, match="nobody knows who has withdrawn"):
            opened(folder, "run-2")
        repair()


# -- what is forgotten, and what is not ----------------------------------------------------------------------------------


def task_of(folder: SiteFolder, kind: Kind, number: int, compare_with: str | None = None) -> Task:
    arrays = travelling_arrays(build_network(STUDY))
    manifest = Manifest.of(arrays)
    model = flatten(arrays, manifest) + np.float32(1e-3 * number)
    instruction = Instruction(
        kind=kind, run="run-1", site="anna", round=number, issued=number, expires=1 << 50, study=STUDY.to_data(),
        study_digest=STUDY.digest(), model_digest=flat_digest(encode(model, "fp32")), manifest_digest=manifest.digest(),
        previous=None, compare_with=compare_with, release=Release.installed(),
    )  # fmt: skip
    return Task(instruction, STUDY, folder.profile(), folder, model, "0" * 64)


def run_of(folder: SiteFolder) -> Iterator[Result]:
    start = task_of(folder, "prepare", 0)
    yield work.do(start)
    yield work.do(task_of(folder, "train", 1))
    yield work.do(task_of(folder, "evaluate", 2, start.instruction.model_digest))


def test_nothing_in_the_folder_names_the_patient_afterwards(folder: SiteFolder) -> None:
    list(run_of(folder))
    digest = task_of(folder, "evaluate", 2).instruction.model_digest[:16]
    patient, keys = somebody_in(folder, "test")
    assert {"cohort.npz", f"scores-{digest}.npz"} <= {path.name for path in files_naming(folder, keys)}
    outcome = withdraw(folder, patient, reason="by letter")
    assert files_naming(folder, keys | {patient}) == []
    assert outcome.pages == (folder.run_folder("run-1") / "evaluation.html",)
    for path in folder.cache.rglob("*.json"):
        if path.parent != folder.cache:
            pack = open_pack(path.parent, path.stem)
            assert pack is not None
            assert not keys & {row.record for row in pack.rows}
            assert [not image.any() for image in pack.images] == [row.record == "" for row in pack.rows]


def test_an_update_that_was_trained_with_the_patient_is_not_sent_again(folder: SiteFolder) -> None:
    task = task_of(folder, "train", 1)
    result = work.do(task)
    assert result.trained is not None and result.update is not None
    run_folder = folder.run_folder("run-1")
    answered.keep(run_folder, task.instruction, answered.Answered(result.trained, result.update))
    assert answered.find(run_folder, task.instruction) is not None
    withdraw(folder, somebody_in(folder, "train")[0])
    assert answered.find(run_folder, task.instruction) is None


def test_what_was_spent_stays_on_record(folder: SiteFolder) -> None:
    list(run_of(folder))
    for part in PARTS:
        patient, _ = somebody_in(folder, part)
        (spent,) = [one for one in withdraw(folder, patient).withdrawal.spent if one.run == "run-1"]
        assert (spent.study_name, spent.part, spent.rounds, spent.evaluations) == ("bare", part, [1], 2)
    work.do(task_of(folder, "train", 2))  # without them
    assert [[s.rounds for s in one.spent if s.run == "run-1"] for one in withdrawn(folder)] == [[[1]], [[1]], [[1]]]


def test_the_run_goes_on_without_the_patient_and_its_gain_stays_paired(folder: SiteFolder) -> None:
    start = task_of(folder, "prepare", 0)
    before = work.do(start).prepared
    patient, keys = somebody_in(folder, "test")
    withdraw(folder, patient)
    after = work.do(task_of(folder, "evaluate", 2, start.instruction.model_digest)).evaluated
    assert before is not None and after is not None and before.baseline is not None
    assert after.images == before.baseline.images - len(keys)
    assert after.patients == before.baseline.patients - 1
    assert after.network.gain is not None
    scores = load_scores(folder.run_folder("run-1") / f"scores-{start.instruction.model_digest[:16]}.npz")
    assert len(scores.keys) == after.images and not keys & set(scores.keys)


def test_a_round_that_is_under_way_ends_with_the_patient_and_is_cleaned_then(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.do(task_of(folder, "prepare", 0))
    patient, keys = somebody_in(folder, "test")
    images = len(opened(folder).parts["test"])
    page = evaluation_work.write_page

    def withdrawing(*arguments: Any, **named: Any) -> Path:
        withdraw(folder, patient)  # by a person, while the evaluation goes on
        return page(*arguments, **named)

    monkeypatch.setattr(evaluation_work, "write_page", withdrawing)
    result = work.do(task_of(folder, "evaluate", 1))
    assert result.evaluated is not None and result.evaluated.images == images
    assert files_naming(folder, keys | {patient}) == []
    assert not keys & set(opened(folder).keys)


def test_a_first_preparation_that_is_under_way_is_cleaned_too(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, keys = next(iter(patients_of(folder).items()))
    evaluated = work.evaluated_classes

    def withdrawing(*arguments: Any, **named: Any) -> Any:
        withdraw(folder, patient)
        return evaluated(*arguments, **named)

    monkeypatch.setattr(work, "evaluated_classes", withdrawing)
    work.do(task_of(folder, "prepare", 0))
    assert files_naming(folder, keys | {patient}) == []


STEPS: dict[str, Callable[[pytest.MonkeyPatch, Callable[..., Any]], None]] = {
    name: (lambda patch, dying, name=name: patch.setattr(withdrawal_module, name, dying))
    for name in ("forget_records", "forget_rows", "forget_in_roll")
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_the_middle_it_holds_and_is_finished_by_the_next_call(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    list(run_of(folder))
    patient, keys = somebody_in(folder, "test")

    class Killed(BaseException):
        pass

    def dying(*_arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        STEPS[step](patch, dying)
        with pytest.raises(Killed):
            withdraw(folder, patient)
    assert Tags.of(folder).tag(patient) in withdrawn_tags(folder)
    assert not keys & {opened(folder).keys[row] for part in PARTS for row in opened(folder).parts[part]}
    assert not withdrawn(folder)[0].purged
    again = withdraw(folder, patient)
    assert again.withdrawal.purged
    assert [one.rounds for one in again.withdrawal.spent if one.run == "run-1"] == [[1]]
    assert files_naming(folder, keys | {patient}) == []
    assert len(withdrawn(folder)) == 1


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_cache_that_is_being_cleaned_never_gives_empty_pixels_to_anybody(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Killed before each of the three files of a pack is written, a new list takes over what is whole, and decodes the rest."""
    before = opened(folder)
    pixels = {key: before.store.images[row].copy() for row, key in enumerate(before.keys)}
    patient, keys = somebody_in(folder, "train")
    whole, count = packs.written_whole, [0]

    class Killed(BaseException):
        pass

    def dying(path: Path) -> Any:
        count[0] += 1
        if count[0] == writes:
            raise Killed
        return whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(packs, "written_whole", dying)
        with pytest.raises(Killed):
            withdraw(folder, patient)
    later = opened(folder, "run-2")
    for part in PARTS:
        for row in later.parts[part]:
            np.testing.assert_array_equal(later.store.images[row], pixels[later.keys[row]])
    withdraw(folder, patient)
    for path in folder.cache.rglob("*.json"):
        if path.parent != folder.cache:
            pack = open_pack(path.parent, path.stem)
            assert pack is not None
            assert not keys & {row.record for row in pack.rows}
            assert all(not image.any() for image, row in zip(pack.images, pack.rows, strict=True) if row.record == "")


def test_a_patient_whose_files_are_gone_from_the_data_is_still_found(folder: SiteFolder) -> None:
    list(run_of(folder))
    patient, keys = somebody_in(folder, "train")
    profile = folder.profile()
    gone = profile.model_copy(update={"data": profile.data.model_copy(update={"root": "/nowhere"})})
    (folder.path / "site.json").write_text(gone.model_dump_json(by_alias=True))
    outcome = withdraw(folder, patient)
    assert outcome.notes and outcome.withdrawal.spent
    assert files_naming(folder, keys | {patient}) == []
    with pytest.raises(InputError, match="the data can't be looked at"):
        withdraw(folder, "P_99999")


def test_a_round_that_lasts_too_long_is_ended(data: Path, tmp_path: Path, filled_cache: Path) -> None:
    profile = profile_of(root=str(data), maximum_round_s=1e-3)
    folder = with_cache(SiteFolder.create(tmp_path / "anna", profile), filled_cache)
    with pytest.raises(PolicyError, match="maximum_round_s"):
        work.do(task_of(folder, "train", 1))
    (run,) = own_runs(folder)
    assert run.last is not None and (run.last.event, run.last.code) == ("ended", "CONS-230")


# -- the command -------------------------------------------------------------------------------------------------------


def test_by_command(folder: SiteFolder) -> None:
    patient, _ = somebody_in(folder, "train")
    work.do(task_of(folder, "prepare", 0))
    work.do(task_of(folder, "train", 1))
    run = CliRunner()
    said = run.invoke(app, ["withdraw", str(folder.path), "-", "--reason", "by letter"], input=f"{patient}\n")
    assert said.exit_code == 0, said.output
    assert "run-1" in said.output and "train part" in said.output and patient not in said.output
    listed = run.invoke(app, ["withdraw", str(folder.path), "--list", "--json"], catch_exceptions=False)
    (one,) = json.loads(listed.output)
    assert one["reason"] == "by letter" and patient not in listed.output
    assert "by letter" in run.invoke(app, ["withdraw", str(folder.path), "--list"]).output
    with pytest.raises(InputError, match="PATIENT"):
        run.invoke(app, ["withdraw", str(folder.path)], catch_exceptions=False)


def test_a_class_that_has_nobody_left_is_said_so(folder: SiteFolder) -> None:
    opened(folder)
    roll = load_roll(folder.run_folder("run-1"))
    assert roll is not None
    test = roll.parts["test"]
    for tag in {roll.tags[row] for row in test if roll.labels[row] == 1}:
        roll = roll.without({tag})
    with pytest.raises(DataError, match="of 1 class"):
        _require_classes(roll, folder.profile())
