"""The entries of a hospital's ledger. Each is the payload of one DSSE envelope (`seal("ledger-entry", ...)`), one envelope a line.

GENESIS   fixes whose ledger it is: the key, the commitment to the patients' tags, and, where the hospital has set one, the lifetime budget
COHORT    a set of patients, by the Merkle root over their keyed tags
RESERVE   a whole run on one cohort, before its first answer leaves
START     a round of training, before data is opened; a round that had to be begun again has the next `attempt`
SETTLE    the update of an attempt, before it leaves
RELEASE   figures of a run, before they leave
CLOSE     nothing new leaves of this run any more
ROTATE    the next entry, and those after it, are signed by another key
REVOKE    a key signs nothing any more, from here on

Constants of mechanisms are exact strings: what was computed with is on record, not what a JSON number was rounded to.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter

from shared.canonical import digest
from shared.signing import KeyText
from shared.study import Name, Sha256, Strict

#: The kind of envelope that an entry travels in.
ENTRY = "ledger-entry"

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]


def _value(text: str) -> Fraction:
    try:
        return Fraction(text)
    except ZeroDivisionError:
        raise ValueError(f"expected a number, but got {text}") from None


def _positive(text: str) -> str:
    if _value(text) <= 0:
        raise ValueError(f"expected a number above 0, but got {text}")
    return text


def _share(text: str) -> str:
    if not 0 < _value(text) <= 1:
        raise ValueError(f"expected a number above 0, at most 1, but got {text}")
    return text


#: A number above 0 as it is computed with: a fraction (32/350), or the shortest decimal text that reads back as the same double (`repr`).
Exact = Annotated[
    str,
    Field(pattern=r"^[0-9]{1,20}(/[0-9]{1,20}|(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?)$"),
    AfterValidator(_positive),
]
Share = Annotated[Exact, AfterValidator(_share)]


class Unbounded(Strict):
    """No differential privacy: what a release says about a patient has no bound."""

    name: Literal["unbounded"] = "unbounded"


class SubsampledGaussian(Strict):
    """DP-SGD over Poisson-sampled patients: clipping to C, noise of standard deviation sigma * C, divided by a public constant.

    Of one round: a run of R rounds takes R * `steps`.
    """

    name: Literal["subsampled-gaussian"] = "subsampled-gaussian"
    sampling_rate: Share = Field(description="q: each patient's chance to be in a step, of its own")
    noise_multiplier: Exact = Field(description="sigma")
    steps: int = Field(ge=1, description="in one round")
    clipping_norm: Exact = Field(description="C, of one patient's gradient (L2)")
    normaliser: Exact = Field(description="what the noisy sum is divided by; never a count of patients")


class Geometric(Strict):
    """Counts with two-sided geometric noise (Ghosh, Roughgarden, Sundararajan 2009), epsilon-DP for one patient."""

    name: Literal["geometric"] = "geometric"
    epsilon: Exact


Mechanism = Annotated[Unbounded | SubsampledGaussian | Geometric, Field(discriminator="name")]


class Lifetime(Strict):
    """What any patient may be charged in all, over every run."""

    epsilon: Exact
    delta: Share


class _Entry(Strict):
    """What each entry has. `prev` is the SHA-256 of the payload before."""

    seq: int = Field(ge=0)
    prev: Sha256 | None
    at: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\+00:00$", description="UTC")


class Genesis(_Entry):
    """The first entry. It proves possession of the key, and nothing else."""

    type: Literal["GENESIS"] = "GENESIS"
    format: Literal["consilium/ledger/1"] = "consilium/ledger/1"
    site: Name
    key: KeyText
    tag_key_digest: Sha256 = Field(description="SHA-256 of the secret key of the patients' tags: a commitment to it")
    rdp_orders: list[Exact] | None = Field(default=None, description="Rényi orders that the lifetime is composed in")
    lifetime: Lifetime | None = None


class Cohort(_Entry):
    """A set of patients. Who they are stays in a file of the hospital's."""

    type: Literal["COHORT"] = "COHORT"
    cohort: Sha256 = Field(description="Merkle root (shared.ledger.merkle) over the patients' keyed tags")
    patients: int = Field(ge=0)


class Reserve(_Entry):
    """A run as a whole, on one cohort."""

    type: Literal["RESERVE"] = "RESERVE"
    run: RunName
    coordinator: Sha256 = Field(description="fingerprint of the key that asked for it")
    study_name: Name
    study_digest: Sha256
    cohort: Sha256
    rounds: int = Field(ge=0)
    mechanism: Mechanism = Field(description="of each round")


class Start(_Entry):
    """One round's training is about to begin; it counts as spent from here on, whatever comes of it."""

    type: Literal["START"] = "START"
    run: RunName
    round: int = Field(ge=1)
    attempt: int = Field(ge=1)
    model: Sha256 = Field(description="digest of the model that came in, as it travels")


class Settle(_Entry):
    """An attempt's update is about to leave."""

    type: Literal["SETTLE"] = "SETTLE"
    run: RunName
    round: int = Field(ge=1)
    attempt: int = Field(ge=1)
    update: Sha256 = Field(description="digest of the update, as it travels")
    figures: Sha256 = Field(description="`figures_digest` of the counts, losses and norm that leave with it")


class Release(_Entry):
    """Figures of a run are about to leave."""

    type: Literal["RELEASE"] = "RELEASE"
    run: RunName
    round: int = Field(ge=0)
    what: Literal["preparation", "evaluation"]
    model: Sha256 = Field(description="digest of the model that came in, as it travels")
    figures: Sha256 = Field(description="`figures_digest` of them")
    mechanism: Mechanism


class Close(_Entry):
    """What has left of the run can leave again, in the same bytes; nothing else can."""

    type: Literal["CLOSE"] = "CLOSE"
    run: RunName


class Rotate(_Entry):
    """Signed by the key until here; what follows is signed by `key`."""

    type: Literal["ROTATE"] = "ROTATE"
    key: KeyText


class Revoke(_Entry):
    """`key` signs nothing after this entry. Where it is the ledger's own present key, this is the last entry."""

    type: Literal["REVOKE"] = "REVOKE"
    key: KeyText
    reason: str = Field(default="", max_length=200)


Entry = Annotated[
    Genesis | Cohort | Reserve | Start | Settle | Release | Close | Rotate | Revoke, Field(discriminator="type")
]

_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


def entry_of(payload: bytes) -> Entry:
    """Raises pydantic.ValidationError."""
    return _ENTRY.validate_json(payload)


def exact(value: float) -> str:
    """A double as an exact string: `float(exact(x)) == x`. Raises ValueError where it is not finite or not above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"expected a finite number above 0, but got {value}")
    return repr(float(value))


def figures_digest(figures: BaseModel) -> str:
    """SHA-256 over the RFC 8785 form of figures as they leave: both ends and the auditor find the same."""
    return digest(as_data(figures))


def as_data(model: BaseModel) -> Any:
    """As JSON data: what is undefined is null."""
    return json.loads(model.model_dump_json())
