"""A publication holds what an approval binds; how a run is refused where it would not be what was approved."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from small_study import write_study
from typer.testing import CliRunner

from server.checkpoint import read_starting_model
from server.cli import app
from server.home import Home
from server.publishing import find_publication, launched, publications, publish, study_of, weights_of
from server.run_folder import RunFolder
from server.starting_model import claim_folder, fill_folder
from shared.canonical import file_digest
from shared.documents import Publication, read_document
from shared.errors import ConsiliumError, DocumentError, InputError, NotUpError, StudyError, WeightsError
from shared.models import build_network
from shared.models.state import frozen_digest
from shared.release import Release
from shared.study import load_study
from shared.wire import encode, flat_digest


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", "Federation", ["localhost"], address="localhost:443")


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ConsiliumError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_a_publication_is_signed_and_names_all_that_an_approval_binds(home: Home, tmp_path: Path) -> None:
    path, out = write_study(tmp_path / "tiny.yaml"), tmp_path / "mail" / "tiny.study.json"
    out.parent.mkdir()
    said = command("publish", home.path, path, "--runs", "3", "--expires", "2199-12-31", "--out", out)
    offer = read_document(out, Publication, home.signing_key().public)
    study = load_study(path)
    assert offer.study_digest == study.digest() and study.digest() in said and str(out) in said
    assert study_of(offer) == study
    assert (offer.runs, offer.expires, offer.federation) == (3, "2199-12-31", "Federation")
    assert offer.coordinator_key == str(home.signing_key().public)
    assert offer.release == Release.installed()
    assert publications(home) == {study.digest(): offer}
    with pytest.raises(DocumentError):
        read_document(out, Publication, Home.create(tmp_path / "o", "o", ["h"], address="h:1").signing_key().public)


def test_the_starting_point_is_that_of_the_run(home: Home, tmp_path: Path) -> None:
    path = write_study(tmp_path / "tiny.yaml")
    point = publish(home, path, tmp_path / "out.json").publication.starting_point
    study = load_study(path)
    folder = claim_folder(tmp_path / "run")
    fill_folder(folder, study, ["anna"], weights_root=tmp_path)
    model = read_starting_model(RunFolder(tmp_path / "run"))
    assert point.model_digest == flat_digest(encode(model.flat, "bf16")) != flat_digest(model.flat)
    assert point.manifest_digest == model.manifest.digest()
    assert point.frozen_digest == model.frozen_digest == frozen_digest(build_network(study, weights_root=tmp_path))


def test_a_publication_without_a_day_is_good_for_a_year(home: Home, tmp_path: Path) -> None:
    offer = publish(home, write_study(tmp_path / "tiny.yaml"), tmp_path / "out.json").publication
    days = (datetime.fromisoformat(offer.expires).date() - datetime.now(UTC).date()).days
    assert days in (364, 365)
    assert offer.runs == 1


def test_weights_travel_beside_the_publication(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "study" / "weights" / "start.safetensors"
    source.parent.mkdir(parents=True)
    plain = load_study(write_study(tmp_path / "study" / "plain.yaml"))
    network = build_network(plain, weights_root=tmp_path)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, source)
    named = {"file": "weights/start.safetensors", "sha256": file_digest(source), "source": "made for this test"}
    path = write_study(tmp_path / "study" / "tiny.yaml", model={"weights": named})
    said = command("publish", home.path, path, "--out", tmp_path / "mail.json")
    for copy in (
        tmp_path / "weights" / "start.safetensors",
        weights_of(home, load_study(path).digest()) / named["file"],
    ):
        assert copy.read_bytes() == source.read_bytes()
    assert str(tmp_path / "weights" / "start.safetensors") in said
    wrong = write_study(tmp_path / "study" / "wrong.yaml", model={"weights": {**named, "sha256": "0" * 64}})
    with pytest.raises(WeightsError):
        command("publish", home.path, wrong, "--out", tmp_path / "wrong.json")
    outside = write_study(tmp_path / "study" / "outside.yaml", model={"weights": {**named, "file": str(source)}})
    with pytest.raises(WeightsError, match="beside the study or below it"):
        command("publish", home.path, outside, "--out", tmp_path / "outside.json")
    assert not (tmp_path / "wrong.json").exists() and not (tmp_path / "outside.json").exists()
    assert len(publications(home)) == 1


def test_what_is_not_valid_is_not_published(home: Home, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="learning_rat"):
        command("publish", home.path, write_study(tmp_path / "bad.yaml", training={"learning_rat": 1}))
    yesterday = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    with pytest.raises(InputError, match="has passed already"):
        command("publish", home.path, write_study(tmp_path / "t.yaml"), "--expires", yesterday, "--out", tmp_path / "o")
    with pytest.raises(InputError, match="not a coordinator's folder"):
        command("publish", tmp_path, write_study(tmp_path / "t.yaml"), "--out", tmp_path / "o")
    assert publications(home) == {}
    assert not (tmp_path / "o").exists()


def test_publishing_again_says_so_and_keeps_the_count_of_runs(home: Home, tmp_path: Path) -> None:
    path = write_study(tmp_path / "tiny.yaml")
    command("publish", home.path, path, "--out", tmp_path / "o.json")
    digest = load_study(path).digest()
    (home.path / "studies" / f"{digest}.runs.json").write_text('["first"]')
    assert "takes the place" in command("publish", home.path, path, "--runs", "2", "--out", tmp_path / "o.json")
    assert launched(home, digest) == ["first"]
    assert publications(home)[digest].runs == 2
    status = json.loads(command("status", home.path, "--json"))
    assert [(one["study"], one["runs"], one["launched"]) for one in status["studies"]] == [("tiny", 2, ["first"])]


def test_a_publication_is_found_by_its_first_digits_or_its_study(home: Home, tmp_path: Path) -> None:
    offers = [
        publish(home, write_study(tmp_path / f"{seed}.yaml", seed=seed), tmp_path / f"{seed}.json").publication
        for seed in (1, 2)
    ]
    for seed, offer in zip((1, 2), offers, strict=True):
        assert find_publication(home, offer.study_digest[:8].upper()) == offer
        assert find_publication(home, str(tmp_path / f"{seed}.yaml")) == offer
    for wanted in (offers[0].study_digest[:5], "nothing", "0" * 64, ""):
        with pytest.raises(InputError):
            find_publication(home, wanted)
    with pytest.raises(InputError, match="is not published"):
        find_publication(home, str(write_study(tmp_path / "3.yaml", seed=3)))


def test_a_publication_that_was_changed_is_not_run(home: Home, tmp_path: Path) -> None:
    offer = publish(home, write_study(tmp_path / "tiny.yaml"), tmp_path / "o.json").publication
    path = home.path / "studies" / f"{offer.study_digest}.json"
    envelope: dict[str, Any] = json.loads(path.read_text())
    stranger = Home.create(tmp_path / "s", "s", ["h"], address="h:1")
    publish(stranger, tmp_path / "tiny.yaml", tmp_path / "s.json")
    envelope["payload"] = json.loads((tmp_path / "s.json").read_text())["payload"]
    path.write_text(json.dumps(envelope))
    with pytest.raises(DocumentError, match="is not signed by the key"):
        command("launch", home.path, offer.study_digest, "--name", "run")


def test_a_launch_needs_a_coordinator_that_is_up_and_leaves_nothing_without(home: Home, tmp_path: Path) -> None:
    offer = publish(home, write_study(tmp_path / "tiny.yaml"), tmp_path / "o.json").publication
    with pytest.raises(NotUpError, match="is not up"):
        command("launch", home.path, offer.study_digest[:12], "--name", "run")
    assert list((home.path / "runs").iterdir()) == []
    assert launched(home, offer.study_digest) == []
    for name in ("", "../run", ".hidden", "a b", "x" * 51):
        with pytest.raises(InputError, match="--name"):
            command("launch", home.path, offer.study_digest[:12], "--name", name)
