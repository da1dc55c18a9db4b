"""Uniform and Gaussian values from a cryptographic generator.

Each call takes a fresh 256-bit key and counter block from the operating system (`os.urandom`) and expands it with AES-256 in counter mode.
Nothing is kept between calls: two calls, two processes or a process and its fork never share a stream, and no seed of torch, numpy or
`random` has any effect.

What would invalidate the guarantee that is computed for ideal Gaussian noise:

- Floating point. The sum and the noise are double-precision numbers: their lowest bits say something about the sum that an ideal
  Gaussian's would not (Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012). The noise is added
  in double precision and the sum is then rounded to the parameters' precision, which makes an attack harder and is no proof against it.
- The tails. Box-Muller from 53-bit uniforms never gives a value beyond 8.57 standard deviations; an ideal Gaussian does with probability
  1e-17 each time.
- Time. How long a draw takes is not made independent of the values drawn.
- An operating system without entropy, for instance a machine's image that is started twice before its first interrupt.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

_BITS = 53
_KEY_BYTES, _BLOCK_BYTES = 32, 16
#: Values drawn at a time: bounds the memory beside the result to a few tens of MB.
_CHUNK = 1 << 20


def uniforms(count: int) -> NDArray[np.float64]:
    """`(count,)` independent multiples of 2**-53 in [0, 1), all equally likely. Raises ValueError for a negative count."""
    if count < 0:
        raise ValueError(f"expected a count of at least 0, but got {count}")
    cipher = Cipher(algorithms.AES(os.urandom(_KEY_BYTES)), modes.CTR(os.urandom(_BLOCK_BYTES)))
    keystream = cipher.encryptor().update(bytes(8 * count))
    return (np.frombuffer(keystream, np.uint64) >> np.uint64(64 - _BITS)).astype(np.float64) * np.float64(2.0**-_BITS)


def standard_normals(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """`(count,)` independent standard normal values on the CPU, computed in double precision and then rounded to `dtype`.

    Box, Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """
    values = torch.empty(count, dtype=dtype)
    for start in range(0, count, _CHUNK):
        part = values[start : start + _CHUNK]
        half = (len(part) + 1) // 2
        drawn = torch.from_numpy(uniforms(2 * half))
        # 1 - u lies in (0, 1], so that the logarithm is finite.
        radius = drawn[:half].neg_().add_(1.0).log_().mul_(-2.0).sqrt_()
        angle = drawn[half:].mul_(2.0 * math.pi)
        part[:half] = radius * torch.cos(angle)
        part[half:] = (radius * torch.sin(angle))[: len(part) - half]
    return values
