"""A person closes a run that will not go on: nothing new leaves of it, and what never began counts no longer."""

from __future__ import annotations

from dataclasses import dataclass

from client.key_rotation import require_idle
from client.ledger import open_ledger, read_ledger
from client.site_folder import SiteFolder
from shared.errors import InputError
from shared.exact import as_float
from shared.ledger.entries import Close
from shared.ledger.rules import RunOnLedger
from shared.ledger.spending import charged_events, spent_events, vector_of
from shared.privacy.rdp import epsilon_of_vector


@dataclass(frozen=True, slots=True)
class Closing:
    """What CLOSE does to a run. Epsilons by RDP at `delta`, of each of its patients; None for a run without a bound."""

    run: str
    study: str
    rounds: int
    begun: int
    evaluated: bool
    before: float | None
    after: float | None
    delta: str | None

    @property
    def unbegun(self) -> int:
        """Rounds that were reserved and never began."""
        return self.rounds - self.begun


def look(folder: SiteFolder, run: str) -> Closing:
    """What closing `run` would do.

    Raises InputError where it is unknown or closed already, ProcessError where an instruction of it is being carried out, LedgerError.
    """
    found = read_ledger(folder)
    runs = found[0].rules.runs if found is not None else {}
    if run not in runs:
        known = ", ".join(name for name, one in runs.items() if not one.closed) or "none"
        raise InputError(f"no run '{run}' on the ledger; runs that are open: {known}")
    if runs[run].closed:
        raise InputError(f"run {run} is closed already: what left of it can leave again, and nothing else")
    require_idle(folder, run)
    lifetime = found[0].rules.lifetime if found is not None else None
    return _closing(runs[run], lifetime.delta if lifetime is not None else None)


def close(folder: SiteFolder, run: str) -> Closing:
    """Enter CLOSE. Raises as `look`, StorageError."""
    look(folder, run)
    with open_ledger(folder, run) as ledger:
        found, lifetime = ledger.run(run), ledger.rules.lifetime
        if found is None:
            raise InputError(f"no run '{run}' on the ledger")
        done = _closing(found, lifetime.delta if lifetime is not None else None)
        ledger.add(Close(**ledger.place(), run=run))
        ledger.write()
    return done


def _closing(run: RunOnLedger, delta: str | None) -> Closing:
    charged, spent = charged_events(run), spent_events(run)
    bounded = delta is not None and charged is not None and spent is not None
    return Closing(
        run=run.reserve.run,
        study=run.reserve.study_name,
        rounds=run.reserve.rounds,
        begun=len(run.attempts),
        evaluated=any(one.what == "evaluation" for one in run.releases),
        before=epsilon_of_vector(vector_of(charged or []), as_float(delta)) if bounded and delta else None,
        after=epsilon_of_vector(vector_of(spent or []), as_float(delta)) if bounded and delta else None,
        delta=delta,
    )
