"""Names of `model.name` and what builds them. A new model is one module and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from shared.errors import StudyError
from shared.models import resnet
from shared.models.network import Network
from shared.study import Study

Builder = Callable[[Study], Network]

MODELS: Mapping[str, Builder] = {
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
}


def builder_of(name: str) -> Builder:
    """What builds the model `name`. Raises StudyError with the nearest known name."""
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known models are {', '.join(sorted(MODELS))}"
    raise StudyError(f"model.name: unknown model '{name}'; {hint}")
