"""What travels, what is only verified, and what a summary says of it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.errors import StudyError, WireError
from shared.models import build_network, summary
from shared.models.network import Network
from shared.models.state import frozen_digest, load_travelling, travelling, travelling_arrays
from shared.models.summary import summarise
from shared.study import Study
from shared.wire import Manifest, flatten, unflatten

MakeStudy = Callable[..., Study]


@pytest.fixture
def frozen_study(tmp_path: Path, make_study: MakeStudy) -> Callable[..., Study]:
    def make(**options: Any) -> Study:
        path = tmp_path / "w.pth"
        torch.save(build_network(make_study(seed=11, **options)).state_dict(), path)
        entry = {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "source": "test"}
        return make_study(weights=entry, freeze=["conv1", "bn1", "layer1"], **options)

    return make


def stirred(network: Network, seed: int) -> Network:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return network


def test_parameters_and_running_statistics_travel_and_counters_do_not(make_study: MakeStudy) -> None:
    network = build_network(make_study(attention="cbam", cbam_at="before_add"))
    expected = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    assert [name for name, _ in travelling(network)] == expected
    assert any(name.endswith("running_var") for name in expected)


def test_of_frozen_layers_nothing_travels(frozen_study: Callable[..., Study]) -> None:
    network = build_network(frozen_study())
    names = [name for name, _ in travelling(network)]
    assert names == [
        name
        for name in network.state_dict()
        if name.split(".")[0] not in ("conv1", "bn1", "layer1") and not name.endswith("num_batches_tracked")
    ]


def test_a_network_that_loads_anothers_arrays_is_the_same_function(make_study: MakeStudy) -> None:
    study = make_study(attention="cbam", cbam_at="stage_outputs")
    one, other = stirred(build_network(study), 1).eval(), stirred(build_network(study), 2).eval()
    arrays = travelling_arrays(one)
    manifest = Manifest.of(arrays)
    load_travelling(other, unflatten(flatten(arrays, manifest), manifest))
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


def test_arrays_are_copies_and_loading_takes_read_only_ones(make_study: MakeStudy) -> None:
    network = build_network(make_study())
    arrays = travelling_arrays(network)
    kept = arrays["fc.bias"].copy()
    with torch.no_grad():
        network.fc.bias.add_(1)
    np.testing.assert_array_equal(arrays["fc.bias"], kept)
    for array in arrays.values():
        array.setflags(write=False)
    load_travelling(network, arrays)
    np.testing.assert_array_equal(network.fc.bias.detach().numpy(), kept)


def test_channels_last_memory_does_not_change_what_travels(make_study: MakeStudy) -> None:
    network = build_network(make_study())
    before = travelling_arrays(network)
    after = travelling_arrays(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    for name, array in before.items():
        assert after[name].flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(array, after[name])


def test_other_names_or_shapes_are_refused_and_nothing_is_changed(make_study: MakeStudy) -> None:
    network = build_network(make_study())
    arrays = travelling_arrays(stirred(build_network(make_study()), 1))
    before = travelling_arrays(network)
    absent = {name: array for name, array in arrays.items() if name != "fc.bias"}
    with pytest.raises(WireError, match=r"1 differ, e\.g\. 'fc\.bias'"):
        load_travelling(network, absent)
    with pytest.raises(WireError, match=r"'fc\.bias' of shape \(2,\), but got \(3,\)"):
        load_travelling(network, {**arrays, "fc.bias": np.zeros(3, np.float32)})
    for name, array in travelling_arrays(network).items():
        np.testing.assert_array_equal(array, before[name])


def test_the_frozen_digest_sees_every_frozen_tensor_and_nothing_that_travels(
    frozen_study: Callable[..., Study],
) -> None:
    network = build_network(frozen_study())
    digest = frozen_digest(network)
    assert frozen_digest(build_network(frozen_study())) == digest
    load_travelling(network, {name: array + 1 for name, array in travelling_arrays(network).items()})
    assert frozen_digest(network) == digest
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert frozen_digest(network) == digest
    moving = {name for name, _ in travelling(network)}
    for name, tensor in network.state_dict().items():
        if name in moving or name.endswith("num_batches_tracked"):
            continue
        with torch.no_grad():
            first = tensor.view(-1)[:1] if tensor.is_contiguous() else tensor[:1, :1, :1, :1]
            kept = first.clone()
            first.add_(1)
            assert frozen_digest(network) != digest, name
            first.copy_(kept)
    assert frozen_digest(network) == digest


def test_a_summary_counts_what_is_trained_and_what_travels(frozen_study: Callable[..., Study]) -> None:
    for wire, width in (("fp32", 4), ("bf16", 2)):
        study = frozen_study(size=64, wire=wire)
        network = build_network(study)
        found = summarise(study)
        assert found.parameters == sum(p.numel() for p in network.parameters())
        frozen = sum(p.numel() for layer in ("conv1", "bn1", "layer1") for p in getattr(network, layer).parameters())
        assert found.trained_parameters == found.parameters - frozen
        assert found.bytes_up == (found.bytes_down,)
        assert found.bytes_down == width * sum(a.size for a in travelling_arrays(network).values())
        assert (found.input_shape, found.output_shape, found.feature_dim) == ((3, 64, 64), (2,), 512)


def test_one_logit_for_binary_cross_entropy(make_study: MakeStudy) -> None:
    assert summarise(make_study(loss="binary_cross_entropy")).output_shape == (1,)
    assert summarise(make_study(classes=7)).output_shape == (7,)


def test_a_summary_leaves_the_network_as_it_was(make_study: MakeStudy) -> None:
    network = build_network(make_study(dropout=0.3)).eval()
    before = travelling_arrays(network)
    state = torch.get_rng_state()
    summarise(make_study(dropout=0.3), network=network)
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, array in travelling_arrays(network).items():
        np.testing.assert_array_equal(array, before[name])


def test_only_group_norm_or_frozen_norms_are_dp_compatible(make_study: MakeStudy) -> None:
    assert summarise(make_study(norm="group", attention="cbam", cbam_at="after_block")).dp_compatible
    batch = summarise(make_study())
    assert not batch.dp_compatible
    assert len(batch.dp_obstacles) == 1
    assert batch.dp_obstacles[0].startswith("BatchNorm cannot support training with differential privacy")


def test_a_parameter_without_a_gradient_is_named(make_study: MakeStudy) -> None:
    network = build_network(make_study())
    network.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    with pytest.raises(StudyError, match=r"1 trained parameters get no finite gradient, e\.g\. 'unused'"):
        summary.summarise(make_study(), network=network)


def test_images_of_another_shape_do_not_pass(make_study: MakeStudy) -> None:
    network = build_network(make_study(channels=1))
    with pytest.raises(StudyError, match=r"a batch of two images of shape \(3, 32, 32\) does not pass"):
        summarise(make_study(channels=3), network=network)
