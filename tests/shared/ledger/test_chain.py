"""A ledger that was touched is noticed, and what was done to it is named; one whose last write was cut off is no touched one."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.bare_run import new_key
from shared.audit.ledger import CHAIN, END, FORM, ORDER, SIGNATURES, WRITER, check_ledger
from shared.audit.trust import Trust
from shared.audit.verdict import exit_status
from shared.errors import LedgerError
from shared.exact import exact
from shared.ledger.chain import Head, payloads_holding, read_chain, require_sound, seal_head
from shared.ledger.entries import ENTRY, entry_of
from shared.ledger.merkle import cohort_root
from shared.ledger.summary import run_lines
from shared.signing import SigningKey, seal

KEY, OTHER = new_key(), new_key()
TRUST = Trust((("anna", KEY.public.fingerprint),))
GAUSSIAN = {
    "name": "subsampled-gaussian", "sampling_rate": "32/350", "noise_multiplier": "1.1", "steps": 11, "clipping_norm": "1.0",
    "normaliser": "32",
}  # fmt: skip


def genesis(key: SigningKey = KEY, site: str = "anna") -> dict[str, Any]:
    return {
        "type": "GENESIS", "format": "consilium/ledger/1", "site": site, "key": str(key.public), "tag_key_digest": "0" * 64,
    }  # fmt: skip


def reserve(run: str = "r", **changes: Any) -> dict[str, Any]:
    body = {
        "type": "RESERVE", "run": run, "coordinator": "1" * 64, "study_name": "demo", "study_digest": "2" * 64, "cohort": "c" * 64,
        "rounds": 3, "mechanism": {"name": "unbounded"},
    }  # fmt: skip
    return {**body, **changes}


def start(number: int = 1, attempt: int = 1, run: str = "r") -> dict[str, Any]:
    return {"type": "START", "run": run, "round": number, "attempt": attempt, "model": "3" * 64}


def settle(number: int = 1, attempt: int = 1, run: str = "r") -> dict[str, Any]:
    return {
        "type": "SETTLE", "run": run, "round": number, "attempt": attempt, "update": "4" * 64, "figures": "5" * 64,
    }  # fmt: skip


RELEASE = {
    "type": "RELEASE", "run": "r", "round": 3, "what": "evaluation", "model": "3" * 64, "figures": "6" * 64,
    "mechanism": {"name": "unbounded"},
}  # fmt: skip
COHORT = {"type": "COHORT", "cohort": "c" * 64, "patients": 40}
CLOSE = {"type": "CLOSE", "run": "r"}
WHOLE = [genesis(), COHORT, reserve(), start(), settle(), start(2), start(2, 2), settle(2, 2), RELEASE, CLOSE]


def written(*bodies: dict[str, Any], keys: list[SigningKey] | None = None) -> bytes:
    """A chained ledger, by this test's own arithmetic."""
    lines, before = [], None
    for number, body in enumerate(bodies):
        placed = {"seq": number, "prev": before, "at": "2026-03-01T10:00:00+00:00", **body}
        lines.append(seal(ENTRY, placed, keys[number] if keys else KEY))
        before = hashlib.sha256(payload(lines[-1])).hexdigest()
    return "".join(f"{line}\n" for line in lines).encode()


def payload(line: str | bytes) -> bytes:
    return base64.b64decode(json.loads(line)["payload"])


def outcomes(data: bytes, trust: Trust | None = TRUST, head: bytes | None = None) -> dict[str, str]:
    return {check.name: check.outcome for check in check_ledger(data, trust, head)[1]}


def why(data: bytes, name: str, head: bytes | None = None) -> str:
    return next(check.why for check in check_ledger(data, TRUST, head)[1] if check.name == name)


DATA = written(*WHOLE)
LINES = DATA.splitlines(keepends=True)


def test_an_untouched_ledger_is_proven_but_for_its_end_and_with_an_earlier_copy_in_full() -> None:
    assert {name for name, outcome in outcomes(DATA).items() if outcome != "proven"} == {END}
    _, checks = check_ledger(DATA, TRUST, b"".join(LINES[:5]))
    assert exit_status(checks) == 0


def test_without_a_fingerprint_the_ledgers_own_word_counts_for_nothing() -> None:
    assert outcomes(DATA, None)[WRITER] == "not checkable"
    assert exit_status(check_ledger(DATA, None, DATA)[1]) == 2


def edited(line: bytes, **changes: Any) -> bytes:
    """The entry with other values, under its old signature."""
    envelope = json.loads(line)
    body = {**json.loads(payload(line)), **changes}
    return json.dumps({**envelope, "payload": base64.b64encode(json.dumps(body).encode()).decode()}).encode() + b"\n"


TAMPERING: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "taken out in the middle": (CHAIN, "line 4: entry 4", lambda: b"".join(LINES[:3] + LINES[4:])),
    "two exchanged": (CHAIN, "line 4: entry 4", lambda: b"".join([*LINES[:3], LINES[4], LINES[3], *LINES[5:]])),
    "put in twice": (CHAIN, "line 5: entry 3", lambda: b"".join(LINES[:4] + LINES[3:])),
    "a field edited": (SIGNATURES, "entry 2", lambda: b"".join([*LINES[:2], edited(LINES[2], rounds=30), *LINES[3:]])),
    "the last one edited": (SIGNATURES, "entry 9", lambda: b"".join([*LINES[:9], edited(LINES[9], run="s")])),
    "one line of something else": (FORM, "line 3", lambda: b"".join([*LINES[:2], b"{}\n", *LINES[3:]])),
    "one entry written anew with the own key": (
        CHAIN, "line 6: entry 5 (START) follows another", lambda: b"".join(
            [*LINES[:4], written(*WHOLE[:4], {**settle(), "update": "9" * 64}).splitlines(keepends=True)[4], *LINES[5:]]
        ),
    ),
    "one entry by another key": (
        SIGNATURES, "entry 4", lambda: written(*WHOLE, keys=[KEY] * 4 + [OTHER] + [KEY] * 5)
    ),
    "all signed anew by another key": (
        WRITER, "not among the trusted", lambda: written(genesis(OTHER), *WHOLE[1:], keys=[OTHER] * 10)
    ),
    "all signed anew, the old key named": (SIGNATURES, "entry 0", lambda: written(*WHOLE, keys=[OTHER] * 10)),
    "another hospital's": (
        WRITER, "bertha", lambda: written(genesis(OTHER, "bertha"), *WHOLE[1:], keys=[OTHER] * 10)
    ),
    "an update without its START": (ORDER, "no open START", lambda: written(*WHOLE[:3], settle())),
    "a START without RESERVE": (ORDER, "no RESERVE", lambda: written(*WHOLE[:2], start())),
    "figures without RESERVE": (ORDER, "no RESERVE", lambda: written(*WHOLE[:2], RELEASE)),
    "an attempt settled twice": (ORDER, "no open START", lambda: written(*WHOLE[:5], settle())),
    "an attempt left out": (ORDER, "where 1 was next", lambda: written(*WHOLE[:3], start(1, 2))),
    "a round beyond the reserved": (ORDER, "beyond the 3", lambda: written(*WHOLE[:3], start(4))),
    "a run reserved twice": (ORDER, "reserved already", lambda: written(*WHOLE[:3], reserve(rounds=9))),
    "a cohort that is not there": (ORDER, "no COHORT", lambda: written(*WHOLE[:2], reserve(cohort="d" * 64))),
    "something after CLOSE": (ORDER, "is closed", lambda: written(*WHOLE, start(3))),
    "a second GENESIS": (ORDER, "GENESIS", lambda: written(*WHOLE, genesis())),
    "no GENESIS": (WRITER, "no GENESIS", lambda: b"".join(LINES[1:])),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_named(name: str) -> None:
    check, said, tampered = TAMPERING[name]
    assert outcomes(tampered())[check] == "violated"
    assert said in why(tampered(), check)
    if check != WRITER:
        with pytest.raises(LedgerError):
            require_sound(read_chain(tampered()), "it")


def test_an_end_that_was_cut_off_shows_against_what_somebody_kept() -> None:
    cut, older = b"".join(LINES[:7]), DATA
    assert {outcomes(cut)[name] for name in (CHAIN, SIGNATURES, ORDER)} == {"proven"}  # the file alone can't say it
    assert outcomes(cut)[END] == "not checkable"
    last = payload(LINES[9])
    head = Head(seq=9, digest=hashlib.sha256(last).hexdigest(), size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
    for kept in (older, seal_head(head, KEY).encode() + b"\n"):
        assert outcomes(DATA, head=kept)[END] == "proven"
        assert outcomes(cut, head=kept)[END] == "violated"
        assert "ends with entry 6" in why(cut, END, kept)
    forged = seal_head(head, OTHER).encode() + b"\n"
    assert outcomes(DATA, head=forged)[END] == "not checkable"


def test_a_history_written_anew_contradicts_what_somebody_kept() -> None:
    anew = written(*WHOLE[:3], start(2), settle(2))
    assert outcomes(anew)[CHAIN] == "proven"
    assert outcomes(anew, head=b"".join(LINES[:5]))[END] == "violated"


@given(st.integers(min_value=1, max_value=len(LINES[9]) - 1))
def test_a_torn_last_line_is_a_crash_and_not_a_forgery(kept: int) -> None:
    torn = b"".join(LINES[:9]) + LINES[9][:kept]
    chain = read_chain(torn)
    assert not chain.faults and len(chain.links) == 9 and chain.torn == LINES[9][:kept]
    assert {name for name, outcome in outcomes(torn).items() if outcome != "proven"} == {END}
    assert "cut off" in why(torn, END)


def test_a_key_passes_on_and_one_that_was_revoked_signs_nothing() -> None:
    rotate = {"type": "ROTATE", "key": str(OTHER.public)}
    revoke = {"type": "REVOKE", "key": str(KEY.public), "reason": "copied"}
    good = written(genesis(), COHORT, rotate, revoke, reserve(), keys=[KEY] * 3 + [OTHER] * 2)
    assert outcomes(good)[SIGNATURES] == "proven" and outcomes(good)[WRITER] == "proven"
    by_the_old = written(genesis(), COHORT, rotate, reserve(), keys=[KEY] * 4)
    assert outcomes(by_the_old)[SIGNATURES] == "violated"
    back = written(
        genesis(), rotate, revoke, {**rotate, "key": str(KEY.public)}, COHORT, keys=[KEY, KEY, OTHER, OTHER, KEY]
    )
    assert "revoked" in why(back, SIGNATURES)
    own = written(genesis(), revoke, COHORT)
    assert "revocation" in why(own, SIGNATURES)


def test_what_people_read_counts_rounds_attempts_and_figures() -> None:
    (line,) = run_lines(read_chain(DATA))
    assert (line.started, line.settled, line.attempts, line.evaluations, line.closed) == ([1, 2], [1, 2], 3, 1, True)
    assert line.mechanism == "unbounded (no differential privacy)"
    (private,) = run_lines(read_chain(written(*WHOLE[:2], reserve(mechanism=GAUSSIAN))))
    assert "sigma 1.1" in private.mechanism and "q 32/350" in private.mechanism


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 1.1}, {"noise_multiplier": "0"}, {"noise_multiplier": "-1"}, {"noise_multiplier": "nan"},
        {"sampling_rate": "1.01"}, {"sampling_rate": "351/350"}, {"sampling_rate": "1/0"}, {"steps": 0}, {"extra": "1"},
        {"name": "gaussian"},
    ],
)  # fmt: skip
def test_constants_of_a_mechanism_are_exact_strings_in_their_range(changes: dict[str, Any]) -> None:
    body = {"seq": 2, "prev": "0" * 64, "at": "2026-03-01T10:00:00+00:00"}
    assert entry_of(json.dumps({**body, **reserve(mechanism=GAUSSIAN)}).encode()).type == "RESERVE"
    with pytest.raises(ValidationError):
        entry_of(json.dumps({**body, **reserve(mechanism={**GAUSSIAN, **changes})}).encode())


@given(st.floats(min_value=0, exclude_min=True, max_value=1, allow_subnormal=False))
def test_an_exact_string_reads_back_as_the_same_number(value: float) -> None:
    text = exact(value)
    assert float(text) == value
    body = {"seq": 2, "prev": "0" * 64, "at": "2026-03-01T10:00:00+00:00"}
    entry_of(json.dumps({**body, **reserve(mechanism={**GAUSSIAN, "sampling_rate": text})}).encode())


@given(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,6}", fullmatch=True), min_size=1, max_size=6, unique=True))
def test_the_entries_of_a_run_are_found_without_decoding_the_others(runs: list[str]) -> None:
    bodies = [genesis(), COHORT, *(reserve(run) for run in runs), *(start(1, 1, run) for run in runs)]
    data = written(*bodies)
    for run in runs:
        found = [json.loads(one) for one in payloads_holding(data, [f'"run":"{run}"'])]
        assert [one["type"] for one in found if one["run"] == run] == ["RESERVE", "START"]
    assert [json.loads(one)["type"] for one in payloads_holding(data, ['"type":"COHORT"'])] == ["COHORT"]


def reference_root(leaves: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 2 ** math.ceil(math.log2(len(leaves)) - 1)
    return hashlib.sha256(b"\x01" + reference_root(leaves[:k]) + reference_root(leaves[k:])).digest()


@given(st.sets(st.binary(min_size=32, max_size=32), max_size=40), st.binary(min_size=32, max_size=32))
def test_a_cohorts_root_is_the_merkle_tree_of_its_sorted_tags(tags: set[bytes], salt: bytes) -> None:
    expected = reference_root([salt + tag for tag in sorted(tags)]).hex()
    names = [tag.hex() for tag in tags]
    assert cohort_root(names, salt) == cohort_root([*reversed(names), *names], salt) == expected
