"""Admitting a hospital, renewing its certificate, revoking it. What must be true is in the registry; Flower and the gateway follow.

A key that was revoked or replaced is never accepted again, from no site.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.admitted_nodes import Changes, bring_into_line
from server.coordinator import control_if_up
from server.home import LOOPBACK, Home
from server.registry import FormerKeys, SiteRecord
from server.run_folder import write_atomic
from shared.documents import Admission, JoinRequest, read_join_request, write_document
from shared.errors import DocumentError, FingerprintError, InputError, ProcessError
from shared.release import Release
from shared.signing import PublicKey, is_spoken


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asks to be admitted, as the coordinator's person sees it before saying yes."""

    request: JoinRequest
    node_key: str
    known: SiteRecord | None

    @property
    def key(self) -> PublicKey:
        return PublicKey.read(self.request.signing_key)

    @property
    def rotates(self) -> bool:
        """Whether only its signing key is another one (`consilium-site rotate-key`)."""
        known = self.known
        return known is not None and known.revoked is None and known.node_key == self.node_key and not self.renews

    @property
    def renews(self) -> bool:
        """Whether it is admitted with these very keys, so that only a new client certificate is asked for."""
        known = self.known
        return (
            known is not None
            and known.revoked is None
            and (known.node_key, known.signing_key) == (self.node_key, self.request.signing_key)
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """What a change of the registry led to. `flower` is None where the coordinator was not up, `trouble` where Flower did not follow."""

    record: SiteRecord
    flower: Changes | None
    trouble: str | None = None


def read_applicant(home: Home, path: Path) -> Applicant:
    """A join request and what is known of the site. Raises DocumentError where it can't be used, whoever sent it."""
    request = read_join_request(path)
    return Applicant(request, _node_key(request, path), home.registry.get(request.site))


def check_fingerprint(applicant: Applicant, said: str) -> None:
    """Raises FingerprintError where what was read out over the telephone is not the request's key."""
    if not is_spoken(said, applicant.key.fingerprint):
        raise FingerprintError(
            f"the fingerprint that was given is not that of the request, which is {applicant.key.spoken}; all ten groups are needed"
        )


def admit(home: Home, applicant: Applicant, out: Path, *, replace: bool = False) -> Settled:
    """Put the site into the registry, register its node, and write its admission, with a fresh client certificate, to `out`.

    Raises InputError where the site is known with other keys and `replace` is not set, DocumentError where a key was revoked or
    belongs to another site, StorageError.
    """
    request = applicant.request
    certificate = home.authority().issue_client(request.certificate_request, request.site)
    with home.registry.changing():
        known = home.registry.get(request.site)
        applicant = Applicant(request, applicant.node_key, known)
        _require_fresh_keys(home, applicant)
        former: list[FormerKeys] = []
        issued = [str(certificate.serial_number)]
        if applicant.renews and known is not None:
            former, issued = known.former, [*known.certificates, *issued]
        elif known is not None:
            if applicant.rotates and not replace:
                raise InputError(
                    f"{request.site} is admitted with another signing key ({PublicKey.read(known.signing_key).spoken}); "
                    "ask the hospital whether it rotated its key, then use --replace"
                )
            if known.revoked is None and not replace:
                raise InputError(
                    f"{request.site} is admitted with other keys (signing key {PublicKey.read(known.signing_key).spoken}); "
                    "ask the hospital whether it made new ones, then revoke the site first, or use --replace"
                )
            former = [*known.former, _ended(known)]
        record = SiteRecord(
            site=request.site, title=request.title, node_key=applicant.node_key, signing_key=request.signing_key,
            release=request.release, admitted=known.admitted if applicant.renews and known is not None else _now(),
            node_id=known.node_id if (applicant.renews or applicant.rotates) and known is not None else None,
            certificates=issued, former=former,
        )  # fmt: skip
        home.registry.put(record)
        write_revocation_list(home)
    settled = _settle(home, record)
    described = home.record()
    write_document(
        out,
        Admission(
            federation=described.federation, site=request.site, site_key=request.signing_key, address=described.address,
            ca_certificate=home.certificates.ca.read_text(encoding="ascii"),
            client_certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            coordinator_key=str(home.signing_key().public), created=_now(), release=Release.installed(),
        ),
        home.signing_key(),
    )  # fmt: skip
    return settled


def revoke(home: Home, site: str) -> Settled:
    """From this moment nothing that comes from the site is believed: first the registry, then Flower, then the gateway's list.

    Raises InputError where there is no such site. A site that is revoked already is revoked again: what did not follow then follows now.
    """
    with home.registry.changing():
        record = home.registry.get(site)
        if record is None:
            known = ", ".join(home.registry.all()) or "none"
            raise InputError(f"{site}: no such site; admitted are: {known}")
        if record.revoked is None:
            record = record.model_copy(update={"revoked": _now()})
            home.registry.put(record)
        write_revocation_list(home)
    return _settle(home, record)


def renew(home: Home, hosts: list[str]) -> list[str]:
    """A new server certificate from the same authority, for `hosts` or else for the names it had; returns these names."""
    record = home.record()
    names = list(dict.fromkeys([*hosts, *LOOPBACK])) if hosts else record.hosts
    home.authority().issue_server(home.keys, names)
    if names != record.hosts:
        changed = record.model_copy(update={"hosts": names})
        write_atomic(home.path / "coordinator.json", changed.model_dump_json(indent=2).encode() + b"\n")
    return names


def write_revocation_list(home: Home) -> None:
    """keys/crl.pem with every certificate of a revoked site or a former key. Raises StorageError."""
    serials: set[int] = set()
    for record in home.registry.all().values():
        ended = [serial for one in record.former for serial in one.certificates]
        serials.update(int(serial) for serial in (*ended, *(record.certificates if record.revoked else ())))
    write_atomic(home.keys / "crl.pem", home.authority().revocation_list(serials))


def _settle(home: Home, record: SiteRecord) -> Settled:
    """Let Flower follow. The registry is right already: a Flower that fails is told of, and `up` makes up for it."""
    changes: Changes | None = None
    trouble: str | None = None
    try:
        with control_if_up(home) as control:
            changes = bring_into_line(home, control) if control is not None else None
    except ProcessError as problem:
        trouble = str(problem)
    return Settled(home.registry.get(record.site) or record, changes, trouble)


def _require_fresh_keys(home: Home, applicant: Applicant) -> None:
    if applicant.renews:
        return
    node_key, signing_key, site = applicant.node_key, applicant.request.signing_key, applicant.request.site
    for record in home.registry.all().values():
        gone = [*record.former, *([_ended(record)] if record.revoked else [])]
        standing = record.node_key if record.revoked is None else None  # it outlives a rotation of the signing key
        if any((node_key == one.node_key and node_key != standing) or signing_key == one.signing_key for one in gone):
            raise DocumentError(
                f"the request of {site} holds a key that was revoked or replaced (at {record.site}); "
                "the hospital makes new ones with `consilium-site init` in a new folder, and asks again"
            )
        if record.site == site:
            if signing_key == record.signing_key:
                raise DocumentError(
                    f"the request of {site} has one key that is admitted and one that is not: a node key is never exchanged alone; "
                    "the hospital runs `consilium-site init` in a new folder, and asks again"
                )
        elif node_key == record.node_key or signing_key == record.signing_key:
            raise DocumentError(f"the request of {site} holds a key of {record.site}; no two sites share one")


def _ended(record: SiteRecord) -> FormerKeys:
    return FormerKeys(
        node_key=record.node_key,
        signing_key=record.signing_key,
        certificates=record.certificates,
        ended=record.revoked or _now(),
    )


def _node_key(request: JoinRequest, path: Path) -> str:
    """The node key without its comment. Raises DocumentError where it is not ECDSA P-384."""
    try:
        key = serialization.load_ssh_public_key(request.node_key.encode())
    except Exception:  # a parser of somebody else's bytes
        raise DocumentError(f"{path}: the node key of {request.site} can't be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DocumentError(f"{path}: expected a node key of ECDSA P-384, but {request.site} sent another kind")
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
