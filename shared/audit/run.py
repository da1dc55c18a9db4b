"""Checks of one run folder from its files alone: does each record follow from the ones before it, and who wrote them?

What the checks in this file prove is consistency: the study, the chain of models, the weights, the aggregation. A folder that was written
anew as a whole passes them; whose keys signed it, and that these are trusted, is `shared.audit.signatures`; what the hospitals entered in
their ledgers about it, and what it cost, the modules beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.aggregation import OptimiserState, apply_to_free, normalised_weights, weighted_mean
from shared.audit.budgets import check_budgets
from shared.audit.completeness import check_completeness
from shared.audit.entries import check_entries, read_entries
from shared.audit.exchanges import Absent, SignedTexts, Violation
from shared.audit.exports import Export, check_exports
from shared.audit.named_models import ModelFile, check_named_models
from shared.audit.private_record import check_private_record
from shared.audit.records import RunFiles, stored_model
from shared.audit.signatures import check_signatures
from shared.audit.spending import Cost, check_spending
from shared.audit.trust import Trust
from shared.audit.verdict import Check
from shared.wire import encode, flat_digest


@dataclass(frozen=True, slots=True)
class Audit:
    """The checks in the order in which a reader would ask, and what a private run cost at each hospital."""

    checks: list[Check]
    costs: list[Cost]


def audit_run(
    files: RunFiles,
    trust: Trust | None = None,
    exports: Sequence[Export] = (),
    *,
    models: Sequence[ModelFile] = (),
    earlier: Sequence[RunFiles] = (),
) -> Audit:
    """Everything that these files can answer. `exports` are ledgers that hospitals gave besides, `models` files that the study names,
    `earlier` the runs that these come from.
    """
    signed = SignedTexts(files)
    shown = read_entries(signed, {one.site: one.lines for one in exports if one.sound})
    spending, costs = check_spending(files, shown)
    checks = [
        *check_signatures(files, trust, signed),
        *_check_models(files, signed),
        *check_named_models(files, models, earlier),
        *check_entries(shown.values()),
        *check_completeness(signed, shown),
        *spending,
        *(check_budgets(shown) if files.study.privacy is not None else []),
        *check_private_record(files),
        *check_exports(exports, files, shown),
    ]
    return Audit(checks, costs)


def _check_models(files: RunFiles, signed: SignedTexts) -> list[Check]:
    return [
        _study(files),
        _code(files, signed),
        _completeness(files),
        _chain(files),
        _checkpoints(files),
        _quorum(files),
        *_external_test(files),
        _weights(files),
        _aggregation(files),
        _evaluation(files),
    ]


def _study(files: RunFiles) -> Check:
    name, found = "the study is the one that the run names", files.study_digest
    if found != files.run.study_digest:
        return Check(name, "violated", f"study.json has digest {found}, run.json names {files.run.study_digest}")
    newer = (
        ""
        if files.study.digest() == found
        else "; this release knows more keys, which the study leaves at their defaults"
    )
    return Check(name, "proven", f"digest {found}{newer}")


def _code(files: RunFiles, signed: SignedTexts) -> Check:
    """As run.json says, and as every answer says that can be read; those that can't are told in `shared.audit.signatures`."""
    name, count = "every site ran the coordinator's code", 0
    others = {site for site, hello in files.run.sites.items() if hello.code_digest != files.run.code_digest}
    for exchange in signed.on_record():
        with contextlib.suppress(Violation, Absent):
            if signed.answer(exchange).hello.code_digest != files.run.code_digest:
                others.add(exchange.site)
            count += 1
    if others:
        return Check(name, "violated", f"another code digest at {', '.join(sorted(others))}")
    if not files.run.sites:
        return Check(name, "not checkable", "no site has answered")
    return Check(
        name,
        "proven",
        f"code digest {files.run.code_digest} at {len(files.run.sites)} site(s), as they say themselves in {count} answers",
    )


def _completeness(files: RunFiles) -> Check:
    name, planned = "every round is on record", files.study.federation.rounds
    numbers = [record.round for record in files.rounds]
    if numbers != list(range(len(numbers))):
        missing = sorted(set(range(max(numbers, default=0) + 1)) - set(numbers))
        return Check(name, "violated", f"rounds {missing} are missing")
    if len(numbers) != planned + 1:
        return Check(
            name, "not checkable", f"{max(0, len(numbers) - 1)} of {planned} rounds; the run is {files.run.state}"
        )
    return Check(name, "proven", f"round 0 and {planned} rounds")


def _chain(files: RunFiles) -> Check:
    name, before = "each round starts from the model that the round before ended in", flat_digest(files.start)
    for record in files.rounds:
        if record.model_in != before:
            return Check(
                name, "violated", f"round {record.round} starts from {record.model_in}, but {before} was there"
            )
        before = record.model_out
    return Check(name, "proven", f"{len(files.rounds)} links from the starting model {flat_digest(files.start)}")


def _checkpoints(files: RunFiles) -> Check:
    name = "stored models are the ones on record"
    kept: list[int] = []
    for record in files.rounds:
        model = stored_model(files, record.round)
        if model is None:
            continue
        found = flat_digest(model)
        if found != record.model_out:
            path = files.place(record.round) / "model.safetensors"
            return Check(name, "violated", f"{path} has digest {found}, its round names {record.model_out}")
        kept.append(record.round)
    if not kept:
        return Check(name, "not checkable", "no round's model is kept")
    return Check(name, "proven", f"models of rounds {', '.join(map(str, kept))}")


def _quorum(files: RunFiles) -> Check:
    name, quorum = "every round had its quorum", files.study.federation.quorum
    short = [record.round for record in files.rounds if record.round > 0 and len(record.trained) < quorum]
    if short:
        return Check(name, "violated", f"fewer than {quorum} site(s) in rounds {short}")
    return Check(name, "proven", f"at least {quorum} site(s) in each")


def _external_test(files: RunFiles) -> list[Check]:
    """None where no site is of the external test."""
    name = "who tests the final model as an outsider never trained it"
    outside = {site for record in files.rounds for site, one in record.prepared.items() if one.external}
    if not outside:
        return []
    trained = sorted(outside & {site for record in files.rounds for site in record.trained})
    if trained:
        return [
            Check(name, "violated", f"{', '.join(trained)} trained, and said in the preparation that it never does")
        ]
    return [Check(name, "proven", f"no update of {', '.join(sorted(outside))} in {len(files.rounds) - 1} rounds")]


def _weights(files: RunFiles) -> Check:
    name, rule = "sites were weighted as the study says", files.study.federation.weighting
    for record in files.rounds[1:]:
        if isinstance(rule, dict):
            raw = {site: rule.get(site, 0.0) for site in record.trained}
        else:
            raw = {site: float(one.images or 0) if rule == "counts" else 1.0 for site, one in record.trained.items()}
        expected = normalised_weights(raw)
        if record.weights != expected:
            return Check(name, "violated", f"round {record.round}: {record.weights}, expected {expected}")
    return Check(name, "proven", rule if isinstance(rule, str) else "public weights")


def _aggregation(files: RunFiles) -> Check:
    """Every model again, from the starting model and the stored updates."""
    name, optimiser = "the models are what the updates add up to", files.study.federation.optimiser
    model, state = files.start, OptimiserState.start(optimiser, files.start.size)
    for record in files.rounds[1:]:
        place = files.place(record.round) / "updates"
        updates = {site: place / f"{site}.npy" for site in record.trained}
        absent = sorted(site for site, path in updates.items() if not path.exists())
        if absent:
            return Check(
                name,
                "not checkable",
                f"round {record.round}: no stored update of {', '.join(absent)} (federation.keep_updates)",
            )
        if set(record.weights) != set(updates):
            return Check(name, "violated", f"round {record.round}: weights and updates are of different sites")
        free = files.manifest.without(files.study.training.held_in(record.round))
        for site, path in updates.items():
            try:
                stored = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as problem:
                return Check(name, "violated", f"{path}: can't be read as an update: {problem}")
            if np.shape(stored) != (free.size,):
                return Check(
                    name,
                    "violated",
                    f"round {record.round}: the stored update of {site} has the shape {np.shape(stored)}, but an update of this round has "
                    f"{free.size} values: those of the layers that its stage does not hold",
                )
            if flat_digest(encode(np.asarray(stored), files.study.federation.wire)) != record.update_digests.get(site):
                return Check(
                    name, "violated", f"round {record.round}: the stored update of {site} is not the one that arrived"
                )
        mean = weighted_mean(updates, record.weights)
        model, state = apply_to_free(model, mean, optimiser, state, manifest=files.manifest, free=free)
        if flat_digest(model) != record.model_out:
            return Check(name, "violated", f"round {record.round}: aggregating again gives another model")
    return Check(name, "proven", f"{max(0, len(files.rounds) - 1)} rounds aggregated again, the same bytes")


def _evaluation(files: RunFiles) -> Check:
    name = "the evaluation is of the last model"
    if files.final is None or not files.rounds:
        return Check(name, "not checkable", "there is no final evaluation")
    if files.final.model != files.rounds[-1].model_out:
        return Check(
            name, "violated", f"it is of {files.final.model}, the last round ended in {files.rounds[-1].model_out}"
        )
    return Check(name, "proven", f"sites {', '.join(sorted(files.final.sites))}")


def summary(checks: Sequence[Check]) -> str:
    """One sentence."""
    counts = {
        outcome: sum(check.outcome == outcome for check in checks)
        for outcome in ("proven", "not checkable", "violated")
    }
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
