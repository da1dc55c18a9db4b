"""Starting weights: read from a file whose digest the study names, or torchvision's own, and fitted to a network."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from shared.errors import StorageError, WeightsError, WeightsUnavailableError
from shared.models.attention import Attention
from shared.models.network import FederatedNetwork
from shared.provenance import metadata_in
from shared.study_model import WeightsFile
from shared.torchvision_cpu import import_torchvision

#: Weights of `weights: torchvision`, by name: torchvision's DEFAULT may change, and with it what a study means.
TORCHVISION_WEIGHTS: Mapping[str, str] = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
    "resnext50_32x4d": "ResNeXt50_32X4D_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_Weights.IMAGENET1K_V1",
    "vgg16_bn": "VGG16_BN_Weights.IMAGENET1K_V1",
    "googlenet": "GoogLeNet_Weights.IMAGENET1K_V1",
    "mobilenet_v2": "MobileNet_V2_Weights.IMAGENET1K_V1",
    "regnet_y_400mf": "RegNet_Y_400MF_Weights.IMAGENET1K_V1",
    "vit_b_16": "ViT_B_16_Weights.IMAGENET1K_V1",
    "efficientnet_b0": "EfficientNet_B0_Weights.IMAGENET1K_V1",
    "efficientnet_b3": "EfficientNet_B3_Weights.IMAGENET1K_V1",
    # Their first network; what they have besides starts as it was drawn.
    "skinnet_v1": "EfficientNet_B0_Weights.IMAGENET1K_V1",
    "skinnet_v2": "EfficientNet_B0_Weights.IMAGENET1K_V1",
    "skinnet_v3": "EfficientNet_B0_Weights.IMAGENET1K_V1",
    "skinnet_v4": "EfficientNet_B0_Weights.IMAGENET1K_V1",
}

#: Longest silence of the server, and longest time of the whole download, in seconds.
SILENCE_S = 15.0
DOWNLOAD_S = 900.0


def read_weights(weights: WeightsFile, *, root: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a PyTorch state_dict, by name, on the CPU.

    A relative `weights.file` is relative to `root`, or else to the working folder. A state_dict is read with `weights_only=True`: no
    code in it runs. Raises WeightsUnavailableError where the file can't be read, WeightsError where its SHA-256 is not the
    study's or it holds something other than named tensors.
    """
    path, content = _read_verified(weights, root=root, key="model.weights")
    return _tensors(content, path)


def read_described_weights(
    weights: WeightsFile, *, root: Path | None = None, key: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_weights`, and what a .safetensors file says of itself in its metadata (nothing: {}). `key` names it in the study."""
    path, content = _read_verified(weights, root=root, key=key)
    tensors = _tensors(content, path, key)
    return tensors, metadata_in(io.BytesIO(content), path) if path.suffix == ".safetensors" else {}


def _read_verified(weights: WeightsFile, *, root: Path | None = None, key: str) -> tuple[Path, bytes]:
    """Path and bytes of the file that the study names under `key`. Raises WeightsUnavailableError, WeightsError as `read_weights`."""
    path = Path(weights.file).expanduser()
    if root is not None and not path.is_absolute():
        path = root / path
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise WeightsUnavailableError(
            f"{key}: {path}: can't be read: {problem.strerror}; the file's source is: {weights.source}"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != weights.sha256:
        raise WeightsError(
            f"{key}: {path}: expected SHA-256 {weights.sha256}, but got {found}; this is another file than the study means"
        )
    return path, content


def _tensors(content: bytes, path: Path, key: str = "model.weights") -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_safetensors(content)
        else:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as problem:
        raise WeightsError(f"{key}: {path}: not a readable weight file: {_first_line(problem)}") from None
    except Exception as problem:  # torch.load raises pickle's errors, which share no narrower base
        raise WeightsError(f"{key}: {path}: expected a plain state_dict, but got {_first_line(problem)}") from None
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{key}: {path}: expected a state_dict (names and tensors), but got something else")
    return {str(name): value for name, value in loaded.items()}


def _first_line(problem: Exception) -> str:
    return (str(problem) or type(problem).__name__).splitlines()[0]


def torchvision_weights(name: str) -> dict[str, Tensor]:
    """torchvision's published weights of the model `name`, from torch's cache, or else fetched into it.

    Ends within DOWNLOAD_S seconds whatever the server does. Raises WeightsUnavailableError where they can't be fetched, WeightsError
    where torchvision has none or the file is not the published one (its name carries the start of its SHA-256).
    """
    if name not in TORCHVISION_WEIGHTS:
        raise WeightsError(f"model.weights: torchvision has no weights for '{name}'; name a file or take none")
    url = str(import_torchvision().models.get_weight(TORCHVISION_WEIGHTS[name]).url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    content = path.read_bytes() if path.is_file() else _fetch(url)
    prefix = path.stem.rsplit("-", 1)[-1]
    if not hashlib.sha256(content).hexdigest().startswith(prefix):
        where = path if path.is_file() else url
        raise WeightsError(f"model.weights: {where}: expected a SHA-256 that starts with {prefix}; the file is damaged")
    if not path.is_file():
        _keep(content, path)
    return _tensors(content, path)


def _fetch(url: str) -> bytes:
    end = time.monotonic() + DOWNLOAD_S
    pieces: list[bytes] = []
    try:
        with urllib.request.urlopen(url, timeout=SILENCE_S) as stream:
            while piece := stream.read1(1 << 20):
                pieces.append(piece)
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete after {DOWNLOAD_S:g} s")
    except OSError as problem:  # URLError and TimeoutError are OSErrors
        reason = getattr(problem, "reason", problem)
        raise WeightsUnavailableError(
            f"model.weights: torchvision's weights could not be fetched from {url}: {reason}; "
            "where there is no network, bring the file and give model.weights as file, sha256 and source"
        ) from None
    return b"".join(pieces)


def _keep(content: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(name).replace(path)
    except OSError as problem:
        raise StorageError(f"{path}: could not be written: {problem.strerror}") from None


def fit_weights(network: FederatedNetwork, weights: Mapping[str, Tensor]) -> frozenset[str]:
    """Load `weights` into `network`; returns the names of the network's tensors that were filled.

    The head and the network's `fresh_layers` are left as they were initialised where the weights lack them or have another shape, and so
    is an attention module of which the weights hold nothing. Raises WeightsError naming every other tensor that is missing, unexpected,
    of another shape or not finite.
    """
    own = network.state_dict()
    given = network.adapted(weights)
    replaceable: list[str] = []
    for layer in (network.head_name, *network.fresh_layers):
        names = [name for name in own if name.startswith(f"{layer}.")]
        replaceable.extend(names)
        if any(name not in given or given[name].shape != own[name].shape for name in names):
            for name in names:
                given.pop(name, None)
    optional = {
        *replaceable,
        *(name for name in own if name.endswith("num_batches_tracked")),  # older files lack these counters
        *(name for name in own if _of_fresh_attention(network, name, given)),
    }
    faults = {
        "missing": [name for name in own if name not in given and name not in optional],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [
            f"{name} (expected {tuple(own[name].shape)}, got {tuple(given[name].shape)})"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ],
        "not finite": [name for name, tensor in given.items() if not bool(torch.isfinite(tensor).all())],
    }
    if any(faults.values()):
        said = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names)
        raise WeightsError(f"model.weights: the weights don't fit the model: {said}{_hint(faults['unexpected'])}")
    network.load_state_dict(given, strict=False)
    return frozenset(given)


def _of_fresh_attention(network: FederatedNetwork, name: str, given: Mapping[str, Tensor]) -> bool:
    return any(
        name.startswith(f"{prefix}.") and not any(other.startswith(f"{prefix}.") for other in given)
        for prefix, module in network.named_modules()
        if isinstance(module, Attention)
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _hint(unexpected: list[str]) -> str:
    if any(name.endswith("running_mean") for name in unexpected):
        return " (these weights were trained with batch norm: set model.norm to batch)"
    if any(name.startswith("descriptors.") for name in unexpected):
        return " (these weights were trained with task.descriptors: give the study the same, or export the model without its heads)"
    if any("attention" in name for name in unexpected):
        return " (these weights were trained with attention: see model.attention and model.cbam_at)"
    return ""
