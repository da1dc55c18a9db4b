"""What `write_phantom` promises about a folder: equal bytes, all or nothing, clear refusals."""

from __future__ import annotations

import multiprocessing
from hashlib import sha256
from pathlib import Path

import pytest

from client.phantom import SCANNERS, write_phantom
from client.phantom import site as phantom_site
from shared.errors import InputError, StorageError


def _digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_arguments_give_equal_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        write_phantom(tmp_path / name, patients=4, seed=9, scanner="cassette", workers=workers)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("change", [{"seed": 10}, {"scanner": "panel"}, {"prevalence": 0.0}, {"patients": 3}])
def test_another_argument_gives_other_images_under_other_uids(tmp_path: Path, change: dict[str, object]) -> None:
    base: dict[str, object] = {"patients": 2, "seed": 9, "scanner": "halide"}
    write_phantom(tmp_path / "base", **base)  # type: ignore[arg-type]
    write_phantom(tmp_path / "changed", **(base | change))  # type: ignore[arg-type]
    first, second = (
        {name: digest for name, digest in _digests(tmp_path / folder).items() if name.endswith(".dcm")}
        for folder in ("base", "changed")
    )
    assert first
    assert second
    assert not {Path(name).parent for name in first} & {Path(name).parent for name in second}
    assert not set(first.values()) & set(second.values())


def test_a_folder_that_holds_files_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="new or empty folder"):
        write_phantom(tmp_path, patients=1, seed=0, scanner="panel")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    write_phantom(root, patients=1, seed=0, scanner="panel")
    assert (root / "CBIS-DDSM").is_dir()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scanner": "xray"}, "scanner: expected one of halide, cassette, panel"),
        ({"patients": 0}, "patients: expected at least 1, but got 0"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"workers": 0}, "workers: expected at least 1"),
        ({"prevalence": 1.5}, "prevalence: expected a share between 0 and 1"),
    ],
)
def test_an_argument_out_of_range_is_named(tmp_path: Path, wrong: dict[str, object], sentence: str) -> None:
    arguments: dict[str, object] = {"patients": 1, "seed": 0, "scanner": "panel"}
    with pytest.raises(InputError, match=sentence):
        write_phantom(tmp_path / "site", **(arguments | wrong))  # type: ignore[arg-type]
    assert not (tmp_path / "site").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site").write_text("")
    with pytest.raises(InputError, match="it is a file"):
        write_phantom(tmp_path / "site", patients=1, seed=0, scanner="panel")


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def stop_at_the_second(*arguments: object) -> tuple[object, ...]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return ()

    monkeypatch.setattr(phantom_site, "write_patient", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "site", patients=3, seed=0, scanner="panel")
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_patient(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_phantom(tmp_path / "s", patients=3, seed=0, scanner="cassette", progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("prevalence", [0.0, 0.4, 1.0])
def test_prevalence_is_the_share_of_malignant_patients(tmp_path: Path, prevalence: float) -> None:
    summary = write_phantom(tmp_path / "s", patients=5, seed=2, scanner="cassette", prevalence=prevalence)
    assert summary.malignant_patients == round(5 * prevalence)


def test_the_presets_differ_in_image_and_population() -> None:
    assert len(SCANNERS) >= 3
    for field in ("rows", "blur", "noise", "gamma", "pixel_spacing_mm", "prevalence", "model_name"):
        assert len({getattr(scanner, field) for scanner in SCANNERS.values()}) == len(SCANNERS), field
    for scanner in SCANNERS.values():
        assert sum(scanner.encodings.values()) == pytest.approx(1)


@pytest.mark.parametrize("step", ["mkdtemp", "write"])
def test_a_folder_that_can_not_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def read_only(*_arguments: object, **_keywords: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(
        *((phantom_site.tempfile, "mkdtemp") if step == "mkdtemp" else (phantom_site, "write_patient")), read_only
    )
    with pytest.raises(StorageError, match="site: can't be written: Read-only file system"):
        write_phantom(tmp_path / "site", patients=1, seed=0, scanner="panel")
    assert not list(tmp_path.iterdir())
