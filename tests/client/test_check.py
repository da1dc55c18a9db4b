"""What `consilium-site check` prints and concludes."""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from rich.console import Console

from client.data.check import check_profile
from client.data.image_survey import find_duplicates, survey
from client.data.records import Record
from client.phantom import write_phantom
from shared.profile import Profile, load_profile
from shared.study import Study, load_study, study_from_data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """40 lesions with one image each, half of them mel, half nv, every image different."""
    root = tmp_path / "hospital"
    images = root / "HAM10000_images"
    images.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for number in range(40):
        rows.append(f"HAM_{number},ISIC_{number},{'mel' if number % 2 else 'nv'},histo,50,male,back")
        pixels = generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"ISIC_{number}.png")
    (root / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def profile(
    root: Path,
    *,
    layout: str = "ham10000",
    device: str = "cpu",
    cache: str | None = None,
    synthetic: bool = False,
    **data: Any,
) -> Profile:
    stand_in = {"patient_stand_in": "lesion_id"} if layout == "ham10000" else {}
    return Profile.model_validate(
        {
            "schema": "consilium/profile/1",
            "site": "test",
            "title": "Hospital [red]Test[/red]",
            "device": device,
            "cache": cache,
            "data": {"layout": layout, "root": str(root), "synthetic": synthetic, **stand_in, **data},
        }
    )


def study(**changes: Any) -> Study:
    data = load_study(ROOT / "configs" / "ham10000_resnet34_cbam_svm.yaml").to_data()
    return study_from_data({**data, **changes})


def run(profile: Profile, study: Study | None = None) -> tuple[bool, str]:
    stream = io.StringIO()
    verdict = check_profile(profile, study, Console(file=stream, width=120))
    return verdict, stream.getvalue()


def numbers(text: str, row: str) -> list[int]:
    """The numbers of the table row that starts with `row`."""
    (line,) = [line for line in text.splitlines() if re.match(rf"│\s*{row}\s*│", line)]
    return [int(number) for number in re.findall(r"\d+", line)]


def test_without_a_study_labels_patients_and_images_are_counted(hospital: Path) -> None:
    ready, text = run(profile(hospital, patient_stand_in="lesion_id"))
    assert ready
    assert numbers(text, "mel") == [20, 20]
    assert numbers(text, "all") == [40, 40]
    assert "lesion_id stands in" in text
    assert "Hospital [red]Test[/red]" in text
    assert "Synthetic: no" in text


def test_with_a_study_every_part_is_counted_by_class(hospital: Path) -> None:
    ready, text = run(profile(hospital), study())
    assert ready, text
    assert numbers(text, "patients") == [28, 6, 6, 40]
    assert numbers(text, "malignant") == [14, 14, 3, 3, 3, 3, 20, 20]


def test_metadata_that_the_study_wants_are_counted_and_one_that_is_not_there_is_a_fault(hospital: Path) -> None:
    table = hospital / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace("mel,histo,50,", "mel,histo,,"))
    age = {"kind": "number", "name": "age", "low": 0, "high": 90}
    ready, text = run(profile(hospital), study(metadata=[age]))
    assert ready and "Metadata age: given with 20 of 40 images" in text
    ready, text = run(profile(hospital), study(metadata=[age, {**age, "name": "weight"}]))
    assert not ready and "the hospital's data has no 'weight'; its metadata are age, localization, sex" in text


def test_a_damaged_image_is_named_and_stops_or_is_left_out_as_the_profile_says(hospital: Path) -> None:
    damaged = hospital / "HAM10000_images" / "ISIC_7.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    ready, text = run(profile(hospital), study())
    assert not ready
    assert str(damaged) in text
    assert "unreadable: stop" in text
    ready, text = run(profile(hospital, unreadable="skip"), study())
    assert ready
    assert str(damaged) in text
    assert numbers(text, "images")[-1] == 39


def test_the_same_pixels_under_two_patients_are_a_warning_that_names_both_files(hospital: Path) -> None:
    images = hospital / "HAM10000_images"
    Image.open(images / "ISIC_2.png").save(images / "ISIC_3.png", compress_level=0)
    assert (images / "ISIC_2.png").read_bytes() != (images / "ISIC_3.png").read_bytes()
    ready, text = run(profile(hospital))
    assert ready
    assert "Duplicate images (same pixels): 1" in text
    assert f"{images / 'ISIC_2.png'} = {images / 'ISIC_3.png'}" in text


def test_copies_of_one_patient_are_counted_but_leak_nothing(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.fromarray(np.full((4, 4), 7 if name < "c" else 8, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    records = [Record(name, tmp_path / f"{name}.png", "x", "P1") for name in ("a", "b", "c")]
    found = find_duplicates(survey(records, masks="ignore"), records)
    assert found.groups == ((tmp_path / "a.png", tmp_path / "b.png"),)
    assert found.across == ()


def test_prepared_size_counts_channels_and_depth(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.full((9, 9), 4000, dtype=np.uint16)).save(tmp_path / "deep.png")
    records = [Record(name, tmp_path / f"{name}.png", "x", name) for name in ("grey", "colour", "deep")]
    assert survey(records, masks="ignore").prepared_bytes(records, 10) == 100 * (1 + 3 + 2)


def test_a_finding_without_a_mask_cannot_be_used_where_the_study_cuts_out_findings(hospital: Path) -> None:
    data = study().to_data()
    ready, text = run(profile(hospital), study(preprocessing={**data["preprocessing"], "region": "finding"}))
    assert not ready
    assert "ISIC_0.png: it has no mask" in text


def test_one_class_only_ends_in_its_sentence_and_still_shows_what_is_there(hospital: Path) -> None:
    table = hospital / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace(",mel,", ",nv,"))
    ready, text = run(profile(hospital), study())
    assert not ready
    assert "class malignant has no patient at all" in text
    assert numbers(text, "nv") == [40, 40]


def test_a_stand_in_that_the_profile_does_not_name_is_a_fault_and_one_that_is_not_needed_a_note(
    hospital: Path, tmp_path: Path
) -> None:
    ready, text = run(profile(hospital, patient_stand_in=None))
    assert not ready
    assert "write patient_stand_in: lesion_id" in text and "own patient id" not in text
    root = tmp_path / "phantom"
    write_phantom(root, patients=3, seed=1, scanner="halide")
    ready, text = run(profile(root, layout="cbis_ddsm", patient_stand_in="lesion_id"))
    assert ready
    assert "Patient: the data's own patient id" in text
    assert "remove data.patient_stand_in, or every report will say so" in text


def test_what_should_be_known_of_the_data_is_told(tmp_path: Path) -> None:
    (tmp_path / "mel").mkdir()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "mel" / "a.png")
    ready, text = run(profile(tmp_path, layout="image_folder", patient_stand_in="image"))
    assert ready
    assert "Note: there is no index.csv: every image is its own patient" in text


def test_only_what_the_study_takes_needs_a_mask(hospital: Path) -> None:
    data = study().to_data()
    task = {**data["task"], "classes": {"benign": ["cyst"], "malignant": ["mel"]}}
    changed = study(preprocessing={**data["preprocessing"], "region": "finding"}, task=task)
    _, text = run(profile(hospital), changed)
    assert "Unusable files or rows: 20" in text


def test_an_empty_folder_and_an_unknown_layout_end_in_sentences(tmp_path: Path) -> None:
    ready, text = run(profile(tmp_path))
    assert not ready and "is empty" in text
    ready, text = run(profile(tmp_path, layout="ham1000"))
    assert not ready and "did you mean 'ham10000'" in text


def test_a_device_that_is_not_there_is_a_fault(hospital: Path) -> None:
    ready, text = run(profile(hospital, device="cuda:99"))
    assert not ready
    assert "cuda:99" in text


def test_a_disk_without_room_for_the_cache_is_a_fault(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 40 * 64 * 64 * 3

    def free(amount: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": amount})())

    cache = str(tmp_path / "not" / "made" / "yet")
    free(needed)
    assert run(profile(hospital, cache=cache), study())[0]
    free(needed - 1)
    ready, text = run(profile(hospital, cache=cache), study())
    assert not ready
    assert "the cache needs about 480.0 KiB" in text
    assert cache in text


def test_synthetic_mammograms_are_called_synthetic_and_every_mask_is_read(tmp_path: Path) -> None:
    root = tmp_path / "phantom"
    written = write_phantom(root, patients=4, seed=1, scanner="halide")
    ready, text = run(profile(root, layout="cbis_ddsm", synthetic=True))
    assert ready, text
    assert "Synthetic: yes" in text
    assert numbers(text, "all") == [4, written.findings]
    mask = next(
        path
        for path in sorted(root.rglob("*.dcm"))
        if "ROI mask" in str(pydicom.dcmread(path).get("SeriesDescription"))
    )
    mask.write_bytes(mask.read_bytes()[:-5000])
    ready, text = run(profile(root, layout="cbis_ddsm", synthetic=True))
    assert not ready
    assert str(mask) in text


@pytest.mark.real_data
@pytest.mark.parametrize("site", ["vidir_modern", "rosendahl", "vidir_molemax"])
def test_the_three_real_hospitals_can_serve_both_studies(site: str) -> None:
    if "FEDERATION_DATA" not in os.environ:
        pytest.skip("FEDERATION_DATA is not set: the published images are not there")
    loaded = load_profile(ROOT / "sites" / "ham10000" / site)
    with (Path(loaded.data.root) / "HAM10000_metadata.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    ready, text = run(loaded, study())
    assert ready, text
    assert numbers(text, "patients")[-1] == len({row["lesion_id"] for row in rows})
    assert numbers(text, "malignant")[-2] == sum(row["dx"] in ("mel", "bcc", "akiec") for row in rows)
    seven = load_study(ROOT / "configs" / "ham10000_resnet34_cbam_svm_seven.yaml")
    assert run(loaded, seven)[0]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "malignant", "all_units"), [("busi", 210, 437 + 210), ("breastmnist", 210, 546 + 78 + 156)]
)
def test_the_published_breast_ultrasound_can_serve_its_study(name: str, malignant: int, all_units: int) -> None:
    if "FEDERATION_DATA" not in os.environ:
        pytest.skip("FEDERATION_DATA is not set: the published images are not there")
    wanted = load_study(ROOT / "configs" / f"{name}_resnet18.yaml")
    ready, text = run(load_profile(ROOT / "sites" / name / "baheya"), wanted)
    assert ready, text
    assert numbers(text, f"{wanted.task.unit}s")[-1] == all_units
    assert numbers(text, "malignant")[-2] == malignant
    if name == "breastmnist":
        assert numbers(text, "images")[:3] == [546, 78, 156]
