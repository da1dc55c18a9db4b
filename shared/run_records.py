"""What a run leaves on record, as the coordinator writes it and the auditor reads it. The files are those of a run folder:

study.json               the study, canonical
run.json                 RunRecord: who, what, which code, state
model/                   the starting model and the manifest of its tensors
rounds/0000/round.json   RoundRecord of round 0 (PREPARE: data counts and the baseline evaluation)
rounds/0001/round.json   RoundRecord; model.safetensors beside it is the global model after the round
evaluation.json          FinalRecord: each site's evaluation of the final model
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.results import Evaluated, Prepared, SiteHello, Trained
from shared.schema import Strict
from shared.signing import KeyText

State = Literal["starting", "running", "finished", "stopped", "failed"]
Phase = Literal["waiting", "prepare", "train", "evaluate", "aggregate", "done"]


class Miss(Strict):
    """A site that was asked and is not part of the result: no answer, or a refusal with its code."""

    site: str
    reason: Literal["no answer", "refused", "invalid", "offline"]
    code: str | None = None


class RoundTiming(Strict):
    """Seconds by the coordinator's clock. `wait` is the time in which the coordinator had nothing to do but wait for sites."""

    push: float
    wait: float
    aggregate: float
    checkpoint: float
    total: float


class SiteTiming(Strict):
    """Seconds for one site in one round, seen by the coordinator: sent to received; `bytes_*` of array payload."""

    answered_after: float
    bytes_down: int
    bytes_up: int


class RoundRecord(Strict):
    """One round. Round 0 has `prepared`; later rounds have `trained`, and `prepared` of sites that came late."""

    round: int
    started: str
    model_in: str | None = Field(
        description="digest of the global model that was sent; None in round 0 of a resumed run"
    )
    model_out: str
    weights: dict[str, float] = Field(default_factory=dict, description="aggregation weight by site, adding up to 1")
    update_digests: dict[str, str] = Field(default_factory=dict)
    prepared: dict[str, Prepared] = Field(default_factory=dict)
    trained: dict[str, Trained] = Field(default_factory=dict)
    missing: list[Miss] = Field(default_factory=list)
    late: list[str] = Field(
        default_factory=list, description="sites whose answer to an earlier round came in this one, ignored"
    )
    sites: dict[str, SiteTiming] = Field(default_factory=dict)
    timing: RoundTiming


class FinalRecord(Strict):
    """Evaluation of the final model at every site."""

    model: str
    sites: dict[str, Evaluated]
    missing: list[Miss] = Field(default_factory=list)
    timing: RoundTiming


class RunRecord(Strict):
    """What a run is, written at its start and rewritten when its state changes."""

    name: str
    study_digest: str
    started: str
    ended: str | None = None
    state: State
    reason: str | None = Field(default=None, description="a sentence, where the state is stopped or failed")
    versions: dict[str, str]
    code_digest: str
    parameters: int
    trained_parameters: int
    code: str | None = Field(default=None, description="code of docs/errors.md, where the state is failed")
    expected: list[str] = Field(description="sites that were admitted to this run")
    bytes_down: int = Field(description="array bytes to each site in each round")
    bytes_up: int = Field(
        description="array bytes from each site in each round; in stages, of the stage that sends most"
    )
    bytes_up_by_stage: list[int] = Field(
        default_factory=list,
        description="array bytes from each site in a round of each stage of training; empty without",
    )
    resolved: dict[str, str] = Field(
        default_factory=dict, description="what every `auto` of the study became, by site or key"
    )
    sites: dict[str, SiteHello] = Field(default_factory=dict)
    coordinator_key: KeyText | None = Field(
        default=None, description="signs the instructions; None before the first was sent"
    )
    site_keys: dict[str, KeyText] = Field(default_factory=dict, description="each site's key signs its answers")

    @property
    def id(self) -> str:
        """What the run is called in messages: its name and the moment it was made, so that a folder used again is another run."""
        return f"{self.name}-{self.started.replace(':', '').replace('+0000', 'Z')}"


class Event(Strict):
    """One line of events.jsonl."""

    at: float = Field(description="Unix time")
    kind: Literal["run", "round", "site", "note"]
    round: int | None = None
    site: str | None = None
    phase: Phase | None = None
    text: str | None = None
    loss: float | None = None
    accuracy: float | None = None
