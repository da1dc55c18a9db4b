"""`consilium-server ensemble`: runs' models and a study of them that builds as written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from example_run import example_study
from typer.testing import CliRunner

from server.checkpoint import Checkpoint, read_starting_model, write_checkpoint
from server.cli import app
from server.ensembles import write_ensemble
from server.run_folder import RunFolder
from server.starting_model import claim_folder, fill_folder
from shared.aggregation import OptimiserState
from shared.errors import InputError, RunFolderError, WeightsError
from shared.models import build_network
from shared.run_records import RoundRecord, RoundTiming
from shared.study import Study, load_study
from shared.wire import flat_digest


def study_of(seed: int, **changes: object) -> Study:
    split = {"split": {"id": "one", "train": 0.6, "validation": 0.2, "test": 0.2}}
    federation = {
        "rounds": 1, "quorum": 1, "weighting": "counts", "optimiser": {"name": "fedavgm"}, "wire": "bf16",
        "prepare_deadline_s": 100, "round_deadline_s": 200, "keep_updates": True,
    }  # fmt: skip
    return example_study(
        rounds=1, **{"model": {"name": "rcdnet"}, "seed": seed, "data": split, "federation": federation, **changes}
    )


def finished(path: Path, study: Study) -> RunFolder:
    folder = claim_folder(path)
    fill_folder(folder, study, ["north"], weights_root=Path())
    start = read_starting_model(folder)
    flat = start.flat + 1e-3
    record = RoundRecord(
        round=1, started="now", model_in=flat_digest(start.flat), model_out=flat_digest(flat),
        timing=RoundTiming(push=0, wait=0, aggregate=0, checkpoint=0, total=0),
    )  # fmt: skip
    made = Checkpoint(1, flat, OptimiserState.start(study.federation.optimiser, 0))
    write_checkpoint(folder, record, made, start.manifest)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    folder = tmp_path_factory.mktemp("runs")
    return [finished(folder / f"seed{seed}", study_of(seed)) for seed in (1, 2)]


def test_the_study_builds_from_the_runs_models_and_says_what_they_are_asked(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    target = tmp_path / "e" / "study.yaml"
    done = CliRunner().invoke(app, ["ensemble", *(str(run.path) for run in runs), "--study-out", str(target)])
    assert done.exit_code == 0, done.output
    study = load_study(target)
    assert study.digest() in done.output and "note:" not in done.output
    first = runs[0].study()
    assert (study.task, study.data, study.preprocessing, study.head) == (
        first.task, first.data, first.preprocessing, first.head,
    )  # fmt: skip
    assert study.federation.rounds == 0 and study.training.optimiser is None
    assert study.federation.prepare_deadline_s == first.federation.prepare_deadline_s == 100
    network = build_network(study, weights_root=target.parent).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = []
    for run in runs:
        member = build_network(run.study()).eval()
        with torch.no_grad():
            for tensor in member.parameters():
                tensor += 1e-3
            for _, tensor in member.named_buffers():
                if tensor.is_floating_point():
                    tensor += 1e-3
            expected.append(member(images).sigmoid())
    with torch.no_grad():
        torch.testing.assert_close(network(images).sigmoid(), torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)
    again = CliRunner().invoke(app, ["check", str(target)], env={"PWD": str(tmp_path)})
    assert again.exit_code != 0  # weights are looked for in the working folder, and are not there


def test_descriptors_stay_with_the_members_and_masks_are_no_answer_to_average(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    task = runs[0].study().to_data()["task"]
    training = {"optimiser": "sgd", "learning_rate": 0.1, "local_epochs": 1, "batch_size": 8}
    described = {
        "task": {**task, "descriptors": {"shape": {"values": {"round": [], "odd": []}}}},
        "training": {**training, "loss": "binary_cross_entropy", "descriptor_weight": 0.5},
    }
    made = write_ensemble(
        [finished(tmp_path / "described", study_of(6, **described)), runs[0]], tmp_path / "d.yaml", weights_root=Path()
    )
    assert not made.study.task.descriptors and made.otherwise == {}
    masks = {
        "task": {**task, "kind": "segmentation"},
        "training": {**training, "loss": "cross_entropy_dice"},
        "model": {"name": "split_attention_unet", "widths": [8, 8]},
        "preprocessing": {"region": "whole", "size": 32, "channels": 3, "mask": {"from": "annotated"}},
        "head": None,
    }
    finds = finished(tmp_path / "masks", study_of(7, **masks))
    with pytest.raises(InputError, match="finds masks; an ensemble's members tell classes apart"):
        write_ensemble([finds, runs[0]], tmp_path / "m.yaml", weights_root=Path())
    with pytest.raises(WeightsError, match="finds masks"):
        write_ensemble([runs[0], finds], tmp_path / "m.yaml", weights_root=Path())


def test_runs_that_divide_patients_otherwise_are_named_and_those_that_fit_nowhere_leave_nothing(
    runs: list[RunFolder], tmp_path: Path
) -> None:
    other = finished(tmp_path / "other", study_of(3, data={"split": {"train": 0.6, "validation": 0.2, "test": 0.2}}))
    made = write_ensemble([runs[0], other], tmp_path / "a.yaml", weights_root=Path())
    assert made.otherwise == {"other": ["data.split.id"]}
    small = finished(tmp_path / "small", study_of(4, preprocessing={"region": "finding", "size": 32, "channels": 3}))
    with pytest.raises(WeightsError, match="section preprocessing differs"):
        write_ensemble([runs[0], small], tmp_path / "b.yaml", weights_root=Path())
    assert not list(tmp_path.glob("b*"))
    with pytest.raises(InputError, match="two or more runs"):
        write_ensemble(runs[:1], tmp_path / "c.yaml", weights_root=Path())
    with pytest.raises(InputError, match="already there"):
        write_ensemble(runs, tmp_path / "a.yaml", weights_root=Path())
    fresh = claim_folder(tmp_path / "fresh")
    fill_folder(fresh, study_of(5), ["north"], weights_root=Path())
    with pytest.raises(RunFolderError, match="no round is finished"):
        write_ensemble([runs[0], fresh], tmp_path / "d.yaml", weights_root=Path())
    assert not list(tmp_path.glob("d*"))
