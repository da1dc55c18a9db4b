from collections.abc import Callable
from typing import Any

import pytest

from shared.models.registry import MODELS
from shared.study import Study, study_from_data


@pytest.fixture
def make_study() -> Callable[..., Study]:
    """A study whose model section is the keywords given; `classes`, `size`, `channels`, `loss`, `wire` and `seed` are apart."""

    def make(
        *,
        classes: int = 2,
        size: int = 32,
        channels: int = 3,
        loss: str = "cross_entropy",
        wire: str = "fp32",
        seed: int = 3,
        **model: Any,
    ) -> Study:
        names = [f"class{index}" for index in range(classes)]
        entry = MODELS.get(model.get("name", "resnet18"))
        age = {"kind": "number", "name": "age", "low": 0, "high": 100}
        return study_from_data(
            {
                "schema": "consilium/study/1",
                "name": "toy",
                "title": "A toy",
                "governance": {"purpose": "test", "ethics": "none needed", "retention": "none"},
                "seed": seed,
                "task": {"classes": {name: [] for name in names}, "positive_class": names[1], "unit": "image"},
                "preprocessing": {
                    "region": "whole",
                    "size": size,
                    "channels": channels,
                    "mask": {"from": "annotated"} if entry is not None and entry.mask == "needed" else None,
                },
                "metadata": [age] if entry is not None and entry.metadata else [],
                "model": {"name": "resnet18", **model},
                "training": {
                    "local_epochs": 1,
                    "batch_size": 4,
                    "optimiser": "adam",
                    "learning_rate": 1e-3,
                    "loss": loss,
                },
                "federation": {"rounds": 1, "quorum": 1, "weighting": "counts", "wire": wire},
            }
        )

    return make
