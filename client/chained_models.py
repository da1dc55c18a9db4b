"""Models of earlier federated runs that a study uses: whether they have learned from patients whom it tests on here.

A model file that comes from a run of Consilium says so itself (`shared.provenance`). Which patients the run had here, and in which part, is
in this hospital's own records: the run's roll (`client.roll`), the ledger, and the ledger's list of the run's cohort. Train and validation
patients count as learned from. A hospital that never trained in a run has nothing to compare: what the model learned, it learned elsewhere.

All of this is looked at once a run, when its data is opened for the first time: by the patients' ids before any image is read, and by
the images' pixels, which know a copy under another id, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.cohort_list import read_list
from client.data.selection import Cohort
from client.ledger import read_ledger
from client.own_runs import own_runs
from client.roll import Roll, load_roll, roll_path
from client.site_folder import SiteFolder
from client.withdrawn import Tags
from shared.errors import ChainLeakError, LedgerError, PrivacyError
from shared.ledger.rules import RunOnLedger
from shared.provenance import Provenance, read_provenance
from shared.study import Study
from shared.study_model import WeightsFile

#: Tags of patients (`client.withdrawn`), each with the keyed digests of the images' pixels as far as they are known.
Patients = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class UsedModel:
    """A model file that a study names under `key`; `provenance` is None where the file names no run."""

    key: str
    weights: WeightsFile
    provenance: Provenance | None

    @property
    def runs(self) -> tuple[str | None, ...]:
        """Runs whose patients it learned from, oldest first; None for one that nobody named."""
        if self.provenance is not None:
            return self.provenance.runs
        return (None,) if self.weights.origin == "federation" else ()


@dataclass(frozen=True, slots=True)
class TaughtHere:
    """Whom a run that a model comes from, or may come from where it is not `named`, learned from at this hospital: nobody where it did not
    train `here`. Where the roll is gone, `patients` are all of its cohort, and not `exact`.
    """

    key: str
    run: str
    named: bool = True
    here: bool = False
    patients: Patients = field(default_factory=dict)
    exact: bool = True

    def __str__(self) -> str:
        if not self.here:
            return f"{self.key} comes from run {self.run}, in which this hospital trained nothing: nothing to compare"
        return (
            f"{self.key}: run {self.run} trained here with {len(self.patients)} patients; none may be in the test part"
        )


def used_models(study: Study, weights_root: Path) -> list[UsedModel]:
    """The study's model files that a federation trained, from below `weights_root`. Raises WeightsError."""
    found = [
        UsedModel(key, weights, read_provenance(weights_root / Path(weights.file).expanduser()))
        for key, weights in study.weight_files.items()
    ]
    return [one for one in found if one.runs]


def taught_here(models: Sequence[UsedModel], study: Study, folder: SiteFolder) -> list[TaughtHere]:
    """What this hospital's records know of the patients from whom the study's `models` have learned; without any, nothing is opened.

    Raises ChainLeakError where it trained in such a run and nobody knows any more with whom, PrivacyError where a private study calls
    public what was trained on patients here; LedgerError, InputError, StorageError.
    """
    if not models:
        return []
    chain = read_ledger(folder)
    ledger = chain[0].rules.runs if chain is not None else {}
    trained = _trained_here(folder, ledger)
    found: list[TaughtHere] = []
    for model in models:
        # A model that names no run may come from any.
        here = trained if None in model.runs else trained.intersection(model.runs)
        if here and study.privacy is not None and not folder.profile().data.synthetic:
            raise PrivacyError(_not_public(model, here))  # whoever the patients are: that must not decide
        found.extend(TaughtHere(model.key, run) for run in model.runs if run is not None and run not in here)
        found.extend(_whom(folder, model.key, run, ledger.get(run), named=run in model.runs) for run in sorted(here))
    return found


def tested_patients(cohort: Cohort, tags: Tags) -> Patients:
    """Of a cohort's test part, when no image has been read."""
    return {tags.tag(cohort.records[row].patient): frozenset() for row in cohort.parts["test"]}


def require_not_taught(test: Patients, taught: Sequence[TaughtHere], folder: SiteFolder) -> None:
    """Raises ChainLeakError where a model has learned from patients of the `test` part, by their ids or by their images' pixels."""
    for one in taught:
        known = test.keys() & one.patients.keys()
        pixels = frozenset[str]().union(*one.patients.values())
        copied = {tag for tag, images in test.items() if tag not in known and images & pixels}
        if known or copied:
            raise ChainLeakError(_sentence(one, len(known), len(copied), folder))


def in_words(models: Sequence[UsedModel], taught: Sequence[TaughtHere]) -> list[tuple[str, str]]:
    """For the review: the key of each model that a federation trained, and a sentence about it."""
    rows = []
    for model in models:
        mine = [one for one in taught if one.here and one.key == model.key]
        rows.append((model.key, f"{_origin(model)} {_part_here(mine)}"))
    return rows


def _trained_here(folder: SiteFolder, ledger: Mapping[str, RunOnLedger]) -> set[str]:
    """Runs in which a round of training was begun here: by the ledger, and by the runs' own folders of before there was one."""
    by_ledger = {run for run, known in ledger.items() if known.attempts}
    return by_ledger | {run.note.run for run in own_runs(folder) if run.begun_rounds}


def _whom(folder: SiteFolder, key: str, run: str, known: RunOnLedger | None, *, named: bool) -> TaughtHere:
    run_folder = folder.path / "runs" / run
    roll = load_roll(run_folder)
    listed: Patients | None = None
    if known is not None:
        try:
            listed = read_list(folder, known.reserve.cohort, Tags.of(folder)).patients
        except LedgerError as problem:
            if roll is None:
                raise ChainLeakError(
                    f"{_lost(key, run, run_folder)}; the list of its patients can't stand in: {problem}"
                ) from None
    if roll is not None:
        return TaughtHere(
            key, run, named, True, {**_withdrawn_since(roll, listed), **roll.known("train", "validation")}
        )
    if listed is None:
        raise ChainLeakError(_lost(key, run, run_folder))
    return TaughtHere(key, run, named, True, listed, exact=False)


def _withdrawn_since(roll: Roll, listed: Patients | None) -> Patients:
    """Who withdrew is named in no roll any more. They are in no part of any study; a copy of them under another id must not be either."""
    present = set(roll.tags)
    return {tag: images for tag, images in (listed or {}).items() if tag not in present}


def _lost(key: str, run: str, run_folder: Path) -> str:
    return (
        f"{key} comes from run {run}, in which this hospital trained, but {roll_path(run_folder)}, which says with whom, is missing or "
        "damaged: nobody can tell whether our test patients are among them. Put it back from a backup, or ask for a model of another run"
    )


def _not_public(model: UsedModel, here: set[str]) -> str:
    runs = ", ".join(sorted(here))
    return (
        f"{model.key} is called public, but this hospital trained {'it' if model.provenance else 'what may be it'} in run {runs}: what it "
        "says about our patients is in no figure of this private study, which needs a model that none of them has trained"
    )


def _sentence(one: TaughtHere, known: int, copied: int, folder: SiteFolder) -> str:
    by_id = f"{known} patient(s)" if known else ""
    by_pixels = f"{copied} patient(s) under other ids (known by their images)" if copied else ""
    who = " and ".join(part for part in (by_id, by_pixels) if part)
    if not one.exact:
        return (
            f"{_lost(one.key, one.run, folder.path / 'runs' / one.run)} (the ledger's list of all patients of that run has {who} of this "
            "study's test part)"
        )
    run = (
        f"comes from run {one.run}"
        if one.named
        else f"names not every run that it comes from, and may come from run {one.run}"
    )
    return (
        f"{who} of this study's test part trained or validated a model that it uses: {one.key} {run}. Give both studies the same "
        "data.split.id (with the same data and task sections), or start from a model that has not seen these patients"
    )


def _origin(model: UsedModel) -> str:
    if model.provenance is None:
        return "a federation's model; its file names no run, so it is held against every run that we trained in."
    name = model.provenance.study.get("name", "?")
    before = [run or "one that nobody named" for run in model.provenance.ancestors]
    built = f", which built on {', '.join(before)}" if before else ""
    public = "" if model.weights.origin == "federation" else ", called public: trained on nobody's patients"
    return (
        f"the model of run {model.provenance.run} (study {name}) after round {model.provenance.round}{built}{public}."
    )


def _part_here(mine: list[TaughtHere]) -> str:
    if not mine:
        return "We trained in none of these runs, so there is nothing to compare."
    said = ", ".join(
        f"{one.run} with {len(one.patients)} of our patients" + ("" if one.exact else " at most") for one in mine
    )
    return f"We trained in {said}; if any of them is in this study's test part, our node refuses."
