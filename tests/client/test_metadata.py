"""Metadata of records as a network gets them, and how they come with the images of a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from client.data.batches import Batches
from client.data.cache import ImageStore
from client.data.metadata import encoded
from client.data.records import Record
from shared.errors import DataError, StudyError
from shared.models.inputs import metadata_in
from shared.study import Study, load_study, study_from_data
from shared.study_metadata import Category, Number
from shared.study_pixels import Preprocessing

AGE = Number(kind="number", name="age", low=20, high=80)
SEX = Category(kind="category", name="sex", values=["female", "Male"])


def record(key: str, **metadata: float | str) -> Record:
    return Record(key=key, image=Path(f"{key}.png"), label="nv", patient=key, metadata=metadata)


def test_numbers_and_categories_are_encoded_by_constants_and_unknown_ones_are_zero() -> None:
    records = [
        record("a", age=50.0, sex="male "),
        record("b", age="95", sex="unknown"),
        record("c", sex=""),
        record("d"),
    ]
    expected = [[0.5, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert_array_equal(encoded(records, [AGE, SEX]), np.array(expected, dtype=np.float32))
    assert encoded(records, []).shape == (4, 0)


def test_what_no_record_has_and_a_number_that_is_none_are_refused() -> None:
    with pytest.raises(DataError, match=r"no 'age'; its metadata are localization, sex"):
        encoded([record("a", sex="male", localization="back")], [AGE])
    for value in ("old", "nan"):
        with pytest.raises(DataError, match=f"'age' of a must be a number or empty, but is '{value}'"):
            encoded([record("a", age=value)], [AGE])
        assert not encoded([record("a", age=value)], [AGE, SEX], required=False).any()


def test_each_image_of_a_batch_comes_with_its_own_metadata() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16)).astype(np.uint8)
    metadata = np.arange(9 * 4, dtype=np.float32).reshape(9, 4)
    recipe = Preprocessing(region="whole", size=16, channels=3)
    batches = Batches(
        ImageStore(images, np.ones(9, dtype=np.bool_), ()),
        range(9),
        range(9),
        recipe=recipe,
        batch_size=4,
        generator=torch.Generator().manual_seed(1),
        metadata=metadata,
    )
    seen = [(x, y) for x, y in batches]
    assert [tuple(x.shape[1:]) for x, _ in seen] == [(4, 16, 16)] * 2  # a last single image joins the batch before it
    for x, y in seen:
        assert_array_equal(metadata_in(x, 4).numpy(), metadata[y.numpy()])
        assert_array_equal((x[:, :3] * 255).round().numpy().astype(np.uint8), images[y.numpy()])


def changed(**keys: Any) -> Study:
    data = load_study(Path("configs/skinnet_v1_small.yaml")).to_data()
    for key, value in keys.items():
        target = data
        *above, last = key.split("__")
        for name in above:
            target = target[name]
        target[last] = value
    return study_from_data(data)


def test_a_study_says_what_is_wrong_with_its_metadata_and_stages() -> None:
    from shared.models import build_network

    with pytest.raises(StudyError, match="one name stands there twice"):
        changed(metadata=[AGE.model_dump(), AGE.model_dump()])
    with pytest.raises(StudyError, match=r"must add up to federation\.rounds, 18, but add up to 9"):
        changed(training__stages=[{"rounds": 9, "freeze": ["metadata"]}])
    with pytest.raises(StudyError, match="skinnet_v1 needs some"):
        build_network(changed(metadata=[]))
    with pytest.raises(StudyError, match="resnet18 takes none"):
        build_network(changed(model__name="resnet18", training__stages=[]))
    stages = changed().training
    assert [stages.stage_of(number)[0] for number in (1, 13, 14, 18)] == [1, 1, 14, 14]
