"""An image is known again by its pixels, whatever became of its file; that costs no second decoding, and a withdrawal forgets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from publications import profile_of
from test_withdrawal import STUDY, opened, somebody_in

from client.cohort_list import keep_list, read_list, root_of
from client.data import pixel_digests
from client.data.cache import forget_records, prepare_store
from client.data.pixel_digests import NOBODY, pixel_digest
from client.data.records import Record
from client.phantom import write_phantom
from client.roll import forget_in_roll, load_roll
from client.site_folder import SiteFolder
from client.withdrawal import withdraw
from client.withdrawn import Tags
from shared.imaging.files import read_image
from shared.imaging.pixels import Pixels
from shared.study_pixels import Preprocessing

RECIPE = Preprocessing(region="whole", size=16, channels=3)
OTHER = Preprocessing(region="whole", size=20, channels=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "anna"
    write_phantom(root, patients=12, seed=1, scanner="halide", prevalence=0.5)
    return root


def drawn(seed: int = 0, most: int = 4000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, (24, 30)).astype(np.uint16)


def record(path: Path, number: int = 0) -> Record:
    return Record(key=f"r{number}", image=path, label="a", patient=f"p{number}")


def digest(array: np.ndarray, bits: int = 16) -> str:
    return pixel_digest(Pixels(array, bits, "RGB" if array.ndim == 3 else "MONOCHROME2"))


def under_other_ids(data: Path, copy: Path) -> Path:
    """A copy of a phantom in which every patient, and every folder, has another name."""
    shutil.copytree(data, copy)
    for table in copy.glob("*.csv"):
        table.write_text(table.read_text().replace("P_", "P_9"))
    for path in sorted(copy.rglob("*P_*"), key=lambda one: -len(one.parts)):
        path.rename(path.with_name(path.name.replace("P_", "P_9")))
    return copy


def test_the_digest_is_of_what_is_shown_and_of_nothing_else() -> None:
    deep, grey = drawn(), drawn(most=200)
    assert digest(deep) == digest(deep.astype(">u2")) == digest(deep.astype(np.uint32)) == digest(deep, bits=12)
    assert digest(grey) == digest(grey.astype(np.uint8), bits=8)
    assert digest(grey) == digest(np.repeat(grey[..., None], 3, axis=2))
    changed = deep.copy()
    changed[3, 4] += 1
    others = [deep, changed, deep.T, deep.reshape(12, 60), np.stack([deep, deep, changed], axis=2), grey]
    assert len({digest(np.ascontiguousarray(one)) for one in others}) == len(others)


def test_an_image_of_one_value_is_nobodys() -> None:
    assert digest(np.full((24, 30), 7, np.uint16)) == NOBODY


def test_a_dicom_file_with_another_header_and_name_shows_the_same(data: Path, tmp_path: Path) -> None:
    path = next(data.rglob("*.dcm"))
    copied = pydicom.dcmread(path)
    copied.PatientID, copied.PatientName, copied.StudyDate = "X_1", "Nobody", "20200101"
    copied.SOPInstanceUID = copied.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    copied.save_as(tmp_path / "renamed.ima")
    first, second = read_image(path), read_image(tmp_path / "renamed.ima")
    assert (tmp_path / "renamed.ima").read_bytes() != path.read_bytes()
    assert pixel_digest(first) == pixel_digest(second)
    if first.array.dtype == np.uint16:
        Image.fromarray(first.array).save(tmp_path / "exported.png")
        assert pixel_digest(read_image(tmp_path / "exported.png")) == pixel_digest(first)


def test_another_study_finds_them_without_decoding_for_them_and_what_was_lost_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = []
    for number in range(4):
        Image.fromarray(drawn(number)).save(tmp_path / f"{number}.png")
        records.append(record(tmp_path / f"{number}.png", number))
    read: list[str] = []
    monkeypatch.setattr(pixel_digests, "read_image", lambda path: read.append(path.name) or read_image(path))
    cache = tmp_path / "cache"
    first = prepare_store(records, RECIPE, cache, unreadable="stop")
    assert first.pixels == tuple(digest(drawn(number)) for number in range(4))
    assert prepare_store(records[::-1], OTHER, cache, unreadable="stop", workers=2).pixels == first.pixels[::-1]
    assert read == []
    (cache / "pixels.json").write_text("{")  # or a cache of an earlier release, which has none
    for _ in range(2):
        assert prepare_store(records, RECIPE, cache, unreadable="stop").pixels == first.pixels
    assert sorted(read) == ["0.png", "1.png", "2.png", "3.png"]


def test_an_unreadable_image_has_none_and_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(drawn()).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    records = [record(tmp_path / "bad.png", 0), record(tmp_path / "good.png", 1)]
    monkeypatch.setattr(pixel_digests, "read_image", lambda path: pytest.fail(f"{path} was decoded again"))
    for _ in range(2):
        store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="skip")
        assert store.pixels == ("", digest(drawn()))


def test_forgetting_a_record_forgets_its_pixels_and_nobody_elses(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(drawn(number)).save(tmp_path / f"{number}.png")
    records = [record(tmp_path / f"{number}.png", number) for number in range(2)]
    store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    path = tmp_path / "cache" / "pixels.json"
    assert path.stat().st_mode & 0o777 == 0o600
    forget_records(tmp_path / "cache", ["r0"], [records[0].image])
    assert list(json.loads(path.read_text())["files"].values()) == [store.pixels[1]]
    forget_records(tmp_path / "cache", ["r1"], None)
    assert not path.exists()


def test_the_roll_keeps_them_keyed_and_a_withdrawal_empties_the_patients(data: Path, tmp_path: Path) -> None:
    folder = SiteFolder.create(tmp_path / "anna", profile_of(root=str(data), minimum_patients=1))
    known = opened(folder).roll.known()
    assert all(known.values()) and sum(map(len, known.values())) <= len(opened(folder).roll.keys)
    kept = (folder.cache / "pixels.json").read_text()
    assert not any(image in kept for images in known.values() for image in images)
    key = Tags.of(folder)
    root = root_of(known, key)
    keep_list(folder, root, known)
    patient, _ = somebody_in(folder, "train")
    withdraw(folder, patient)
    assert read_list(folder, root, key).patients == known  # what was spent of the patient still counts
    tag = Tags.of(folder).tag(patient)
    forget_in_roll(folder.run_folder("run-1"), {tag})
    roll = load_roll(folder.run_folder("run-1"))
    assert roll is not None and not known[tag] & set(roll.pixels)
    assert roll.known() == {other: images for other, images in known.items() if other != tag}
    assert opened(folder, "run-2").roll.known() == roll.known()


def test_a_roll_of_an_earlier_release_is_read_and_knows_no_images(data: Path, tmp_path: Path) -> None:
    folder = SiteFolder.create(tmp_path / "anna", profile_of(root=str(data), minimum_patients=1))
    path = folder.run_folder("run-1") / "cohort.npz"
    opened(folder)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "pixels"}
    np.savez(path, **arrays)
    roll = load_roll(path.parent)
    assert roll is not None and roll.study == STUDY.digest()
    assert set(roll.known()) and not any(roll.known().values())


def test_a_copied_dataset_under_other_ids_has_other_tags_and_the_same_images(data: Path, tmp_path: Path) -> None:
    folder = SiteFolder.create(tmp_path / "anna", profile_of(root=str(data), minimum_patients=1))
    before = opened(folder).roll.known()
    profile = profile_of(root=str(under_other_ids(data, tmp_path / "copy")), minimum_patients=1)
    (folder.path / "site.json").write_text(profile.model_dump_json(by_alias=True))
    after = opened(folder, "run-2").roll.known()
    assert len(after) == len(before) and not after.keys() & before.keys()
    assert set(after.values()) == set(before.values())
