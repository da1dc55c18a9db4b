"""Units that systemd itself reads without a complaint, and that see little of the machine."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import InputError, NotInstalledError, ProcessError
from shared.systemd_unit import Unit, installation, verify, write_units

HAVE = shutil.which("systemd-analyze") is not None
needs_systemd = pytest.mark.skipif(
    not HAVE, reason="NOT TESTED: systemd-analyze is not installed here (package systemd)"
)

#: Signs to which systemd gives a meaning, and which paths hold.
ODD = "a folder 50%h $HOME 'q' ö;x"


def program(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def unit(tmp_path: Path, **changes: object) -> Unit:
    bare = Unit(
        "Test", [program(tmp_path / "a b 50%h ö;x" / "program"), "up", str(tmp_path / ODD)], "daemon", tmp_path / ODD
    )
    return replace(bare, **changes)  # type: ignore[arg-type]


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@needs_systemd
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gpu": True, "torch": True},
        {"low_port": True, "reload_command": ["/bin/true", "-s"], "after": ["other.service"]},
    ],
)
def test_systemd_finds_no_fault_whatever_signs_the_paths_hold(tmp_path: Path, changes: dict[str, object]) -> None:
    made = unit(
        tmp_path, writable=[tmp_path / ODD / "cache"], readable=[tmp_path / "data 1%"], why_restart_s="why", **changes
    )
    (path,) = write_units({"test.service": made.text()}, tmp_path / "units")
    verify(path)


@needs_systemd
def test_a_program_that_is_not_there_and_a_word_that_systemd_does_not_know_are_told(tmp_path: Path) -> None:
    made = unit(tmp_path)
    (path,) = write_units({"test.service": made.text()}, tmp_path)
    Path(made.command[0]).unlink()
    with pytest.raises(ProcessError, match="not executable"):
        verify(path)
    program(Path(made.command[0]))
    path.write_text(made.text().replace("RestartSec", "RestartSek"))
    with pytest.raises(ProcessError, match="RestartSek"):
        verify(path)


@needs_systemd
@pytest.mark.parametrize(
    ("changes", "worst"), [({}, 2.0), ({"torch": True, "gpu": True}, 2.5), ({"low_port": True}, 2.0)]
)
def test_systemds_own_judgement_of_what_is_exposed_is_low(
    tmp_path: Path, changes: dict[str, object], worst: float
) -> None:
    (path,) = write_units({"test.service": unit(tmp_path, **changes).text()}, tmp_path)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=100", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None and float(found.group(1)) <= worst, said


def test_without_systemd_the_check_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="systemd-analyze is not installed"):
        verify(tmp_path / "x.service")


def test_a_service_on_the_cpu_sees_no_devices_and_one_for_a_gpu_only_nvidias(tmp_path: Path) -> None:
    assert settings(unit(tmp_path).text())["PrivateDevices"] == ["yes"]
    gpu = settings(unit(tmp_path, gpu=True).text())
    assert (gpu["PrivateDevices"], gpu["DevicePolicy"]) == (["no"], ["closed"])
    assert gpu["DeviceAllow"] and all(re.fullmatch(r"char-nvidia[a-z-]* rw", one) for one in gpu["DeviceAllow"])


def test_pytorch_is_let_make_its_kernels_and_everything_else_is_not(tmp_path: Path) -> None:
    assert settings(unit(tmp_path).text())["MemoryDenyWriteExecute"] == ["yes"]
    with_torch = unit(tmp_path, torch=True).text()
    assert "MemoryDenyWriteExecute" not in settings(with_torch) and "# MemoryDenyWriteExecute" in with_torch


def test_only_who_listens_below_1024_may_do_that_and_nothing_more(tmp_path: Path) -> None:
    for changes, expected in (({}, [""]), ({"low_port": True}, ["CAP_NET_BIND_SERVICE"])):
        found = settings(unit(tmp_path, **changes).text())
        assert found["CapabilityBoundingSet"] == found["AmbientCapabilities"] == expected


@pytest.mark.parametrize("below", ["/home/x/consilium", "/root/consilium", "/tmp/consilium", "/srv/consilium"])
def test_what_lies_below_a_home_or_tmp_is_not_hidden(below: str) -> None:
    made = Unit(
        "Test", ["/usr/bin/consilium-site", "up"], "consilium", Path("/var/lib/consilium"), readable=[Path(below)]
    )
    found = settings(made.text())
    assert found["ProtectHome"] == ["read-only" if below.startswith(("/home", "/root")) else "yes"]
    assert found["PrivateTmp"] == ["no" if below.startswith("/tmp") else "yes"]
    assert found["ReadWritePaths"] == ["/var/lib/consilium"]


@pytest.mark.parametrize("user", ["", "a b", "a\nExecStart=/bin/sh", "%u", "a:b"])
def test_what_is_no_account_is_told(tmp_path: Path, user: str) -> None:
    with pytest.raises(InputError, match="--user"):
        unit(tmp_path, user=user).text()


@pytest.mark.parametrize("sign", ["'", '"', "\\", "$"])
def test_a_program_that_systemd_would_not_start_is_told(tmp_path: Path, sign: str) -> None:
    with pytest.raises(InputError, match="starts no program"):
        unit(tmp_path, command=[f"/opt/a{sign}b/program"]).text()


def test_a_line_break_never_gets_into_a_unit(tmp_path: Path) -> None:
    for changes in (
        {"description": "a\nUser=root"},
        {"command": ["/bin/x", "a\nUser=root"]},
        {"folder": Path("/a\nUser=root")},
    ):
        with pytest.raises(InputError, match="line break"):
            unit(tmp_path, **changes).text()


def test_a_description_in_any_language_stays_as_it_is() -> None:
    made = Unit("Klinikum Süd 100%", ["/bin/true"], "consilium", Path("/srv/x"))
    assert settings(made.text())["Description"] == ["Klinikum Süd 100%%"]


def test_the_printed_commands_take_a_path_with_a_space_for_one_word() -> None:
    lines = installation([Path("/srv/a b/x.service")], Path("/srv/a b; reboot"), "consilium").splitlines()
    words = [shlex.split(line) for line in lines[1:4]]
    assert words[0][words[0].index("--home-dir") + 1] == "/srv/a b; reboot"
    assert words[1] == ["chown", "-R", "consilium:", "/srv/a b; reboot"]
    assert words[2] == ["cp", "/srv/a b/x.service", "/etc/systemd/system/"]
