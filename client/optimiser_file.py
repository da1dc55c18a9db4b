"""The state of a site's optimiser between rounds, in a file that only the site can read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from shared.errors import WeightsError
from shared.private_file import write_private


def save(optimiser: torch.optim.Optimizer, path: Path) -> None:
    """Write the state atomically, mode 0600. Raises StorageError."""
    stream = io.BytesIO()
    torch.save(optimiser.state_dict(), stream)
    write_private(path, stream.getvalue())


def load(optimiser: torch.optim.Optimizer, path: Path) -> None:
    """Put the state of `path` into `optimiser`, whose own learning rate stays: the study's schedule sets it each round.

    Raises WeightsError where the file is damaged or of another network or optimiser.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        shapes = [tuple(parameter.shape) for group in optimiser.param_groups for parameter in group["params"]]
        for index, entry in state["state"].items():
            for value in entry.values():
                if isinstance(value, torch.Tensor) and value.dim() > 0 and tuple(value.shape) != shapes[index]:
                    raise ValueError(f"parameter {index} has shape {shapes[index]}, its state {tuple(value.shape)}")
        rates = [group["lr"] for group in optimiser.param_groups]
        if _settings(state["param_groups"]) != _settings(optimiser.param_groups):
            raise ValueError("it is of an optimiser with other settings")
        optimiser.load_state_dict(state)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
    except Exception as problem:  # unpickling raises errors that share no narrower base
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise WeightsError(
            f"{path}: the optimiser's state can't be used: {reason}; remove the file to start the optimiser anew"
        ) from None


def _settings(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]
