"""Ledgers that hospitals gave to the auditor beside a run: each is checked by itself, and against what the run's answers showed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shared.audit.entries import Shown, agrees
from shared.audit.ledger import END, check_against_run, check_ledger, read_file
from shared.audit.records import RunFiles
from shared.audit.trust import Trust
from shared.audit.verdict import Check, Findings
from shared.ledger.chain import Chain, payload_of, whole_lines
from shared.signing import payload_digest

PREFIX = "it holds every entry that the run's answers showed, and goes on from them"


@dataclass(frozen=True, slots=True)
class Export:
    """What `consilium-site ledger --export` wrote."""

    path: Path
    chain: Chain
    lines: tuple[bytes, ...]
    checks: tuple[Check, ...]

    @property
    def site(self) -> str:
        genesis = self.chain.rules.genesis
        return genesis.site if genesis is not None else self.path.name

    @property
    def sound(self) -> bool:
        """Whether its entries can stand in for those that the run's files lack."""
        return not self.chain.faults and self.chain.rules.genesis is not None


def read_export(path: Path, trust: Trust | None) -> Export:
    """With the checks of the file by itself; how far it must reach is asked of the run. Raises InputError."""
    data = read_file(path)
    chain, checks = check_ledger(data, trust)
    return Export(path, chain, tuple(whole_lines(data)[0]), tuple(one for one in checks if one.name != END))


def check_exports(exports: Sequence[Export], files: RunFiles, shown: Mapping[str, Shown]) -> list[Check]:
    """Each check is named after its hospital."""
    found = []
    for one in exports:
        checks = [*one.checks, _prefix(one, shown.get(one.site)), *check_against_run(one.chain, files)]
        found += [replace(check, name=f"{one.site}'s exported ledger: {check.name}") for check in checks]
    return found


def _prefix(export: Export, shown: Shown | None) -> Check:
    findings = Findings(PREFIX)
    if shown is None:
        findings.absent.append(f"{export.site} has answered nothing in this run")
        return findings.check("")
    if not export.sound:
        findings.absent.append("the exported ledger is not sound, see above")
        return findings.check("")
    for placed in shown.entries:
        if not agrees([placed], export.lines):
            findings.violated.append(f"{placed}: is not in the exported ledger, or another stands in its place")
    for by, receipt in shown.receipts:
        there = receipt.seq < len(export.lines)
        if not there or payload_digest(payload_of(export.lines[receipt.seq])) != receipt.digest:
            findings.violated.append(
                f"{by} names entry {receipt.seq}, {'another' if there else 'none'} stands there in the exported ledger"
            )
    return findings.check(f"{len(shown.receipts)} receipts; {len(export.lines)} entries in the exported ledger")
