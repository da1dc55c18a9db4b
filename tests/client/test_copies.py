"""Copies of an image inside one hospital: found when saved again or scaled, one kept, none where their labels contradict each other."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from imagehash import hex_to_hash, phash
from PIL import Image
from publications import profile_of

from benchmarks.bare_run import study_values
from client.cohort import OpenCohort, open_cohort
from client.data import pixel_digests
from client.data.copies import find_copies
from client.data.perceptual_hash import coarse, perceptual_hash
from client.data.pixel_digests import NOBODY
from client.data.splits import PARTS
from client.site_folder import SiteFolder
from client.withdrawal import withdraw
from shared.errors import PolicyError
from shared.imaging.files import read_image
from shared.imaging.pixels import Pixels
from shared.noised_answers import exact_in_preparation
from shared.profile import Profile
from shared.results import CopiesLeftOut, Prepared
from shared.study import Study


def study_of(**data: object) -> Study:
    return Study.model_validate({**study_values(), "data": data})


PLAIN, REMOVING = study_of(), study_of(duplicates={})


def drawn(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A colour picture of blobs, as unlike any of another seed as two photographs are."""
    coarse_pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return Image.fromarray(coarse_pixels).resize(size, Image.Resampling.BICUBIC)


def hash_of(picture: Image.Image) -> str:
    array = np.asarray(picture)
    return perceptual_hash(Pixels(array, 8, "RGB" if array.ndim == 3 else "MONOCHROME2"))


def hospital(root: Path) -> Path:
    """20 benign and 20 malignant images of as many patients, and copies of five of them."""
    rows = ["file,label,patient"]
    for number in range(40):
        label = "benign" if number < 20 else "malignant"
        (root / label).mkdir(parents=True, exist_ok=True)
        drawn(number).save(root / label / f"{number:02}.png")
        rows.append(f"{label}/{number:02}.png,{label},p{number}")
    for number, name in ((3, "benign/again.jpg"), (7, "benign/smaller.png"), (30, "malignant/again.jpg")):
        picture = drawn(number)
        if name.endswith("jpg"):
            picture.save(root / name, quality=60)
        else:
            picture.resize((100, 75)).save(root / name)
        rows.append(f"{name},{name.split('/')[0]},other{number}")
    shutil.copy(root / "benign/07.png", root / "benign/copied.png")
    rows.append("benign/copied.png,benign,other7")
    drawn(11).save(root / "malignant/denied.jpg", quality=75)
    rows.append("malignant/denied.jpg,malignant,other11")
    (root / "index.csv").write_text("\n".join(rows) + "\n")
    return root


def profile(root: Path, **policy: object) -> Profile:
    data = {"layout": "image_folder", "root": str(root), "synthetic": True}
    return Profile.model_validate({**profile_of(**policy).model_dump(by_alias=True), "data": data})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hospital(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> SiteFolder:
    return SiteFolder.create(tmp_path / "anna", profile(root, minimum_patients=20))


def by_key(cohort: OpenCohort) -> dict[str, str]:
    return {cohort.keys[row]: part for part in PARTS for row in cohort.parts[part]}


def test_both_hashes_are_imagehashs_and_deeper_pixels_are_scaled() -> None:
    picture = drawn(5)
    assert hash_of(picture) == f"{phash(picture, hash_size=16)}{phash(picture)}"
    assert coarse(hash_of(picture)) == str(phash(picture))
    grey = np.asarray(picture.convert("L"))
    deep = perceptual_hash(Pixels(grey.astype(np.uint16) * 16 + 100, 16, "MONOCHROME2"))
    assert hex_to_hash(deep[:64]) - hex_to_hash(hash_of(picture.convert("L"))[:64]) <= 4
    assert hash_of(Image.new("L", (30, 20), 9)) == NOBODY


def test_groups_are_those_of_a_search_from_neighbour_to_neighbour() -> None:
    drawer = np.random.default_rng(4)
    centres = drawer.integers(0, 2, (12, 256))
    flips = drawer.random((150, 256)) < 0.03
    bits = np.where(flips, 1 - centres[drawer.integers(0, 12, 150)], centres[drawer.integers(0, 12, 150)])
    bits[:75] = np.where(flips[:75], 1 - bits[75:], bits[75:])  # some are near, some far
    hashes = [f"{int(''.join(map(str, row)), 2):064x}" + "0" * 16 for row in bits]
    hashes[20] = hashes[21] = NOBODY
    labels = (np.arange(150) % 2).astype(np.int64)
    images = [Path(f"{number:03}.png") for number in range(150)]
    for distance in (0, 6, 12, 20):
        expected, seen = [], {20, 21}
        for start in range(150):
            group, waiting = {start}, [start]
            while waiting and start not in seen:
                near = {
                    one
                    for one in range(150)
                    if one not in (20, 21) and (bits[one] != bits[waiting[-1]]).sum() <= distance
                }
                waiting = waiting[:-1] + sorted(near - group)
                group |= near
            if len(group) > 1 and start not in seen:
                expected.append(sorted(group))
            seen |= group
        found = find_copies(images, labels, hashes, distance)
        assert [sorted(group.kept + group.left_out) for group in found] == expected
        for group in found:
            rows = sorted(group.kept + group.left_out)
            assert group.kept == ((rows[0],) if len(set(labels[rows].tolist())) == 1 else ())


def test_findings_of_one_image_are_not_copies_and_stay_or_go_together() -> None:
    one, other = hash_of(drawn(1)), hash_of(drawn(2))
    images = [Path(name) for name in ("a", "a", "b", "c", "c")]
    labels = np.array([0, 1, 0, 1, 0])
    groups = find_copies(images, labels, [one, one, other, one, one], 20)
    assert [(group.kept, group.left_out) for group in groups] == [((0, 1), (3, 4))]
    assert [
        (group.kept, group.left_out) for group in find_copies(images, np.array([0, 1, 0, 1, 1]), [one] * 5, 20)
    ] == [((), (0, 1, 2, 3, 4))]


def test_one_copy_stays_none_that_contradicts_and_nobody_else_changes_part(
    folder: SiteFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_cohort(PLAIN, folder, folder.run_folder("plain"))
    assert before.roll.copies is None and len(by_key(before)) == 45 and not (folder.cache / "perceptual.json").exists()
    with caplog.at_level(logging.WARNING, "consilium.site"):
        after = open_cohort(REMOVING, folder, folder.run_folder("removing"))
    gone = {"benign/again.jpg", "benign/copied.png", "benign/smaller.png", "malignant/again.jpg"}
    contradicting = {"benign/11.png", "malignant/denied.jpg"}
    assert by_key(after) == {key: part for key, part in by_key(before).items() if key not in gone | contradicting}
    assert after.roll.copies == CopiesLeftOut(copies=4, contradicting=2)
    assert "benign/11.png (benign), malignant/denied.jpg (malignant)" in caplog.text
    assert sum(part.images for part in after.counts(2).values()) == 39
    # The run's own file, and another run: no image is decoded again.
    monkeypatch.setattr(pixel_digests, "read_image", lambda path: pytest.fail(f"{path} was decoded again"))
    for run in ("removing", "another"):
        again = open_cohort(REMOVING, folder, folder.run_folder(run))
        assert by_key(again) == by_key(after) and again.roll.copies == after.roll.copies


def test_who_withdraws_leaves_no_hash_behind(folder: SiteFolder) -> None:
    open_cohort(REMOVING, folder, folder.run_folder("one"))
    gone = hash_of(drawn(3))
    assert gone in (folder.cache / "perceptual.json").read_text()
    withdraw(folder, "p3")
    assert gone not in (folder.cache / "perceptual.json").read_text()
    again = open_cohort(REMOVING, folder, folder.run_folder("two"))
    assert "benign/03.png" not in by_key(again) and "benign/again.jpg" in by_key(again)


def test_too_few_patients_without_copies_is_refused(root: Path, tmp_path: Path) -> None:
    folder = SiteFolder.create(tmp_path / "anna", profile(root, minimum_patients=40))
    open_cohort(PLAIN, folder, folder.run_folder("one"))
    with pytest.raises(PolicyError, match=r"copies were left out \(data\.duplicates\): 39 patients are left"):
        open_cohort(REMOVING, folder, folder.run_folder("two"))


def test_the_count_is_among_what_a_private_run_may_not_hold() -> None:
    prepared = Prepared(
        parts={}, left_out=None, unreadable=None, copies=CopiesLeftOut(copies=0, contradicting=0), synthetic=True,
        patient_stand_in=None, device="cpu", precision="fp32", memory_format="contiguous", frozen_digest="0" * 64, seconds={},
    )  # fmt: skip
    assert exact_in_preparation(prepared) == ["copies"]


def test_what_a_file_shows_decides_whatever_its_format(root: Path, tmp_path: Path) -> None:
    image = read_image(root / "benign" / "05.png")
    Image.fromarray(image.array).save(tmp_path / "x.tiff")
    assert perceptual_hash(read_image(tmp_path / "x.tiff")) == perceptual_hash(image)
