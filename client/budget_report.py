"""What a hospital sees of its lifetime budget: what was spent of which patients, on what, what is only reserved, and what is left.

Every epsilon is by RDP at the lifetime's delta, of one patient, a natural logarithm. Runs' epsilons don't add up: together they cost less
than their sum.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from client.budget import Group, everybody, groups
from client.ledger import read_ledger
from client.site_folder import SiteFolder
from shared.exact import as_float
from shared.ledger.entries import Lifetime
from shared.ledger.rules import Rules, RunOnLedger
from shared.ledger.spending import charged_events, spent_events, vector_of
from shared.privacy.mechanisms import Event
from shared.privacy.rdp import epsilon_of_vector
from shared.profile import Profile
from shared.schema import Strict


class RunSpent(Strict):
    """One run. `spent` is of what began or was released, `counted` of all that is reserved too; None without a bound."""

    run: str
    study: str
    study_digest: str
    state: Literal["open", "closed"]
    patients: int
    rounds: int = Field(description="as reserved")
    begun: int
    begun_again: int = Field(description="times, each of which is charged once more")
    released: list[str]
    spent: float | None
    counted: float | None


class GroupSpent(Strict):
    """Patients with the same history. `left` is what the lifetime leaves them; None where there is no lifetime budget."""

    patients: int
    runs: list[str]
    unbounded: list[str]
    spent: float
    counted: float
    left: float | None

    @property
    def reserved(self) -> float:
        """By how much what is reserved and has not begun raises epsilon."""
        return self.counted - self.spent


class BudgetReport(Strict):
    """The whole; groups with the most spent first, runs in the order in which they were reserved."""

    site: str
    title: str
    synthetic: bool
    stand_in: str | None = Field(description="which id stands in for the patient, where the data has none")
    lifetime: Lifetime | None
    notes: list[str]
    patients: int
    groups: list[GroupSpent]
    runs: list[RunSpent]


def budget_report(folder: SiteFolder) -> BudgetReport:
    """Raises LedgerError where the ledger or a cohort's list is not sound, StorageError, InputError."""
    profile = folder.profile()
    found = read_ledger(folder)
    rules = found[0].rules if found is not None else Rules()
    lifetime, notes = _lifetime(rules.lifetime, profile)
    delta = as_float(lifetime.delta) if lifetime is not None else None
    patients = everybody(rules, folder)
    counted = groups(rules, folder, patients)
    spent = {one.runs: one for one in groups(rules, folder, patients, events_of=spent_events)}
    of_groups = [_group(spent[one.runs], one, lifetime, delta) for one in counted]
    return BudgetReport(
        site=profile.site,
        title=profile.title,
        synthetic=profile.data.synthetic,
        stand_in=profile.data.patient_stand_in,
        lifetime=lifetime,
        notes=notes,
        patients=sum(one.patients for one in counted),
        groups=sorted(of_groups, key=lambda one: (-one.counted, one.runs)),
        runs=[_run(name, run, counted, delta) for name, run in rules.runs.items()],
    )


def _lifetime(fixed: Lifetime | None, profile: Profile) -> tuple[Lifetime | None, list[str]]:
    asked = profile.policy.lifetime
    wanted = asked.entry() if asked is not None else None
    if wanted is None or wanted == fixed:
        return fixed, []
    if fixed is None:
        return wanted, ["The budget stands in the profile; it enters the ledger, for good, with the next run."]
    if wanted.within(fixed):
        return fixed, [
            f"The profile lowers the budget to {in_words(wanted)}; that enters the ledger, for good, with the next run."
        ]
    return fixed, [
        f"The profile asks for {in_words(wanted)}, more than the ledger has fixed. A budget for life is never raised: new runs are refused "
        "until policy.lifetime of site.json is put back."
    ]


def in_words(lifetime: Lifetime) -> str:
    """For a sentence."""
    refused = "refused" if lifetime.unbounded == "refuse" else "let pass, uncounted"
    return f"epsilon {lifetime.epsilon} at delta {lifetime.delta} (runs without a bound are {refused})"


def _group(spent: Group, counted: Group, lifetime: Lifetime | None, delta: float | None) -> GroupSpent:
    now = counted.epsilon(delta) if delta is not None else 0.0
    return GroupSpent(
        patients=counted.patients,
        runs=list(counted.runs),
        unbounded=list(counted.unbounded),
        spent=spent.epsilon(delta) if delta is not None else 0.0,
        counted=now,
        left=max(as_float(lifetime.epsilon) - now, 0.0) if lifetime is not None else None,
    )


def _run(name: str, run: RunOnLedger, counted: list[Group], delta: float | None) -> RunSpent:
    return RunSpent(
        run=name,
        study=run.reserve.study_name,
        study_digest=run.reserve.study_digest,
        state="closed" if run.closed else "open",
        patients=sum(one.patients for one in counted if name in one.runs),
        rounds=run.reserve.rounds,
        begun=len(run.attempts),
        begun_again=run.redone,
        released=list(dict.fromkeys(one.what for one in run.releases)),
        spent=_epsilon(spent_events(run), delta),
        counted=_epsilon(charged_events(run), delta),
    )


def _epsilon(events: list[Event] | None, delta: float | None) -> float | None:
    return epsilon_of_vector(vector_of(events), delta) if events is not None and delta is not None else None
