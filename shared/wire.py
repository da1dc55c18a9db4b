"""Weights in transport: one flat buffer, and a manifest that says which tensors it holds.

One tensor of Flower's array record costs a request, a hash and possibly a back-off of a second, so a model travels as one.
`fp32` is exact. `bf16` halves the bytes: each value is rounded to the nearest bfloat16 (ties to even), relative error at most 2**-8.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from shared.canonical import digest
from shared.errors import WireError

Wire = Literal["fp32", "bf16"]
Flat = npt.NDArray[np.float32]

_LONGEST_NPY_HEADER = 1 << 16

_STORED: dict[Wire, type[np.float32] | type[np.uint16]] = {"fp32": np.float32, "bf16": np.uint16}


class Shaped(Protocol):
    """A NumPy array or a PyTorch tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """Name and shape of one float32 tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The tensors of a flat buffer, in order."""

    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Shaped]) -> Manifest:
        """The manifest of arrays or tensors by name, in their order; only their shapes are looked at."""
        return cls(tuple(Tensor(name, tuple(tensor.shape)) for name, tensor in tensors.items()))

    @property
    def size(self) -> int:
        """Number of values in the buffer."""
        return sum(tensor.size for tensor in self.tensors)

    def without(self, children: Collection[str]) -> Manifest:
        """The tensors, in order, that belong to none of these children of the network: `fc` has `fc.weight` and `fc.bias`."""
        return Manifest(tuple(tensor for tensor in self.tensors if tensor.name.split(".", 1)[0] not in children))

    def digest(self) -> str:
        return digest([[tensor.name, list(tensor.shape)] for tensor in self.tensors])


def flatten(arrays: Mapping[str, npt.NDArray[np.float32]], manifest: Manifest) -> Flat:
    """One float32 buffer (manifest.size,) of the named arrays. Raises WireError where names or shapes differ."""
    if list(arrays) != [tensor.name for tensor in manifest.tensors]:
        raise WireError(
            f"expected {len(manifest.tensors)} tensors in the manifest's order, but got {len(arrays)} others"
        )
    flat = np.empty(manifest.size, dtype=np.float32)
    start = 0
    for tensor in manifest.tensors:
        array = arrays[tensor.name]
        if tuple(array.shape) != tensor.shape:
            raise WireError(f"expected tensor '{tensor.name}' of shape {tensor.shape}, but got {tuple(array.shape)}")
        flat[start : start + tensor.size] = array.reshape(-1)
        start += tensor.size
    return flat


def unflatten(flat: Flat, manifest: Manifest) -> dict[str, npt.NDArray[np.float32]]:
    """Views into `flat`, by name. Raises WireError where the length differs."""
    if flat.shape != (manifest.size,):
        raise WireError(f"expected a buffer of {manifest.size} values, but got shape {flat.shape}")
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    start = 0
    for tensor in manifest.tensors:
        arrays[tensor.name] = flat[start : start + tensor.size].reshape(tensor.shape)
        start += tensor.size
    return arrays


def cut(flat: Flat, manifest: Manifest, free: Manifest) -> Flat:
    """The values (free.size,) of some tensors of `manifest`; `flat` itself where they are all. Raises WireError for another length."""
    arrays = unflatten(flat, manifest)
    return flat if free == manifest else flatten({tensor.name: arrays[tensor.name] for tensor in free.tensors}, free)


def put(values: Flat, into: Flat, manifest: Manifest, free: Manifest) -> Flat:
    """A copy of the buffer `into` in which the tensors `free` have these values (free.size,). Raises WireError for another length."""
    whole = into.copy()
    arrays = unflatten(whole, manifest)
    for name, array in unflatten(values, free).items():
        arrays[name][...] = array
    return whole


def encode(flat: Flat, wire: Wire) -> npt.NDArray[np.float32] | npt.NDArray[np.uint16]:
    """The buffer as it travels: float32 unchanged, or bfloat16 bits in uint16. NaN stays NaN, infinity stays infinity."""
    if wire == "fp32":
        return flat
    bits = np.ascontiguousarray(flat).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    if special.any():
        kept = bits | np.where(np.isnan(flat), np.uint32(0x00400000), np.uint32(0))
        rounded = np.where(special, kept, rounded)
    return (rounded >> np.uint32(16)).astype(np.uint16)


def decode(stored: npt.NDArray[np.generic], wire: Wire) -> Flat:
    """Float32 values of a buffer that travelled. Raises WireError where dtype or shape is not the wire's."""
    if stored.dtype != _STORED[wire] or stored.ndim != 1:
        raise WireError(f"expected a flat {wire} buffer, but got {stored.dtype} of shape {stored.shape}")
    if wire == "fp32":
        return stored.astype(np.float32, copy=False)
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_npy(data: bytes) -> npt.NDArray[np.generic]:
    """The flat array in the bytes of an .npy file, as a read-only view of them. Raises WireError where they hold anything else.

    `numpy.load` would copy it piece by piece: half a second for 87 MB.
    """
    stream = io.BytesIO(data[:_LONGEST_NPY_HEADER])
    try:
        version = npy_format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, _, dtype = npy_format.read_array_header_1_0(stream)
        if len(shape) != 1 or dtype.hasobject or stream.tell() + shape[0] * dtype.itemsize != len(data):
            raise ValueError(f"{dtype} of shape {shape} in {len(data)} bytes")
    except ValueError as problem:
        raise WireError(f"expected a flat array in NumPy's format, but got {problem}") from None
    flat: npt.NDArray[np.generic] = np.frombuffer(data, dtype=dtype, offset=stream.tell())
    return flat


def rounded(flat: Flat, wire: Wire) -> Flat:
    """What the other end will see of `flat`."""
    return flat if wire == "fp32" else decode(encode(flat, wire), wire)


def bytes_on_wire(values: int, wire: Wire) -> int:
    """Array bytes of `values` numbers."""
    return values * (4 if wire == "fp32" else 2)


def flat_digest(flat: npt.NDArray[np.generic]) -> str:
    """SHA-256 (hex) of a buffer's bytes, little endian."""
    contiguous = np.ascontiguousarray(flat.astype(flat.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(contiguous.data).hexdigest()


def manifest_from_pairs(pairs: Sequence[tuple[str, Sequence[int]]]) -> Manifest:
    """A manifest read back from JSON pairs of name and shape."""
    return Manifest(tuple(Tensor(name, tuple(int(side) for side in shape)) for name, shape in pairs))
