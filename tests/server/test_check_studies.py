"""`consilium-server check`: a table of what is right, a sentence for what is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from server.check import check_studies
from server.cli import app
from shared.errors import StudyError
from shared.models import build_network
from shared.models.state import travelling_arrays
from shared.study import load_study


def write_study(path: Path, **changes: Any) -> Path:
    study: dict[str, Any] = {
        "schema": "consilium/study/1",
        "name": path.stem,
        "title": "A toy",
        "governance": {"purpose": "test", "ethics": "none needed", "retention": "none"},
        "seed": 3,
        "task": {"classes": {"benign": [], "malignant": []}, "positive_class": "malignant", "unit": "image"},
        "preprocessing": {"region": "whole", "size": 32, "channels": 3},
        "model": {"name": "resnet18"},
        "training": {
            "local_epochs": 1,
            "batch_size": 4,
            "optimiser": "adam",
            "learning_rate": 1e-3,
            "loss": "binary_cross_entropy",
        },
        "federation": {"rounds": 1, "quorum": 1, "weighting": "counts"},
    }
    path.write_text(yaml.safe_dump({**study, **changes}, sort_keys=False))
    return path


def said_of(paths: list[Path], width: int = 220, **options: Any) -> tuple[bool, str]:
    console = Console(record=True, width=width, file=Path("/dev/null").open("w"))  # noqa: SIM115
    return not check_studies(paths, console, **options), console.export_text()


def test_a_right_study_is_a_row_of_its_figures(tmp_path: Path) -> None:
    path = write_study(tmp_path / "right.yaml", model={"name": "resnet18", "norm": "group"})
    right, text = said_of([path])
    assert right
    # ResNet-18 with one output: torchvision's 11,689,512 less its head of 513,000, and 513; group norm has no buffers.
    count = 11_689_512 - 513_000 + 513
    row = next(line for line in text.splitlines() if "right" in line)
    for part in (
        f"{count:,}",
        f"{count * 4 / 1e6:.1f} / {count * 4 / 1e6:.1f}",
        "3x32x32 -> 1",
        "resnet18; group norm",
        "compatible",
        load_study(path).digest()[:16],
    ):
        assert part in row


def test_in_a_narrow_terminal_no_number_is_broken_apart(tmp_path: Path) -> None:
    path = write_study(tmp_path / "narrow.yaml")
    right, text = said_of([path], width=70)
    assert right
    for part in (f"{11_689_512 - 513_000 + 513:,}", "3x32x32 -> 1", "44.7 / 44.7", load_study(path).digest()[:16]):
        assert part in text


def test_what_a_stage_holds_is_not_counted_as_sent(tmp_path: Path) -> None:
    training = {
        "local_epochs": 1, "batch_size": 8, "optimiser": "adam", "learning_rate": 1e-4, "loss": "binary_cross_entropy",
        "stages": [{"rounds": 1, "freeze": []}, {"rounds": 1, "freeze": ["layer3", "layer4"]}],
    }  # fmt: skip
    federation = {"rounds": 2, "quorum": 1, "weighting": "counts"}
    path = write_study(tmp_path / "stages.yaml", training=training, federation=federation)
    network = build_network(load_study(path))
    whole = travelling_arrays(network)
    free = sum(array.size for name, array in whole.items() if not name.startswith(("layer3.", "layer4.")))
    all_of_it = f"{4 * sum(array.size for array in whole.values()) / 1e6:.1f}"
    right, text = said_of([path])
    assert right
    assert f"{all_of_it} / {all_of_it}, then {4 * free / 1e6:.1f}" in text


def test_batch_norm_travels_with_its_statistics_and_is_not_dp_compatible(tmp_path: Path) -> None:
    path = write_study(tmp_path / "batch.yaml")
    right, text = said_of([path])
    values = 11_689_512 - 513_000 + 513 + 2 * 4_800
    assert right
    assert f"{values * 4 / 1e6:.1f} /" in text
    assert "DP no: BatchNorm cannot support training with differential privacy (batch)" in text


def test_every_mistake_is_a_sentence_and_the_others_are_still_looked_at(tmp_path: Path) -> None:
    paths = [
        tmp_path / "absent.yaml",
        write_study(tmp_path / "model.yaml", model={"name": "resnt34"}),
        write_study(tmp_path / "key.yaml", model={"name": "resnet18", "atention": "se"}),
        write_study(tmp_path / "right.yaml"),
    ]
    right, text = said_of(paths)
    assert not right
    assert f"{paths[0]}: no such file" in text
    assert f"CONS-101 {paths[1]}: model.name: unknown model 'resnt34'; did you mean 'resnet34'?" in text
    assert "unknown key 'atention' in model; did you mean 'attention'?" in text
    assert "3x32x32 -> 1" in text
    assert "Traceback" not in text
    ended = CliRunner().invoke(app, ["check", *map(str, paths)])
    assert ended.exit_code == StudyError.exit_code == 2
    assert CliRunner().invoke(app, ["check", str(paths[-1])]).exit_code == 0


def test_weights_that_are_not_here_are_a_warning_and_frozen_layers_are_still_counted(tmp_path: Path) -> None:
    weights = {"file": "absent.pth", "sha256": "0" * 64, "source": "a journal"}
    model = {"name": "resnet18", "weights": weights, "freeze": ["conv1", "bn1", "layer1"]}
    right, text = said_of([write_study(tmp_path / "away.yaml", model=model)], weights_root=tmp_path)
    assert right
    assert "warning: " in text
    assert "could not be loaded here" in text
    frozen = 64 * 3 * 49 + 128 + 4 * (64 * 64 * 9 + 128)
    assert f"{11_689_512 - 513_000 + 513 - frozen:,}" in text


def test_torchvisions_weights_without_a_network_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    right, text = said_of([write_study(tmp_path / "tv.yaml", model={"name": "resnet18", "weights": "torchvision"})])
    assert right
    assert "Network is unreachable" in text


def test_a_wrong_digest_and_an_unknown_layer_are_mistakes(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"other")
    weights = {"file": "w.pth", "sha256": "0" * 64, "source": "a journal"}
    absent = {"file": "absent.pth", "sha256": "0" * 64, "source": "a journal"}
    wrong = write_study(tmp_path / "wrong.yaml", model={"name": "resnet18", "weights": weights})
    layer = write_study(tmp_path / "layer.yaml", model={"name": "resnet18", "weights": absent, "freeze": ["layer9"]})
    right, text = said_of([wrong, layer], weights_root=tmp_path)
    assert not right
    assert "expected SHA-256" in text
    assert "the network has no layer 'layer9'" in text
