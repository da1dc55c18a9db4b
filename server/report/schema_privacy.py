"""The part of report.json that says what a private run cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.results import Count
from shared.schema import Strict


class ReleaseReport(Strict):
    """Something that every hospital of a private run releases about its patients."""

    what: str
    times: int = Field(description="how often in the whole run")
    mechanism: str = Field(description="with all its constants, in words")
    epsilon_rdp: float = Field(description="of these releases alone, by RDP at the study's delta")


class SitePrivacy(Strict):
    """What the run cost a patient of one hospital."""

    epsilon: float = Field(
        description="of the whole run by PLD: as the hospital's RESERVE entry claims it, else from the study"
    )
    delta: str
    source: Literal["ledger", "study"] = Field(
        description="ledger: a signed entry of the hospital's lies in the run's folder; study: computed from the study alone"
    )
    updates: Count = Field(description="rounds whose mean holds an update of this hospital")
    begun_again: Count = Field(description="rounds that the hospital had to begin again: each is one release more")
    epsilon_begun_again: float | None = Field(
        description="by PLD with what was begun again; null where nothing was, or no entry says"
    )
    charged: float | None = Field(
        description="epsilon by RDP, at the lifetime's delta, of whichever patient of the cohort had most, with this run; null "
        "where no entry says"
    )
    lifetime_epsilon: str | None = Field(description="the hospital's budget for the life of each patient")
    lifetime_delta: str | None


class PrivacyReport(Strict):
    """A private run: differential privacy by patient, add or remove one patient with all images, at each hospital by itself."""

    epsilon_pld: float = Field(description="of the whole run as the study asks for it, by PLD: what is claimed")
    epsilon_rdp: float = Field(description="the same by RDP: what hospitals charge to a lifetime")
    delta: str
    releases: list[ReleaseReport]
    sites: dict[str, SitePrivacy]
