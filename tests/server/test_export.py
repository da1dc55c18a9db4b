"""A run's model becomes a weights file that a study can start from; two runs stand side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from example_run import example_study, write_example_run
from safetensors.numpy import save
from typer.testing import CliRunner

from server.checkpoint import Checkpoint, read_starting_model, write_checkpoint
from server.cli import app
from server.export import ancestors, divided_otherwise, export_model, study_from
from server.run_folder import RunFolder
from server.starting_model import claim_folder, fill_folder
from shared.aggregation import OptimiserState
from shared.canonical import digest, file_digest
from shared.errors import InputError, RunFolderError, WeightsError
from shared.models import build_network
from shared.models.state import travelling_arrays
from shared.provenance import read_provenance
from shared.run_records import RoundRecord, RoundTiming
from shared.study import Study, load_study
from shared.wire import flat_digest, unflatten

SMALL = {
    "preprocessing": {"region": "finding", "size": 32, "channels": 3},
    "model": {"name": "resnet18", "norm": "group"},
    "head": None,
}
MASKS = {
    "task": {
        "kind": "segmentation",
        "classes": {"benign": [], "malignant": []},
        "positive_class": "malignant",
        "unit": "image",
    },
    "preprocessing": {"region": "whole", "size": 32, "channels": 3, "mask": {"from": "annotated"}},
    "model": {"name": "split_attention_unet", "widths": [8, 8]},
    "head": None,
    "training": {
        "local_epochs": 1,
        "batch_size": 8,
        "optimiser": "sgd",
        "learning_rate": 0.1,
        "loss": "cross_entropy_dice",
    },
}


@pytest.fixture(scope="module")
def study() -> Study:
    return example_study(rounds=1, **SMALL)


def finished(study: Study, path: Path, *, weights_root: Path) -> RunFolder:
    """One finished round, in which every value grew by 1e-3."""
    folder = claim_folder(path)
    fill_folder(folder, study, ["north"], weights_root=weights_root)
    start = read_starting_model(folder)
    flat = start.flat + 1e-3
    record = RoundRecord(
        round=1, started="now", model_in=flat_digest(start.flat), model_out=flat_digest(flat),
        timing=RoundTiming(push=0, wait=0, aggregate=0, checkpoint=0, total=0),
    )  # fmt: skip
    write_checkpoint(
        folder, record, Checkpoint(1, flat, OptimiserState.start(study.federation.optimiser, 0)), start.manifest
    )
    return folder


@pytest.fixture(scope="module")
def run(study: Study, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished(study, tmp_path_factory.mktemp("run") / "run", weights_root=Path())


def write(path: Path, study: Study, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**study.to_data(), **changes}))
    return path


def test_a_study_starts_from_the_exported_model(run: RunFolder, study: Study, tmp_path: Path) -> None:
    source = write(tmp_path / "study.yaml", study)
    target, out = tmp_path / "start" / "study.yaml", tmp_path / "start" / "model.safetensors"
    done = CliRunner().invoke(
        app, ["export", str(run.path), str(out), "--study", str(source), "--study-out", str(target)]
    )
    assert done.exit_code == 0, done.output
    following = load_study(target)
    assert following.digest() in done.output
    network = build_network(following, weights_root=target.parent)
    start = read_starting_model(run)
    for name, values in travelling_arrays(network).items():
        assert torch.equal(
            torch.from_numpy(values), torch.from_numpy(unflatten(start.flat + 1e-3, start.manifest)[name])
        )


def test_the_model_after_a_round_can_be_exported_where_it_is_kept(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    done = CliRunner().invoke(app, ["export", str(run.path), str(out), "--round", "1"])
    assert done.exit_code == 0 and "after round 1" in done.output
    with pytest.raises(RunFolderError, match=r"round 7 is not kept \(those after 1 are\)"):
        export_model(run, out, weights_root=Path(), after_round=7)


def test_the_command_says_where_the_next_study_divides_patients_otherwise(
    run: RunFolder, study: Study, tmp_path: Path
) -> None:
    source = write(tmp_path / "study.yaml", study, seed=study.seed + 1)
    arguments = ["export", str(run.path), str(tmp_path / "m.safetensors"), "--study", str(source), "--study-out"]
    said = " ".join(CliRunner().invoke(app, [*arguments, str(tmp_path / "next.yaml")]).output.split())
    assert "differs from the run's study in seed, so it may test on patients" in said
    assert "note:" not in CliRunner().invoke(app, [*arguments, str(tmp_path / "public.yaml"), "--public"]).output
    data = study.to_data()["data"]
    shared = example_study(data={**data, "split": {**data["split"], "id": "breast"}})
    assert divided_otherwise(shared, shared.model_copy(update={"seed": 99})) == []
    assert divided_otherwise(study, shared) == ["data.split.id"]
    task = study.to_data()["task"]
    above = example_study(task={**task, "hierarchy": {"carcinoma in situ": "malignant"}})
    assert divided_otherwise(study, above) == ["task.hierarchy"]
    others = example_study(classes=("nevus", "melanoma"), data={"select": {"view": ["CC"]}})
    assert divided_otherwise(study, others) == ["data.select", "task.classes", "task.positive_class"]


def test_masks_are_not_taken_from_a_model_that_gives_none(run: RunFolder, study: Study, tmp_path: Path) -> None:
    source = write(tmp_path / "study.yaml", study)
    arguments = ["export", str(run.path), str(tmp_path / "m.safetensors"), "--as", "mask"]
    asked = [*arguments, "--study", str(source), "--study-out", str(tmp_path / "next.yaml")]
    refused = CliRunner().invoke(app, asked)
    assert isinstance(refused.exception, WeightsError) and "trains no segmentation network" in str(refused.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"study.yaml", "m.safetensors"}
    (tmp_path / "next.yaml").write_text("an earlier one")
    assert isinstance(CliRunner().invoke(app, asked).exception, WeightsError)
    assert (tmp_path / "next.yaml").read_text() == "an earlier one"
    for incomplete in (arguments, [*asked, "--without-head"]):
        assert isinstance(CliRunner().invoke(app, incomplete).exception, InputError)


def test_a_study_takes_its_masks_from_a_model_that_gives_some(study: Study, tmp_path: Path) -> None:
    finds = finished(example_study(rounds=1, **MASKS), tmp_path / "masks", weights_root=Path())
    source = write(tmp_path / "study.yaml", study, preprocessing={**SMALL["preprocessing"], "region": "whole"})  # type: ignore[dict-item]
    exported = export_model(finds, tmp_path / "m.safetensors", weights_root=Path())
    following = study_from(source, tmp_path / "next.yaml", exported, use="mask", public=False)
    mask = load_study(tmp_path / "next.yaml").to_data()["preprocessing"]["mask"]
    assert (mask["from"], mask["threshold"], mask["weights"]["origin"]) == ("model", 0.5, "federation")
    assert mask["weights"]["sha256"] == file_digest(tmp_path / "m.safetensors")
    fill_folder(claim_folder(tmp_path / "next"), following, ["north"], weights_root=tmp_path)
    none = {**mask["weights"], "sha256": "0" * 64}
    other = load_study(write(tmp_path / "other.yaml", following, preprocessing={
        **following.to_data()["preprocessing"], "mask": {**mask, "weights": none}
    }))  # fmt: skip
    with pytest.raises(WeightsError, match=r"preprocessing\.mask\.weights"):
        fill_folder(claim_folder(tmp_path / "refused"), other, ["north"], weights_root=tmp_path)


def test_without_its_head_a_model_starts_with_a_random_one(run: RunFolder, study: Study, tmp_path: Path) -> None:
    exported = export_model(run, tmp_path / "model.safetensors", weights_root=Path(), head=False)
    weights = {"weights": {**exported.weights, "file": "model.safetensors"}}
    following = load_study(write(tmp_path / "study.yaml", study, model={**SMALL["model"], **weights}))  # type: ignore[dict-item]
    arrays = travelling_arrays(build_network(following, weights_root=tmp_path))
    start = unflatten(read_starting_model(run).flat, read_starting_model(run).manifest)
    assert abs(arrays["conv1.weight"] - start["conv1.weight"] - 1e-3).max() < 1e-6
    assert (arrays["fc.weight"] == start["fc.weight"]).all(), "the study's seed fixes it"


def test_weights_of_a_federation_are_no_start_for_a_private_study(run: RunFolder, tmp_path: Path) -> None:
    private = {
        "model": SMALL["model"],
        "training": {"optimiser": "sgd", "learning_rate": 0.1, "loss": "binary_cross_entropy"},
        "federation": {"rounds": 1, "quorum": 1, "weighting": "uniform"},
        "evaluation": {"baseline": False, "release": {"epsilon": 1}},
        "privacy": {
            "sampling_rate": 0.1, "steps_per_round": 1, "clipping_norm": 1, "normaliser": 8, "noise_multiplier": 1, "delta": 1e-5,
        },
    }  # fmt: skip
    source = write(tmp_path / "study.yaml", example_study(rounds=1, **SMALL), **private)
    arguments = ["export", str(run.path), str(tmp_path / "m.safetensors"), "--study", str(source), "--study-out"]
    refused = CliRunner().invoke(app, [*arguments, str(tmp_path / "of-patients.yaml")])
    assert refused.exit_code != 0 and "model.weights.origin" in str(refused.exception or refused.output)
    assert str(tmp_path / "of-patients.yaml") in str(refused.exception) and not list(tmp_path.glob("*of-patients*"))
    taken = CliRunner().invoke(app, [*arguments, str(tmp_path / "public.yaml"), "--public"])
    assert taken.exit_code == 0, taken.output


def test_a_run_without_a_round_has_no_model_to_export(study: Study, tmp_path: Path) -> None:
    folder = claim_folder(tmp_path / "run")
    fill_folder(folder, study, ["north"], weights_root=Path())
    with pytest.raises(RunFolderError, match="no round is finished"):
        export_model(folder, tmp_path / "model.safetensors", weights_root=Path())
    with pytest.raises(InputError, match="safetensors"):
        export_model(folder, tmp_path / "model.pt", weights_root=Path())


def test_runs_side_by_side(tmp_path: Path) -> None:
    first, second = (write_example_run(tmp_path / name) for name in ("first", "second"))
    done = CliRunner().invoke(app, ["compare", str(first.path), str(second.path)])
    assert done.exit_code == 0, done.output
    for word in ("first", "second", "no bound", "north", "balanced", "all", "every wrong image counts twice"):
        assert word in done.output


def test_the_file_names_its_run_and_those_before_it_in_bytes_that_never_change(
    run: RunFolder, study: Study, tmp_path: Path
) -> None:
    first = export_model(run, tmp_path / "first.safetensors", weights_root=Path())
    again = export_model(run, tmp_path / "again.safetensors", weights_root=Path())
    assert first.weights["sha256"] == again.weights["sha256"]
    said = read_provenance(first.path)
    assert said is not None and (said.run, said.round, said.ancestors) == (run.run_id(), 1, ())
    assert digest(said.study) == run.run().study_digest == study.digest()
    start = {**first.weights, "origin": "public"}
    second = finished(
        example_study(rounds=1, **{**SMALL, "model": {**SMALL["model"], "weights": start}}),  # type: ignore[dict-item]
        tmp_path / "second",
        weights_root=tmp_path,
    )
    following = export_model(second, tmp_path / "second.safetensors", weights_root=tmp_path)
    assert following.provenance.ancestors == (run.run_id(),)
    third = read_provenance(following.path)
    assert third is not None and third.runs == (run.run_id(), second.run_id())


def test_a_federations_model_that_names_no_run_stays_a_gap_among_the_ancestors(tmp_path: Path) -> None:
    path = tmp_path / "nameless.safetensors"
    path.write_bytes(save({"weight": np.zeros(3, dtype=np.float32)}))
    for origin, expected in (("federation", (None,)), ("public", ())):
        weights = {"file": path.name, "sha256": file_digest(path), "source": "a run", "origin": origin}
        study = example_study(model={"name": "resnet18", "weights": weights})
        assert ancestors(study, tmp_path) == expected
