"""Which noise multiplier gives which epsilon: a table for the coordinator who plans a study, before any hospital is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from shared.errors import InputError, MechanismError
from shared.exact import as_float
from shared.ledger.spending import vector_of
from shared.privacy.calibration import Calibration, calibrate
from shared.privacy.mechanisms import Event, SubsampledGaussian, require_delta
from shared.privacy.pld import pld_epsilon
from shared.privacy.rdp import epsilon_of_vector, rdp_epsilon
from shared.study import Study
from shared.study_cost import events_of, other_mechanisms

#: Noise multipliers of the table.
GRID = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0)
#: Runs in a lifetime are counted up to here.
MOST_RUNS = 1_000_000


@dataclass(frozen=True, slots=True)
class Question:
    """A run of `rounds` rounds of `steps_per_round` steps at each hospital; epsilons at `delta`, by patient, add or remove one.

    `epsilon`: what the noise is to be solved for (PLD). `lifetime_epsilon`: what a hospital allows its patients in all, at the same delta
    (RDP). `besides` are the run's other releases, which every epsilon covers; `stated` a noise multiplier that gets a row of its own.

    Raises MechanismError where a number is out of its range.
    """

    sampling_rate: float
    steps_per_round: int
    rounds: int
    delta: float
    epsilon: float | None = None
    lifetime_epsilon: float | None = None
    besides: tuple[Event, ...] = ()
    stated: float | None = None
    study: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("steps per round", self.steps_per_round), ("rounds", self.rounds)):
            if value < 1:
                raise MechanismError(f"expected {name} to be at least 1, but got {value}")
        if self.lifetime_epsilon is not None and not (isfinite(self.lifetime_epsilon) and self.lifetime_epsilon > 0):
            raise MechanismError(f"expected the lifetime epsilon to be above 0, but got {self.lifetime_epsilon}")
        require_delta(self.delta)
        self.event(1.0 if self.stated is None else self.stated)

    @property
    def steps(self) -> int:
        """Of the whole run, at one hospital."""
        return self.steps_per_round * self.rounds

    def event(self, noise_multiplier: float) -> SubsampledGaussian:
        """Of all rounds."""
        return SubsampledGaussian(self.sampling_rate, noise_multiplier, self.steps)

    def events(self, noise_multiplier: float) -> list[Event]:
        """Of the whole run."""
        return [self.event(noise_multiplier), *self.besides]


def question_of(study: Study, lifetime_epsilon: float | None = None) -> Question:
    """The question that a private study answers. Raises InputError for a plain one.

    Where it states an epsilon, and its noise multiplier is the one that `load_study` solved for, this is asked again, to be marked so.
    """
    privacy = study.privacy
    if privacy is None:
        raise InputError(
            f"study {study.name} has no privacy section, so its updates leave without noise and have no epsilon; give the numbers as "
            "options, as in --sampling-rate 32/350"
        )
    besides: list[Event] = []
    for mechanism in other_mechanisms(study):
        besides += events_of(mechanism)
    return Question(
        as_float(privacy.sampling_rate),
        privacy.steps_per_round,
        study.federation.rounds,
        as_float(privacy.delta),
        lifetime_epsilon=lifetime_epsilon,
        besides=tuple(besides),
        stated=as_float(privacy.noise_multiplier) if privacy.noise_multiplier is not None else None,
        epsilon=as_float(privacy.epsilon) if privacy.noise_multiplier is None and privacy.epsilon is not None else None,
        study=study.name,
    )


@dataclass(frozen=True, slots=True)
class Row:
    """What one noise multiplier costs. `lifetime_share` and `runs_in_lifetime` are None where no lifetime epsilon is given.

    `solved` and `stated` mark the row that was solved for, and the study's own. `lifetime_share`: RDP epsilon of one run / lifetime
    epsilon. `runs_in_lifetime`: runs like this one that fit, added up by RDP.
    """

    noise_multiplier: float
    rdp_epsilon: float
    pld_epsilon: float
    lifetime_share: float | None
    runs_in_lifetime: int | None
    solved: bool
    stated: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The question and its table, by rising noise multiplier; `calibration` where an epsilon was asked for."""

    question: Question
    calibration: Calibration | None
    rows: tuple[Row, ...]


def plan(question: Question, progress: Callable[[int, int], object] = lambda done, total: None) -> Plan:
    """Compute the table; about 0.7 s a row. `progress` gets what is done, and an estimate of all.

    Raises CalibrationError where the epsilon asked for is not reachable.
    """
    calibration = None
    usual = 8 if question.epsilon is not None else 0
    if question.epsilon is not None:
        calibration = calibrate(
            sampling_rate=question.sampling_rate,
            steps=question.steps,
            delta=question.delta,
            epsilon=question.epsilon,
            besides=question.besides,
            tell=lambda evaluations: progress(min(evaluations, usual), usual + len(GRID)),
        )
    solved = calibration.noise_multiplier if calibration else None
    rows = []
    for noise_multiplier in sorted({*GRID, *(one for one in (solved, question.stated) if one is not None)}):
        known = calibration.pld_epsilon if calibration and noise_multiplier == solved else None
        rows.append(_row(question, noise_multiplier, known))
        progress(usual + min(len(rows), len(GRID)), usual + len(GRID))
    return Plan(question, calibration, tuple(rows))


def _row(question: Question, noise_multiplier: float, known_pld: float | None) -> Row:
    events = question.events(noise_multiplier)
    rdp = rdp_epsilon(events, question.delta)
    lifetime = question.lifetime_epsilon
    return Row(
        noise_multiplier=noise_multiplier,
        rdp_epsilon=rdp,
        pld_epsilon=pld_epsilon(events, question.delta) if known_pld is None else known_pld,
        lifetime_share=rdp / lifetime if lifetime is not None else None,
        runs_in_lifetime=_runs(events, question.delta, lifetime) if lifetime is not None else None,
        solved=known_pld is not None,
        stated=noise_multiplier == question.stated,
    )


def _runs(events: list[Event], delta: float, lifetime: float) -> int:
    """How many such runs cost at most `lifetime` together."""
    one = vector_of(events)

    def fits(runs: int) -> bool:
        return epsilon_of_vector(runs * one, delta) <= lifetime

    if not fits(1):
        return 0
    low, high = 1, MOST_RUNS + 1  # `low` fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
