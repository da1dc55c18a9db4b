"""One study runs in two domains: only the profile changes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from client.data.check import check_profile
from client.data.registry import ADAPTERS
from client.phantom import write_phantom
from shared.profile import Profile
from shared.study import load_study

ROOT = Path(__file__).parents[2]


def ready(study: str, **data: Any) -> bool:
    profile = Profile.model_validate(
        {
            "schema": "consilium/profile/1",
            "site": "test",
            "title": "Test",
            "device": "cpu",
            "data": {"synthetic": True, **data},
        }
    )
    stream = io.StringIO()
    verdict = check_profile(profile, load_study(ROOT / "configs" / f"{study}.yaml"), Console(file=stream, width=120))
    assert "Divided as the study says" in stream.getvalue(), stream.getvalue()
    return verdict


def test_the_study_of_breast_ultrasound_runs_on_mammograms(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for label in ("benign", "malignant"):
        folder = tmp_path / "busi" / label
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 255, (30, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{label} ({number}).png")
    assert ready("busi_resnet18", layout="busi", root=str(tmp_path / "busi"), patient_stand_in="image")
    write_phantom(tmp_path / "phantom", patients=24, seed=1, scanner="halide")
    assert ready("busi_resnet18", layout="cbis_ddsm", root=str(tmp_path / "phantom"))


@pytest.mark.parametrize("layout", ["image_folder", "medmnist"])
def test_the_study_of_skin_lesions_runs_on_other_collections_of_the_same_diagnoses(tmp_path: Path, layout: str) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (60, 28, 28, 3), dtype=np.uint8)
    labels = np.arange(60) % 2 * 4  # akiec and mel are malignant
    labels[:30] = 5  # nv
    if layout == "medmnist":
        np.savez(tmp_path / "dermamnist.npz", train_images=pixels, train_labels=labels[:, None])
    else:
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = tmp_path / ("nv" if label == 5 else "mel")
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    assert ready("ham10000_resnet34_cbam_svm", layout=layout, root=str(tmp_path), patient_stand_in="image")


def test_every_layout_stands_in_the_documentation() -> None:
    page = (ROOT / "docs" / "layouts.md").read_text()
    assert [name for name in ADAPTERS if f"| `{name}` |" not in page] == []
