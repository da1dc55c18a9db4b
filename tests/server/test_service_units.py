"""The units of a coordinator."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from server.gateway import write_gateway
from server.home import Home
from server.service import COORDINATOR, GATEWAY, units
from shared.errors import InputError, NotInstalledError
from shared.nginx import find_nginx
from shared.systemd_unit import verify, write_units


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "a home", "Réseau 100%", ["fl.example.org"], address="fl.example.org:443", port=9092)


def test_without_a_gateway_there_is_one_unit(home: Home) -> None:
    made = units(home, user="fl")
    assert list(made) == [COORDINATOR]
    assert f'/consilium-server up "{home.path}"\n' in made[COORDINATOR]
    assert "\nUser=fl\n" in made[COORDINATOR] and "\nRestart=always\n" in made[COORDINATOR]


def test_a_folder_of_somebody_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a coordinator's folder"):
        units(Home(tmp_path))


def test_systemd_finds_no_fault_with_the_coordinator_and_its_gateway_which_alone_may_take_port_443(
    home: Home, tmp_path: Path
) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT TESTED: systemd-analyze is not installed here (package systemd)")
    try:
        find_nginx()
    except NotInstalledError as problem:
        pytest.skip(f"NOT TESTED: {problem}")
    write_gateway(home)
    made = units(home, user="daemon")
    assert "CAP_NET_BIND_SERVICE" in made[GATEWAY] and "CAP_" not in made[COORDINATOR]
    for path in write_units(made, tmp_path / "units"):
        verify(path)
