"""What a study costs in privacy, as a hospital's reviewer needs to see it: in words, with epsilons, against the budget for life."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from client.budget import Group, everybody, groups, require_bounded
from client.ledger import read_ledger
from client.site_folder import SiteFolder
from shared.errors import ConsiliumError
from shared.exact import as_float
from shared.ledger.entries import Lifetime, Mechanism, SubsampledGaussian
from shared.ledger.rules import Rules
from shared.ledger.spending import vector_of
from shared.privacy.mechanisms import Event
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import epsilon_of_vector, rdp_epsilon
from shared.profile import Policy, Profile
from shared.study import Study
from shared.study_cost import evaluation_mechanism, events_of, round_mechanism, study_events, svm_mechanism
from shared.study_privacy import Privacy
from shared.study_segmentation import released_counts

Rows = list[tuple[str, str]]
#: Tags of patients, each with the keyed digests of the images' pixels, as far as they are known.
Patients = Mapping[str, frozenset[str]]

#: Above this share of certainty its digits say nothing.
_SURE = 0.999


@dataclass(frozen=True, slots=True)
class _Budgeted:
    """The budget that would count for a run that began now, and what patients were charged before."""

    lifetime: Lifetime | None
    charged: Sequence[Group]
    obstacles: Sequence[str]


def privacy_rows(
    study: Study, profile: Profile, folder: SiteFolder, patients: Patients | None
) -> tuple[Rows, list[str]]:
    """The rows, and what stands in the way. `patients` are those of the study; None: whoever stands on the ledger.

    Looks at the ledger and enters nothing. Raises nothing: what can't be reckoned is among the obstacles.
    """
    budgeted = _budgeted(profile, folder, patients)
    stops = list(budgeted.obstacles)
    try:
        require_bounded(study, budgeted.lifetime)
    except ConsiliumError as problem:
        stops.append(str(problem))
    if study.privacy is None:
        return [*_without(study), *_updates(study, profile.policy)], stops
    try:
        rows, over = _private(study, study.privacy, profile, budgeted, everybody_on_ledger=patients is None)
    except ConsiliumError as problem:
        return [("Guarantee", f"can't be reckoned: {problem}")], [*stops, str(problem)]
    return [*rows, *_updates(study, profile.policy), *_not_covered()], stops + over


def require_allowed(study: Study, profile: Profile, folder: SiteFolder) -> None:
    """Raises BudgetError where this hospital takes no part in such a study at all, whoever its patients are; looks at no data."""
    require_bounded(study, _budgeted(profile, folder, {}).lifetime)


def rounds_in_words(study: Study) -> str:
    """What a hospital does in each of the study's rounds."""
    rounds, privacy = study.federation.rounds, study.privacy
    if rounds == 0:
        return "none: nothing is trained"
    if privacy is None:
        return f"{rounds}, each with {study.training.local_epochs} pass(es) over our train part"
    return (
        f"{rounds}, each with {_many(privacy.steps_per_round, 'step')} of DP-SGD; a step draws each patient of our train part with "
        f"probability {privacy.sampling_rate}, and one image of each who was drawn"
    )


def evaluations_in_words(study: Study) -> str:
    """Which models are evaluated, and how the figures leave."""
    said = "after the last round" + (", and of the starting model" if study.evaluation.baseline else "")
    return said if study.evaluation.release is None else f"{said}; only {released_counts(study)} with noise leave, once"


def _budgeted(profile: Profile, folder: SiteFolder, patients: Patients | None) -> _Budgeted:
    rules = Rules()
    obstacles: list[str] = []
    charged: list[Group] = []
    try:
        if (found := read_ledger(folder)) is not None:
            rules = found[0].rules
            charged = groups(rules, folder, everybody(rules, folder) if patients is None else patients)
    except ConsiliumError as problem:
        obstacles.append(str(problem))
    asked, fixed = profile.policy.lifetime, rules.lifetime
    if asked is None:
        return _Budgeted(fixed, charged, obstacles)
    wanted = asked.entry()
    if fixed is not None and not wanted.within(fixed):
        obstacles.append(
            f"policy.lifetime of the profile (epsilon {wanted.epsilon}, delta {wanted.delta}) is higher than what the ledger has fixed "
            f"for life (epsilon {fixed.epsilon}, delta {fixed.delta}); put the profile back"
        )
        wanted = fixed
    return _Budgeted(wanted, charged, obstacles)


def _without(study: Study) -> Rows:
    rows = [
        (
            "Guarantee",
            "no formal privacy guarantee: updates leave without noise. Whoever holds our updates and knows much about a patient may be "
            "able to tell whether the patient was in the training data, or to rebuild parts of an image",
        )
    ]
    if (release := study.evaluation.release) is not None:
        rows.append(
            (
                "Test counts",
                f"leave with geometric noise, epsilon {release.epsilon} for a test patient. That bounds what these counts say, and "
                "nothing of what the updates say of patients who train",
            )
        )
    return rows


def _private(
    study: Study, privacy: Privacy, profile: Profile, budgeted: _Budgeted, *, everybody_on_ledger: bool
) -> tuple[Rows, list[str]]:
    events, delta = study_events(study), as_float(privacy.delta)
    claimed, charged = pld_epsilon(events, delta), rdp_epsilon(events, delta)
    stand_in = profile.data.patient_stand_in
    rows = [
        (
            "Guarantee",
            "differential privacy by patient: what leaves would be about as likely to look the same without any one patient. "
            f"{_odds(claimed, privacy)}",
        ),
        (
            "Unit",
            "one patient with all images, added or removed"
            + (
                f"; our data names no patients, so it is one {stand_in} that is protected, and a patient behind several is not"
                if stand_in
                else ""
            ),
        ),
        ("Whole run", _epsilons(claimed, charged, privacy.delta)),
    ]
    lifetime = budgeted.lifetime
    if lifetime is not None and as_float(lifetime.delta) != delta:
        ours = as_float(lifetime.delta)
        rows.append(
            ("At our own delta", _epsilons(pld_epsilon(events, ours), rdp_epsilon(events, ours), lifetime.delta))
        )
    rows += _releases(study, privacy)
    rows.append(
        (
            "Charged",
            "every patient of the study with all of these releases, in whichever part; the run as a whole is entered in our ledger before "
            "its first answer leaves. A round that has to be begun again draws fresh noise and is charged again",
        )
    )
    if profile.role == "external_test":
        counts = events_of(evaluation_mechanism(study))
        rows.append(
            (
                "Our role",
                "external test: we never train and fit no SVM. The whole run is reserved all the same, and when it is closed a patient is "
                f"charged with the test counts alone (epsilon {rdp_epsilon(counts, delta):.3f})",
            )
        )
    if lifetime is None:
        return [*rows, ("Budget for life", "none is set (policy.lifetime), so private studies are refused")], []
    more, over = _lifetime_rows(events, lifetime, budgeted.charged, everybody_on_ledger)
    return rows + more, over


def _releases(study: Study, privacy: Privacy) -> Rows:
    rounds, delta = study.federation.rounds, as_float(privacy.delta)
    updates, counts = round_mechanism(study), evaluation_mechanism(study)
    rows = [
        (
            f"Release: {_many(rounds, 'update')}",
            f"{_mechanism(updates)} a round, {privacy.steps_per_round * rounds} in all; {_alone(updates, rounds, delta)}",
        )
    ]
    if (svm := svm_mechanism(privacy)) is not None:
        rows.append(
            (
                "Release: SVM",
                f"a linear SVM on random Fourier features, fitted once by DP-SGD; only its test counts leave: {_mechanism(svm)}; "
                f"{_alone(svm, 1, delta)}",
            )
        )
    heads = "the network's and the private SVM's" if svm is not None else "the network's"
    rows.append(
        (
            "Release: test counts",
            f"{heads} {released_counts(study)}, once, one vote a patient, {_mechanism(counts)}; {_alone(counts, 1, delta)}",
        )
    )
    return rows


def _lifetime_rows(
    events: list[Event], lifetime: Lifetime, charged: Sequence[Group], everybody_on_ledger: bool
) -> tuple[Rows, list[str]]:
    limit, delta, added = as_float(lifetime.epsilon), as_float(lifetime.delta), vector_of(events)

    def so(epsilon: float) -> str:
        left = limit - epsilon
        share = f"{epsilon:.3f} of {lifetime.epsilon} ({100 * epsilon / limit:.0f} %)"
        return f"{share}, {left:.3f} would be left" if left >= 0 else f"{share}, {-left:.3f} too much"

    rows = [
        (
            "Budget for life",
            f"epsilon {lifetime.epsilon} for each patient at delta {lifetime.delta}, all private runs added up by RDP (not simply summed)",
        ),
        ("A patient new to it", so(epsilon_of_vector(added, delta))),
    ]
    before = [group for group in charged if group.vector.any()]
    if not before:
        said = (
            "nobody was charged before"
            if everybody_on_ledger
            else "no patient of this study was charged before, as far as ids tell"
        )
        return [*rows, ("Charged before", said)], []
    worst = max(before, key=lambda group: epsilon_of_vector(group.vector + added, delta))
    reached = epsilon_of_vector(worst.vector + added, delta)
    among = "on our ledger" if everybody_on_ledger else "of this study"
    rows.append(
        (
            "Whoever had most",
            f"{_many(worst.patients, 'patient')} {among} have {epsilon_of_vector(worst.vector, delta):.3f} so far, of "
            f"{', '.join(worst.runs)}; with this run {so(reached)}",
        )
    )
    if reached <= limit:
        return rows, []
    who = (
        "if one of them is among its patients (--data says whether)"
        if everybody_on_ledger
        else "they are of this study"
    )
    return rows, [
        f"the lifetime budget of {_many(worst.patients, 'patient')} would be exceeded ({reached:.3f} of {lifetime.epsilon}): the run would "
        f"be refused, {who}"
    ]


def _updates(study: Study, policy: Policy) -> Rows:
    noised = "noised update" if study.privacy is not None else "update"
    return [
        ("Who sees updates", f"the coordinator sees each hospital's {noised}; other hospitals see only the mean model"),
        (
            "Who keeps them",
            f"the coordinator keeps every hospital's {noised}s, so that an auditor can add them up again"
            if study.keeps_updates
            else "the study does not ask to keep single updates; what a coordinator keeps can't be seen from here",
        ),
        ("Bound", f"an update whose L2 norm is above {policy.maximum_update_norm:g} does not leave"),
    ]


def _not_covered() -> Rows:
    return [
        (
            "Not covered",
            "that this hospital takes part; when its answers come; that it refuses; and the entries of our ledger about this run, which "
            "travel with the answers: they show our budget for life, what the patient with most was charged, and whether a cohort is the "
            "very one of an earlier run",
        ),
        (
            "Exact figures",
            "stay in this hospital: the page of the run (evaluation.html), the SVM with the RBF kernel, counts, losses, times. Whoever "
            "shows them to others releases something that no epsilon here counts",
        ),
        (
            "Rests on",
            "sampling, clipping and noise as this release makes them (consilium-site conformance measures that here); noise in double "
            "precision is near an exact Gaussian and not equal to it; one person under two ids has two budgets",
        ),
    ]


def _mechanism(mechanism: Mechanism) -> str:
    if isinstance(mechanism, SubsampledGaussian):
        return (
            f"{_many(mechanism.steps, 'step')} of the Poisson-sampled Gaussian mechanism (q {mechanism.sampling_rate}, noise multiplier "
            f"sigma {mechanism.noise_multiplier}, clipping norm C {mechanism.clipping_norm}, divided by {mechanism.normaliser})"
        )
    return f"two-sided geometric noise of epsilon {mechanism.epsilon}" if mechanism.name == "geometric" else "no noise"


def _alone(mechanism: Mechanism, times: int, delta: float) -> str:
    return f"alone epsilon {rdp_epsilon(events_of(mechanism, times), delta):.3f} (RDP)"


def _epsilons(pld: float, rdp: float, delta: str) -> str:
    return f"epsilon {pld:.3f} by PLD (what the run claims) and {rdp:.3f} by RDP (what we charge), at delta {delta}"


def _odds(epsilon: float, privacy: Privacy) -> str:
    sure = 1.0 / (1.0 + math.exp(-epsilon))
    told = (
        f"at most {100 * sure:.1f} %"
        if sure <= _SURE
        else f"more than {100 * _SURE:g} %, so the bound alone says little"
    )
    return (
        f"Somebody who sees all of it, knows everything else, and holds a patient's presence for as likely as not (50 %) could become sure "
        f"of it to {told} (but for a failure of probability delta {privacy.delta})"
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
