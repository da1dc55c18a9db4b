"""The doctor in the hospital: faults of its folder, keys, release and machine are caused, and each is found with its remedy."""

from __future__ import annotations

import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import doctor_visit
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from doctor_visit import Authority, join, look
from publications import profile_of, published

from client.doctor import machine as machine_checks
from client.gateway import gateway_folder
from client.publications import receive
from client.site_folder import SiteFolder
from shared import nginx
from shared.errors import InputError
from shared.processes import free_ports
from shared.profile import Profile
from shared.release import Release
from shared.signing import SigningKey

site, authority, real_device = doctor_visit.site, doctor_visit.authority, doctor_visit.real_device
device_without_torch = doctor_visit.device_without_torch


# Before a hospital has joined


def test_a_new_folder_is_told_how_to_join_and_nothing_is_connected_to(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
    found = look(site)
    assert found["joined"].outcome == "fault" and "consilium-site request" in found["joined"].remedy
    assert {found[name].outcome for name in ("dns", "proxy", "tcp", "tls", "node-key", "clock", "studies")} == {
        "skipped"
    }
    assert found["folder"].outcome == found["keys"].outcome == found["data"].outcome == "ok"


def test_a_folder_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a site's folder"):
        look(SiteFolder(tmp_path))


# Folder and keys


@pytest.mark.parametrize("name", ["node.key", "signing.key", "tls.key", "executor.secret"])
def test_a_private_key_that_others_can_read_is_a_fault(site: SiteFolder, name: str) -> None:
    (site.path / "keys" / name).chmod(0o644)
    found = look(site)["keys"]
    assert (
        found.outcome == "fault" and f"keys/{name} (0644)" in found.found and f"chmod 600 keys/{name}" in found.remedy
    )


def test_the_key_of_the_own_gateway_counts_too(site: SiteFolder) -> None:
    (site.path / "keys" / "gateway.key").write_text("x")
    (site.path / "keys" / "gateway.key").chmod(0o640)
    assert "keys/gateway.key (0640)" in look(site)["keys"].found


def test_a_missing_key_is_a_fault(site: SiteFolder) -> None:
    site.node_key.unlink()
    assert "missing: keys/node.key" in look(site)["keys"].found


def test_a_folder_that_others_can_look_into_is_a_warning(site: SiteFolder) -> None:
    site.path.chmod(0o755)
    assert look(site)["folder"].outcome == "warning"


# The client certificate


def certificate_of(site: SiteFolder, ends: float) -> None:
    key: Any = serialization.load_pem_private_key(site.tls_key.read_bytes(), password=None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anna")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - timedelta(days=40), now + timedelta(days=ends)
    )
    site.tls_certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(("ends", "outcome"), [(100, "ok"), (10.5, "warning"), (-1, "fault")])
def test_the_hospitals_own_certificate_and_its_end(site: SiteFolder, ends: float, outcome: str) -> None:
    certificate_of(site, ends)
    found = look(site)["client-certificate"]
    assert found.outcome == outcome and ("consilium-site request" in found.remedy) == (outcome != "ok")


def test_a_certificate_for_another_key(site: SiteFolder, tmp_path: Path) -> None:
    certificate_of(site, 100)
    other = SiteFolder.create(tmp_path / "other", site.profile())
    shutil.copyfile(other.tls_key, site.tls_key)
    assert look(site)["client-certificate"].outcome == "fault"


# Release and studies


def test_another_release_is_named_on_both_sides(
    site: SiteFolder, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Release.installed()
    join(site, "no-such-host.invalid:443", authority.ca, release=own)
    assert look(site)["release"].outcome == "ok"
    theirs = own.model_copy(update={"code_digest": "9" * 64, "versions": {**own.versions, "consilium": "7.7.7"}})
    join(site, "no-such-host.invalid:443", authority.ca, release=theirs)
    found = look(site)["release"]
    assert (
        found.outcome == "fault"
        and f"consilium {own.versions['consilium']}" in found.found
        and "consilium 7.7.7" in found.found
    )
    join(site, "no-such-host.invalid:443", authority.ca)
    assert look(site)["release"].outcome == "skipped"


def test_a_study_that_waits_and_its_release_which_is_newer_than_the_admissions(
    site: SiteFolder, authority: Authority, tmp_path: Path
) -> None:
    key = SigningKey.create(tmp_path / "key")
    join(site, "no-such-host.invalid:443", authority.ca, key, release=Release.installed())
    assert look(site)["studies"].outcome == "ok"
    newer = Release.installed().model_copy(update={"code_digest": "8" * 64})
    receive(site, published(tmp_path / "study.json", key, release=newer))
    found = look(site)
    assert (
        found["studies"].outcome == "warning"
        and "waiting" in found["studies"].found
        and "review" in found["studies"].remedy
    )
    assert found["release"].outcome == "fault" and "88888888" in found["release"].found


# Machine


@pytest.mark.parametrize(("free", "outcome"), [(100, "ok"), (5, "warning"), (0.5, "fault")])
def test_disk_space(site: SiteFolder, monkeypatch: pytest.MonkeyPatch, free: float, outcome: str) -> None:
    usage = shutil.disk_usage("/")._replace(free=int(free * (1 << 30)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = look(site)["disk"]
    assert found.outcome == outcome and f"{free:.1f} GiB" in found.found


def test_a_gpu_that_the_profile_wants_and_that_is_not_there(tmp_path: Path, real_device: None) -> None:
    torch = pytest.importorskip("torch")
    wanted = f"cuda:{torch.cuda.device_count()}"
    profile = Profile.model_validate({**profile_of().model_dump(by_alias=True), "device": wanted})
    found = look(SiteFolder.create(tmp_path / "gpu", profile))["device"]
    assert found.outcome == "fault" and wanted in found.found and "nvidia-smi" in found.remedy
    assert f"PyTorch {torch.__version__}" in found.found


def test_data_that_is_not_there_and_data_that_can_not_be_used(site: SiteFolder, tmp_path: Path) -> None:
    found = look(site, with_data=True)["data"]
    assert found.outcome == "fault" and "consilium-site check" in found.remedy
    (tmp_path / "mammograms-of-ward-7").rmdir()
    found = look(site)["data"]
    assert found.outcome == "fault" and "not there" in found.found


def test_data_that_can_be_read_is_ok(tmp_path: Path) -> None:
    from client.phantom import SCANNERS, write_phantom

    write_phantom(tmp_path / "data", patients=4, seed=1, scanner=next(iter(SCANNERS)), prevalence=0.5)
    site = SiteFolder.create(tmp_path / "site", profile_of(root=str(tmp_path / "data")))
    found = look(site, with_data=True)["data"]
    assert found.outcome == "ok" and "every image" in found.found


def test_a_gateway_without_nginx_and_one_that_does_not_run(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert look(site)["gateway"].outcome == "skipped"
    (port,) = free_ports(1)
    gateway_folder(site).make()
    gateway_folder(site).configuration.write_text(f"listen 127.0.0.1:{port} ssl;")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nginx, "_PLACES", ())
    assert "nginx-light" in look(site)["gateway"].remedy
    (tmp_path / "nginx").write_text("#!/bin/sh\n")
    (tmp_path / "nginx").chmod(0o755)
    found = look(site)["gateway"]
    assert (
        found.outcome == "fault"
        and f"127.0.0.1:{port}" in found.found
        and "consilium-site-anna-gateway" in found.remedy
    )
    with socket.create_server(("127.0.0.1", port)):
        assert look(site)["gateway"].outcome == "ok"


def test_a_service_is_installed_when_its_unit_names_this_folder(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert look(site)["service"].outcome == "warning"
    monkeypatch.setattr(machine_checks, "has_systemd", lambda: True)
    unit = tmp_path / "consilium-site-anna.service"
    unit.write_text("ExecStart=/usr/bin/consilium-site up /another/folder\n")
    assert "consilium-site service" in look(site, unit_folders=(tmp_path,))["service"].remedy
    unit.write_text(f"ExecStart=/usr/bin/consilium-site up {site.path}\n")
    assert look(site, unit_folders=(tmp_path,))["service"].outcome == "ok"


def test_a_check_that_breaks_is_a_fault_without_its_text_and_the_others_go_on(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> object:
        raise RuntimeError("patient Miller")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    found = look(site)
    assert (
        found["disk"].outcome == "fault"
        and "RuntimeError" in found["disk"].found
        and "Miller" not in found["disk"].found
    )
    assert found["data"].outcome == "ok"
