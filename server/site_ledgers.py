"""What the hospitals' ledgers say of a run, as far as it lies in the run's folder: entries that travelled with signed answers.

Every envelope is checked against the key that run.json names for the hospital; what another key signed is passed over. Whether that key
is the hospital's, and whether nothing is missing, is for `consilium-audit` to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from server.run_folder import RunFolder
from shared.errors import InstructionError, SignatureError
from shared.ledger.entries import ENTRY, Entry, Lifetime, Start, entry_of
from shared.ledger.rules import Rules, RunOnLedger
from shared.messages import read_answer
from shared.signing import PublicKey, unseal


@dataclass(frozen=True, slots=True)
class SiteLedger:
    """One hospital's ledger about one run.

    `lifetime` is the newest budget that came with it, `charged` the newest epsilon of whichever patient of the cohort has most: in a
    START where a round was begun again, else in RESERVE.
    """

    run: RunOnLedger
    lifetime: Lifetime | None
    charged: str | None


def ledgers_of(folder: RunFolder) -> dict[str, SiteLedger]:
    """By hospital, those whose RESERVE of this run is there. Raises RunFolderError."""
    run = folder.run()
    found: dict[str, SiteLedger] = {}
    for site, text in sorted(run.site_keys.items()):
        entries: dict[int, Entry] = {}
        for entry in _entries(folder, site, PublicKey.read(text)):
            entries.setdefault(entry.seq, entry)
        rules = Rules()
        for _, entry in sorted(entries.items()):
            rules.take(entry)
        if (known := rules.runs.get(run.id)) is not None:
            found[site] = SiteLedger(known, rules.lifetime, _charged(known, entries))
    return found


def _charged(run: RunOnLedger, entries: Mapping[int, Entry]) -> str | None:
    charged = run.reserve.charged
    for _, entry in sorted(entries.items()):
        if isinstance(entry, Start) and entry.run == run.reserve.run and entry.charged is not None:
            charged = entry.charged
    return charged


def _entries(folder: RunFolder, site: str, key: PublicKey) -> Iterator[Entry]:
    for path in _answers(folder, site):
        try:
            answer = read_answer(path.read_text(encoding="utf-8").removesuffix("\n"), key)
            for line in answer.entries:
                yield entry_of(unseal(line, ENTRY, key))
        except (OSError, UnicodeDecodeError, SignatureError, InstructionError, ValidationError):
            continue


def _answers(folder: RunFolder, site: str) -> list[Path]:
    return [
        *sorted(folder.path.glob(f"rounds/[0-9]*/signed/{site}.*.answer.json")),
        *sorted(folder.path.glob(f"evaluation-signed/{site}.*.answer.json")),
    ]
