"""A published study as the people of a hospital need to see it before they say yes or no."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from client.approvals import published_study, runs_made
from client.chained_models import (
    TaughtHere,
    UsedModel,
    in_words,
    require_not_taught,
    taught_here,
    tested_patients,
    used_models,
)
from client.data.selection import Cohort
from client.data.taken import coverage, folded
from client.leaving import names_that_leave
from client.own_network import OwnNetwork, build_own
from client.policy import require_within, smallest_cell
from client.publications import State, state_of, weights_folder
from client.review_privacy import Patients, evaluations_in_words, privacy_rows, rounds_in_words
from client.site_folder import SiteFolder
from client.study_changes import Change, changes, last_approved
from client.withdrawn import Tags
from shared.documents import Publication
from shared.errors import ConsiliumError, WeightsUnavailableError
from shared.models.segmenter import segmenter_of
from shared.profile import Policy, Profile
from shared.release import Release
from shared.schema import Strict
from shared.signing import PublicKey
from shared.study import Study
from shared.study_model import WeightsFile
from shared.study_task import Task
from shared.wire import bytes_on_wire

NEVER = (
    "images, masks, tables and file names; names, ids and dates of patients; the score, feature vector or map of a single image; support "
    "vectors; the text of an error or of the log (an error leaves as a code such as CONS-110)"
)


class Section(Strict):
    """One question that a reviewer has, and the answers: what, and what is so."""

    title: str
    rows: list[tuple[str, str]]


class Review(Strict):
    """What `consilium-site review` shows."""

    study_digest: str
    name: str
    state: State
    sections: list[Section]
    changes: list[Change] | None = Field(description="against what was last approved; None where nothing was")
    compared_with: str | None = Field(default=None, description="name and digest of what was last approved")
    obstacles: list[str] = Field(description="why this hospital would not or could not take part as things are")


@dataclass(frozen=True, slots=True)
class _Looking:
    """All that the sections are made from. `models` and `taught` are empty where they can't be told, which is an obstacle already."""

    folder: SiteFolder
    publication: Publication
    study: Study
    profile: Profile
    own: Release
    network: OwnNetwork | None
    models: list[UsedModel]
    taught: list[TaughtHere]


def review(folder: SiteFolder, publication: Publication, *, count_data: bool = False) -> Review:
    """Look at a received publication. `count_data` opens the hospital's tables, to say how many patients and images it reaches.

    Raises DocumentError, InputError, ProfileError; what keeps this hospital from taking part is told in `obstacles`.
    """
    study, profile, own = published_study(publication), folder.profile(), Release.installed()
    obstacles: list[str] = []
    network: OwnNetwork | None = None
    try:
        network = build_own(study, publication.starting_point, weights_folder(folder, publication.study_digest))
        obstacles.extend(network.obstacles)
    except ConsiliumError as problem:
        obstacles.append(str(problem))
    try:
        segmenter_of(study.preprocessing, root=weights_folder(folder, publication.study_digest))
    except ConsiliumError as problem:
        obstacles.append(str(problem))
    models: list[UsedModel] = []
    taught: list[TaughtHere] = []
    try:
        found = used_models(study, weights_folder(folder, publication.study_digest))
        taught = taught_here(found, study, folder)
        models = found
    except WeightsUnavailableError:
        pass  # an obstacle already: the network could not be built
    except ConsiliumError as problem:
        obstacles.append(str(problem))
    looking = _Looking(folder, publication, study, profile, own, network, models, taught)
    reached, patients, data_obstacles = _counted(looking) if count_data else ([], None, [])
    costs, budget_obstacles = privacy_rows(study, profile, folder, patients)
    before = last_approved(folder, publication)
    try:
        require_within(study, profile.policy)
    except ConsiliumError as problem:
        obstacles.append(str(problem))
    if publication.release.code_digest != own.code_digest:
        obstacles.append(
            f"the study was published with consilium {publication.release.versions['consilium']} (code "
            f"{publication.release.code_digest[:12]}), but installed here is {own.versions['consilium']} (code {own.code_digest[:12]})"
        )
    return Review(
        study_digest=publication.study_digest,
        name=study.name,
        state=state_of(folder, publication, own),
        sections=[
            _who_asks(looking),
            _what_for(study),
            _what_is_trained(looking),
            Section(title="On which of our patients", rows=[*_patients(study, profile), *reached]),
            _what_leaves(looking),
            _how_often(looking),
            Section(title="What privacy it costs", rows=costs),
            _our_limits(study, profile),
            _release(looking),
        ],
        changes=changes(before[0], before[1], publication, own) if before is not None else None,
        compared_with=f"{before[0].study_name} ({before[0].study_digest[:12]})" if before is not None else None,
        obstacles=[*obstacles, *budget_obstacles, *data_obstacles],
    )


def _who_asks(looking: _Looking) -> Section:
    offer = looking.publication
    return Section(
        title="Who asks",
        rows=[
            ("Federation", offer.federation),
            ("Coordinator", PublicKey.read(offer.coordinator_key).spoken),
            ("Offered", f"{offer.created[:10]}, open until {offer.expires} (UTC)"),
            ("Study", f"{looking.study.name}, digest {offer.study_digest}"),
        ],
    )


def _what_for(study: Study) -> Section:
    rows = [
        ("Title", study.title),
        ("Purpose", study.governance.purpose),
        ("Ethics", study.governance.ethics),
        ("Retention", study.governance.retention),
    ]
    if study.description.strip():
        rows.insert(1, ("Description", " ".join(study.description.split())))
    return Section(title="What for", rows=rows)


def _what_is_trained(looking: _Looking) -> Section:
    study, network = looking.study, looking.network
    options = [study.model.name]
    if study.model.norm != "none":
        options.append(f"{study.model.norm} norm")
    if study.model.attention != "none":
        options.append(f"{study.model.attention} attention")
    if study.model.stem != "plain":
        options.append(f"{study.model.stem} stem")
    pixels = study.preprocessing
    rows = [
        ("Network", ", ".join(options)),
        ("Input", f"{pixels.size} x {pixels.size} pixels, {pixels.channels} channel(s), {_region(study)}"),
    ]
    if study.metadata:
        rows.append(("Told besides", f"{', '.join(one.name for one in study.metadata)} of each patient"))
    if (mask := pixels.mask_in_words()) is not None:
        role = "the network gets it as one more plane" if study.mask_is_input else "what the network learns to say"
        rows.append(("Mask of the lesion", f"{role}; {mask}"))
    if network is not None:
        share = f"{100 * network.trained / network.parameters:.0f} %"
        rows.append(("Parameters", f"{network.parameters:,}, of which {network.trained:,} are trained ({share})"))
    if study.model.freeze:
        rows.append(("Frozen", ", ".join(study.model.freeze)))
    for number, stage in enumerate(study.training.stages, 1):
        held = f"{', '.join(stage.freeze)} stays as it is" if stage.freeze else "all is trained"
        rows.append((f"Stage {number}", f"{stage.rounds} rounds, in which {held}"))
    rows.append(("Starts from", _starts_from(study, network)))
    rows.extend((f"Built on ({key})", said) for key, said in in_words(looking.models, looking.taught))
    if study.task.descriptors:
        rows.append(
            (
                "Descriptors",
                f"{', '.join(study.task.descriptors)}: further outputs, weighed {study.training.descriptor_weight:g}",
            )
        )
    if study.head is not None:
        stays = "it and its figures stay here" if study.privacy is not None else "it never leaves"
        rows.append(("Also", f"an SVM on the trained network's features, fitted here; {stays}"))
    return Section(title="What is trained", rows=rows)


def _region(study: Study) -> str:
    pixels = study.preprocessing
    steps = [f"without {' and '.join(pixels.remove)}"] if pixels.remove else []
    steps += [] if pixels.denoise == "none" else [f"denoised ({pixels.denoise})"]
    if pixels.clahe is not None:
        steps.append("equalised (CLAHE)")
    after = "".join(f", {step}" for step in steps)
    if pixels.region == "whole":
        return f"the whole image{after}"
    return f"a square around the finding with {100 * pixels.margin:.0f} % margin{after}"


def _starts_from(study: Study, network: OwnNetwork | None) -> str:
    weights = study.model.weights
    if study.model.members:
        named = "; ".join(f"{one.file}, SHA-256 {one.sha256}, source: {one.source}" for one in study.model.members)
        said = f"{len(study.model.members)} models that stay as they are, their answers averaged: {named}"
    elif isinstance(weights, WeightsFile):
        said = f"{weights.file}, SHA-256 {weights.sha256}; source: {weights.source}"
    else:
        said = "random values from the study's seed" if weights == "none" else "torchvision's published weights"
    checked = {
        True: "; the same values were built here",
        False: "; but the values built here are others than the coordinator's: ask why before approving",
        None: "",
    }
    return said + checked[network.starts_as_published if network is not None else None]


def _patients(study: Study, profile: Profile) -> list[tuple[str, str]]:
    data, task = study.data, study.task
    chosen = "; ".join(f"{name} is {' or '.join(values)}" for name, values in data.select.items())
    rows = [
        (
            "Our data",
            f"{profile.data.layout} in {profile.data.root}" + (" (synthetic)" if profile.data.synthetic else ""),
        ),
        ("Selected", f"records whose {chosen}" if chosen else "all records"),
        ("One label is of", f"a {task.unit}" if task.unit != "image" else "an image"),
    ]
    for index, (name, labels) in enumerate(task.classes.items()):
        positive = " (the positive class)" if name == task.positive_class else ""
        rows.append((f"Class {name}{positive}", f"records labelled {' or '.join(labels or [name])}"))
        if below := _below(task, index):
            rows.append(("", f"and, by the study's hierarchy, records labelled {', '.join(below)}"))
    for name, one in task.descriptors.items():
        held = f" (from {' or '.join(one.attributes)})" if one.attributes else ""
        rows.append((f"Descriptor {name}", f"also learnt where a record has it{held}: {', '.join(one.values)}"))
    if data.balanced is not None:
        fewer = "refuses" if data.balanced.if_fewer == "refuse" else "takes as many of each as the smallest class has"
        rows.append(("Drawn", f"{data.balanced.per_class} {task.unit}s of every class; with fewer, the study {fewer}"))
    if study.counts_shared_images:
        tags = (
            "the coordinator counts images that we and another hospital both hold, from tags under keys that only the two hospitals can "
            "make; it can't try images of its own unless a hospital helps it. Images with equal 64-bit perceptual hashes count as the same"
        )
        rows.append(("Also held elsewhere", tags))
    if data.duplicates is not None and data.duplicates.distance is not None:
        rows.append(
            (
                "Copies",
                f"one of each image takes part, told by perceptual hash ({data.duplicates.distance} of 256 bits may differ); none "
                "where the copies' classes differ. How many are left out is reported",
            )
        )
    split = data.split
    shares = ", ".join(f"{100 * share:.0f} % {part}" for part, share in split.shares().items())
    if split.folds is not None:
        shares += f" (cross-validation: fold {split.folds.test + 1} of {split.folds.of} is test)"
    how = "as the dataset was published" if split.division == "official" else shares
    if study.privacy is not None:
        how = f"each by a keyed hash of the patient's id alone, on average {shares}"
    if profile.role == "external_test":
        rows.append(("Our role", "external test: all these patients test the final model, and none of them trains it"))
    else:
        rows.append(("Divided", f"by patient, {how}; only the train part changes the model"))
    if (part := profile.data.part) is not None:
        rows.append(("Artificial", f"part {part.index + 1} of {part.of} of one data set, standing in for a hospital"))
    stand_in = profile.data.patient_stand_in
    rows.append(("A patient is", f"a {stand_in}: our data names no patients" if stand_in else "our own patient id"))
    return rows


def _below(task: Task, index: int) -> list[str]:
    """Labels that no class lists, and that the hierarchy takes to this one."""
    return [
        label
        for label in task.hierarchy
        if (place := task.placed(label)) is not None and place.index == index and place.listed != label
    ]


def _counted(looking: _Looking) -> tuple[list[tuple[str, str]], Patients | None, list[str]]:
    """How many are reached, from the tables alone; the patients' tags; and what would stop the study."""
    from client.cohort import selected

    try:
        cohort = selected(looking.study, looking.folder)
        tags = Tags.of(looking.folder)
    except ConsiliumError as problem:
        return [], None, [str(problem)]
    rows = [
        (f"In {part}", f"{cohort.patients_in(rows)} patients, {len(rows)} {looking.study.task.unit}s")
        for part, rows in cohort.parts.items()
    ]
    rows += [("By the hierarchy", f"{one}") for one in folded(cohort, looking.study)]
    rows += [(f"With {one.name}", f"{one}") for one in coverage(cohort, looking.study)]
    if cohort.left_out:
        rows.append(("Left out", f"{cohort.left_out} records whose label is in no class"))
    return (
        rows,
        {tags.tag(record.patient): frozenset() for record in cohort.records},
        _already_taught(looking, cohort, tags),
    )


def _already_taught(looking: _Looking, cohort: Cohort, tags: Tags) -> list[str]:
    """Whether a model that the study uses has learned from test patients, as far as ids tell; our node looks at images too."""
    try:
        require_not_taught(tested_patients(cohort, tags), looking.taught, looking.folder)
    except ConsiliumError as problem:
        return [str(problem)]
    return []


def _what_leaves(looking: _Looking) -> Section:
    rows: list[tuple[str, str]] = []
    network, wire = looking.network, looking.study.federation.wire
    external = looking.profile.role == "external_test"
    if looking.study.federation.rounds == 0:
        rows.append(("Each round", "nothing: there is no round. The model is evaluated as it comes"))
    elif network is not None and external:
        rows.append(
            ("Each round", "nothing: we are not asked to train. The final model comes in once, and no update goes out")
        )
    elif network is not None:
        rows.append(("Each round in", f"{network.bytes_in / 1e6:.1f} MB: the common model"))
        for stage, update in enumerate(network.updates, 1):
            when = f"A round of stage {stage} out" if looking.study.training.stages else "Each round out"
            size = bytes_on_wire(update.size, wire) / 1e6
            what = f"{update.size:,} numbers ({wire}) of {len(update.tensors)} tensors"
            rows.append((when, f"{size:.1f} MB: by how much our training changed the model: {what}"))
    empty = ""
    if looking.study.privacy is not None:
        empty = " (counts, losses, times and exact figures among them stay empty in this private study, or our gate refuses)"
    rows.append(("With every answer", f"counts and figures under these names, and nothing else{empty}:"))
    for name, fields in names_that_leave().items():
        schema, _, meaning = name.partition(": ")
        rows.append((schema, f"{', '.join(fields)}" + (f" ({meaning})" if meaning else "")))
    rows.append(("Never leaves", NEVER))
    return Section(title="What leaves, and what never does", rows=rows)


def _how_often(looking: _Looking) -> Section:
    study, offer = looking.study, looking.publication
    federation = study.federation
    external = looking.profile.role == "external_test"
    rows = [
        ("Rounds", f"{federation.rounds}, none of them here" if external else rounds_in_words(study)),
        ("Evaluations", evaluations_in_words(study)),
        ("Runs", f"{offer.runs} offered; an approval allows that many from now on{_before(looking)}"),
        ("Deadlines", f"{federation.prepare_deadline_s:g} s to prepare, {federation.round_deadline_s:g} s a round, "
                      f"{federation.evaluation_deadline_s:g} s to evaluate; whoever is later is not waited for"),
    ]  # fmt: skip
    if looking.network is not None:
        lengths = [stage.rounds for stage in study.training.stages] or [federation.rounds]
        sent = (length * update.size for length, update in zip(lengths, looking.network.updates, strict=True))
        out = 0 if external else bytes_on_wire(sum(sent), federation.wire)
        total = out + (2 if external else federation.rounds) * looking.network.bytes_in
        rows.append(("In all", f"about {total / 1e6:,.0f} MB a run, in and out together"))
    return Section(title="How often", rows=rows)


def _before(looking: _Looking) -> str:
    made = len(runs_made(looking.folder, looking.publication.study_digest))
    return f", besides the {made} made here so far" if made else ""


def _our_limits(study: Study, profile: Profile) -> Section:
    policy = profile.policy
    kept = [name for name in Policy().allowed_outputs if name not in policy.allowed_outputs]
    memory = policy.maximum_device_memory_gb
    rows = [
        ("Patients", f"refused where it reaches fewer than {policy.minimum_patients}"),
        ("Rounds", f"{study.federation.rounds} asked for, {policy.maximum_rounds} allowed"),
        ("Histogram cells", "no histogram leaves" if study.evaluation.release is not None else
                            f"at least {smallest_cell(study, policy)} images, or merged (study {study.evaluation.minimum_cell}, "
                            f"we {policy.minimum_cell})"),
        *([("Masks by class", "no figure by class leaves" if study.evaluation.release is not None else
            f"figures of at least {smallest_cell(study, policy)} images")] if study.task.kind == "segmentation" else []),
        ("A round", f"ended after {policy.maximum_round_s:g} s of training"),
        ("Device memory", "no limit" if memory is None else f"{memory:g} GB of a GPU's; without effect on a CPU"),
        ("Figures kept here", ", ".join(kept) + " (taken out of every answer)" if kept else "none: all figures above may leave"),
    ]  # fmt: skip
    return Section(title="What our own limits make of it", rows=rows)


def _release(looking: _Looking) -> Section:
    theirs, own = looking.publication.release, looking.own

    def said(one: Release) -> str:
        return f"consilium {one.versions['consilium']}, code {one.code_digest[:12]}, libraries {one.lock_digest[:12]}"

    same = theirs.code_digest == own.code_digest
    libraries = "" if theirs.lock_digest == own.lock_digest else "; libraries differ, which is allowed"
    return Section(
        title="Which code",
        rows=[
            ("Coordinator's", said(theirs)),
            ("Ours", said(own)),
            ("So", f"the same code{libraries}" if same else "not the same code: it can't be approved"),
        ],
    )
