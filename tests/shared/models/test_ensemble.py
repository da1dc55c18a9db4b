"""Ensembles: the mean of the members' probabilities, features side by side, nothing that travels, and members that belong together."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save

from benchmarks.bare_run import study_values
from client.chained_models import used_models
from client.own_network import build_own
from server.check import check_studies
from shared.canonical import file_digest
from shared.documents import StartingPoint
from shared.errors import StudyError, WeightsError, WeightsUnavailableError
from shared.models import build_network
from shared.models.ensemble import Ensemble
from shared.models.network import Network
from shared.models.state import frozen_digest, travelling
from shared.models.summary import summarise
from shared.provenance import Provenance, with_provenance
from shared.study import Study, study_from_data


def member_study(classes: int = 3, **changes: Any) -> Study:
    values = study_values()
    names = ["a", "b", "c", "d"][:classes]
    loss = "binary_cross_entropy" if classes == 2 else "cross_entropy"
    values |= {
        "task": {"classes": {name: [] for name in names}, "positive_class": "b", "unit": "image"},
        "model": {"name": "rcdnet"},
        "training": {**values["training"], "loss": loss},
        **changes,
    }
    return study_from_data(values)


def exported(folder: Path, study: Study, name: str) -> dict[str, str]:
    """As `consilium-server export` writes it, with the values that a seed gives."""
    network = build_network(study)
    tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    path = folder / f"{name}.safetensors"
    path.write_bytes(with_provenance(save(tensors), Provenance(study=study.to_data(), run=f"run-{name}", round=2)))
    return {"file": path.name, "sha256": file_digest(path), "source": "tests", "origin": "federation"}


def ensemble_study(like: Study, members: list[dict[str, str]], **changes: Any) -> Study:
    data = {key: value for key, value in like.to_data().items() if key not in ("augmentation", "privacy")}
    data |= {
        "model": {"name": "ensemble", "members": members},
        "training": {"loss": like.training.loss},
        "federation": {"rounds": 0, "quorum": 1, "weighting": "uniform"},
        "evaluation": {"baseline": False},
    }
    return study_from_data({**data, **changes})


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_the_mean_of_the_members_and_features_stand_side_by_side(
    tmp_path: Path, classes: int
) -> None:
    studies = [member_study(classes, seed=1), member_study(classes, seed=2, model={"name": "mobilenet_v2"})]
    files = [exported(tmp_path, study, f"m{number}") for number, study in enumerate(studies)]
    whole = ensemble_study(studies[0], files)
    network = build_network(whole, weights_root=tmp_path)
    assert isinstance(network, Ensemble)
    members = [build_network(study).eval() for study in studies]
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 6
    with torch.no_grad():
        features, logits = network.eval().features(images), network(images)
        each = [member(images) for member in members]
        assert torch.equal(features, torch.cat([member.features(images) for member in members], 1))
    assert network.feature_dim == features.shape[1] and network.outputs == logits.shape[1] == studies[0].outputs
    if classes == 2:
        said, mean = logits.sigmoid(), torch.stack(each).sigmoid().mean(0)
    else:
        said, mean = logits.softmax(1), torch.stack(each).softmax(2).mean(0)
    torch.testing.assert_close(said, mean)
    found = summarise(whole, network=network)
    assert (found.trained_parameters, found.bytes_up, found.output_shape) == (0, (0,), (studies[0].outputs,))


def test_very_sure_members_stay_finite() -> None:
    class Sure(Network):
        feature_dim = 1

        def __init__(self, weight: float, outputs: int) -> None:
            super().__init__()
            self.fc, self.dropout = torch.nn.Linear(1, outputs, bias=False), torch.nn.Dropout(0)
            torch.nn.init.constant_(self.fc.weight, weight)

    one = Ensemble([Sure(500.0, 1), Sure(-500.0, 1)], outputs=1)
    torch.testing.assert_close(one.head(torch.ones(1, 2)), torch.zeros(1, 1))
    many = Ensemble([Sure(500.0, 1), Sure(490.0, 1)], outputs=1)
    assert torch.isfinite(many.head(torch.ones(1, 2))).all() and float(many.head(torch.ones(1, 2))[0, 0].detach()) > 400


def test_nothing_of_it_travels_every_byte_is_verified_and_its_members_are_held_against_the_test_patients(
    tmp_path: Path,
) -> None:
    files = [exported(tmp_path, member_study(seed=seed), f"m{seed}") for seed in (1, 2, 3)]
    first, second = (ensemble_study(member_study(), chosen) for chosen in (files[:2], files[1:]))
    networks = [build_network(study, weights_root=tmp_path) for study in (first, second)]
    for network in networks:
        assert travelling(network.train()) == [] and not any(module.training for module in network.members.modules())  # type: ignore[union-attr]
    assert frozen_digest(networks[0]) == frozen_digest(build_network(first, weights_root=tmp_path))
    assert frozen_digest(networks[0]) != frozen_digest(networks[1])
    assert [(one.key, one.runs) for one in used_models(first, tmp_path)] == [
        ("model.members.0", ("run-m1",)),
        ("model.members.1", ("run-m2",)),
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": {"classes": {"a": [], "b": [], "z": []}, "positive_class": "b", "unit": "image"}}, "tells a, b, z"),
        ({"preprocessing": {"region": "whole", "size": 48, "channels": 3}}, "section preprocessing differs"),
    ],
)
def test_members_must_answer_one_question_about_the_same_pixels(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    files = [
        exported(tmp_path, member_study(seed=1), "one"),
        exported(tmp_path, member_study(seed=2, **changes), "two"),
    ]
    with pytest.raises(WeightsError, match=sentence) as problem:
        build_network(ensemble_study(member_study(), files), weights_root=tmp_path)
    assert "model.members.1: two.safetensors" in str(problem.value)


def test_a_file_that_does_not_describe_itself_is_no_member(tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes(save({"fc.weight": torch.zeros(2, 2)}))
    files = [
        exported(tmp_path, member_study(), "one"),
        {"file": bare.name, "sha256": file_digest(bare), "source": "tests"},
    ]
    with pytest.raises(WeightsError, match="does not say which network it is of"):
        build_network(ensemble_study(member_study(), files), weights_root=tmp_path)


DESCRIBED = {
    "classes": {"a": [], "b": [], "c": []},
    "positive_class": "b",
    "unit": "image",
    "descriptors": {"shape": {"values": {"round": [], "odd": []}}},
}
MEMBERS = [{"file": f"{digit}.safetensors", "sha256": digit * 64, "source": "tests"} for digit in "12"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"name": "ensemble"}}, "members must be given with name: ensemble"),
        ({"model": {"name": "resnet18", "members": MEMBERS}}, "members must be given with name: ensemble"),
        ({"model": {"name": "ensemble", "members": MEMBERS[:1]}}, "two or more different models"),
        ({"model": {"name": "ensemble", "members": [MEMBERS[0], MEMBERS[0]]}}, "two or more different models"),
        ({"model": {"name": "ensemble", "members": MEMBERS, "dropout": 0.5}}, "dropout: an ensemble's members bring their own"),
        ({"federation": {"rounds": 1, "quorum": 1, "weighting": "uniform"}}, r"federation\.rounds must be 0"),
        ({"federation": {"rounds": 0, "quorum": 1, "weighting": "counts"}}, r"federation\.weighting: .*set it to uniform"),
        ({"federation": {"rounds": 0, "quorum": 1, "weighting": {"anna": 1.0}}}, r"federation\.weighting: .*set it to uniform"),
        *(
            ({"federation": {"rounds": 0, "quorum": 1, "weighting": "uniform", key: value}}, rf"federation\.{key}: .*leave it out")
            for key, value in {
                "optimiser": {"name": "fedadam"}, "round_deadline_s": 60, "wire": "bf16", "keep_updates": True,
                "keep_models": {"every": 1},
            }.items()
        ),
        ({"evaluation": {"baseline": True}}, r"evaluation\.baseline"),
        ({"augmentation": {"horizontal_flip": 0.5}}, "augmentation: it changes images"),
        ({"task": DESCRIBED}, r"task\.descriptors: it averages"),
        (
            {"task": DESCRIBED, "training": {"loss": "cross_entropy", "descriptor_weight": 1}},
            r"task\.descriptors: .*training\.descriptor_weight: leave it out",
        ),
        (
            {
                "task": {"kind": "segmentation", "classes": {"a": [], "b": []}, "positive_class": "b", "unit": "image"},
                "preprocessing": {"region": "whole", "size": 32, "channels": 3, "mask": {"from": "annotated"}},
                "training": {"loss": "cross_entropy_dice"},
            },
            r"task\.kind: it averages probabilities of classes",
        ),
        (
            {"training": {"loss": "cross_entropy", "batch_size": 8, "optimiser": "adam"}},
            r"training\.batch_size, training\.optimiser: leave them",
        ),
    ],
)  # fmt: skip
def test_a_study_of_an_ensemble_asks_for_nothing_that_does_nothing(changes: dict[str, Any], sentence: str) -> None:
    assert ensemble_study(member_study(), MEMBERS).weight_files.keys() == {"model.members.0", "model.members.1"}
    with pytest.raises(StudyError, match=sentence):
        ensemble_study(member_study(), MEMBERS, **changes)


def test_a_members_file_that_is_missing_is_named_where_it_was_looked_for(tmp_path: Path) -> None:
    study = ensemble_study(member_study(), MEMBERS)
    digests = StartingPoint(manifest_digest="0" * 64, model_digest="0" * 64, frozen_digest="0" * 64)
    with pytest.raises(WeightsUnavailableError) as problem:
        build_own(study, digests, tmp_path)
    assert str(tmp_path / "1.safetensors") in str(problem.value)
    (tmp_path / "study.json").write_text(json.dumps(study.to_data()))
    console = Console(file=io.StringIO(), width=1000)
    (mistake,) = check_studies([tmp_path / "study.json"], console, weights_root=tmp_path)
    assert isinstance(mistake, WeightsUnavailableError)
    assert str(tmp_path / "1.safetensors") in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["optimiser", "learning_rate"])
def test_a_study_that_trains_says_how(key: str) -> None:
    values = study_values()
    del values["training"][key]
    with pytest.raises(StudyError, match=rf"training\.{key} must be given"):
        study_from_data(values)
