"""A model that has learned from a hospital's patients is not used in a study that tests on them there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from publications import joined, publication_of
from safetensors.numpy import save

from benchmarks.bare_run import study_values
from client import cohort as cohort_module
from client.cohort import OpenCohort, open_cohort
from client.cohort_list import keep_list, root_of
from client.ledger import open_ledger
from client.review import review
from client.roll import roll_path
from client.site_folder import SiteFolder
from client.withdrawal import withdraw
from client.withdrawn import Tags
from shared.canonical import file_digest
from shared.errors import ChainLeakError, PrivacyError
from shared.ledger.entries import Cohort, Reserve, Start
from shared.profile import Profile
from shared.provenance import Provenance, with_provenance
from shared.signing import SigningKey
from shared.study import Study
from shared.study_cost import other_mechanisms, round_mechanism

PATIENTS = 40
SPLIT = {"train": 0.5, "validation": 0.2, "test": 0.3}
SHARED = {"split": {**SPLIT, "id": "breast-2026"}}
PRIVATE: dict[str, Any] = {
    "model": {"name": "resnet18", "norm": "group"},
    "training": {"optimiser": "sgd", "learning_rate": 0.1, "loss": "binary_cross_entropy"},
    "federation": {"rounds": 3, "quorum": 2, "weighting": "uniform"},
    "evaluation": {"baseline": False, "release": {"epsilon": 1}},
    "privacy": {
        "sampling_rate": 0.1, "steps_per_round": 1, "clipping_norm": 1, "normaliser": 4, "noise_multiplier": 1, "delta": 1e-5,
    },
}  # fmt: skip


def study_of(seed: int = 1, data: dict[str, Any] | None = None, **changes: Any) -> Study:
    values = {
        "seed": seed,
        "data": data or {"split": SPLIT},
        "preprocessing": {"region": "whole", "size": 16, "channels": 1},
    }
    return Study.model_validate({**study_values(), **values, **changes})


def write_images(root: Path, *, name: Callable[[int], str] = "P_{:03}".format, drawn: int = 0) -> Path:
    """One small image a patient, half of them malignant; `drawn` makes other images."""
    rows = ["file,label,patient"]
    for number in range(PATIENTS):
        pixels = np.random.default_rng((drawn, number)).integers(0, 200, (16, 16), dtype=np.uint8)
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / f"{name(number)}.png")
        rows.append(f"{name(number)}.png,{'malignant' if number % 2 else 'benign'},{name(number)}")
    (root / "index.csv").write_text("\n".join(rows))
    return root


def site_at(path: Path, data: Path, **changes: Any) -> SiteFolder:
    values = {
        "schema": "consilium/profile/1", "site": "anna", "title": "Hospital Anna", "device": "cpu", "policy": {"minimum_patients": 1},
        "data": {"layout": "image_folder", "root": str(data), "synthetic": False},
    }  # fmt: skip
    return SiteFolder.create(path, Profile.model_validate({**values, **changes}))


def with_profile(folder: SiteFolder, **changes: Any) -> SiteFolder:
    changed = {**folder.profile().model_dump(mode="json", by_alias=True), **changes}
    (folder.path / "site.json").write_text(Profile.model_validate(changed).model_dump_json(by_alias=True))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return site_at(tmp_path / "anna", write_images(tmp_path / "data"))


def has_run(folder: SiteFolder, run: str = "first", study: Study | None = None, *, rounds: int = 1) -> OpenCohort:
    """As after a run here: its roll, and what the ledger holds of it. With 0 rounds it was prepared, and trained elsewhere."""
    study = study or study_of()
    opened = open_cohort(study, folder, folder.run_folder(run))
    with open_ledger(folder, run) as ledger:
        patients = opened.roll.known()
        root = root_of(patients, Tags.of(folder))
        keep_list(folder, root, patients)
        if root not in ledger.rules.cohorts:
            ledger.add(Cohort(**ledger.place(), cohort=root, patients=len(patients)))
        ledger.add(
            Reserve(
                **ledger.place(), run=run, coordinator="0" * 64, study_name=study.name, study_digest=study.digest(), cohort=root,
                rounds=study.federation.rounds, mechanism=round_mechanism(study), releases=other_mechanisms(study),
            )
        )  # fmt: skip
        for number in range(1, rounds + 1):
            ledger.add(Start(**ledger.place(), run=run, round=number, attempt=1, model="0" * 64))
        ledger.write()
    return opened


def built_on(
    folder: SiteFolder,
    run: str | None,
    study: Study,
    *,
    ancestors: tuple[str | None, ...] = (),
    origin: str = "federation",
) -> Study:
    """`study`, which starts from a model file of `run` (of none that it names where that is None), with the file where it is looked for."""
    content = save({"weight": np.zeros(3, dtype=np.float32)})
    if run is not None:
        earlier = Provenance(study=study_of().to_data(), run=run, round=3, ancestors=ancestors)
        content = with_provenance(content, earlier)
    folder.weights.mkdir(exist_ok=True)
    path = folder.weights / "model.safetensors"
    path.write_bytes(content)
    weights = {"file": path.name, "sha256": file_digest(path), "source": "an earlier run", "origin": origin}
    values = study.to_data()
    return Study.model_validate({**values, "model": {**values["model"], "weights": weights}})


def opened(folder: SiteFolder, study: Study, run: str = "second") -> OpenCohort:
    return open_cohort(study, folder, folder.run_folder(run))


def refused(folder: SiteFolder, study: Study, match: str) -> None:
    with pytest.raises(ChainLeakError, match=match) as problem:
        opened(folder, study)
    assert problem.value.code == "CONS-113"
    assert not roll_path(folder.run_folder("second")).exists(), "the next instruction would look no more"


# -- patients whom the model has learned from ----------------------------------------------------------------------------


def test_a_test_patient_who_trained_the_model_is_refused_before_any_image_is_read(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = has_run(folder)
    following = built_on(folder, "first", study_of(seed=2))
    monkeypatch.setattr(cohort_module, "prepare_store", lambda *_args, **_named: pytest.fail("an image was read"))
    learned = {*earlier.roll.known("train", "validation")}
    tested = set(cohort_module.selected(following, folder).parts["test"].tolist())
    names = [record.patient for record in cohort_module.selected(following, folder).records]
    count = sum(Tags.of(folder).tag(names[row]) in learned for row in tested)
    assert count > 0
    refused(
        folder, following, rf"^{count} patient\(s\) of this study's test part .* comes from run first.* data\.split\.id"
    )


def test_with_one_split_id_the_next_study_tests_on_the_same_patients_whatever_its_seed(folder: SiteFolder) -> None:
    earlier = has_run(folder, study=study_of(data=SHARED))
    later = opened(folder, built_on(folder, "first", study_of(seed=2, data=SHARED)))
    for part in ("train", "validation", "test"):
        assert earlier.roll.known(part).keys() == later.roll.known(part).keys()
    other_id = built_on(folder, "first", study_of(seed=1, data={"split": {**SPLIT, "id": "another"}}))
    with pytest.raises(ChainLeakError):
        opened(folder, other_id, "third")


def test_one_split_id_with_other_classes_divides_otherwise_and_is_refused(folder: SiteFolder) -> None:
    """Strata are classes; whom a class has joined or left stands elsewhere in the order."""
    has_run(folder, study=study_of(data=SHARED))
    table = folder.profile().data.root + "/index.csv"
    lines = Path(table).read_text().splitlines()
    Path(table).write_text("\n".join(line.replace("malignant", "normal") if "_00" in line else line for line in lines))
    task = {
        "classes": {"benign": ["benign", "normal"], "malignant": []},
        "positive_class": "malignant",
        "unit": "image",
    }
    refused(folder, built_on(folder, "first", study_of(data=SHARED, task=task)), "data and task sections")


def test_a_copy_under_other_ids_is_known_by_its_images(folder: SiteFolder, tmp_path: Path) -> None:
    has_run(folder, study=study_of(data=SHARED))
    following = built_on(folder, "first", study_of(data=SHARED))
    copied = write_images(tmp_path / "copy", name="X_{:03}".format)
    with_profile(folder, data={**folder.profile().data.model_dump(), "root": str(copied)})
    refused(folder, following, r"^\d+ patient\(s\) under other ids \(known by their images\) of this study's test part")
    others = write_images(tmp_path / "others", name="X_{:03}".format, drawn=1)
    with_profile(folder, data={**folder.profile().data.model_dump(), "root": str(others)})
    opened(folder, following)


def test_who_withdrew_does_not_come_back_as_a_test_patient_under_another_id(folder: SiteFolder, tmp_path: Path) -> None:
    has_run(folder, study=study_of(data=SHARED))
    following = built_on(folder, "first", study_of(data=SHARED))
    rows = cohort_module.selected(following, folder)
    patient = rows.records[rows.parts["train"][0]].patient
    withdraw(folder, patient)
    opened(folder, following, "third")
    root = Path(folder.profile().data.root)
    fresh = write_images(tmp_path / "fresh", name="N_{:03}".format, drawn=2)
    shutil.copy(root / f"{patient}.png", fresh / "N_000.png")
    with_profile(folder, data={**folder.profile().data.model_dump(), "root": str(fresh)}, role="external_test")
    refused(folder, following, r"^1 patient\(s\) under other ids")


def test_an_external_test_is_held_against_the_runs_that_the_site_trained_in(folder: SiteFolder) -> None:
    has_run(folder, study=study_of(data=SHARED))
    with_profile(folder, role="external_test")
    refused(folder, built_on(folder, "first", study_of(data=SHARED)), "of this study's test part")


# -- which run, and whether the site was in it ---------------------------------------------------------------------------


def test_a_run_that_the_site_never_trained_in_has_nothing_to_compare(
    folder: SiteFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "consilium.site")
    opened(folder, built_on(folder, "elsewhere", study_of(seed=2)))
    assert "comes from run elsewhere, in which this hospital trained nothing: nothing to compare" in caplog.text
    has_run(folder, "prepared", rounds=0)
    opened(folder, built_on(folder, "prepared", study_of(seed=2)), "third")


def test_a_model_that_predicts_masks_counts_like_one_to_start_from(folder: SiteFolder) -> None:
    has_run(folder)
    values = built_on(folder, "first", study_of(seed=2)).to_data()
    mask = {"from": "model", "weights": values["model"].pop("weights")}
    following = Study.model_validate({**values, "preprocessing": {**values["preprocessing"], "mask": mask}})
    refused(folder, following, r"preprocessing\.mask\.weights comes from run first")


def test_runs_further_back_count_too(folder: SiteFolder) -> None:
    has_run(folder)
    refused(folder, built_on(folder, "elsewhere", study_of(seed=2), ancestors=("first",)), "comes from run first")


@pytest.mark.parametrize(("run", "ancestors"), [(None, ()), ("elsewhere", (None,))])
def test_a_federations_model_that_names_no_run_may_be_of_any(
    folder: SiteFolder, run: str | None, ancestors: tuple[str | None, ...]
) -> None:
    following = built_on(folder, run, study_of(seed=2), ancestors=ancestors)
    opened(folder, following, "before any run")
    has_run(folder)
    refused(folder, following, "may come from run first")


def test_a_public_model_that_names_no_run_costs_nothing(folder: SiteFolder) -> None:
    has_run(folder)
    (folder.path / "ledger.jsonl").write_text("damaged")
    opened(folder, built_on(folder, None, study_of(seed=2), origin="public"))


def test_where_the_roll_is_gone_only_the_ledgers_list_can_clear_the_study(folder: SiteFolder, tmp_path: Path) -> None:
    has_run(folder, study=study_of(data=SHARED))
    following = built_on(folder, "first", study_of(data=SHARED))
    roll = roll_path(folder.run_folder("first"))
    for spoil in (lambda: roll.write_bytes(b"PK"), roll.unlink):
        spoil()
        refused(
            folder, following, r"cohort\.npz, which says with whom, is missing or damaged: .* Put it back from a backup"
        )
    others = write_images(tmp_path / "others", name="X_{:03}".format, drawn=1)
    with_profile(folder, data={**folder.profile().data.model_dump(), "root": str(others)})
    opened(folder, following, "third")
    shutil.rmtree(folder.path / "cohorts")
    refused(folder, following, "can't stand in")


def test_the_records_are_looked_at_once_a_run(folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    has_run(folder, study=study_of(data=SHARED))
    following = built_on(folder, "first", study_of(data=SHARED))
    opened(folder, following)
    monkeypatch.setattr(cohort_module, "taught_here", lambda *_: pytest.fail("looked again"))
    opened(folder, following)


def test_a_roll_of_an_earlier_release_is_still_read(folder: SiteFolder) -> None:
    """These arrays are what the first release wrote; one more may never be asked for, or every chain would end at an update."""
    has_run(folder, study=study_of(data=SHARED))
    path = roll_path(folder.run_folder("first"))
    names = {"study", "images", "keys", "files", "labels", "patients", "tags", "pixels", "readable", "counts"}
    with np.load(path, allow_pickle=False) as stored:
        kept = {name: stored[name] for name in stored.files if name in names or name.startswith("part.")}
    np.savez(path, allow_pickle=False, **kept)
    opened(folder, built_on(folder, "first", study_of(data=SHARED)))


# -- a private study -----------------------------------------------------------------------------------------------------


def test_a_private_study_starts_from_nothing_that_the_hospital_trained_unless_all_is_synthetic(
    folder: SiteFolder,
) -> None:
    private = {**PRIVATE, "data": SHARED}
    has_run(folder, study=study_of(**private))
    following = built_on(folder, "first", study_of(seed=2, **private), origin="public")
    with pytest.raises(PrivacyError, match="called public, but this hospital trained it in run first"):
        opened(folder, following)
    opened(folder, built_on(folder, "elsewhere", study_of(seed=2, **private), origin="public"), "third")
    with_profile(folder, data={**folder.profile().data.model_dump(), "synthetic": True})
    later = opened(folder, built_on(folder, "first", study_of(seed=2, **private), origin="public"))
    assert later.roll.known("test").keys() == opened(folder, study_of(**private), "first").roll.known("test").keys()


# -- what people are told ------------------------------------------------------------------------------------------------


def test_the_review_says_which_run_it_was_and_whether_we_were_in_it(folder: SiteFolder, tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "coordinator.key")
    joined(folder, key)
    has_run(folder)

    def reviewed(study: Study) -> tuple[str, list[str]]:
        shutil.copytree(folder.weights, folder.path / "publications" / f"{study.digest()}.weights", dirs_exist_ok=True)
        found = review(folder, publication_of(study, key=key), count_data=True)
        rows = dict(row for section in found.sections for row in section.rows)
        return rows["Built on (model.weights)"], found.obstacles

    said, obstacles = reviewed(built_on(folder, "first", study_of(seed=2), ancestors=("older",)))
    assert said.startswith(
        "the model of run first (study bare) after round 3, which built on older. We trained in first with "
    )
    assert any("of this study's test part" in one for one in obstacles)
    said, obstacles = reviewed(built_on(folder, "elsewhere", study_of(seed=2)))
    assert said.endswith("We trained in none of these runs, so there is nothing to compare.")
    assert not any("test part" in one for one in obstacles)
    roll_path(folder.run_folder("first")).unlink()
    shutil.rmtree(folder.path / "cohorts")
    study = built_on(folder, "first", study_of(seed=2))
    shutil.copytree(folder.weights, folder.path / "publications" / f"{study.digest()}.weights")
    found = review(folder, publication_of(study, key=key), count_data=True)
    assert sum("Put it back from a backup" in one for one in found.obstacles) == 1
