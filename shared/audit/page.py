"""The audit as a page for people who read no JSON: a data protection officer, an ethics board. It stands alone, without a script."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, StrictUndefined

from shared.audit.page_template import PAGE
from shared.audit.records import RunFiles
from shared.audit.run import Audit
from shared.audit.spending import COLUMNS
from shared.audit.trust import COORDINATOR, Trust
from shared.audit.verdict import Check, Outcome
from shared.ledger.summary import mechanism_in_words
from shared.signing import PublicKey
from shared.study_cost import other_mechanisms, round_mechanism

_WORDS: dict[Outcome, str] = {"proven": "Proven", "not checkable": "Not checkable", "violated": "Violated"}

#: What the checks rest on.
ASSUMES = (
    "that the fingerprints given to this command came from their owners by another way than these files",
    "that SHA-256 and Ed25519 signatures can't be forged, and that nobody copied a private key",
    "that the release of Consilium with which this page was made is itself unchanged",
)
PRIVATE_ASSUMES = (
    "that each hospital's installed code is what its digest says: that it drew patients as the study asks, cut each one's contribution to "
    "the clipping norm and added the noise (`consilium-site conformance` measures that, at the hospital)",
    "that noise computed in floating-point numbers hides as well as the ideal noise of the proofs; of the counts it is drawn exactly",
    "that nothing is learned from when an answer arrives, or from whether a hospital answers at all: the figures above don't cover that",
    "that whoever reads the model sees every round's sum: who sees less learns less",
)
#: What no file can show.
NOT_SHOWN = (
    "that a hospital trained on the images it says, or on any: a hospital signs what it says of itself",
    "what a coordinator keeps besides these files, or whom it shows them to",
    "anything of a round whose instructions and answers were removed: that is told above as not checkable",
    "that a coordinator and a hospital did not together write their history anew; a ledger exported earlier, or another run, would show it",
)
PLAIN_NOT_SHOWN = (
    "a guarantee for patients: updates of a run without differential privacy can give away whether somebody took part",
)
PRIVATE_NOT_SHOWN = (
    "that one person is not two patients of a hospital, under two numbers: such a person is protected less, at about twice the epsilon",
    "what a person who is a patient of two hospitals is charged in all: each hospital counts by itself",
    "what runs on different patients of one hospital, some of whom are the same, add up to: that is in the charge, which only the hospital "
    "can compute; equal patients are seen, since their cohort has the same digest in every run",
)


def render(files: RunFiles, audit: Audit, trust: Trust | None) -> str:
    """The page of one audit. Everything that comes from the run is escaped."""
    checks, private = audit.checks, files.study.privacy is not None
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
        privacy=_privacy(files),
        columns=COLUMNS,
        costs=audit.costs,
        assumes=(*ASSUMES, *(PRIVATE_ASSUMES if private else ())),
        not_shown=(*NOT_SHOWN, *(PRIVATE_NOT_SHOWN if private else PLAIN_NOT_SHOWN)),
        made=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
    )


def _privacy(files: RunFiles) -> str:
    privacy = files.study.privacy
    if privacy is None:
        noised = (
            "; the counts of the final evaluation carry noise" if files.study.evaluation.release is not None else ""
        )
        return f"no differential privacy: what the updates say about patients is not bounded{noised}"
    besides = " + ".join(map(mechanism_in_words, other_mechanisms(files.study)))
    return (
        "differential privacy for each patient, with everything that a hospital holds of the patient; neighbouring datasets differ by one "
        f"patient added or removed. {files.study.federation.rounds} rounds: {mechanism_in_words(round_mechanism(files.study))}; "
        f"after them: {besides}"
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
