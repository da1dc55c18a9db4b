"""What a weights file says of itself: which federated run it comes from, written into the metadata of its safetensors header.

consilium.study       the run's study, canonical JSON
consilium.run         the run's id
consilium.round       after which round, as a decimal number
consilium.ancestors   ids of the runs that taught the models which the study itself named, oldest first, as a JSON list; null stands
                      for a federation's model whose file named no run

It is what the coordinator's export wrote: the file's digest, which a study names and a hospital approves, covers it; nothing else does.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import Field, ValidationError

from shared.canonical import canonical_json
from shared.errors import WeightsError, WeightsUnavailableError
from shared.ledger.entries import RunName
from shared.schema import Strict

_PREFIX = "consilium."
#: The study of the run, in its RFC 8785 form.
STUDY_KEY = f"{_PREFIX}study"
_METADATA = "__metadata__"
#: A longer header is refused by safetensors too.
_LONGEST_HEADER = 100_000_000


class Provenance(Strict):
    """Where a federation's model comes from."""

    study: dict[str, Any] = Field(description="as it stood in the run's folder; another release may read it otherwise")
    run: RunName
    round: int = Field(ge=1)
    ancestors: tuple[RunName | None, ...] = ()

    @property
    def runs(self) -> tuple[str | None, ...]:
        """All runs whose patients the model learned from, oldest first; None for one that nobody named."""
        return (*self.ancestors, self.run)


def read_provenance(path: Path) -> Provenance | None:
    """None where the file says nothing of the kind: it is no safetensors file, or not from an export of Consilium.

    Only the header is read; no tensor is. Raises WeightsUnavailableError where it can't be read, WeightsError where it says
    half of it.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as stream:
            told = metadata_in(stream, path)
    except OSError as problem:
        raise WeightsUnavailableError(f"{path}: can't be read: {problem.strerror or problem}") from None
    ours = {name: told[key] for name in Provenance.model_fields if (key := f"{_PREFIX}{name}") in told}
    if not ours:
        return None
    try:
        values = {name: text if name == "run" else json.loads(text) for name, text in ours.items()}
        return Provenance.model_validate(values)
    except (ValidationError, ValueError, TypeError, RecursionError):
        raise WeightsError(
            f"{path}: its metadata names a federated run, but not as `consilium-server export` writes it; export the model again"
        ) from None


def metadata_in(stream: IO[bytes], path: Path) -> dict[str, str]:
    """What the safetensors file that begins here says of itself; `path` names it in errors. Raises WeightsError for a damaged header."""
    try:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length)) if length <= _LONGEST_HEADER else None
        return dict(header.get(_METADATA, {}))  # type: ignore[union-attr]
    except (struct.error, ValueError, AttributeError, TypeError, RecursionError):
        raise WeightsError(f"{path}: expected a safetensors file, but its header is damaged") from None


def with_provenance(content: bytes, provenance: Provenance) -> bytes:
    """The bytes of a safetensors file with its provenance in the header, always the same for the same tensors and run.

    safetensors itself writes several entries of metadata in an order that changes from process to process.
    """
    (length,) = struct.unpack("<Q", content[:8])
    header: Mapping[str, Any] = json.loads(content[8 : 8 + length])
    told = {
        f"{_PREFIX}ancestors": json.dumps(provenance.ancestors),
        f"{_PREFIX}round": str(provenance.round),
        f"{_PREFIX}run": provenance.run,
        STUDY_KEY: canonical_json(provenance.study).decode(),
    }
    text = json.dumps({**header, _METADATA: told}, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
