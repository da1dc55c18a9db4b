"""Aggregation: the weighted mean and the server optimisers against plain float64, and the same bytes whatever comes first."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import aggregation
from shared.aggregation import OptimiserState, apply_to_free, apply_update, normalised_weights, weighted_mean
from shared.errors import WireError
from shared.study_federation import ServerOptimiser
from shared.wire import Flat, Manifest, cut


def updates_of(sites: int, size: int, seed: int = 0) -> dict[str, Flat]:
    rng = np.random.default_rng(seed)
    return {f"site-{index}": rng.normal(size=size).astype(np.float32) * 10.0**index for index in range(sites)}


@pytest.mark.parametrize("size", [1, 1000, aggregation._CHUNK, aggregation._CHUNK + 1])
def test_the_weighted_mean_is_float64s(size: int) -> None:
    updates = updates_of(4, size)
    weights = normalised_weights({"site-0": 350, "site-1": 10, "site-2": 1.5, "site-3": 77})
    expected = np.average(
        np.stack([updates[site].astype(np.float64) for site in weights]), axis=0, weights=list(weights.values())
    )
    np.testing.assert_allclose(weighted_mean(updates, weights), expected, rtol=1e-6)


@given(
    st.permutations([f"site-{index}" for index in range(5)]), st.permutations([f"site-{index}" for index in range(5)])
)
def test_the_order_of_arrival_does_not_change_a_byte(order: list[str], other: list[str]) -> None:
    updates = updates_of(5, 400)
    raw = {site: 1.0 + index / 3 for index, site in enumerate(sorted(updates))}
    expected = weighted_mean(updates, normalised_weights(raw))
    shuffled = weighted_mean(
        {site: updates[site] for site in order}, normalised_weights({site: raw[site] for site in other})
    )
    assert shuffled.tobytes() == expected.tobytes()


def test_files_and_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    updates = updates_of(3, aggregation._CHUNK + 17)
    weights = normalised_weights(dict.fromkeys(updates, 1.0))
    for site, update in updates.items():
        np.save(tmp_path / f"{site}.npy", update)
    files = {site: tmp_path / f"{site}.npy" for site in updates}
    assert weighted_mean(files, weights).tobytes() == weighted_mean(updates, weights).tobytes()


def test_memory_does_not_grow_with_the_number_of_sites(tmp_path: Path) -> None:
    size = 1_000_000

    def peak(sites: int) -> int:
        files: dict[str, Path | Flat] = {f"s{index:02d}": tmp_path / f"{index % 3}.npy" for index in range(sites)}
        tracemalloc.start()
        try:
            weighted_mean(files, normalised_weights(dict.fromkeys(files, 1.0)))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.full(size, index, dtype=np.float32))
    few, many = peak(3), peak(30)
    assert few < 4 * size + 4 * 8 * aggregation._CHUNK + 500_000  # the mean, and a few chunks of float64
    assert many < few + 1_000_000, f"{few} bytes for 3 sites, {many} for 30"


@pytest.mark.parametrize("wrong", [np.ones(4, np.float32), np.ones(5, np.float64), np.ones((5, 1), np.float32)])
def test_an_update_of_another_shape_or_type_is_named(wrong: np.ndarray) -> None:
    updates = {"anna": np.ones(5, np.float32), "berta": wrong}
    with pytest.raises(WireError, match="update of berta: expected float32"):
        weighted_mean(updates, normalised_weights({"anna": 1, "berta": 1}))


def test_weights_must_be_of_the_same_sites() -> None:
    with pytest.raises(ValueError, match="expected weights of the sites"):
        weighted_mean({"anna": np.ones(2, np.float32)}, {"berta": 1.0})


@given(st.dictionaries(st.text(min_size=1), st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_weights_add_up_to_one_and_keep_their_proportions(raw: dict[str, float]) -> None:
    weights = normalised_weights(raw)
    assert list(weights) == sorted(raw)
    assert sum(weights.values()) == pytest.approx(1)
    first = next(iter(raw))
    for site in raw:
        assert weights[site] * raw[first] == pytest.approx(weights[first] * raw[site])


@pytest.mark.parametrize("raw", [{}, {"anna": 0.0}, {"anna": 1.0, "berta": -1.0}])
def test_weights_that_are_not_positive_are_refused(raw: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected positive weights"):
        normalised_weights(raw)


def reference(model: Flat, means: list[Flat], optimiser: ServerOptimiser) -> np.ndarray:
    """Reddi et al. 2021, algorithm 2, one value at a time in float64 (FedAvgM: Hsu et al. 2019)."""
    x = [float(value) for value in model]
    m = [0.0] * len(x)
    v = [optimiser.tau**2] * len(x)
    for mean in means:
        for i, delta in enumerate(float(value) for value in mean):
            if optimiser.name == "fedavg":
                x[i] += optimiser.learning_rate * delta
                continue
            if optimiser.name == "fedavgm":
                m[i] = optimiser.beta1 * m[i] + delta
                x[i] += optimiser.learning_rate * m[i]
                continue
            m[i] = optimiser.beta1 * m[i] + (1 - optimiser.beta1) * delta
            if optimiser.name == "fedadam":
                v[i] = optimiser.beta2 * v[i] + (1 - optimiser.beta2) * delta**2
            else:
                sign = (v[i] > delta**2) - (v[i] < delta**2)
                v[i] = v[i] - (1 - optimiser.beta2) * delta**2 * sign
            x[i] += optimiser.learning_rate * m[i] / (v[i] ** 0.5 + optimiser.tau)
    return np.array(x)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
@pytest.mark.parametrize("rate", [1.0, 0.03])
def test_server_optimisers_follow_their_papers(name: str, rate: float) -> None:
    optimiser = ServerOptimiser.model_validate({"name": name, "learning_rate": rate, "beta2": 0.95, "tau": 0.01})
    rng = np.random.default_rng(1)
    start = rng.normal(size=60).astype(np.float32)
    means = [rng.normal(scale=0.1, size=60).astype(np.float32) for _ in range(6)]
    model, state = start, OptimiserState.start(optimiser, start.size)
    for mean in means:
        model, state = apply_update(model, mean, optimiser, state)
        assert model.dtype == state.first.dtype == state.second.dtype == np.float32
    np.testing.assert_allclose(model, reference(start, means, optimiser), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_what_is_held_stays_bit_for_bit_and_so_do_its_moments(name: str) -> None:
    """Three rounds that train all have given every value momentum; then `b` is held, and `a` goes on as if it were alone."""
    optimiser = ServerOptimiser.model_validate({"name": name, "learning_rate": 0.03})
    manifest = Manifest.of({"b.weight": np.zeros((3, 4)), "a.weight": np.zeros(20), "b.bias": np.zeros(8)})
    free, held = manifest.without(["b"]), manifest.without(["a"])
    rng = np.random.default_rng(2)
    model = rng.normal(size=manifest.size).astype(np.float32)
    model[0] = -0.0
    state = OptimiserState.start(optimiser, model.size)
    for _ in range(3):
        mean = rng.normal(scale=0.1, size=model.size).astype(np.float32)
        model, state = apply_to_free(model, mean, optimiser, state, manifest=manifest, free=manifest)
    before, alone = (model, state), cut(model, manifest, free)
    moments = OptimiserState(*(cut(one, manifest, free) if one.size else one for one in (state.first, state.second)))
    for _ in range(2):
        mean = rng.normal(scale=0.1, size=free.size).astype(np.float32)
        model, state = apply_to_free(model, mean, optimiser, state, manifest=manifest, free=free)
        alone, moments = apply_update(alone, mean, optimiser, moments)
    assert cut(model, manifest, held).tobytes() == cut(before[0], manifest, held).tobytes()
    assert cut(model, manifest, free).tobytes() == alone.tobytes()
    for now, then, own in (
        (state.first, before[1].first, moments.first),
        (state.second, before[1].second, moments.second),
    ):
        assert now.size == then.size
        if now.size:
            assert cut(now, manifest, held).tobytes() == cut(then, manifest, held).tobytes()
            assert cut(now, manifest, free).tobytes() == own.tobytes()


def test_fedavg_with_rate_1_ends_in_the_mean_of_the_sites_models() -> None:
    start = np.zeros(10, dtype=np.float32)
    models = updates_of(3, 10)
    mean = weighted_mean(models, normalised_weights(dict.fromkeys(models, 1.0)))
    model, _ = apply_update(start, mean, ServerOptimiser(), OptimiserState.start(ServerOptimiser(), 10))
    np.testing.assert_allclose(model, np.mean([one.astype(np.float64) for one in models.values()], axis=0), rtol=1e-6)


def test_applying_an_update_leaves_its_inputs_as_they_were() -> None:
    optimiser = ServerOptimiser(name="fedadam")
    model, mean = np.ones(4, np.float32), np.full(4, 0.5, np.float32)
    state = OptimiserState.start(optimiser, 4)
    before = [array.copy() for array in (model, mean, state.first, state.second)]
    apply_update(model, mean, optimiser, state)
    for array, kept in zip((model, mean, state.first, state.second), before, strict=True):
        np.testing.assert_array_equal(array, kept)
