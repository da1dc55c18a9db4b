"""Which tensors of a network travel between coordinator and hospitals, and which are only verified.

What is trained travels: parameters, and the running statistics of norms, of all that is not frozen. All else is the same
on both sides from the start and is compared by digest. `num_batches_tracked` does neither: with a fixed momentum nothing reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.errors import WireError
from shared.models.network import Network


def _tensors(network: Network) -> list[tuple[str, Tensor]]:
    state = network.state_dict(keep_vars=True)
    return [(name, tensor) for name, tensor in state.items() if not name.endswith("num_batches_tracked")]


def _travels(network: Network, name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not network.is_frozen(name)


def travelling(network: Network) -> list[tuple[str, Tensor]]:
    """Names and live tensors of what travels, in the order of the network's state_dict."""
    return [(name, tensor) for name, tensor in _tensors(network) if _travels(network, name, tensor)]


def travelling_arrays(network: Network) -> dict[str, npt.NDArray[np.float32]]:
    """Copies of what travels, as float32 arrays on the CPU, by name in the order of `travelling`."""
    return {
        name: tensor.detach()
        .to(device="cpu", dtype=torch.float32, copy=True, memory_format=torch.contiguous_format)
        .numpy()
        for name, tensor in travelling(network)
    }


def load_travelling(network: Network, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Copy `arrays` into the network's tensors. Raises WireError, before anything is changed, where names or shapes differ."""
    targets = dict(travelling(network))
    if set(arrays) != set(targets):
        odd = sorted(set(arrays) ^ set(targets))
        raise WireError(f"expected the {len(targets)} tensors of the network, but {len(odd)} differ, e.g. '{odd[0]}'")
    for name, tensor in targets.items():
        if tuple(arrays[name].shape) != tuple(tensor.shape):
            raise WireError(f"expected tensor '{name}' of shape {tuple(tensor.shape)}, but got {arrays[name].shape}")
    with torch.no_grad():
        for name, tensor in targets.items():
            # np.array copies: torch refuses to share memory that is read-only.
            tensor.copy_(torch.from_numpy(np.array(arrays[name], dtype=np.float32)))


def frozen_digest(network: Network) -> str:
    """SHA-256 (hex) over names, shapes, dtypes and little-endian bytes of all that does not travel."""
    sha = hashlib.sha256()
    for name, tensor in _tensors(network):
        if _travels(network, name, tensor):
            continue
        array = tensor.detach().to(device="cpu").contiguous().numpy()
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        sha.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode() + b"\n")
        sha.update(array.tobytes())
    return sha.hexdigest()
