"""The entries of a hospital's ledger. Each is the payload of one DSSE envelope (`seal("ledger-entry", ...)`), one envelope a line.

GENESIS   fixes whose ledger it is: the key, the commitment to the patients' tags, and, where the hospital has set one, the lifetime budget
BUDGET    sets the lifetime budget where there was none, or lowers it; nothing raises it
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
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from shared.canonical import digest
from shared.exact import Exact, Share
from shared.schema import Name, Sha256, Strict
from shared.signing import KeyText

#: The kind of envelope that an entry travels in.
ENTRY = "ledger-entry"

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]


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
    """What any patient may be charged in all, over every run, composed by RDP. Runs without a bound are refused, or let pass uncounted."""

    epsilon: Exact
    delta: Share
    unbounded: Literal["refuse", "allow"] = "refuse"

    def within(self, other: Lifetime) -> bool:
        """Whether this is nowhere more than `other`."""
        return (
            Fraction(self.epsilon) <= Fraction(other.epsilon)
            and Fraction(self.delta) <= Fraction(other.delta)
            and "allow" not in {self.unbounded} - {other.unbounded}
        )


class Claim(Strict):
    """What a run as it was reserved costs a patient: by PLD, since all of it is fixed before its first round."""

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


class Budget(_Entry):
    """The lifetime budget from here on."""

    type: Literal["BUDGET"] = "BUDGET"
    lifetime: Lifetime


class Cohort(_Entry):
    """A set of patients. Who they are stays in a file of the hospital's. A private run's names no number: that is private too."""

    type: Literal["COHORT"] = "COHORT"
    cohort: Sha256 = Field(description="Merkle root (shared.ledger.merkle) over the patients' keyed tags")
    patients: int | None = Field(default=None, ge=0)


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
    releases: list[Mechanism] = Field(default=[], description="of everything else that a private run releases")
    claim: Claim | None = Field(default=None, description="of a private run")
    charged: Exact | None = Field(
        default=None,
        description="epsilon by RDP, at the lifetime's delta, of whoever in the cohort has most, with this run",
    )
    instruction: Sha256 | None = Field(default=None, description="digest of the signed instruction that asked for it")


class Start(_Entry):
    """One round's training is about to begin; it counts as spent from here on, whatever comes of it."""

    type: Literal["START"] = "START"
    run: RunName
    round: int = Field(ge=1)
    attempt: int = Field(ge=1)
    model: Sha256 = Field(description="digest of the model that came in, as it travels")
    charged: Exact | None = Field(default=None, description="as in RESERVE, where a private round is begun again")
    instruction: Sha256 | None = Field(default=None, description="digest of the signed instruction")


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
    what: Literal["preparation", "svm", "evaluation"]
    model: Sha256 = Field(description="digest of the model that came in, as it travels")
    figures: Sha256 = Field(description="`figures_digest` of them; for `svm` of the fitted weights, which stay")
    mechanism: Mechanism
    instruction: Sha256 | None = Field(default=None, description="digest of the signed instruction")


class Close(_Entry):
    """What has left of the run can leave again, in the same bytes; nothing else can."""

    type: Literal["CLOSE"] = "CLOSE"
    run: RunName
    instruction: Sha256 | None = Field(
        default=None, description="digest of the signed instruction; null where people closed the run"
    )


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
    Genesis | Budget | Cohort | Reserve | Start | Settle | Release | Close | Rotate | Revoke,
    Field(discriminator="type"),
]

_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


def entry_of(payload: bytes) -> Entry:
    """Raises pydantic.ValidationError."""
    return _ENTRY.validate_json(payload)


def figures_digest(figures: BaseModel, *, as_written: bool = False) -> str:
    """SHA-256 over the RFC 8785 form of figures as they leave: both ends and the auditor find the same.

    `as_written`, of figures read from a file: without what the file does not name. A field that a later release added with a default
    stands in no older record, and was in no digest then.
    """
    return digest(json.loads(figures.model_dump_json(exclude_unset=as_written)))
