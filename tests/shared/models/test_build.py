"""Building a study's network: seeds, starting weights, frozen layers."""

import hashlib
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.errors import StudyError, WeightsError, WeightsUnavailableError
from shared.models import build_network, weights
from shared.models.state import frozen_digest
from shared.study import Study
from shared.torchvision_cpu import import_torchvision

MakeStudy = Callable[..., Study]
tv: Any = import_torchvision().models


def published(path: Path, classes: int = 1000, **changes: Tensor) -> dict[str, Any]:
    """A weight file as torchvision publishes it, and the study's `weights` that names it."""
    torch.manual_seed(5)
    network = tv.resnet18(num_classes=classes)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    state = {**network.state_dict(), **changes}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "source": "made in a test"}


def test_the_same_study_gives_the_same_network_and_another_seed_another(make_study: MakeStudy) -> None:
    options = {"attention": "cbam", "cbam_at": "after_block"}
    first, second = build_network(make_study(**options)), build_network(make_study(**options))
    other = build_network(make_study(seed=4, **options))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))


def test_the_global_generator_neither_matters_nor_moves(make_study: MakeStudy) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_network(make_study())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(build_network(make_study()).fc.weight, first.fc.weight)


def test_an_unknown_model_gets_the_nearest_name(make_study: MakeStudy) -> None:
    with pytest.raises(StudyError, match=r"unknown model 'resnt34'; did you mean 'resnet34'\?"):
        build_network(make_study(name="resnt34"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_weight_file_is_loaded_without_its_thousand_classes(name: str, tmp_path: Path, make_study: MakeStudy) -> None:
    entry = {**published(tmp_path / name), "file": name}
    network = build_network(make_study(weights=entry), weights_root=tmp_path)
    fresh = build_network(make_study())
    reference = tv.resnet18()
    torch.manual_seed(5)
    expected = tv.resnet18().state_dict()
    assert torch.equal(network.get_parameter("layer3.1.conv2.weight"), expected["layer3.1.conv2.weight"])
    assert not torch.equal(network.get_buffer("bn1.running_mean"), reference.bn1.running_mean)
    assert torch.equal(network.fc.weight, fresh.fc.weight)


def test_a_head_of_the_same_shape_is_loaded(tmp_path: Path, make_study: MakeStudy) -> None:
    network = build_network(make_study(weights=published(tmp_path / "w.pth", classes=2)))
    torch.manual_seed(5)
    assert torch.equal(network.fc.weight, tv.resnet18(num_classes=2).fc.weight)


def test_another_digest_is_refused_and_both_are_named(tmp_path: Path, make_study: MakeStudy) -> None:
    entry = published(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"expected SHA-256 {'0' * 64}, but got {entry['sha256']}") as caught:
        build_network(make_study(weights={**entry, "sha256": "0" * 64}))
    assert not isinstance(caught.value, WeightsUnavailableError)


def test_a_missing_file_is_named_with_its_source(tmp_path: Path, make_study: MakeStudy) -> None:
    entry = {"file": "absent.pth", "sha256": "0" * 64, "source": "the journal's site"}
    with pytest.raises(WeightsUnavailableError, match=r"absent\.pth: can't be read: .*the journal's site"):
        build_network(make_study(weights=entry), weights_root=tmp_path)


def digest_entry(path: Path) -> dict[str, Any]:
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "source": "test"}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_holds_no_weights_is_refused(suffix: str, tmp_path: Path, make_study: MakeStudy) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(b"these are not weights")
    with pytest.raises(WeightsError, match=r"model\.weights: .*w\."):
        build_network(make_study(weights=digest_entry(path)))


def test_code_in_a_weight_file_does_not_run(tmp_path: Path, make_study: MakeStudy) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1.weight": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        build_network(make_study(weights=digest_entry(tmp_path / "w.pth")))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_is_no_plain_state_dict_is_refused(tmp_path: Path, make_study: MakeStudy) -> None:
    torch.save({"epoch": 3, "state_dict": tv.resnet18().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="expected a state_dict"):
        build_network(make_study(weights=digest_entry(tmp_path / "w.pth")))


def test_missing_unexpected_misshapen_and_infinite_tensors_are_all_named(tmp_path: Path, make_study: MakeStudy) -> None:
    state = tv.resnet18().state_dict()
    del state["layer1.0.conv1.weight"]
    state["stem.weight"] = torch.zeros(1)
    state["layer2.0.conv1.weight"] = torch.zeros(1)
    state["bn1.weight"] = torch.full((64,), float("nan"))
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        build_network(make_study(weights=digest_entry(tmp_path / "w.pth")))
    said = str(caught.value)
    for part in (
        "1 missing: layer1.0.conv1.weight",
        "1 unexpected: stem.weight",
        "1 of another shape: layer2.0.conv1.weight (expected (128, 64, 3, 3), got (1,))",
        "1 not finite: bn1.weight",
    ):
        assert part in said


def test_batch_norm_weights_do_not_fit_a_group_norm_network(tmp_path: Path, make_study: MakeStudy) -> None:
    with pytest.raises(WeightsError, match="trained with batch norm"):
        build_network(make_study(weights=published(tmp_path / "w.pth"), norm="group"))


def test_torchvisions_weights_without_a_network_are_a_sentence(
    tmp_path: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def no_network(url: str, *, timeout: float) -> None:
        limits.append(timeout)
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(WeightsUnavailableError, match=r"could not be fetched from https://.*name resolution"):
        build_network(make_study(weights="torchvision"))
    assert limits == [weights.SILENCE_S]
    assert list(tmp_path.iterdir()) == []


class Trickle:
    """A server that never ends: every read gives one byte more."""

    def __enter__(self) -> "Trickle":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read1(self, _size: int) -> bytes:
        return b"x"


def test_a_download_that_never_ends_is_given_up(
    tmp_path: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda _url, timeout: Trickle())
    monkeypatch.setattr(weights, "DOWNLOAD_S", 0.0)
    with pytest.raises(WeightsUnavailableError, match="not complete after 0 s"):
        build_network(make_study(weights="torchvision"))


def test_torchvisions_weights_come_from_torchs_cache_and_damage_is_seen(
    tmp_path: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = published(tmp_path / "w.pth")
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    content = (tmp_path / "w.pth").read_bytes()

    class Published:
        url = f"https://example.invalid/resnet18-{entry['sha256'][:8]}.pth"

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(tv, "get_weight", lambda name: Published)
    cached = cache / Published.url.rsplit("/", 1)[-1]
    cached.write_bytes(content)
    network = build_network(make_study(weights="torchvision"))
    torch.manual_seed(5)
    assert torch.equal(network.get_parameter("conv1.weight"), tv.resnet18().conv1.weight)
    cached.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match="the file is damaged"):
        build_network(make_study(weights="torchvision"))


def step(network: nn.Module) -> None:
    """One training step with a large learning rate."""
    network.train()
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    network(torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimiser.step()


def test_frozen_layers_keep_weights_and_statistics_and_the_rest_learns(tmp_path: Path, make_study: MakeStudy) -> None:
    study = make_study(weights=published(tmp_path / "w.pth"), freeze=["conv1", "bn1", "layer1"])
    network = build_network(study)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    digest = frozen_digest(network)
    step(network)
    for name, tensor in network.state_dict().items():
        frozen = name.split(".")[0] in ("conv1", "bn1", "layer1")
        assert torch.equal(tensor, before[name]) == frozen, name
    assert frozen_digest(network) == digest
    assert not network.get_submodule("layer1.0.bn1").training
    assert network.get_submodule("layer2.0.bn1").training
    network.eval()
    assert not any(module.training for module in network.modules())


def test_a_frozen_layer_with_attention_that_no_file_filled_does_what_it_was_trained_for(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    entry = published(tmp_path / "w.pth")
    plain = build_network(make_study(weights=entry)).eval()
    for place in ("after_block", "before_add"):
        study = make_study(weights=entry, attention="cbam", cbam_at=place, freeze=["conv1", "bn1", "layer1"])
        network = build_network(study).eval()
        x = torch.rand((2, 64, 8, 8), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            expected = plain.get_submodule("layer1")(x)
            torch.testing.assert_close(network.get_submodule("layer1")(x), expected, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(network.get_submodule("layer2")(x), plain.get_submodule("layer2")(x), rtol=1e-2)


def test_attention_that_the_file_holds_is_loaded_and_not_held_open(tmp_path: Path, make_study: MakeStudy) -> None:
    options = {"attention": "cbam", "cbam_at": "after_block"}
    first = build_network(make_study(seed=9, **options))
    torch.save(first.state_dict(), tmp_path / "w.pth")
    entry = digest_entry(tmp_path / "w.pth")
    network = build_network(make_study(weights=entry, freeze=["conv1", "bn1", "layer1"], **options))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name]), name


def test_freezing_a_layer_that_is_not_there_names_the_nearest(tmp_path: Path, make_study: MakeStudy) -> None:
    entry = published(tmp_path / "w.pth")
    with pytest.raises(StudyError, match=r"no layer 'layr1'; did you mean 'layer1'\?"):
        build_network(make_study(weights=entry, freeze=["layr1"]))
    with pytest.raises(StudyError, match="no layer 'relu'"):
        build_network(make_study(weights=entry, freeze=["relu"]))


def test_freezing_everything_or_an_untrained_head_is_refused(tmp_path: Path, make_study: MakeStudy) -> None:
    entry = published(tmp_path / "w.pth")
    layers = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    with pytest.raises(StudyError, match="nothing is left to train"):
        build_network(make_study(weights=entry, freeze=layers))
    with pytest.raises(StudyError, match="'fc' is frozen"):
        build_network(make_study(weights=entry, freeze=["fc"]))
