"""Admitting, renewing, replacing and revoking hospitals, by the commands; the certificates and the list are read back by cryptography."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from joining_hospital import Hospital
from typer.testing import CliRunner

from server.cli import app
from server.home import Home
from shared.documents import Admission, read_admission
from shared.errors import ConsiliumError, DocumentError, FingerprintError, InputError
from shared.signing import SigningKey


@dataclass
class Coordinator:
    """A coordinator's folder and its command."""

    home: Home

    def __call__(self, verb: str, *arguments: object) -> str:
        """Run a command that must work; returns what it says."""
        result = CliRunner().invoke(app, [verb, str(self.home.path), *(str(argument) for argument in arguments)])
        if isinstance(result.exception, ConsiliumError):
            raise result.exception
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    def admit(self, hospital: Hospital, *arguments: object) -> Admission:
        self("admit", hospital.request(), "--yes", *arguments)
        return read_admission(hospital.folder / f"{hospital.site}.admission.json")

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["site"]: row for row in json.loads(self("sites", "--json"))}

    def revoked_serials(self) -> set[int]:
        text = (self.home.keys / "crl.pem").read_bytes()
        revoked = x509.load_pem_x509_crl(text)
        assert revoked.is_signature_valid(self.home.authority().certificate.public_key())
        return {one.serial_number for one in revoked}


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    home = Home(tmp_path / "home")
    result = CliRunner().invoke(
        app,
        [
            "init",
            str(home.path),
            "--federation",
            "Mammography [test]",
            "--host",
            "fl.example.org",
            "--host",
            "10.1.2.3",
        ],
    )
    assert result.exit_code == 0, result.output
    assert home.signing_key().public.spoken in result.output
    return Coordinator(home)


@pytest.fixture
def anna(tmp_path: Path) -> Hospital:
    return Hospital.create(tmp_path / "anna", "anna")


def serial(admission: Admission) -> int:
    return x509.load_pem_x509_certificate(admission.client_certificate.encode()).serial_number


def test_a_new_folder_has_a_certificate_for_its_hosts_and_an_address_for_hospitals(coordinator: Coordinator) -> None:
    certificate = x509.load_pem_x509_certificate((coordinator.home.keys / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3", "127.0.0.1"]
    assert coordinator.home.record().address == "fl.example.org:443"


def test_a_folder_is_made_once(coordinator: Coordinator) -> None:
    with pytest.raises(InputError, match="already is a coordinator's folder"):
        coordinator("init", "--federation", "other", "--host", "h")


NO_HOSTS = ["", "a b", "bad host!", "a;b", "fl.müller.de", "fl.example.org:443"]


@pytest.mark.parametrize(
    ("federation", "host"), [*(("f", host) for host in NO_HOSTS), ("", "h"), (" ", "h"), ("x" * 201, "h")]
)
def test_a_host_or_a_federation_that_can_not_be_called_so_makes_no_folder(
    tmp_path: Path, federation: str, host: str
) -> None:
    result = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--federation", federation, "--host", host])
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "new").exists()


def test_names_longer_than_a_certificates_subject_are_cut_there_and_nowhere_else(tmp_path: Path) -> None:
    host = f"{'a' * 60}.example.org"
    result = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--federation", "ä" * 200, "--host", host])
    assert result.exit_code == 0, result.exception
    assert Home(tmp_path / "new").record().federation == "ä" * 200
    made = x509.load_pem_x509_certificate((tmp_path / "new" / "keys" / "server.pem").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert host in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_renewal_for_what_is_no_host_changes_nothing(coordinator: Coordinator, host: str) -> None:
    files = (*coordinator.home.keys.iterdir(), coordinator.home.path / "coordinator.json")
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(InputError, match="can't be a name of this server"):
        coordinator("renew", "--host", host)
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.parametrize("address", ["fl.example.org", "fl.example.org:x", ":443", "h:0", "h:70000"])
def test_an_address_without_a_port_is_no_address(tmp_path: Path, address: str) -> None:
    result = CliRunner().invoke(
        app, ["init", str(tmp_path / "new"), "--federation", "f", "--host", "h", "--address", address]
    )
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "new").exists()


def test_an_admission_holds_what_the_hospital_needs_and_is_signed_by_the_coordinator(
    coordinator: Coordinator, anna: Hospital
) -> None:
    said = coordinator("admit", anna.request(), "--fingerprint", anna.signing.public.spoken.upper())
    assert anna.signing.public.spoken in said
    assert "Hospital anna" in said
    admission = read_admission(anna.folder / "anna.admission.json")
    assert admission.coordinator_key == str(coordinator.home.signing_key().public)
    assert (admission.site, admission.site_key) == ("anna", str(anna.signing.public))
    assert (admission.federation, admission.address) == ("Mammography [test]", "fl.example.org:443")
    authority = x509.load_pem_x509_certificate(admission.ca_certificate.encode())
    certificate = x509.load_pem_x509_certificate(admission.client_certificate.encode())
    certificate.verify_directly_issued_by(authority)
    assert certificate.public_key() == anna.tls.public_key()
    assert certificate.subject.rfc4514_string() == "CN=anna"
    record = coordinator.home.registry.get("anna")
    assert record is not None
    assert record.node_key == anna.node_public  # without the comment
    assert record.certificates == [str(serial(admission))]
    assert coordinator.rows()["anna"]["state"] == "admitted"


def test_another_fingerprint_admits_nobody(coordinator: Coordinator, anna: Hospital, tmp_path: Path) -> None:
    other = Hospital.create(tmp_path / "other", "other").signing.public.spoken
    for said in (other, anna.signing.public.spoken[:30], ""):
        with pytest.raises(FingerprintError):
            coordinator("admit", anna.request(), "--fingerprint", said)
    assert coordinator.rows() == {}
    assert not (anna.folder / "anna.admission.json").exists()


def test_without_a_terminal_somebody_must_have_compared_the_fingerprint(
    coordinator: Coordinator, anna: Hospital
) -> None:
    with pytest.raises(InputError, match="--fingerprint"):
        coordinator("admit", anna.request())
    assert coordinator.rows() == {}


def test_a_request_that_was_changed_on_its_way_is_refused(
    coordinator: Coordinator, anna: Hospital, tmp_path: Path
) -> None:
    path = anna.request()
    envelope = json.loads(path.read_text())
    envelope["payload"] = json.loads(Hospital.create(tmp_path / "m", "mallory").request().read_text())["payload"]
    path.write_text(json.dumps(envelope))
    with pytest.raises(DocumentError, match="is not signed by the key"):
        coordinator("admit", path, "--yes")


def test_a_node_key_of_another_curve_is_refused(coordinator: Coordinator, tmp_path: Path) -> None:
    weak = Hospital.create(tmp_path / "weak", "weak", ec.SECP256R1())
    with pytest.raises(DocumentError, match=r"ECDSA P-384"):
        coordinator.admit(weak)
    with pytest.raises(DocumentError, match="can't be read"):
        coordinator("admit", weak.request(node_key="ssh-rsa nonsense"), "--yes")
    assert coordinator.rows() == {}


def test_the_same_keys_again_get_a_new_certificate_and_nothing_else(coordinator: Coordinator, anna: Hospital) -> None:
    first = coordinator.admit(anna)
    before = coordinator.home.registry.get("anna")
    second = coordinator.admit(anna)
    after = coordinator.home.registry.get("anna")
    assert before is not None and after is not None
    assert serial(first) != serial(second)
    assert after == before.model_copy(update={"certificates": [str(serial(first)), str(serial(second))]})
    assert coordinator.revoked_serials() == set()


def test_other_keys_need_a_revocation_or_a_word(coordinator: Coordinator, anna: Hospital, tmp_path: Path) -> None:
    first = coordinator.admit(anna)
    new = Hospital.create(tmp_path / "new", "anna")
    with pytest.raises(InputError, match=r"is admitted with other keys .* --replace"):
        coordinator.admit(new)
    assert coordinator.home.registry.keys()["anna"] == anna.signing.public
    coordinator.admit(new, "--replace")
    assert coordinator.home.registry.keys() == {"anna": new.signing.public}
    assert coordinator.revoked_serials() == {serial(first)}
    with pytest.raises(DocumentError, match="revoked or replaced"):
        coordinator.admit(anna, "--replace")


def test_a_revoked_site_is_on_file_and_comes_back_only_with_new_keys(
    coordinator: Coordinator, anna: Hospital, tmp_path: Path
) -> None:
    certificates = {serial(coordinator.admit(anna)), serial(coordinator.admit(anna))}
    said = coordinator("revoke", "anna")
    assert "crl.pem" in said and "reload" in said
    assert coordinator.home.registry.active() == {}
    assert coordinator.rows()["anna"]["state"] == "revoked"
    assert coordinator.revoked_serials() == certificates
    with pytest.raises(DocumentError, match="revoked or replaced"):
        coordinator.admit(anna)
    since = coordinator.rows()["anna"]["since"]
    coordinator("revoke", "anna")
    assert coordinator.rows()["anna"]["since"] == since
    admission = coordinator.admit(Hospital.create(tmp_path / "new", "anna"))
    assert coordinator.rows()["anna"]["state"] == "admitted"
    assert coordinator.revoked_serials() == certificates
    assert serial(admission) not in certificates


@pytest.mark.parametrize("key", ["node_key", "signing_key"])
def test_no_two_sites_share_a_key(coordinator: Coordinator, anna: Hospital, tmp_path: Path, key: str) -> None:
    coordinator.admit(anna)
    thief = Hospital.create(tmp_path / "thief", "thief")
    if key == "signing_key":
        thief.signing = anna.signing
    else:
        thief.node = anna.node
    with pytest.raises(DocumentError, match="holds a key of anna"):
        coordinator.admit(thief)
    assert list(coordinator.rows()) == ["anna"]


def test_half_a_change_of_keys_is_refused(coordinator: Coordinator, anna: Hospital, tmp_path: Path) -> None:
    coordinator.admit(anna)
    anna.node = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(DocumentError, match="one key that is admitted and one that is not"):
        coordinator.admit(anna, "--replace")


def test_a_signing_key_that_was_rotated_replaces_the_one_before_for_good(
    coordinator: Coordinator, anna: Hospital, tmp_path: Path
) -> None:
    before = coordinator.admit(anna)
    first = anna.signing
    for number in (1, 2):
        anna.signing = SigningKey.create(tmp_path / f"{number}.key")
        with pytest.raises(InputError, match="rotated its key, then use --replace"):
            coordinator.admit(anna)
        assert coordinator.admit(anna, "--replace").site_key == str(anna.signing.public)
        assert coordinator.admit(anna).site_key == str(anna.signing.public)  # a renewal as ever
    record = coordinator.home.registry.get("anna")
    assert record is not None and record.node_key == anna.node_public
    assert record.former[0].signing_key == str(first.public)
    assert serial(before) in coordinator.revoked_serials()
    anna.signing = first
    with pytest.raises(DocumentError, match="revoked or replaced"):
        coordinator.admit(anna, "--replace")
    coordinator("revoke", "anna")
    anna.signing = SigningKey.create(tmp_path / "3.key")
    with pytest.raises(DocumentError, match="revoked or replaced"):  # then the node key has ended too
        coordinator.admit(anna, "--replace")


def test_a_site_that_is_not_there_can_not_be_revoked(coordinator: Coordinator, anna: Hospital) -> None:
    coordinator.admit(anna)
    with pytest.raises(InputError, match="no such site; admitted are: anna"):
        coordinator("revoke", "bertha")


def test_a_server_certificate_is_renewed_without_a_new_authority(coordinator: Coordinator) -> None:
    path = coordinator.home.keys / "server.pem"
    authority = (coordinator.home.keys / "ca.crt").read_bytes()
    before = x509.load_pem_x509_certificate(path.read_bytes())
    assert "Restart" in coordinator("renew")
    after = x509.load_pem_x509_certificate(path.read_bytes())
    kind = x509.SubjectAlternativeName
    assert after.extensions.get_extension_for_class(kind) == before.extensions.get_extension_for_class(kind)
    assert after.serial_number != before.serial_number
    after.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    assert (coordinator.home.keys / "ca.crt").read_bytes() == authority
    coordinator("renew", "--host", "new.example.org")
    names = x509.load_pem_x509_certificate(path.read_bytes()).extensions.get_extension_for_class(kind).value
    assert names.get_values_for_type(x509.DNSName) == ["new.example.org", "localhost"]
    assert coordinator.home.record().hosts == ["new.example.org", "localhost", "127.0.0.1"]


@pytest.mark.parametrize("verb", [["sites"], ["revoke", "anna"], ["renew"]])
def test_a_folder_that_is_none_is_told(tmp_path: Path, verb: list[str]) -> None:
    result = CliRunner().invoke(app, [verb[0], str(tmp_path), *verb[1:]])
    assert isinstance(result.exception, InputError)
    assert "not a coordinator's folder" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
