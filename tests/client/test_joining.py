"""A hospital joins by two files and two telephone calls; a file that was changed, or is for somebody else, is not taken."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from publications import profile_of
from typer.testing import CliRunner

from client.cli import app
from client.joining import join, read_for, spoken_as, write_request
from client.site_folder import SiteFolder
from server.certificates import Authority
from shared.documents import Admission, JoinRequest, read_join_request, write_document
from shared.errors import DocumentError, FingerprintError, InputError
from shared.release import Release
from shared.signing import PublicKey, SigningKey, is_spoken, spoken


class Coordinator:
    """What a coordinator does with a request, without its folder."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.key = SigningKey.create(path / "signing.key")
        self.authority = Authority.create(path, "Test")

    def admit(self, path: Path, request: JoinRequest, **changes: Any) -> Path:
        pem = self.authority.certificate.public_bytes(Encoding.PEM).decode()
        client = self.authority.issue_client(request.certificate_request, request.site)
        values = {
            "federation": "Three hospitals", "site": request.site, "site_key": request.signing_key, "address": "fl.example.org:443",
            "ca_certificate": pem, "client_certificate": client.public_bytes(Encoding.PEM).decode(),
            "coordinator_key": str(self.key.public), "created": "2026-03-01T10:00:00+00:00", "release": Release.installed(),
        }  # fmt: skip
        write_document(path, Admission.model_validate({**values, **changes}), self.key)
        return path


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "coordinator")


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return SiteFolder.create(tmp_path / "anna", profile_of())


@pytest.fixture
def request_of_anna(folder: SiteFolder, tmp_path: Path) -> JoinRequest:
    return write_request(folder, tmp_path / "anna.request.json")


def never(_key: PublicKey) -> bool:
    raise AssertionError("somebody was asked")


def files_of(folder: SiteFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_a_request_holds_the_public_keys_and_no_secret(folder: SiteFolder, tmp_path: Path) -> None:
    path = tmp_path / "anna.request.json"
    made = write_request(folder, path)
    assert read_join_request(path) == made
    assert made.signing_key == (folder.path / "keys" / "signing.pub").read_text().strip()
    assert made.node_key == (folder.path / "keys" / "node.pub").read_text().strip()
    request = x509.load_pem_x509_csr(made.certificate_request.encode())
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=anna"
    written = path.read_text()
    for secret in ("node.key", "signing.key", "tls.key"):
        body = (folder.path / "keys" / secret).read_text().splitlines()[1]
        assert body not in written and body not in made.model_dump_json()


def test_the_keys_of_a_folder_are_the_owners_alone(folder: SiteFolder) -> None:
    for name in ("node.key", "signing.key", "tls.key", "executor.secret"):
        assert stat.S_IMODE((folder.path / "keys" / name).stat().st_mode) == 0o600, name


def test_a_compared_admission_is_taken_on(
    coordinator: Coordinator, folder: SiteFolder, request_of_anna: JoinRequest, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not joined yet"):
        folder.coordinator()
    path = coordinator.admit(tmp_path / "admission.json", request_of_anna)
    said = coordinator.key.public.spoken.upper().replace(" ", "-")
    made = join(folder, read_for(folder, path), confirmed=spoken_as(said))
    assert folder.coordinator() == made
    assert (made.federation, made.address) == ("Three hospitals", "fl.example.org:443")
    assert made.coordinator_key == str(coordinator.key.public)
    certificate = x509.load_pem_x509_certificate(folder.tls_certificate.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(folder.ca.read_bytes()))


def test_another_fingerprint_changes_nothing(
    coordinator: Coordinator, folder: SiteFolder, request_of_anna: JoinRequest, tmp_path: Path
) -> None:
    before = files_of(folder)
    admission = read_for(folder, coordinator.admit(tmp_path / "admission.json", request_of_anna))
    almost = coordinator.key.public.spoken
    almost = almost[:-1] + ("0" if almost[-1] != "0" else "1")
    for said in (almost, almost[:12], ""):
        with pytest.raises(FingerprintError):
            join(folder, admission, confirmed=spoken_as(said))
    assert files_of(folder) == before


def test_joining_again_renews_without_a_question(
    coordinator: Coordinator, folder: SiteFolder, request_of_anna: JoinRequest, tmp_path: Path
) -> None:
    path = tmp_path / "admission.json"
    join(folder, read_for(folder, coordinator.admit(path, request_of_anna)), confirmed=lambda _key: True)
    before = folder.tls_certificate.read_bytes()
    renewed = read_for(folder, coordinator.admit(path, request_of_anna, address="new.example.org:8443"))
    assert join(folder, renewed, confirmed=never).address == "new.example.org:8443"
    assert folder.tls_certificate.read_bytes() != before


def test_another_coordinator_is_taken_only_on_purpose_and_compared(
    coordinator: Coordinator, folder: SiteFolder, request_of_anna: JoinRequest, tmp_path: Path
) -> None:
    first = join(folder, read_for(folder, coordinator.admit(tmp_path / "1", request_of_anna)), confirmed=lambda _: True)
    other = Coordinator(tmp_path / "other")
    admission = read_for(folder, other.admit(tmp_path / "2", request_of_anna))
    with pytest.raises(InputError, match="--replace"):
        join(folder, admission, confirmed=lambda _key: True)
    with pytest.raises(FingerprintError):
        join(folder, admission, confirmed=lambda _key: False, replace=True)
    assert folder.coordinator() == first
    assert join(folder, admission, confirmed=lambda _key: True, replace=True).coordinator_key == str(other.key.public)


def test_an_admission_for_another_site_or_another_key_is_not_read(
    coordinator: Coordinator, folder: SiteFolder, request_of_anna: JoinRequest, tmp_path: Path
) -> None:
    berta = SiteFolder.create(tmp_path / "berta", profile_of("berta"))
    path = coordinator.admit(tmp_path / "admission.json", request_of_anna)
    with pytest.raises(DocumentError, match="admits 'anna', but this is 'berta'"):
        read_for(berta, path)
    again = SiteFolder.create(tmp_path / "again", profile_of())
    with pytest.raises(DocumentError, match="with another key"):
        read_for(again, path)


def test_certificates_that_do_not_fit_are_not_taken(
    coordinator: Coordinator, folder: SiteFolder, request_of_anna: JoinRequest, tmp_path: Path
) -> None:
    other = Coordinator(tmp_path / "other")
    foreign = other.authority.certificate.public_bytes(Encoding.PEM).decode()
    berta = write_request(SiteFolder.create(tmp_path / "berta", profile_of("berta")), tmp_path / "berta.json")
    for_berta = coordinator.authority.issue_client(berta.certificate_request, "anna")
    for changes, said in (
        ({"ca_certificate": foreign}, "not of one authority"),
        ({"ca_certificate": "nothing"}, "can't be read"),
        ({"client_certificate": for_berta.public_bytes(Encoding.PEM).decode()}, "another key"),
    ):
        with pytest.raises(DocumentError, match=said):
            read_for(folder, coordinator.admit(tmp_path / "admission.json", request_of_anna, **changes))


def test_one_changed_byte_is_noticed(
    coordinator: Coordinator, folder: SiteFolder, request_of_anna: JoinRequest, tmp_path: Path
) -> None:
    path = coordinator.admit(tmp_path / "admission.json", request_of_anna)
    text = path.read_text()
    place = text.index('"payload":"') + 60
    path.write_text(text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :])
    with pytest.raises(DocumentError):
        read_for(folder, path)


def test_a_request_is_not_signed_with_half_a_pair(folder: SiteFolder, tmp_path: Path) -> None:
    other = SigningKey.create(tmp_path / "other.key")
    (folder.path / "keys" / "signing.pub").write_text(f"{other.public}\n")
    with pytest.raises(InputError, match=r"signing\.pub: not the public key of .*signing\.key"):
        write_request(folder, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


# -- the commands ------------------------------------------------------------------------------------------------------


def test_by_command(coordinator: Coordinator, folder: SiteFolder, tmp_path: Path) -> None:
    run = CliRunner()
    out = tmp_path / "anna.request.json"
    said = run.invoke(app, ["request", str(folder.path), "--out", str(out)], catch_exceptions=False)
    request = read_join_request(out)
    assert PublicKey.read(request.signing_key).spoken in said.output
    admission = str(coordinator.admit(tmp_path / "admission.json", request))
    with pytest.raises(InputError, match="nobody can be asked"):
        run.invoke(app, ["join", str(folder.path), admission], catch_exceptions=False)
    with pytest.raises(FingerprintError):
        run.invoke(app, ["join", str(folder.path), admission, "--fingerprint", "0" * 40], catch_exceptions=False)
    spoken_key = coordinator.key.public.spoken
    said = run.invoke(app, ["join", str(folder.path), admission, "--fingerprint", spoken_key], catch_exceptions=False)
    assert said.exit_code == 0 and spoken_key in said.output
    assert folder.coordinator().address == "fl.example.org:443"


def test_what_is_read_out_is_ten_groups_of_the_fingerprint() -> None:
    digits = "0123456789abcdef" * 4
    assert is_spoken(spoken(digits), digits)
    assert len(spoken(digits).split()) == 10
