"""The image cache: exact, decoded once, private, shared by processes, unharmed by kills and full disks."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.data import cache
from client.data.cache import prepare_store
from client.data.records import Record
from shared.errors import StorageError, UnreadableImageError
from shared.imaging.preprocess import prepare
from shared.study_pixels import Preprocessing

RECIPE = Preprocessing(region="whole", size=16, channels=3)
HOUSE = Path(__file__).parents[2]


def picture(path: Path, seed: int, *, kind: str = "grey") -> Path:
    generator = np.random.default_rng(seed)
    shape = (24, 30, 3) if kind == "colour" else (24, 30)
    high, dtype = (65536, np.uint16) if kind == "deep" else (256, np.uint8)
    Image.fromarray(generator.integers(0, high, shape).astype(dtype)).save(path)
    return path


def holding(folder: Path, count: int = 6, kind: str = "grey") -> list[Record]:
    folder.mkdir(exist_ok=True)
    return [
        Record(
            key=f"r{index}", image=picture(folder / f"{index}.png", index, kind=kind), label="a", patient=f"p{index}"
        )
        for index in range(count)
    ]


class Counter:
    """Stands in for `prepare` and counts what is decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[str] = []
        monkeypatch.setattr(cache, "prepare", self)

    def __call__(self, image: Path, masks: tuple[Path, ...], recipe: Preprocessing, *seen: Any) -> np.ndarray:
        self.images.append(image.name)
        return prepare(image, masks, recipe, *seen)


def expected(records: list[Record], recipe: Preprocessing = RECIPE) -> np.ndarray:
    return np.stack([prepare(record.image, record.masks, recipe) for record in records])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", ["grey", "deep", "colour"])
def test_the_store_holds_what_preparing_gives_in_the_order_of_the_records(
    tmp_path: Path, kind: str, workers: int
) -> None:
    records = holding(tmp_path / "data", kind=kind)[::-1]
    store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop", workers=workers)
    np.testing.assert_array_equal(store.images, expected(records))
    assert store.images.dtype == (np.float16 if kind == "deep" else np.uint8)
    assert store.readable.all() and store.problems == () and len(store) == 6
    assert isinstance(store.images, np.memmap) and not store.images.flags.writeable


def test_mixed_images_share_the_widest_form(tmp_path: Path) -> None:
    kinds = ("grey", "deep", "colour")
    records = [
        Record(key=kind, image=picture(tmp_path / f"{kind}.png", seed, kind=kind), label="a", patient=kind)
        for seed, kind in enumerate(kinds)
    ]
    store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    assert store.images.shape == (3, 3, 16, 16) and store.images.dtype == np.float16
    for row, record in zip(store.images, records, strict=True):
        own = prepare(record.image, (), RECIPE)
        unit = own / np.float32(255) if own.dtype == np.uint8 else own
        np.testing.assert_array_equal(row, np.broadcast_to(unit.astype(np.float16), (3, 16, 16)))
    # Taken over into a pack of their own, they are what they were, to the bit.
    for record in records:
        alone = prepare_store([record], RECIPE, tmp_path / "cache", unreadable="stop")
        np.testing.assert_array_equal(alone.images[0], prepare(record.image, (), RECIPE))
        assert alone.images.dtype == prepare(record.image, (), RECIPE).dtype


def test_a_second_call_decodes_nothing_and_reads_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, counter = holding(tmp_path / "data"), Counter(monkeypatch)
    monkeypatch.setattr("client.data.source_digests._SETTLED_S", 0.0)  # the files were written just now
    first = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    assert len(counter.images) == 6
    monkeypatch.setattr("client.data.source_digests.file_digest", lambda path: pytest.fail(f"{path} was read again"))
    second = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    assert len(counter.images) == 6
    np.testing.assert_array_equal(first.images, second.images)


def test_only_what_changed_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, counter = holding(tmp_path / "data"), Counter(monkeypatch)
    prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    counter.images.clear()
    picture(records[2].image, 99)
    store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    assert counter.images == ["2.png"]
    np.testing.assert_array_equal(store.images, expected(records))
    counter.images.clear()
    half = RECIPE.model_copy(update={"size": 20})
    assert prepare_store(records, half, tmp_path / "cache", unreadable="stop").images.shape == (6, 1, 20, 20)
    assert len(counter.images) == 6
    counter.images.clear()
    subset = prepare_store(records[1:4], RECIPE, tmp_path / "cache", unreadable="stop")
    assert counter.images == []
    np.testing.assert_array_equal(subset.images, expected(records[1:4]))


def test_a_file_rewritten_with_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    """Its change time (or inode) tells; and a digest taken within the disk clock's resolution is not trusted."""
    records = holding(tmp_path / "data", 1)
    image = records[0].image
    raw = tmp_path / "data" / "raw.bmp"
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(raw)
    records = [Record(key="r", image=raw, label="a", patient="p")]
    prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    before = raw.stat()
    Image.fromarray(np.full((20, 20), 200, np.uint8)).save(raw)
    os.utime(raw, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (raw.stat().st_size, raw.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    np.testing.assert_array_equal(store.images, expected(records))
    assert image.exists()


def test_masks_are_part_of_the_key_where_they_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, counter = holding(tmp_path / "data", 1), Counter(monkeypatch)
    mask = np.zeros((24, 30), dtype=np.uint8)
    mask[4:9, 4:9] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(mask).save(path)
    marked = [Record(key="r", image=records[0].image, label="a", patient="p", masks=(path,))]
    finding = RECIPE.model_copy(update={"region": "finding"})
    first = np.array(prepare_store(marked, finding, tmp_path / "cache", unreadable="stop").images)
    prepare_store(marked, RECIPE, tmp_path / "cache", unreadable="stop")
    counter.images.clear()
    mask[12:20, 12:20] = 255
    Image.fromarray(mask).save(path)
    second = prepare_store(marked, finding, tmp_path / "cache", unreadable="stop").images
    assert counter.images == ["0.png"] and not np.array_equal(first, second)
    counter.images.clear()
    prepare_store(marked, RECIPE, tmp_path / "cache", unreadable="stop")
    assert counter.images == []


def test_unreadable_images_stop_the_study_and_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = holding(tmp_path / "data", 15)
    for index in range(12):
        records[index].image.write_bytes(b"damaged")
    with pytest.raises(UnreadableImageError) as caught:
        prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    text = str(caught.value)
    assert text.startswith("12 of 15 images can't be read") and "and 2 more" in text
    assert all(str(records[index].image) in text for index in range(10)) and str(records[10].image) not in text
    for index in range(12):
        picture(records[index].image, index)
    counter = Counter(monkeypatch)
    prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    assert sorted(counter.images) == sorted(f"{index}.png" for index in range(12)), "the good ones were kept"


def test_unreadable_images_are_skipped_where_the_profile_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = holding(tmp_path / "data")
    records[1].image.write_bytes(b"damaged")
    records[4].image.unlink()
    store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="skip")
    assert store.readable.tolist() == [True, False, True, True, False, True]
    assert [problem.file for problem in store.problems] == [records[1].image, records[4].image]
    assert (
        "not an image of a known format" in store.problems[0].reason and "can't be opened" in store.problems[1].reason
    )
    assert not store.images[[1, 4]].any()
    counter = Counter(monkeypatch)
    again = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="skip")
    assert counter.images == [] and again.problems == store.problems
    with pytest.raises(UnreadableImageError, match="2 of 6"):
        prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")


def test_nobody_else_can_read_the_cache(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        prepare_store(holding(tmp_path / "data"), RECIPE, tmp_path / "a" / "cache", unreadable="stop")
    finally:
        os.umask(umask)
    places = [tmp_path / "a" / "cache", *(tmp_path / "a" / "cache").rglob("*")]
    assert len(places) >= 5
    for place in places:
        assert stat.S_IMODE(place.stat().st_mode) == (0o700 if place.is_dir() else 0o600), place


def test_progress_counts_records_up_to_all_of_them(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    records = holding(tmp_path / "data")
    prepare_store(
        records, RECIPE, tmp_path / "cache", unreadable="stop", progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(done, 6) for done in range(1, 7)]


def test_no_records_give_an_empty_store(tmp_path: Path) -> None:
    assert prepare_store([], RECIPE, tmp_path / "cache", unreadable="stop").images.shape == (0, 1, 16, 16)


def test_old_selections_do_not_pile_up(tmp_path: Path) -> None:
    records = holding(tmp_path / "data", 8)
    for index in range(8):
        prepare_store(records[index:], RECIPE, tmp_path / "cache", unreadable="stop")
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 4


@pytest.mark.parametrize("victim", ["npy", "json"])
def test_a_damaged_pack_is_made_again(tmp_path: Path, victim: str) -> None:
    records = holding(tmp_path / "data")
    prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    path = next(path for path in (tmp_path / "cache").glob(f"*/*.{victim}"))
    path.write_bytes(path.read_bytes()[:200])
    store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    np.testing.assert_array_equal(store.images, expected(records))


def _fill_in_child(folder: str, gate: object, results: object) -> None:
    counted = 0

    def counting(image: Path, masks: tuple[Path, ...], recipe: Preprocessing, *seen: Any) -> np.ndarray:
        nonlocal counted
        counted += 1
        time.sleep(0.02)
        return prepare(image, masks, recipe, *seen)

    cache.prepare = counting  # type: ignore[attr-defined]
    records = [
        Record(key=path.stem, image=path, label="a", patient=path.stem)
        for path in sorted((Path(folder) / "data").glob("*.png"))
    ]
    gate.wait()  # type: ignore[attr-defined]
    store = prepare_store(records, RECIPE, Path(folder) / "cache", unreadable="stop")
    results.put((counted, int(store.images.astype(np.int64).sum())))  # type: ignore[attr-defined]


def test_two_processes_at_once_decode_each_image_once(tmp_path: Path) -> None:
    records = holding(tmp_path / "data", 10)
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_fill_in_child, args=(str(tmp_path), gate, results)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    total = int(expected(records).astype(np.int64).sum())
    assert sorted(answers) == [(0, total), (10, total)]


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from client.data import cache
from client.data.records import Record
from shared.errors import ConsiliumError
from shared.imaging.preprocess import prepare
from shared.study_pixels import Preprocessing
folder, pause = Path(sys.argv[2]), float(sys.argv[3])
def slow(*arguments):
    time.sleep(pause)
    return prepare(*arguments)
cache.prepare = slow
records = [Record(key=path.stem, image=path, label="a", patient="p") for path in sorted((folder / "data").glob("*.png"))]
def progress(done, of):
    print(done, flush=True)
try:
    cache.prepare_store(records, Preprocessing(region="whole", size=int(sys.argv[4]), channels=3), folder / "cache",
                        unreadable="stop", progress=progress)
except ConsiliumError as problem:
    print(type(problem).__name__, problem, flush=True)
"""


@pytest.mark.parametrize("after", [1, 4])
def test_a_kill_in_the_middle_loses_nothing_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    records = holding(tmp_path / "data", 8)
    arguments = [sys.executable, "-c", CHILD, str(HOUSE), str(tmp_path), "0.2", "16"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        while int(child.stdout.readline()) < after:
            pass
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not list((tmp_path / "cache").rglob("*.npy"))
    counter = Counter(monkeypatch)
    store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    np.testing.assert_array_equal(store.images, expected(records))
    assert len(counter.images) <= 8 - after
    assert not [
        path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".tmp" or path.name.startswith("parts")
    ]


def test_journal_lines_and_rows_cut_by_a_kill_are_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may leave any prefix, or zeros in place of pixels: a row counts only with its checksum."""
    records = holding(tmp_path / "data", 5)
    records[4].image.write_bytes(b"damaged")
    with pytest.raises(UnreadableImageError):
        prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    rows, journal = (next((tmp_path / "cache").glob(f"*/parts.{kind}")) for kind in ("rows", "journal"))
    content = bytearray(rows.read_bytes())
    content[:256] = bytes(256)
    rows.write_bytes(bytes(content))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    picture(records[4].image, 4)
    counter = Counter(monkeypatch)
    store = prepare_store(records, RECIPE, tmp_path / "cache", unreadable="stop")
    np.testing.assert_array_equal(store.images, expected(records))
    assert sorted(counter.images) == ["0.png", "3.png", "4.png"]


@pytest.mark.parametrize("limit", [100, 5000, 60_000])
def test_a_full_disk_ends_in_a_sentence_with_nothing_half_written(tmp_path: Path, limit: int) -> None:
    """A limit on file size stands in for the full disk: the same failed write, at three places of the work."""
    holding(tmp_path / "data", 8)

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = [sys.executable, "-B", "-c", CHILD, str(HOUSE), str(tmp_path), "0", "128"]
    done = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=restrict)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"StorageError {tmp_path / 'cache'}: the image cache could not be written (file too large)")
    assert "MB are free there" in last and "Traceback" not in done.stderr
    left = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left <= {"lock", "sources.json", "pixels.json"}
    if "sources.json" in left:
        json.loads((tmp_path / "cache" / "sources.json").read_text())


NAMESPACE = ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c"]
TINY_DISK = 'mkdir "$0/cache" && mount -t tmpfs -o size="$1" tmpfs "$0/cache" && shift && "$@"; find "$0/cache" -type f'


@pytest.mark.parametrize("size", ["100k", "600k"])
def test_a_disk_that_is_really_full_ends_in_the_same_sentence(tmp_path: Path, size: str) -> None:
    """A small tmpfs in a mount namespace of its own, which ends with the child."""
    try:
        probe = subprocess.run([*NAMESPACE, "mount -t tmpfs tmpfs /tmp"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no `unshare` on this machine")
    if probe.returncode:
        pytest.skip("this machine lets no mount namespace be made, so that no small disk can be mounted")
    holding(tmp_path / "data", 40)
    child = [sys.executable, "-B", "-c", CHILD, str(HOUSE), str(tmp_path), "0", "128"]
    done = subprocess.run([*NAMESPACE, TINY_DISK, str(tmp_path), size, *child], capture_output=True, text=True)
    sentence = f"StorageError {tmp_path / 'cache'}: the image cache could not be written (no space left on device)"
    assert any(line.startswith(sentence) for line in done.stdout.splitlines()), done.stdout + done.stderr
    left = {Path(line).name for line in done.stdout.splitlines() if line.startswith(str(tmp_path / "cache") + "/")}
    assert "lock" in left and left <= {"lock", "sources.json", "pixels.json"}


def test_a_folder_that_cannot_be_made_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="the image cache could not be written"):
        prepare_store(holding(tmp_path / "data", 1), RECIPE, tmp_path / "file" / "cache", unreadable="stop")
