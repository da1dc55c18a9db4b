"""The section on privacy: what the run cost a patient at each hospital, by the hospitals' signed ledger entries where they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from server.report.schema_privacy import PrivacyReport, ReleaseReport, SitePrivacy
from server.site_ledgers import SiteLedger
from shared.exact import as_float
from shared.ledger.entries import Geometric, Mechanism, SubsampledGaussian, Unbounded
from shared.ledger.spending import charged_events
from shared.privacy.mechanisms import Event
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import rdp_epsilon
from shared.run_records import RoundRecord
from shared.study import Study
from shared.study_cost import evaluation_mechanism, events_of, round_mechanism, study_events, svm_mechanism
from shared.study_privacy import Privacy


def privacy_report(
    study: Study, sites: Sequence[str], rounds: Sequence[RoundRecord], ledgers: Mapping[str, SiteLedger]
) -> PrivacyReport | None:
    """None for a plain study: nothing bounds what it says of a patient."""
    privacy = study.privacy
    if privacy is None:
        return None
    events, delta = tuple(study_events(study)), as_float(privacy.delta)
    return PrivacyReport(
        epsilon_pld=_pld(events, delta),
        epsilon_rdp=rdp_epsilon(events, delta),
        delta=privacy.delta,
        releases=_releases(study, privacy),
        sites={site: _site(site, study, privacy, rounds, ledgers.get(site)) for site in sites},
    )


def mechanism_words(mechanism: Mechanism) -> str:
    """A mechanism with all its constants."""
    if isinstance(mechanism, SubsampledGaussian):
        return (
            f"{mechanism.steps} step{'s' if mechanism.steps != 1 else ''} of the Gaussian mechanism on Poisson-sampled patients (DP-SGD): "
            f"sampling rate q = {mechanism.sampling_rate}, noise multiplier sigma = {mechanism.noise_multiplier}, clipping norm "
            f"C = {mechanism.clipping_norm}, normaliser = {mechanism.normaliser}"
        )
    if isinstance(mechanism, Geometric):
        return f"two-sided geometric mechanism: epsilon = {mechanism.epsilon}, one vote a patient"
    return "no noise"


def _releases(study: Study, privacy: Privacy) -> list[ReleaseReport]:
    rounds, delta = study.federation.rounds, as_float(privacy.delta)

    def release(what: str, times: int, mechanism: Mechanism) -> ReleaseReport:
        return ReleaseReport(
            what=what, times=times, mechanism=mechanism_words(mechanism),
            epsilon_rdp=rdp_epsilon(events_of(mechanism, times), delta),
        )  # fmt: skip

    found = [release("update of a round", rounds, round_mechanism(study))]
    svm, counts = svm_mechanism(privacy), evaluation_mechanism(study)
    if svm is not None:
        found.append(release("fit of the private SVM, which stays: only its test counts leave", 1, svm))
    if not isinstance(counts, Unbounded):
        heads = "network and private SVM" if svm is not None else "network"
        what = "test patients by IoU" if study.task.kind == "segmentation" else "confusion counts of the test patients"
        found.append(release(f"{what} ({heads})", 1, counts))
    return found


def _site(
    site: str, study: Study, privacy: Privacy, rounds: Sequence[RoundRecord], ledger: SiteLedger | None
) -> SitePrivacy:
    delta = as_float(privacy.delta)
    updates = sum(site in record.trained for record in rounds)
    if ledger is None or ledger.run.reserve.claim is None:
        return SitePrivacy(
            epsilon=_pld(tuple(study_events(study)), delta), delta=privacy.delta, source="study", updates=updates,
            begun_again=0, epsilon_begun_again=None, charged=None, lifetime_epsilon=None, lifetime_delta=None,
        )  # fmt: skip
    run, claim, lifetime = ledger.run, ledger.run.reserve.claim, ledger.lifetime
    again = charged_events(run) if run.redone else None
    spent = (
        charged_events(run) if run.closed and not run.attempts else None
    )  # of one that never trained, the figures alone
    return SitePrivacy(
        epsilon=_pld(tuple(spent), as_float(claim.delta)) if spent else as_float(claim.epsilon),
        delta=claim.delta,
        source="ledger",
        updates=updates,
        begun_again=run.redone,
        epsilon_begun_again=_pld(tuple(again), as_float(claim.delta)) if again else None,
        charged=as_float(ledger.charged) if ledger.charged is not None else None,
        lifetime_epsilon=lifetime.epsilon if lifetime is not None else None,
        lifetime_delta=lifetime.delta if lifetime is not None else None,
    )


@lru_cache(maxsize=32)
def _pld(events: tuple[Event, ...], delta: float) -> float:
    return pld_epsilon(events, delta)
