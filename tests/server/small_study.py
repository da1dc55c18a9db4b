"""A study small enough to be built in a moment, as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

STUDY: dict[str, Any] = {
    "schema": "consilium/study/1",
    "name": "tiny",
    "title": "A study for the coordinator's tests",
    "governance": {"purpose": "test", "ethics": "none needed", "retention": "none"},
    "seed": 3,
    "task": {
        "classes": {"benign": ["BENIGN"], "malignant": ["MALIGNANT"]},
        "positive_class": "malignant",
        "unit": "finding",
    },
    "preprocessing": {"region": "finding", "size": 32, "channels": 1},
    "model": {"name": "resnet18"},
    "training": {
        "local_epochs": 1,
        "batch_size": 8,
        "optimiser": "adam",
        "learning_rate": 0.001,
        "loss": "binary_cross_entropy",
    },
    "federation": {"rounds": 2, "quorum": 1, "join_deadline_s": 2, "weighting": "counts", "wire": "bf16"},
}


def write_study(path: Path, **changes: Any) -> Path:
    """The study with keys changed; those of a mapping are changed one by one."""
    study = dict(STUDY)
    for key, value in changes.items():
        study[key] = {**study[key], **value} if isinstance(value, dict) else value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path
