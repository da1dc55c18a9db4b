"""A ledger as people read it: by run, what was released of whom, and under which mechanism."""

from __future__ import annotations

from shared.ledger.chain import Chain
from shared.ledger.entries import Geometric, SubsampledGaussian, Unbounded
from shared.ledger.rules import RunOnLedger
from shared.schema import Strict


class RunLine(Strict):
    """One run. `started` and `settled` are rounds, ascending; `attempts` counts every beginning, also of a round begun again."""

    run: str
    study: str
    study_digest: str
    coordinator: str
    cohort: str
    patients: int | None
    rounds: int
    started: list[int]
    settled: list[int]
    attempts: int
    preparations: int
    evaluations: int
    closed: bool
    mechanism: str


def run_lines(chain: Chain) -> list[RunLine]:
    """In the order in which the runs were reserved."""
    return [_line(chain, run) for run in chain.rules.runs.values()]


def mechanism_in_words(mechanism: Unbounded | SubsampledGaussian | Geometric) -> str:
    if isinstance(mechanism, Unbounded):
        return "unbounded (no differential privacy)"
    if isinstance(mechanism, Geometric):
        return f"geometric, epsilon {mechanism.epsilon}"
    return (
        f"subsampled Gaussian, q {mechanism.sampling_rate}, sigma {mechanism.noise_multiplier}, {mechanism.steps} steps a round, "
        f"C {mechanism.clipping_norm}"
    )


def _line(chain: Chain, run: RunOnLedger) -> RunLine:
    reserve = run.reserve
    cohort = chain.rules.cohorts.get(reserve.cohort)
    return RunLine(
        run=reserve.run,
        study=reserve.study_name,
        study_digest=reserve.study_digest,
        coordinator=reserve.coordinator,
        cohort=reserve.cohort,
        patients=cohort.patients if cohort is not None else None,
        rounds=reserve.rounds,
        started=sorted(run.attempts),
        settled=sorted({one.round for one in run.updates}),
        attempts=sum(run.attempts.values()),
        preparations=sum(one.what == "preparation" for one in run.releases),
        evaluations=sum(one.what == "evaluation" for one in run.releases),
        closed=run.closed,
        mechanism=mechanism_in_words(reserve.mechanism),
    )
