"""The units of a hospital: the node, and its gateway where there is one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from publications import profile_of

from client import connection, service
from client.gateway import gateway_folder
from client.site_folder import SiteFolder
from shared import nginx
from shared.errors import NotInstalledError
from shared.nginx import find_nginx
from shared.profile import Profile
from shared.systemd_unit import verify, write_units


def site(tmp_path: Path, **changes: object) -> SiteFolder:
    return SiteFolder.create(
        tmp_path / "site", Profile.model_validate({**profile_of().model_dump(by_alias=True), **changes})
    )


def with_gateway(made: SiteFolder, port: int = 9443) -> SiteFolder:
    """As `consilium-site gateway` leaves it, as far as a unit is concerned."""
    gateway_folder(made).make()
    gateway_folder(made).configuration.write_text(f"    listen 127.0.0.1:{port} ssl;\n")
    return made


def require(program: str) -> None:
    if program == "nginx":
        try:
            find_nginx()
        except NotInstalledError as problem:
            pytest.skip(f"NOT TESTED: {problem}")
    elif shutil.which(program) is None:
        pytest.skip(f"NOT TESTED: {program} is not installed here")


def test_the_node_is_started_again_only_when_its_key_is_free() -> None:
    assert service.RESTART_S > 2 * connection.HEARTBEAT_S


def test_the_node_connects_to_the_coordinator_of_its_folder(tmp_path: Path) -> None:
    (text,) = service.units(site(tmp_path)).values()
    assert re.search(rf"^ExecStart=\S+/consilium-site up {tmp_path}/site$", text, re.MULTILINE)
    assert f"RestartSec={service.RESTART_S}\n" in text and "Restart=always\n" in text and "User=consilium\n" in text


def test_with_a_gateway_the_node_connects_to_that_and_starts_after_it(tmp_path: Path) -> None:
    require("nginx")
    made = service.units(with_gateway(site(tmp_path), 9555), user="fl")
    node, gateway = (made[name] for name in service.unit_names("anna"))
    assert f"--superlink 127.0.0.1:9555 --ca {tmp_path}/site/keys/gateway-ca.crt" in node
    assert "After=network-online.target consilium-site-anna-gateway.service" in node
    assert f"nginx -c {tmp_path}/site/gateway/nginx.conf -p {tmp_path}/site/gateway" in gateway
    assert "User=fl" in gateway and "CapabilityBoundingSet=\n" in gateway


def test_a_gateway_without_nginx_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nginx, "_PLACES", ())
    with pytest.raises(NotInstalledError, match="nginx is not installed here"):
        service.units(with_gateway(site(tmp_path)))


@pytest.mark.parametrize(("device", "private"), [("cpu", "yes"), ("auto", "no"), ("cuda", "no"), ("cuda:1", "no")])
def test_gpus_are_there_unless_the_profile_says_cpu(tmp_path: Path, device: str, private: str) -> None:
    (text,) = service.units(site(tmp_path, device=device)).values()
    assert f"\nPrivateDevices={private}\n" in text


def test_a_cache_elsewhere_may_be_written_to_and_the_data_may_not(tmp_path: Path) -> None:
    data = {**profile_of().model_dump()["data"], "root": "/mnt/images"}
    (text,) = service.units(site(tmp_path, cache="/scratch/consilium", data=data)).values()
    assert f"\nReadWritePaths={tmp_path}/site /scratch/consilium\n" in text
    mounts = re.search(r"^RequiresMountsFor=(.*)$", text, re.MULTILINE)
    assert mounts is not None and "/mnt/images" in mounts.group(1).split()


@pytest.mark.parametrize("gateway", [False, True])
def test_systemd_finds_no_fault(tmp_path: Path, gateway: bool) -> None:
    require("systemd-analyze")
    if gateway:
        require("nginx")
    made = with_gateway(site(tmp_path)) if gateway else site(tmp_path)
    paths = write_units(service.units(made, user="daemon"), tmp_path / "units")
    assert len(paths) == 1 + gateway
    for path in paths:
        verify(path)
