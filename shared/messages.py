"""What travels: one instruction to a site, one answer back. Pydantic models, so that both ends check names, types and ranges.

A message carries two Flower records: `instruction` (or `answer`) with one signed text, and `model` (or `update`) with one flat array,
whose digest the text names. Flower's own signature of a node covers no body: these signatures do (law 2 of the design).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from shared.errors import InstructionError
from shared.release import Release
from shared.results import Evaluated, Prepared, Refused, SiteHello, Trained
from shared.schema import Name, Sha256, Strict
from shared.signing import KeyText, PublicKey, SigningKey, payload_digest, seal, unseal

Kind = Literal["prepare", "train", "evaluate"]

#: Flower's message type of each kind of instruction.
MESSAGE_TYPES: dict[Kind, str] = {"prepare": "query.prepare", "train": "train", "evaluate": "evaluate"}

INSTRUCTION, MODEL, ANSWER, UPDATE = "instruction", "model", "answer", "update"
BODY, FLAT = "body", "flat"


class Receipt(Strict):
    """An entry of a hospital's ledger that the coordinator has seen: the ledger must reach at least so far, with that entry in it."""

    seq: int = Field(ge=0)
    digest: Sha256


class Instruction(Strict):
    """What the coordinator asks one site to do, once."""

    format: Literal["consilium/instruction/1"] = "consilium/instruction/1"
    kind: Kind
    run: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$", description="the run's id, unique for the coordinator"
    )
    site: Name = Field(description="whom it is meant for")
    round: int = Field(ge=0)
    issued: int = Field(
        ge=0, description="Unix time in ms, ascending within a run: an older one is not carried out any more"
    )
    expires: int = Field(ge=0, description="Unix time in ms after which it is not begun")
    study: dict[str, Any]
    study_digest: Sha256
    model_digest: Sha256 = Field(description="of the flat array in this message, as it travels")
    manifest_digest: Sha256 = Field(description="of the names and shapes of the model's tensors")
    previous: Sha256 | None = Field(
        description="SHA-256 of the record of the round before; None where there is none yet"
    )
    compare_with: Sha256 | None = Field(
        default=None, description="evaluate: the earlier model that gains are measured against"
    )
    receipt: Receipt | None = Field(
        default=None, description="the newest entry of the site's ledger that the coordinator has seen"
    )
    peers: dict[Name, KeyText] = Field(
        default={},
        description="prepare: signing keys of the run's other sites, where the study asks how many images two sites both hold",
    )
    release: Release = Field(description="the coordinator's")


class Answer(Strict):
    """What a site answers: who it is, to which instruction, and one of the four results."""

    format: Literal["consilium/answer/1"] = "consilium/answer/1"
    hello: SiteHello
    instruction: Sha256 | None = Field(
        default=None, description="digest of the instruction's payload; None only where it could not be trusted"
    )
    round: int
    prepared: Prepared | None = None
    trained: Trained | None = None
    evaluated: Evaluated | None = None
    refused: Refused | None = None
    update_digest: Sha256 | None = None
    entries: list[Annotated[str, Field(max_length=20_000)]] = Field(
        default=[],
        max_length=20_000,
        description="signed entries of the hospital's ledger about this run that the coordinator has not seen; to `prepare` all of them",
    )
    receipt: Receipt | None = Field(default=None, description="the newest entry of the hospital's ledger")


def sign_instruction(instruction: Instruction, key: SigningKey) -> tuple[str, str]:
    """The signed text, and the digest by which the answer names it."""
    text = seal("instruction", instruction.model_dump(mode="json"), key)
    return text, payload_digest(unseal(text, "instruction", key.public))


def read_instruction(text: str, key: PublicKey) -> tuple[Instruction, str]:
    """An instruction that `key` signed, and its digest. Raises SignatureError before anything is looked at, InstructionError."""
    payload = unseal(text, "instruction", key)
    try:
        return Instruction.model_validate_json(payload), payload_digest(payload)
    except ValidationError as problem:
        raise InstructionError(f"not an instruction: {problem.error_count()} mistakes") from None


def sign_answer(answer: Answer, key: SigningKey) -> str:
    """The signed text. Raises pydantic's serialisation error where the answer was built past its schema."""
    return seal(
        "answer", json.loads(answer.model_dump_json(warnings="error")), key
    )  # as JSON: what is undefined is null


def read_answer(text: str, key: PublicKey) -> Answer:
    """An answer that `key` signed. Raises SignatureError, InstructionError."""
    payload = unseal(text, "answer", key)
    try:
        return Answer.model_validate_json(payload)
    except ValidationError as problem:
        raise InstructionError(f"not an answer: {problem.error_count()} mistakes") from None
