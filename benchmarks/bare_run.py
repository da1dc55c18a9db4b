"""A run without data and without PyTorch: a valid study, a run folder around any flat model, and answers as a site would give them.

The transport benchmarks and the coordinator's tests use it where only weights and messages matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.checkpoint import StartingModel, write_starting_model
from server.registry import Registry, SiteRecord
from server.run_folder import RunFolder, write_atomic
from server.starting_model import claim_folder
from shared.canonical import canonical_json
from shared.release import Release, code_digest, versions
from shared.results import Epoch, Estimate, Evaluated, HeadResult, PartCounts, Prepared, Trained, Validation
from shared.run_records import RunRecord
from shared.signing import SigningKey
from shared.stage_updates import stage_bytes
from shared.study import Study
from shared.wire import Flat, Manifest, bytes_on_wire, flatten

FROZEN_DIGEST = "0" * 64


def study_values(**federation: Any) -> dict[str, Any]:
    """The values of a valid study; `federation` changes its section of that name."""
    return {
        "schema": "consilium/study/1",
        "name": "bare",
        "title": "Weights and messages only",
        "governance": {"purpose": "to measure the transport", "ethics": "none needed: no data", "retention": "none"},
        "seed": 1,
        "task": {"classes": {"benign": [], "malignant": []}, "positive_class": "malignant", "unit": "image"},
        "preprocessing": {"region": "whole", "size": 32, "channels": 3},
        "model": {"name": "resnet34"},
        "training": {
            "local_epochs": 1, "batch_size": 8, "optimiser": "adam", "learning_rate": 1e-4, "loss": "binary_cross_entropy",
        },
        "federation": {"rounds": 3, "quorum": 2, "weighting": "counts", **federation},
    }  # fmt: skip


def bare_study(**federation: Any) -> Study:
    """`study_values` validated."""
    return Study.model_validate(study_values(**federation))


def staged_study(*held: list[str], **federation: Any) -> Study:
    """`bare_study` in stages of one round each, which hold these children of the network."""
    values = study_values(rounds=len(held), **federation)
    values["training"]["stages"] = [{"rounds": 1, "freeze": children} for children in held]
    return Study.model_validate(values)


def bare_folder(path: Path, study: Study, arrays: Mapping[str, Flat], sites: list[str]) -> RunFolder:
    """A run folder of `study` that starts from `arrays`, as `consilium-server` makes it."""
    folder = claim_folder(path)
    manifest = Manifest.of(arrays)
    write_starting_model(folder, StartingModel(manifest, flatten(arrays, manifest), FROZEN_DIGEST))
    write_atomic(path / "study.json", canonical_json(study.to_data()))
    sent = stage_bytes(study, manifest)
    folder.write(
        "run.json",
        RunRecord(
            name=path.name, study_digest=study.digest(), started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            state="starting", versions={str(name): version for name, version in versions().items()},
            code_digest=code_digest(), parameters=manifest.size, trained_parameters=manifest.size, expected=sorted(sites),
            bytes_down=bytes_on_wire(manifest.size, study.federation.wire), bytes_up=max(sent),
            bytes_up_by_stage=sent if study.training.stages else [],
        ),
    )  # fmt: skip
    return folder


def new_key() -> SigningKey:
    """A signing key that lies in no file."""
    return SigningKey(Ed25519PrivateKey.generate())


def bare_registry(path: Path, keys: Mapping[str, SigningKey]) -> Registry:
    """Sites as admitted, by name and signing key; without a node of Flower's."""
    path.mkdir(parents=True, exist_ok=True)
    registry = Registry(path)
    for site, key in keys.items():
        registry.put(
            SiteRecord(
                site=site, title=site, node_key="none", signing_key=str(key.public), release=Release.installed(),
                admitted="2026-01-01T00:00:00+00:00",
            )
        )  # fmt: skip
    return registry


def resnet34_sized(seed: int = 0) -> dict[str, Flat]:
    """Random arrays with the names and shapes of torchvision's ResNet-34 state_dict: 218 tensors, 21.8 M values, 87 MB.

    The counters of its batch norms are among them as float32 scalars: shapes and number of tensors are what transport feels.
    """
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> Flat:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)

    arrays: dict[str, Flat] = {}

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{name}.{part}"] = drawn(width)
        arrays[f"{name}.num_batches_tracked"] = np.zeros((), dtype=np.float32)

    arrays["conv1.weight"] = drawn(64, 3, 7, 7)
    norm("bn1", 64)
    width = 64
    for layer, (out, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            arrays[f"{name}.conv1.weight"] = drawn(out, width, 3, 3)
            norm(f"{name}.bn1", out)
            arrays[f"{name}.conv2.weight"] = drawn(out, out, 3, 3)
            norm(f"{name}.bn2", out)
            if out != width:
                arrays[f"{name}.downsample.0.weight"] = drawn(out, width, 1, 1)
                norm(f"{name}.downsample.1", out)
            width = out
    arrays["fc.weight"] = drawn(1000, 512)
    arrays["fc.bias"] = drawn(1000)
    return arrays


def prepared_answer(*, images: int = 100, frozen_digest: str = FROZEN_DIGEST) -> Prepared:
    part = PartCounts(patients=images, images=images, by_class=[images // 2, images - images // 2])
    return Prepared(
        parts={"train": part, "validation": part, "test": part}, left_out=0, unreadable=0, synthetic=True, patient_stand_in=None,
        device="cpu", precision="fp32", memory_format="contiguous", frozen_digest=frozen_digest,
        seconds={"read": 0, "cache": 0, "baseline": 0, "total": 0},
    )  # fmt: skip


def trained_answer(*, images: int = 100, update_norm: float = 0.0, seconds: float = 0.0) -> Trained:
    return Trained(
        images=images, patients=images, steps=1, epochs=[Epoch(loss=0.5, accuracy=0.75)],
        validation=Validation(loss=0.5, accuracy=0.75, auc=0.8, images=images), update_norm=update_norm,
        seconds={"load": 0, "validate": 0, "train": seconds, "reply": 0, "total": seconds},
    )  # fmt: skip


def evaluated_answer(*, images: int = 100) -> Evaluated:
    figure = Estimate(value=0.5, low=0.4, high=0.6)
    head = HeadResult(
        accuracy=figure, balanced_accuracy=figure, sensitivity=figure, specificity=figure, precision=figure, f1=figure,
        auc=figure, confusion=[[images // 2, 0], [0, images - images // 2]], classes=[],
    )  # fmt: skip
    return Evaluated(
        patients=images, images=images, train_patients=images, train_images=images, network=head,
        seconds={"features": 0, "svm": 0, "metrics": 0, "total": 0},
    )  # fmt: skip
