"""The audit as a page for people who read no JSON: a data protection officer, an ethics board. It stands alone, without a script."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, StrictUndefined

from shared.audit.page_template import PAGE
from shared.audit.records import RunFiles
from shared.audit.trust import COORDINATOR, Trust
from shared.audit.verdict import Check, Outcome
from shared.signing import PublicKey

_WORDS: dict[Outcome, str] = {"proven": "Proven", "not checkable": "Not checkable", "violated": "Violated"}

#: What the checks rest on, and what no file can show.
ASSUMES = (
    "that the fingerprints given to this command came from their owners by another way than these files",
    "that SHA-256 and Ed25519 signatures can't be forged, and that nobody copied a private key",
    "that the release of Consilium with which this page was made is itself unchanged",
)
NOT_SHOWN = (
    "that a hospital trained on the images it says, or on any: a hospital signs what it says of itself",
    "what a coordinator keeps besides these files, or whom it shows them to",
    "a guarantee for patients: updates of a run without differential privacy can give away whether somebody took part",
    "anything of a round whose instructions and answers were removed: that is told above as not checkable",
)


def render(files: RunFiles, checks: Sequence[Check], trust: Trust | None) -> str:
    """The page of one audit. Everything that comes from the run is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        run=files.run,
        study=files.study,
        rounds=max((record.round for record in files.rounds), default=0),
        sites=sorted({site for record in files.rounds for site in (*record.prepared, *record.trained)}),
        checks=checks,
        worst=_worst(checks),
        words=_WORDS,
        classes={"proven": "ok", "not checkable": "open", "violated": "bad"},
        keys=_keys(files, trust),
        assumes=ASSUMES,
        not_shown=NOT_SHOWN,
        made=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
    )


def _worst(checks: Sequence[Check]) -> Outcome:
    found = {check.outcome for check in checks}
    return "violated" if "violated" in found else "not checkable" if "not checkable" in found else "proven"


def _keys(files: RunFiles, trust: Trust | None) -> list[dict[str, Any]]:
    if files.run.coordinator_key is None:
        return []
    named = [(COORDINATOR, files.run.coordinator_key), *sorted(files.run.site_keys.items())]
    keys = [(name, PublicKey.read(text)) for name, text in named]
    return [
        {"name": name, "spoken": key.spoken, "trusted": trust is not None and trust.vouches(key, name)}
        for name, key in keys
    ]
