"""Weights in transport: what goes in comes out, and bfloat16 is PyTorch's."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.errors import WireError
from shared.wire import (
    Flat,
    Manifest,
    Tensor,
    bytes_on_wire,
    cut,
    decode,
    encode,
    flat_digest,
    flatten,
    from_npy,
    manifest_from_pairs,
    put,
    rounded,
    unflatten,
)

floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
flats = hnp.arrays(np.float32, st.integers(0, 50), elements=floats)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
tensors = st.dictionaries(st.text(min_size=1, max_size=12), shapes, max_size=6).map(
    lambda named: {name: np.arange(math.prod(shape), dtype=np.float32).reshape(shape) for name, shape in named.items()}
)


def every_bfloat16_and_its_neighbours() -> Flat:
    """Each of the 65,536 upper halves with the lower halves where rounding turns."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    values: Flat = (upper[:, None] | lower[None, :]).reshape(-1).view(np.float32)
    return values


@given(tensors)
def test_tensors_come_back_from_the_flat_buffer_with_names_and_shapes(arrays: dict[str, Flat]) -> None:
    manifest = Manifest.of(arrays)
    back = unflatten(flatten(arrays, manifest), manifest)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, strict=True)


@given(tensors)
def test_a_manifest_survives_json(arrays: dict[str, Flat]) -> None:
    manifest = Manifest.of(arrays)
    again = manifest_from_pairs([(tensor.name, list(tensor.shape)) for tensor in manifest.tensors])
    assert again == manifest
    assert again.digest() == manifest.digest()


def test_the_manifest_digest_depends_on_names_shapes_and_order() -> None:
    first, second = Tensor("a", (2, 3)), Tensor("b", (3,))
    variants = [
        (first, second), (second, first), (first,), (Tensor("a", (3, 2)), second), (Tensor("c", (2, 3)), second),
    ]  # fmt: skip
    assert len({Manifest(variant).digest() for variant in variants}) == len(variants)


NETWORK = {
    name: np.arange(math.prod(shape), dtype=np.float32).reshape(shape) + start
    for name, shape, start in (
        ("fc.weight", (2, 3), 1), ("features.0.weight", (4,), 10), ("features.1.bias", (), 20), ("features2.bias", (2,), 30),
        ("scale", (1,), 40),
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("held", "left"),
    [
        ([], list(NETWORK)),
        (["features"], ["fc.weight", "features2.bias", "scale"]),
        (["features2", "fc"], ["features.0.weight", "features.1.bias", "scale"]),
        (["fc", "features", "features2", "scale"], []),
    ],
)
def test_a_childs_tensors_are_taken_out_and_put_back(held: list[str], left: list[str]) -> None:
    manifest = Manifest.of(NETWORK)
    free = manifest.without(held)
    assert [tensor.name for tensor in free.tensors] == left
    flat = flatten(NETWORK, manifest)
    values = cut(flat, manifest, free)
    assert values.tolist() == [value for name in left for value in NETWORK[name].reshape(-1).tolist()]
    back = unflatten(put(-values, flat, manifest, free), manifest)
    for name, array in NETWORK.items():
        np.testing.assert_array_equal(back[name], -array if name in left else array, strict=True)
    np.testing.assert_array_equal(flat, flatten(NETWORK, manifest))  # as it was


def test_a_buffer_of_another_length_is_neither_cut_nor_put() -> None:
    manifest = Manifest.of(NETWORK)
    free = manifest.without(["features"])
    whole, values = np.zeros(manifest.size, np.float32), np.zeros(free.size, np.float32)
    with pytest.raises(WireError, match="expected a buffer of 14 values"):
        cut(values, manifest, free)
    with pytest.raises(WireError, match="expected a buffer of 9 values"):
        put(whole, whole, manifest, free)
    with pytest.raises(WireError, match="expected a buffer of 14 values"):
        put(values, values, manifest, free)


@given(flats)
def test_fp32_is_exact(flat: Flat) -> None:
    assert rounded(flat, "fp32").tobytes() == flat.tobytes()


def test_bf16_is_torchs_bit_for_bit_for_every_upper_half() -> None:
    flat = every_bfloat16_and_its_neighbours()
    numbers = flat[~np.isnan(flat)]
    expected = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(encode(numbers, "bf16"), expected, strict=True)


def test_bf16_keeps_nan_as_nan_and_its_sign() -> None:
    """PyTorch's own payload of a NaN differs between its scalar and its vector code, so only the meaning is compared."""
    flat = every_bfloat16_and_its_neighbours()
    broken = flat[np.isnan(flat)]
    back = rounded(broken, "bf16")
    assert np.isnan(back).all()
    np.testing.assert_array_equal(np.signbit(back), np.signbit(broken))
    assert torch.from_numpy(broken).to(torch.bfloat16).isnan().all()


@given(hnp.arrays(np.uint16, st.integers(0, 50)))
def test_decoding_bf16_is_torchs_bit_for_bit(bits: np.ndarray) -> None:
    expected = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).to(torch.float32).numpy()
    assert decode(bits, "bf16").tobytes() == expected.tobytes()


@given(flats)
def test_bf16_rounded_once_stays(flat: Flat) -> None:
    once = rounded(flat, "bf16")
    assert rounded(once, "bf16").tobytes() == once.tobytes()


@given(hnp.arrays(np.float32, 20, elements=st.floats(2**-100, 2**100, width=32)))
def test_bf16_is_within_its_relative_error(flat: Flat) -> None:
    assert (np.abs(rounded(flat, "bf16").astype(np.float64) - flat) <= 2**-8 * np.abs(flat)).all()


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_bytes_on_the_wire_are_those_of_the_encoded_buffer(wire: str) -> None:
    flat = np.ones(7, dtype=np.float32)
    assert encode(flat, wire).nbytes == bytes_on_wire(7, wire)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stored", "wire"),
    [
        (np.ones(3, np.float64), "fp32"),
        (np.ones(3, np.uint16), "fp32"),
        (np.ones(3, np.float32), "bf16"),
        (np.ones((1, 3), np.float32), "fp32"),
        (np.array(["a"]), "fp32"),
    ],
)
def test_another_dtype_or_shape_is_refused(stored: np.ndarray, wire: str) -> None:
    with pytest.raises(WireError, match=f"expected a flat {wire} buffer, but got {stored.dtype}"):
        decode(stored, wire)  # type: ignore[arg-type]


def test_names_or_shapes_that_differ_from_the_manifest_are_refused() -> None:
    manifest = Manifest.of({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)})
    with pytest.raises(WireError, match="expected 2 tensors"):
        flatten({"b": np.ones(3, np.float32), "a": np.ones((2, 2), np.float32)}, manifest)
    with pytest.raises(WireError, match=r"tensor 'a' of shape \(2, 2\), but got \(4,\)"):
        flatten({"a": np.ones(4, np.float32), "b": np.ones(3, np.float32)}, manifest)
    with pytest.raises(WireError, match="expected a buffer of 7 values"):
        unflatten(np.ones(6, np.float32), manifest)


@given(flats, st.data())
def test_the_digest_is_of_the_bytes(flat: Flat, data: st.DataObject) -> None:
    assert flat_digest(flat.copy()) == flat_digest(flat)
    if flat.size:
        changed = flat.copy().view(np.uint32)
        changed[data.draw(st.integers(0, flat.size - 1))] ^= 1
        assert flat_digest(changed.view(np.float32)) != flat_digest(flat)


def test_the_digest_does_not_depend_on_the_byte_order_in_memory() -> None:
    flat = np.linspace(-1, 1, 9, dtype=np.float32)
    assert flat_digest(flat.astype(">f4")) == flat_digest(flat)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@given(hnp.arrays(st.sampled_from([np.float32, np.uint16, np.float64]), st.integers(0, 50)))
def test_a_flat_array_comes_out_of_its_npy_bytes_as_numpy_loads_it(array: np.ndarray) -> None:
    loaded = from_npy(npy(array))
    assert loaded.tobytes() == array.tobytes()
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
    assert not loaded.flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x80\x04K\x01.",
        npy(np.ones(3))[:-1],
        npy(np.ones(3)) + b"x",
        npy(np.ones((3, 1))),
        npy(np.array(1.0)),
        npy(np.array(["a", None], dtype=object)),
        b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65535,
        b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')",
        b"\x93NUMPY\x09\x00" + npy(np.ones(3))[8:],
    ],
)
def test_bytes_that_hold_anything_else_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="expected a flat array in NumPy's format"):
        from_npy(data)
