"""The studies and profiles that ship load, and the paper's study is the paper's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from client.data.cbis_ddsm_tables import read_tables
from client.data.records import Holding, Record
from client.data.registry import ADAPTERS
from client.data.selection import choose
from client.data.splits import PARTS
from shared.profile import load_profile
from shared.study import load_study
from shared.study_pixels import LayerNormalise

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "configs").glob("*.yaml"))
PAPERS = ["cbis_ddsm_resnet34_cbam_svm", "cbis_ddsm_mass_resnet34_cbam_svm"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_loads_and_has_its_files_name(path: Path) -> None:
    assert load_study(path).name == path.stem


@pytest.mark.parametrize(
    "path", [path for path in STUDIES if not path.stem.startswith("demo")], ids=lambda path: path.stem
)
def test_a_papers_study_says_its_positive_class_and_what_rounds_and_epochs_stand_for(path: Path) -> None:
    study = load_study(path)
    rounds, epochs = study.federation.rounds, study.training.local_epochs
    said = " ".join(study.description.split())
    assert f"Positive class {study.task.positive_class}" in said
    if study.privacy is not None:
        assert f"{rounds} rounds of {study.privacy.steps_per_round} steps" in said
        return
    assert epochs is not None and f"{rounds} x {epochs} = {rounds * epochs} epochs" in said


@pytest.mark.parametrize("path", sorted((ROOT / "sites").glob("*/*/profile.yaml")), ids=lambda path: path.parent.name)
def test_every_profile_loads_and_has_its_folders_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("FEDERATION_DATA", "CONSILIUM_DEMO_DATA"):
        monkeypatch.setenv(variable, "/somewhere")
    profile = load_profile(path.parent)
    assert profile.site == path.parent.name
    assert profile.data.layout in ADAPTERS
    assert profile.data.root.startswith("/somewhere/")


def test_the_real_hospitals_say_that_the_lesion_stands_in_for_the_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDERATION_DATA", "/somewhere")
    profiles = [load_profile(path) for path in sorted((ROOT / "sites" / "ham10000").iterdir())]
    assert len(profiles) == 3
    assert all(profile.data.patient_stand_in == "lesion_id" and not profile.data.synthetic for profile in profiles)


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_study_has_the_papers_hyper_parameters(name: str) -> None:
    study = load_study(ROOT / "configs" / f"{name}.yaml")
    assert study.federation.rounds * study.training.local_epochs == 6
    assert (study.training.optimiser, study.training.learning_rate, study.training.batch_size) == ("adam", 1e-4, 32)
    assert (study.training.loss, study.outputs) == ("binary_cross_entropy", 1)
    assert (study.model.name, study.model.attention, study.model.cbam_at) == ("resnet34", "cbam", "after_block")
    assert study.model.weights == "torchvision" and study.model.freeze
    assert (study.preprocessing.region, study.preprocessing.size) == ("finding", 224)
    split = study.data.split
    assert (split.division, split.train, split.validation, split.test) == ("by_patient", 0.70, 0.15, 0.15)
    assert study.data.balanced is not None and study.data.balanced.per_class == 500
    assert study.head is not None and study.head.grid is not None
    assert (study.head.C, study.head.gamma, study.head.grid.folds) == (10, 0.001, 5)
    assert min(study.head.grid.gamma) <= 0.00001
    assert study.task.positive_class == "malignant"


def test_title_and_data_paragraph_of_the_paper_have_one_study_each_that_differ_in_nothing_else() -> None:
    calcification, mass = (load_study(ROOT / "configs" / f"{name}.yaml").to_data() for name in PAPERS)
    for data in (calcification, mass):
        for key in ("name", "title", "description"):
            del data[key]
    kinds = [data["data"].pop("select") for data in (calcification, mass)]
    assert kinds == [{"abnormality": ["calcification"]}, {"abnormality": ["mass"]}]
    assert calcification == mass


@pytest.mark.parametrize("small", ["", "_small"])
def test_the_papers_three_models_differ_in_attention_and_head_only(small: str) -> None:
    names = ["cbis_ddsm_resnet34", "cbis_ddsm_resnet34_svm", "cbis_ddsm_resnet34_cbam_svm"]
    plain, svm, cbam = (load_study(ROOT / "configs" / f"{name}{small}.yaml").to_data() for name in names)
    for data in (plain, svm, cbam):
        for key in ("name", "title", "description"):
            del data[key]
    assert plain.pop("head") is None and svm.pop("head") == cbam.pop("head")
    assert [one["model"].pop("attention") for one in (plain, svm, cbam)] == ["none", "none", "cbam"]
    assert [one["model"].pop("cbam_at") for one in (plain, svm, cbam)] == [None, None, "after_block"]
    assert plain == svm == cbam


@pytest.mark.real_data
@pytest.mark.parametrize("name", PAPERS)
def test_the_published_tables_hold_enough_for_the_papers_500_and_500(name: str) -> None:
    folder = os.environ.get("FEDERATION_DATA")
    if folder is None:
        pytest.skip("FEDERATION_DATA is not set: the published tables are not there")
    tables = read_tables(Path(folder) / "cbis_ddsm_tables")
    records = tuple(
        Record(
            f"{finding.roi_folder}",
            Path("not-there.dcm"),
            finding.pathology,
            finding.patient,
            attributes={"abnormality": finding.abnormality},
        )
        for finding in tables.findings
    )
    cohort = choose(load_study(ROOT / "configs" / f"{name}.yaml"), Holding(records), minimum_patients=20)
    assert np.bincount(cohort.labels).tolist() == [500, 500]
    shares = [len(cohort.parts[part]) / 1000 for part in PARTS]
    assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.04)


def test_wa_resnet50_and_its_comparisons_have_the_papers_hyper_parameters_and_differ_in_the_model_only() -> None:
    values = []
    for name in ("cbis_ddsm_wa_resnet50", "cbis_ddsm_resnet50", "cbis_ddsm_cnn_vit"):
        study = load_study(ROOT / "configs" / f"{name}.yaml")
        assert study.federation.rounds * study.training.local_epochs == 100
        assert (study.training.learning_rate, study.training.batch_size) == (1e-4, 16)
        assert (study.preprocessing.size, study.outputs) == (224, 2)
        assert study.preprocessing.clahe is not None and study.preprocessing.denoise != "none"
        values.append(without(study.to_data(), "name", "title", "description", "model"))
    assert values[0] == values[1] == values[2]
    model = load_study(ROOT / "configs" / "cbis_ddsm_wa_resnet50.yaml").model
    assert (model.name, model.stem, model.attention, model.se_at) == ("resnet50", "haar", "se", "after_block")


@pytest.mark.parametrize(
    "names",
    [
        ("cbis_ddsm_wa_resnet50", "cbis_ddsm_resnet50", "cbis_ddsm_cnn_vit"),
        ("dicom_resnet50", "dicom_vgg16", "dicom_googlenet", "dicom_cnn_vit"),
    ],
    ids=["cbis_ddsm", "dicom"],
)
def test_small_comparisons_differ_in_the_model_only(names: tuple[str, ...]) -> None:
    studies = [load_study(ROOT / "configs" / f"{name}_small.yaml") for name in names]
    values = [without(study.to_data(), "name", "title", "description", "model") for study in studies]
    assert all(value == values[0] for value in values)
    assert len({study.model.name + study.model.stem for study in studies}) == len(names)


def test_every_row_of_the_papers_tables_has_its_studies_and_every_papers_page_names_them() -> None:
    tables = yaml.safe_load((ROOT / "server" / "report" / "published.yaml").read_text(encoding="utf-8"))
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "studies").glob("*.md"))
    names = {path.stem for path in STUDIES}
    for paper in tables.values():
        for row in paper["rows"]:
            for name in {row.get("study"), row.get("small")} - {None}:
                assert name in names
            assert "study" not in row or f"{row['study']}.yaml" in pages


def test_rcdnets_comparison_differs_in_the_model_only() -> None:
    names = ("rcdnet", "resnet50", "mobilenet_v2", "regnet_y_400mf", "resnext50_32x4d", "vit_b_16")
    studies = [load_study(ROOT / "configs" / f"busi_{name}.yaml") for name in names]
    assert [study.model.name for study in studies] == list(names)
    values = [without(study.to_data(), "name", "title", "description", "model") for study in studies]
    assert all(value == values[0] for value in values)


def test_skinnet_has_the_papers_hyper_parameters_and_its_versions_differ_in_what_they_look_at_only() -> None:
    values = []
    for path in sorted((ROOT / "configs").glob("skinnet_v[1-4].yaml")):
        study = load_study(path)
        training, augmentation = study.training, study.augmentation
        assert (training.optimiser, training.weight_decay, training.schedule) == ("adamw", 1e-4, "cosine_restarts")
        assert training.focal is not None and training.focal.gamma == 2
        assert augmentation.cutout is not None and augmentation.distortion is not None and augmentation.blur is not None
        cutout = augmentation.cutout
        assert (cutout.probability, cutout.fewest, cutout.most, cutout.side) == (0.5, 1, 5, 16)
        assert (augmentation.distortion.probability, augmentation.blur.probability) == (0.3, 0.15)
        assert (augmentation.movement_probability, augmentation.tone_probability) == (0.25, 0.05)
        assert [stage.freeze[0] for stage in training.stages] == ["metadata", "features"]
        assert study.preprocessing.size == 224 and len(study.task.classes) == 9 and study.augmentation.validation
        assert study.preprocessing.remove and study.data.duplicates is not None
        assert study.federation.keep_models is not None and study.federation.keep_models.every == 5
        plain = without(study.to_data(), "name", "title", "description", "model")
        for stage in plain["training"]["stages"]:
            del stage["freeze"]
        plain["preprocessing"].pop("mask", None)
        values.append(plain)
    assert len(values) == 4 and all(value == values[0] for value in values)


def test_the_dicom_comparison_has_the_papers_hyper_parameters_and_differs_in_the_model_only() -> None:
    values = []
    for name in (
        "resnet50",
        "resnet50_untrained",
        "vgg16",
        "vgg16_untrained",
        "cnn_vit",
        "googlenet",
        "googlenet_untrained",
    ):
        study = load_study(ROOT / "configs" / f"dicom_{name}.yaml")
        assert study.federation.rounds * study.training.local_epochs == 30
        assert (study.training.optimiser, study.training.learning_rate, study.training.batch_size) == ("adam", 1e-4, 32)
        assert (study.training.loss, study.preprocessing.size) == ("binary_cross_entropy", 224)
        assert (study.augmentation.translate, study.augmentation.rotation_degrees) == (0.08, 7)
        assert study.data.split.train + study.data.split.validation == pytest.approx(0.8)
        assert study.data.split.validation == pytest.approx(0.2 * 0.8)
        assert study.preprocessing.layer_normalise == LayerNormalise(gamma=1.2, beta=0.1)
        values.append(without(study.to_data(), "name", "title", "description", "model"))
    assert all(value == values[0] for value in values)


def test_the_diagnosis_systems_descriptors_are_the_papers_five_and_nothing_else_differs() -> None:
    plain, described = (
        load_study(ROOT / "configs" / f"dicom_resnet50{one}.yaml").to_data() for one in ("", "_descriptors")
    )
    assert list(described["task"].pop("descriptors")) == ["boundary", "calcification", "margin", "orientation", "shape"]
    assert described["training"].pop("descriptor_weight") == 1
    assert plain["task"].pop("descriptors") == {} and plain["training"].pop("descriptor_weight") is None
    texts = ("name", "title", "description")
    assert without(plain, *texts) == without(described, *texts)


def without(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in keys}
