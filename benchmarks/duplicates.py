"""Pairs of images whose perceptual hashes are near each other, by distance: the table of docs/decisions/0013.

    FEDERATION_DATA=/path/to/data python -m benchmarks.duplicates

`FEDERATION_DATA` is the folder that holds busi/ and ham10000/. "Known" are pairs of one `near_duplicate_group` (BUSI), or of one lesion
(HAM10000). Reads every image once, on one core: half a minute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.perceptual_hash import coarse, fine_bits, perceptual_hash
from client.data.pixel_digests import NOBODY
from client.data.registry import read_holding
from shared.errors import ConsiliumError
from shared.imaging.files import read_image
from shared.profile import load_profile

SITES = Path(__file__).resolve().parents[1] / "sites"
PROFILES = ("busi/baheya", "ham10000/rosendahl", "ham10000/vidir_modern")
ROWS = ((64, 0), (64, 4), (256, 8), (256, 16), (256, 24), (256, 32), (256, 48))


def near_pairs(bits: NDArray[np.uint64], patients: Sequence[str], distance: int) -> tuple[int, int]:
    """Of (N, words) hashes: pairs at most `distance` bits apart, and those of them that are of one patient."""
    _, who = np.unique(np.array(patients), return_inverse=True)
    every = known = 0
    for row in range(len(bits) - 1):
        near = np.bitwise_count(bits[row + 1 :] ^ bits[row]).sum(1) <= distance
        every += int(near.sum())
        known += int((near & (who[row + 1 :] == who[row])).sum())
    return every, known


def column(profile: Path) -> tuple[str, list[tuple[int, int]]]:
    """Heading, and (pairs, known pairs) for each of ROWS, of a hospital's images. Raises ConsiliumError."""
    site = load_profile(profile)
    patients = {record.image: record.patient for record in read_holding(site.data, unit="image").records}
    hashes = {image: perceptual_hash(read_image(image)) for image in sorted(patients)}
    there = [image for image, found in hashes.items() if found != NOBODY]
    fine = fine_bits([hashes[image] for image in there])
    short = np.array([[int(coarse(hashes[image]), 16)] for image in there], dtype=np.uint64)
    who = [patients[image] for image in there]
    found = [near_pairs(short if bits == 64 else fine, who, distance) for bits, distance in ROWS]
    return f"{site.site}, {len(there)} images", found


def main() -> None:
    if "FEDERATION_DATA" not in os.environ:
        sys.exit("FEDERATION_DATA is not set: expected the folder that holds busi/ and ham10000/")
    try:
        columns = [column(SITES / name / "profile.yaml") for name in PROFILES]
    except ConsiliumError as problem:
        sys.exit(str(problem))
    print("| hash, most bits apart | " + " | ".join(f"{heading} | known" for heading, _ in columns) + " |")
    print("|---|" + "---|---|" * len(columns))
    for index, (bits, distance) in enumerate(ROWS):
        cells = [f"{pairs} | {known}" for _, found in columns for pairs, known in [found[index]]]
        print(f"| {bits} bits, {distance} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
