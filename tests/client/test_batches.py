"""Batches: the stored pixels, normalised, in an order that the generator alone decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.data.batches import Batches
from client.data.cache import ImageStore
from shared.study_augmentation import Augmentation
from shared.study_pixels import LayerNormalise, Normalise, Preprocessing

RECIPE = Preprocessing(region="whole", size=16, channels=3)


def store(count: int = 23, channels: int = 1, dtype: type = np.uint8) -> ImageStore:
    generator = np.random.default_rng(count)
    images = generator.integers(0, 256, (count, channels, 16, 16))
    images = images.astype(np.uint8) if dtype is np.uint8 else (images / 255).astype(np.float16)
    images.flags.writeable = False
    return ImageStore(images, np.ones(count, dtype=np.bool_), ())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_evaluation_gives_the_pixels_in_order_normalised_by_hand(channels: int, dtype: type) -> None:
    held = store(channels=channels, dtype=dtype)
    recipe = RECIPE.model_copy(update={"normalise": Normalise(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])})
    indices, labels = [5, 3, 22, 0, 7], np.arange(23) * 10
    batches = Batches(held, labels, indices, recipe=recipe, batch_size=2)
    got = list(batches)
    assert [len(images) for images, _ in got] == [2, 2, 1] and len(batches) == 3 and batches.images == 5
    images, targets = torch.cat([image for image, _ in got]), torch.cat([label for _, label in got])
    assert images.dtype == torch.float32 and targets.tolist() == [50, 30, 220, 0, 70] and targets.dtype == torch.int64
    unit = held.images[indices].astype(np.float64) / (255 if dtype is np.uint8 else 1)
    mean, std = (np.array(values)[:, None, None] for values in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    np.testing.assert_allclose(images.numpy(), (np.broadcast_to(unit, (5, 3, 16, 16)) - mean) / std, atol=1e-6)


def test_one_constant_serves_all_channels_and_none_leaves_unit_range() -> None:
    held = store()
    (plain, _), *_ = Batches(held, [0] * 23, range(23), recipe=RECIPE, batch_size=23)
    assert float(plain.min()) >= 0 and float(plain.max()) <= 1
    recipe = RECIPE.model_copy(update={"normalise": Normalise(mean=[0.5], std=[0.25])})
    (scaled, _), *_ = Batches(held, [0] * 23, range(23), recipe=recipe, batch_size=23)
    torch.testing.assert_close(scaled, (plain - 0.5) / 0.25)


def test_layer_normalisation_is_each_images_own_with_public_gamma_and_beta() -> None:
    held = store(channels=3)
    recipe = RECIPE.model_copy(update={"layer_normalise": LayerNormalise(gamma=1.2, beta=0.1)})
    (images, _), *_ = Batches(held, [0] * 23, range(23), recipe=recipe, batch_size=23)
    unit = held.images.astype(np.float64) / 255
    mean, deviation = unit.mean(axis=(1, 2, 3), keepdims=True), unit.std(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(images.numpy(), 1.2 * (unit - mean) / deviation + 0.1, atol=1e-3)
    (alone, _), *_ = Batches(held, [0] * 23, [4], recipe=recipe, batch_size=1)
    torch.testing.assert_close(alone[0], images[4])
    flat = ImageStore(np.full((1, 1, 16, 16), 7, np.uint8), np.ones(1, dtype=np.bool_), ())
    (same, _), *_ = Batches(flat, [0], [0], recipe=recipe, batch_size=1)
    torch.testing.assert_close(same, torch.full_like(same, 0.1))


def test_training_sees_every_index_once_an_epoch_in_a_new_order() -> None:
    held, indices = store(), np.arange(3, 23)
    batches = Batches(held, np.arange(23), indices, recipe=RECIPE, batch_size=6, generator=seeded())
    epochs = [torch.cat([labels for _, labels in batches]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == indices.tolist() for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != indices.tolist()


def test_labels_stay_with_their_images() -> None:
    held = store()
    for images, labels in Batches(held, np.arange(23), range(23), recipe=RECIPE, batch_size=4, generator=seeded()):
        np.testing.assert_allclose(images[:, :1].numpy() * 255, held.images[labels.numpy()], atol=1e-4)


def test_the_same_seed_gives_the_same_batches_bit_for_bit() -> None:
    spec = Augmentation(horizontal_flip=0.5, rotation_degrees=20, brightness=0.2)

    def run(seed: int) -> list[torch.Tensor]:
        batches = Batches(
            store(), [0] * 23, range(23), recipe=RECIPE, batch_size=5, generator=seeded(seed), augmentation=spec
        )
        return [images for _ in range(2) for images, _ in batches]

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_last_image_alone_joins_the_batch_before_it_in_training_only() -> None:
    def sizes(count: int, generator: torch.Generator | None) -> list[int]:
        batches = Batches(store(), [0] * 23, range(count), recipe=RECIPE, batch_size=4, generator=generator)
        found = [len(images) for images, _ in batches]
        assert len(found) == len(batches)
        return found

    assert sizes(9, seeded()) == [4, 5] and sizes(10, seeded()) == [4, 4, 2]
    assert sizes(9, None) == [4, 4, 1] and sizes(1, seeded()) == [1] and sizes(0, seeded()) == []


def test_channels_last_is_a_layout_and_changes_no_value() -> None:
    options = {"recipe": RECIPE, "batch_size": 23}
    (plain, _), *_ = Batches(store(), [0] * 23, range(23), **options)
    (nhwc, _), *_ = Batches(store(), [0] * 23, range(23), memory_format=torch.channels_last, **options)
    assert nhwc.is_contiguous(memory_format=torch.channels_last) and torch.equal(plain, nhwc)


def test_what_cannot_be_meant_is_refused() -> None:
    held = store()
    held.readable[4] = False
    with pytest.raises(ValueError, match="can't be read"):
        Batches(held, [0] * 23, [3, 4], recipe=RECIPE, batch_size=2)
    with pytest.raises(ValueError, match="one label for each"):
        Batches(held, [0] * 5, [3], recipe=RECIPE, batch_size=2)
    with pytest.raises(ValueError, match="indices from 0 to 22"):
        Batches(held, [0] * 23, [23], recipe=RECIPE, batch_size=2)
    with pytest.raises(ValueError, match="needs a generator"):
        Batches(held, [0] * 23, [1], recipe=RECIPE, batch_size=2, augmentation=Augmentation(vertical_flip=0.5))


def test_augmented_without_shuffling_the_rows_keep_their_order_and_the_seed_decides_the_rest() -> None:
    held, spec = store(channels=3), Augmentation(horizontal_flip=1.0)
    runs = []
    for _ in range(2):
        batches = Batches(
            held,
            range(23),
            range(23),
            recipe=RECIPE,
            batch_size=11,
            generator=seeded(3),
            augmentation=spec,
            shuffle=False,
        )
        got = list(batches)
        assert [len(labels) for _, labels in got] == [11, 11, 1]
        assert torch.cat([labels for _, labels in got]).tolist() == list(range(23))
        runs.append(torch.cat([images for images, _ in got]))
    torch.testing.assert_close(runs[0], torch.from_numpy(held.images[:, :, :, ::-1].astype(np.float32)) / 255)
    assert torch.equal(runs[0], runs[1])
