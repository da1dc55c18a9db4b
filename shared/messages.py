"""What travels: one instruction to a site, one answer back. Pydantic models, so that both ends check names, types and ranges.

A message carries two Flower records: `instruction` (or `answer`) with one JSON text, and `model` (or `update`) with one flat array.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from shared.errors import InstructionError
from shared.results import Evaluated, Prepared, Refused, SiteHello, Trained
from shared.study import Sha256, Strict

Kind = Literal["prepare", "train", "evaluate"]

#: Flower's message type of each kind of instruction.
MESSAGE_TYPES: dict[Kind, str] = {"prepare": "query.prepare", "train": "train", "evaluate": "evaluate"}

INSTRUCTION, MODEL, ANSWER, UPDATE = "instruction", "model", "answer", "update"
BODY, FLAT = "body", "flat"


class Instruction(Strict):
    """What the coordinator asks a site to do."""

    kind: Kind
    run: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$", description="the run's id, unique for the coordinator"
    )
    round: int = Field(ge=0)
    study: dict[str, Any]
    study_digest: Sha256
    model_digest: Sha256 = Field(description="of the flat array in this message, as it travels")
    manifest_digest: Sha256
    compare_with: Sha256 | None = Field(
        default=None, description="evaluate: the earlier model that gains are measured against"
    )


class Answer(Strict):
    """What a site answers: who it is, and one of the four results."""

    hello: SiteHello
    round: int
    prepared: Prepared | None = None
    trained: Trained | None = None
    evaluated: Evaluated | None = None
    refused: Refused | None = None
    update_digest: Sha256 | None = None


def read_instruction(text: str) -> Instruction:
    """Raises InstructionError where `text` is not an instruction."""
    try:
        return Instruction.model_validate_json(text)
    except ValidationError as problem:
        raise InstructionError(f"not an instruction: {problem.error_count()} mistakes") from None


def read_answer(text: str) -> Answer:
    """Raises InstructionError where `text` is not an answer."""
    try:
        return Answer.model_validate_json(text)
    except ValidationError as problem:
        raise InstructionError(f"not an answer: {problem.error_count()} mistakes") from None
