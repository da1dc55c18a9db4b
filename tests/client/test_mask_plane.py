"""The lesion's mask as one more plane: it is prepared and moved as its image is, and never retouched, normalised or kept too long."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from client.data.batches import Batches
from client.data.cache import ImageStore, forget_records, prepare_store, recipe_key
from client.data.ham10000 import Ham10000
from client.data.records import Record
from client.outlines import shown
from shared.errors import UnreadableImageError
from shared.imaging.preprocess import prepare, prepare_mask, recipe_digest
from shared.models.segmenter import NetworkSegmenter
from shared.study_augmentation import Augmentation, Blur, Cutout, Distortion
from shared.study_pixels import Clahe, LayerNormalise, Normalise, Preprocessing

ANNOTATED = {"from": "annotated"}
WEIGHTS = {"file": "unet.safetensors", "sha256": "a" * 64, "source": "run 1"}
MOVED = Augmentation(horizontal_flip=0.5, quarter_turns=True, rotation_degrees=30, translate=0.2, scale=0.3,
                     distortion=Distortion(probability=0.5))  # fmt: skip
RETOUCHED = MOVED.model_copy(
    update={
        "brightness": 0.4,
        "contrast": 0.5,
        "blur": Blur(probability=1, motion=5),
        "cutout": Cutout(probability=1, most=3, side=9),
    }
)


def recipe(mask: Any = ANNOTATED, **changes: Any) -> Preprocessing:
    return Preprocessing.model_validate({"region": "whole", "size": 24, "channels": 3, "mask": mask, **changes})


def record(folder: Path, index: int, *, kind: str = "grey", marked: bool = True) -> Record:
    """An image of 40 x 60 with a bright ellipse, and the ellipse's mask in two files."""
    folder.mkdir(exist_ok=True)
    rows, columns = np.mgrid[:40, :60]
    lesion = ((rows - 16 - index) / 10) ** 2 + ((columns - 25 + 2 * index) / 14) ** 2 < 1
    noise = np.random.default_rng(index).integers(0, 100, (40, 60))
    pixels = (noise + 120 * lesion).astype(np.uint8)
    if kind == "colour":
        pixels = np.stack([pixels, pixels // 2, 255 - pixels], axis=2)
    if kind == "deep":
        pixels = pixels.astype(np.uint16) * 250
    Image.fromarray(pixels).save(folder / f"{index}.png")
    masks = []
    for half, part in enumerate((columns < 25, columns >= 25)):
        masks.append(folder / f"{index}_mask_{half}.png")
        Image.fromarray((lesion & part).astype(np.uint8) * 255).save(masks[-1])
    return Record(f"r{index}", folder / f"{index}.png", "a", f"p{index}", masks=tuple(masks) if marked else ())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("region", ["whole", "finding"])
@pytest.mark.parametrize("kind", ["grey", "colour", "deep"])
def test_the_last_plane_is_the_mask_and_the_others_are_the_image_as_without_it(
    tmp_path: Path, kind: str, region: str, channels: int
) -> None:
    one = record(tmp_path, 0, kind=kind)
    asked = recipe(channels=channels, region=region, clahe=Clahe(tiles=4), denoise="median")
    planes = prepare(one.image, one.masks, asked)
    plain = prepare(one.image, one.masks, asked.model_copy(update={"mask": None}))
    assert planes.shape == (channels + 1, 24, 24) and planes.dtype == plain.dtype
    np.testing.assert_array_equal(planes[:-1], np.broadcast_to(plain, (channels, 24, 24)))
    most = 1 if kind == "deep" else 255
    expected = np.where(prepare_mask(one.image, one.masks, asked) >= 0.5, most, 0)
    assert 20 < (expected > 0).sum() < 400
    np.testing.assert_array_equal(planes[-1], expected)


def test_keys_follow_what_decides_the_plane_and_stay_as_they_were_without_one() -> None:
    def predicted(threshold: float = 0.5, **changes: str) -> Preprocessing:
        return recipe({"from": "model", "weights": {**WEIGHTS, **changes}, "threshold": threshold})

    different = [recipe(None), recipe(), predicted(), predicted(0.4), predicted(sha256="b" * 64)]
    assert len({recipe_key(one) for one in different}) == len({recipe_digest(one) for one in different}) == 5
    assert recipe_key(predicted(file="other.safetensors", source="run 2", origin="federation")) == recipe_key(
        predicted()
    )
    # Of a release without masks: caches that were filled by it stay of use.
    today = "17e8ae1aec6b1db32069712725062c3f80f40a854b613228843e3297b48c4b07"
    assert recipe_digest(recipe(None, size=16)) == today


def test_the_cache_knows_masks_by_content_names_what_has_none_and_forgets_them(tmp_path: Path) -> None:
    records = [record(tmp_path / "data", index, kind=kind) for index, kind in enumerate(("grey", "colour", "deep"))]
    bare = record(tmp_path / "data", 3, marked=False)

    def stored(*some: Record, unreadable: Any = "stop") -> ImageStore:
        return prepare_store(some, recipe(), tmp_path / "cache", unreadable=unreadable)

    first = np.array(stored(*records).images)
    assert first.shape == (3, 4, 24, 24) and first.dtype == np.float16
    assert set(np.unique(first[:, 3])) == {0, 1}
    np.testing.assert_array_equal(stored(records[1]).images[0], prepare(records[1].image, records[1].masks, recipe()))
    with pytest.raises(
        UnreadableImageError, match=r"3\.png: it has no mask, but the study's preprocessing\.mask is from"
    ):
        stored(*records, bare)
    skipped = stored(*records, bare, unreadable="skip")
    assert skipped.readable.tolist() == [True, True, True, False] and not skipped.images[3].any()
    full = np.full((40, 60), 255, np.uint8)
    full[0, 0] = 0
    Image.fromarray(full).save(records[0].masks[0])
    assert stored(*records).images[0, 3].sum() > first[0, 3].sum()
    np.testing.assert_array_equal(stored(*records).images[0, :3], first[0, :3])
    forget_records(tmp_path / "cache", {"r1"}, [records[1].image, *records[1].masks])
    kept = [np.load(path) for path in (tmp_path / "cache").rglob("*.npy") if len(np.load(path)) == 3]
    assert kept and all(not images[1].any() and images[[0, 2], 3].any(axis=(1, 2)).all() for images in kept)


def store_of(planes: NDArray[Any]) -> ImageStore:
    return ImageStore(planes, np.ones(len(planes), np.bool_), ())


def discs(count: int = 12, size: int = 40) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:size, :size]
    at = np.random.default_rng(3).uniform(0.3, 0.7, (count, 2)) * size
    near = [(rows - y) ** 2 + (columns - x) ** 2 < (size / 5) ** 2 for y, x in at]
    return np.stack(near).astype(np.uint8) * 255


def batch(planes: NDArray[Any], augmentation: Augmentation | None, **changes: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5) if augmentation is not None else None
    batches = Batches(
        store_of(planes), [0] * len(planes), range(len(planes)), recipe=recipe(size=40, **changes), batch_size=len(planes),
        generator=generator, augmentation=augmentation,
    )  # fmt: skip
    return next(iter(batches))[0]


def test_image_and_mask_move_together() -> None:
    disc = discs()
    found = batch(np.stack([disc] * 4, axis=1), MOVED)
    assert found.shape == (12, 4, 40, 40) and not torch.equal(found[:, 3], torch.from_numpy(disc / 255).float())
    torch.testing.assert_close(found[:, 3], (found[:, 0] >= 0.5).float())


@pytest.mark.parametrize("normalisation", ["normalise", "layer_normalise"])
def test_what_retouches_or_normalises_the_image_leaves_the_mask_alone(normalisation: str) -> None:
    values = {"normalise": Normalise(mean=[0.3], std=[0.2]), "layer_normalise": LayerNormalise(gamma=1.2, beta=0.1)}
    noise = np.random.default_rng(0).integers(0, 256, (12, 3, 40, 40)).astype(np.uint8)
    planes = np.concatenate([noise, discs()[:, None]], axis=1)
    chosen = {normalisation: values[normalisation].model_dump()}
    retouched, moved = batch(planes, RETOUCHED, **chosen), batch(planes, MOVED)
    assert torch.equal(retouched[:, 3], moved[:, 3]) and set(retouched[:, 3].unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(retouched[:, :3], moved[:, :3])
    # As the image alone: no figure of the mask goes into its mean.
    alone = Batches(
        store_of(noise), [0] * 12, range(12), recipe=recipe(None, size=40, **chosen), batch_size=12,
        generator=torch.Generator().manual_seed(5), augmentation=RETOUCHED,
    )  # fmt: skip
    torch.testing.assert_close(retouched[:, :3], next(iter(alone))[0])
    plain = batch(planes, None, **chosen)
    np.testing.assert_array_equal(plain[:, 3].numpy() * 255, planes[:, 3])


def test_a_store_without_the_plane_is_refused() -> None:
    with pytest.raises(ValueError, match="expected images of 4 planes, the mask last, but got 3"):
        batch(np.stack([discs()] * 3, axis=1), None)


class Bright(torch.nn.Module):
    """Logits above 0 where the first channel is brighter than `level`, after whatever was done to it."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, :1] - self.level) * 20


def test_a_predicted_mask_is_made_once_from_the_image_as_the_networks_own_study_prepares_it(tmp_path: Path) -> None:
    own = Preprocessing(region="whole", size=32, channels=1, normalise=Normalise(mean=[0.5], std=[0.25]))
    segmenter, made = NetworkSegmenter(Bright(-0.1), own), []
    records = [record(tmp_path / "data", index, marked=False) for index in range(3)]
    asked = recipe({"from": "model", "weights": WEIGHTS, "threshold": 0.6})

    def make() -> NetworkSegmenter:
        made.append(1)
        return segmenter

    def stored() -> ImageStore:
        return prepare_store(records, asked, tmp_path / "cache", unreadable="stop", segmenter=make)

    store = stored()
    for row, one in zip(store.images, records, strict=True):
        small = prepare(one.image, (), own)[0].astype(np.float32) / 255
        logits = torch.from_numpy(((small - 0.5) / 0.25 + 0.1) * 20)[None, None]
        chance = torch.nn.functional.interpolate(torch.sigmoid(logits), 24, mode="bilinear", antialias=True)[
            0, 0
        ].numpy()
        clear = np.abs(chance - 0.6) > 0.02  # an image at 8 bits is up to half a level off
        np.testing.assert_array_equal((row[3] == 255)[clear], (chance >= 0.6)[clear])
        assert 0.1 < (row[3] == 255).mean() < 0.5
        np.testing.assert_array_equal(row[:3], np.broadcast_to(prepare(one.image, (), recipe(None)), (3, 24, 24)))
    stored()
    assert made == [1], "the network is asked for only where an image must be prepared"


def test_a_predicted_mask_of_whole_images_is_cut_out_as_the_finding_is(tmp_path: Path) -> None:
    one = record(tmp_path, 0)
    segmenter = NetworkSegmenter(Bright(0.45), Preprocessing(region="whole", size=60, channels=1))
    asked = recipe({"from": "model", "weights": WEIGHTS}, region="finding", size=35, margin=0)
    cut = prepare(one.image, one.masks, asked, None, segmenter)
    true = prepare(one.image, one.masks, recipe(region="finding", size=35, margin=0))
    assert ((cut[3] > 0) == (true[3] > 0)).mean() > 0.95


def test_pictures_show_the_edge_of_the_mask_and_nothing_of_its_plane() -> None:
    disc = discs(1)
    stored = np.concatenate([np.full((1, 40, 40), 51, np.uint8), disc])
    picture = shown(stored, recipe(channels=1))
    assert picture.shape == (3, 40, 40)
    edge = (picture != np.float32(0.2)).any(axis=0)
    assert (disc[0] > 0)[edge].all() and 0 < edge.sum() < (disc > 0).sum() / 2
    everything = shown(np.concatenate((np.zeros((3, 5, 5), np.float32), np.ones((1, 5, 5), np.float32))), recipe())
    assert everything[1].astype(bool).sum() == 16, "where the mask reaches the border, its edge is the border"
    np.testing.assert_allclose(shown(stored[:1], recipe(None, channels=1)), np.float32(51) / np.float32(255))


@pytest.mark.skipif(
    "FEDERATION_DATA" not in os.environ, reason="needs FEDERATION_DATA, the folder with real HAM10000 images and masks"
)
def test_real_dermoscopy_and_its_masks(tmp_path: Path) -> None:
    """Against Pillow alone: the mask padded to a square with nothing and reduced by its box filter."""
    records = Ham10000()(Path(os.environ["FEDERATION_DATA"]) / "ham10000" / "rosendahl", unit="image").records[:12]
    store = prepare_store(records, recipe(size=50), tmp_path / "cache", unreadable="stop")
    assert store.images.shape == (12, 4, 50, 50)
    for row, one in zip(store.images, records, strict=True):
        with Image.open(one.masks[0]) as opened:
            mask = opened.convert("L")
        square = Image.new("L", (200, 200))
        square.paste(mask, (0, 25))
        expected = np.asarray(square.resize((50, 50), Image.Resampling.BOX)) >= 128
        found = row[3] == 255
        assert (found & expected).sum() / (found | expected).sum() > 0.9
        assert not found[:6].any() and not found[-6:].any(), "nothing is marked where the image was padded"
