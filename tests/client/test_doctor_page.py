"""What the doctor writes: every check once, a remedy for whatever is wrong, and nothing that must not be read."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import doctor_visit
import pytest
from doctor_visit import Authority, coordinator, everything, join, look
from typer.testing import CliRunner

from client.cli import app
from client.doctor import EXAMINATIONS, Examination, Finding
from client.doctor.page import page_of, write_page
from client.site_folder import SiteFolder
from shared.errors import ConsiliumError

site, authority = doctor_visit.site, doctor_visit.authority
device_without_torch = doctor_visit.device_without_torch


def test_every_check_is_made_once_and_whatever_is_wrong_has_a_remedy(site: SiteFolder, authority: Authority) -> None:
    begun: list[str] = []
    ended: list[Finding] = []
    made = everything(site, authority, begins=begun.append, ends=ended.append)
    assert (
        begun == [words.title for words, _ in EXAMINATIONS] == [one.title for one in made.findings]
        and ended == made.findings
    )
    assert len({one.name for one in made.findings}) == len(made.findings)
    for one in made.findings:
        assert bool(one.remedy) == (one.outcome in ("warning", "fault")), one


def test_neither_page_nor_json_holds_a_key_or_a_path_of_the_data_unless_asked(
    site: SiteFolder, authority: Authority, tmp_path: Path
) -> None:
    made = everything(site, authority)
    secrets = [line for path in site.path.glob("keys/*.key") for line in path.read_text().split("\n") if len(line) > 20]
    secrets += [(site.path / "keys" / "executor.secret").read_text(), str(tmp_path), "mammograms-of-ward-7"]
    for text in (page_of(made), made.model_dump_json()):
        assert not [secret for secret in secrets if secret in text]
    with_paths = everything(site, authority, with_paths=True)
    assert "mammograms-of-ward-7" in page_of(with_paths) and "mammograms-of-ward-7" in with_paths.model_dump_json()


def test_a_damaged_coordinators_file_is_not_taken_for_a_site_that_has_not_joined(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
    (site.path / "coordinator.json").write_text("{]")
    assert "damaged" in look(site)["joined"].found


def test_the_page_stands_alone_and_escapes_what_it_shows(
    site: SiteFolder, authority: Authority, tmp_path: Path
) -> None:
    made = everything(site, authority).model_copy(update={"title": "<script>alert(1)</script>"})
    write_page(made, tmp_path / "doctor.html")
    text = (tmp_path / "doctor.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"(src|href)\s*=|url\(|@import|http://|https://", text)
    for one in made.findings:
        assert one.title in text
    with pytest.raises(ConsiliumError, match="can't be written"):
        write_page(made, tmp_path / "no" / "doctor.html")


def test_the_command_ends_with_1_where_there_is_a_fault_and_its_json_is_the_examination(
    site: SiteFolder, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with coordinator(authority.issue("localhost")) as port:
        join(site, f"localhost:{port}", authority.ca)
        told = CliRunner().invoke(app, ["doctor", str(site.path), "--page", str(tmp_path / "doctor.html")])
        assert told.exit_code == 0 and "Admission of this node: the coordinator knows" in told.output
        (site.path / "keys" / "node.key").chmod(0o644)
        told = CliRunner().invoke(app, ["doctor", str(site.path), "--json"])
    assert told.exit_code == 1
    made = Examination.model_validate_json(told.stdout)
    assert [one.name for one in made.findings if one.outcome == "fault"] == ["keys"]
    assert (tmp_path / "doctor.html").read_text().startswith("<!doctype html>")
