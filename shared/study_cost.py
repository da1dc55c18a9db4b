"""What a private study costs a patient at one hospital: its releases as mechanisms, before anything has happened.

Every patient of the run is charged with all of them, whichever part the patient stands in: an upper bound that is the same for all.
"""

from __future__ import annotations

from functools import lru_cache

from shared.errors import StudyError
from shared.exact import as_float, exact
from shared.ledger.entries import Geometric, Mechanism, SubsampledGaussian, Unbounded
from shared.privacy.calibration import calibrate
from shared.privacy.mechanisms import Event
from shared.privacy.mechanisms import Geometric as GeometricEvent
from shared.privacy.mechanisms import SubsampledGaussian as GaussianEvent
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import rdp_epsilon
from shared.study import Study
from shared.study_privacy import Privacy


def round_mechanism(study: Study) -> Mechanism:
    """Of each round's update. Raises StudyError where a private study's noise multiplier was not solved for yet."""
    privacy = study.privacy
    if privacy is None:
        return Unbounded()
    if privacy.noise_multiplier is None:
        raise StudyError("the study states an epsilon, but no noise multiplier that gives it")
    return _gaussian(privacy, privacy.noise_multiplier, privacy.steps_per_round, privacy.clipping_norm)


def svm_mechanism(privacy: Privacy) -> SubsampledGaussian | None:
    """Of the private SVM's fit, where there is one."""
    svm = privacy.svm
    return None if svm is None else _gaussian(privacy, svm.noise_multiplier, svm.steps, svm.clipping_norm)


def _gaussian(privacy: Privacy, noise_multiplier: str, steps: int, clipping_norm: str) -> SubsampledGaussian:
    return SubsampledGaussian(
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=noise_multiplier,
        steps=steps,
        clipping_norm=clipping_norm,
        normaliser=privacy.normaliser,
    )


def evaluation_mechanism(study: Study) -> Mechanism:
    """Of the final evaluation's figures."""
    release = study.evaluation.release
    return Unbounded() if release is None else Geometric(epsilon=release.epsilon)


def other_mechanisms(study: Study) -> list[Mechanism]:
    """Of a private study's releases beside its rounds, in the order in which they happen; none for a plain study."""
    if study.privacy is None:
        return []
    svm = svm_mechanism(study.privacy)
    return [*([svm] if svm is not None else []), evaluation_mechanism(study)]


def events_of(mechanism: Mechanism, times: int = 1) -> list[Event]:
    """For the accountants: `times` releases through one mechanism. Raises ValueError for one without a bound."""
    if isinstance(mechanism, Unbounded):
        raise ValueError("a release without a bound has no epsilon")
    if isinstance(mechanism, Geometric):
        return [GeometricEvent(as_float(mechanism.epsilon))] * times
    rate, sigma = as_float(mechanism.sampling_rate), as_float(mechanism.noise_multiplier)
    return [GaussianEvent(rate, sigma, mechanism.steps * times)] if times else []


def study_events(study: Study) -> list[Event]:
    """All releases of a whole private run at one hospital."""
    events = events_of(round_mechanism(study), study.federation.rounds)
    for mechanism in other_mechanisms(study):
        events += events_of(mechanism)
    return events


def run_epsilon(study: Study) -> tuple[float, float]:
    """Epsilon of a whole private run by PLD (what is claimed for it) and by RDP (what is charged), at the study's delta."""
    if study.privacy is None:
        raise ValueError("a study without privacy has no epsilon")
    events, delta = study_events(study), as_float(study.privacy.delta)
    return pld_epsilon(events, delta), rdp_epsilon(events, delta)


def solved(study: Study) -> Study:
    """With the noise multiplier that its epsilon asks for, where it gives none. Raises CalibrationError, MechanismError."""
    privacy = study.privacy
    if privacy is None or privacy.noise_multiplier is not None or privacy.epsilon is None:
        return study
    besides: list[Event] = []
    for mechanism in other_mechanisms(study):
        besides += events_of(mechanism)
    sigma = _noise_multiplier(
        as_float(privacy.sampling_rate),
        privacy.steps_per_round * study.federation.rounds,
        as_float(privacy.delta),
        as_float(privacy.epsilon),
        tuple(besides),
    )
    return study.model_copy(update={"privacy": privacy.model_copy(update={"noise_multiplier": exact(sigma)})})


@lru_cache(maxsize=32)
def _noise_multiplier(rate: float, steps: int, delta: float, epsilon: float, besides: tuple[Event, ...]) -> float:
    return calibrate(sampling_rate=rate, steps=steps, delta=delta, epsilon=epsilon, besides=besides).noise_multiplier
