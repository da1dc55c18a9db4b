"""Tags by which a coordinator counts images that two hospitals both hold, and can't look for an image of its own.

Two hospitals share a key that nobody else has: X25519 (RFC 7748) between their signing keys, each Ed25519 key taken to its X25519 form by
the birational map of RFC 7748, section 4.1; then HKDF (RFC 5869) over run, study, both names and both keys. A tag is HMAC-SHA-256 of an
image's 64-bit perceptual hash under that key, cut to 8 bytes. So the same image has another tag for each other hospital and in each run,
and nobody without one of the two private keys can try a hash. What remains: docs/decisions/0013-duplicates-across-hospitals.md.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.canonical import canonical_json
from shared.errors import EgressError, InstructionError
from shared.results import TAG_BYTES
from shared.signing import PublicKey, SigningKey

_PRIME = 2**255 - 19


def tags_for(
    hashes: Iterable[str], peers: Mapping[str, str], *, site: str, key: SigningKey, run: str, study: str
) -> dict[str, str]:
    """For each other site the ascending tags of all different `hashes` (16 hex digits each), joined, in base64.

    `peers` are the sites' signing keys (`KeyText`), `study` the study's digest. The same input gives the same tags. Raises
    InstructionError where a peer's key can't be used.
    """
    different = sorted({bytes.fromhex(one) for one in hashes if one})
    made: dict[str, str] = {}
    for peer, text in sorted(peers.items()):
        shared = _pair_key((site, key), (peer, PublicKey.read(text)), run=run, study=study)
        tags = {hmac.digest(shared, one, hashlib.sha256)[:TAG_BYTES] for one in different}
        made[peer] = base64.b64encode(b"".join(sorted(tags))).decode()
    return made


def require_tags(tags: Mapping[str, str], peers: Iterable[str], images: int) -> None:
    """What leaves is tags of at most `images` images for the sites that were named, in an order that says nothing. Raises EgressError."""
    if not set(tags) <= set(peers):
        raise EgressError("there are tags for a site that the instruction does not name")
    for peer, text in tags.items():
        joined = base64.b64decode(text)
        found = [joined[start : start + TAG_BYTES] for start in range(0, len(joined), TAG_BYTES)]
        if len(joined) % TAG_BYTES or len(found) > images or any(first >= second for first, second in pairwise(found)):
            raise EgressError(f"the tags for {peer} are not ascending tags of at most {images} images")


def _pair_key(own: tuple[str, SigningKey], other: tuple[str, PublicKey], *, run: str, study: str) -> bytes:
    (site, key), (peer, public) = own, other
    try:
        secret = agreement_key(key).exchange(agreement_point(public))
    except ValueError:  # a point of small order: the secret would be no secret
        raise InstructionError(f"the key that the instruction gives for {peer} can't be used") from None
    both = sorted([[site, str(key.public)], [peer, str(public)]])
    context = canonical_json({"purpose": "consilium/shared-images/1", "run": run, "study": study, "sites": both})
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=context).derive(secret)


def agreement_key(key: SigningKey) -> X25519PrivateKey:
    """The X25519 key with an Ed25519 key's own scalar (RFC 8032, section 5.1.5)."""
    return X25519PrivateKey.from_private_bytes(hashlib.sha512(key.private.private_bytes_raw()).digest()[:32])


def agreement_point(key: PublicKey) -> X25519PublicKey:
    """u = (1 + y) / (1 - y) of the key's point. Raises ValueError for y = 1."""
    y = int.from_bytes(key.raw, "little") & (2**255 - 1)
    if (1 - y) % _PRIME == 0:
        raise ValueError("the neutral element")
    u = (1 + y) * pow(1 - y, -1, _PRIME) % _PRIME
    return X25519PublicKey.from_public_bytes(u.to_bytes(32, "little"))
