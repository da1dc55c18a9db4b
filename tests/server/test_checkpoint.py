"""Checkpoints: a round is there whole or not at all, and a file that was changed is noticed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.bare_run import bare_folder, bare_study
from server import checkpoint as module
from server.checkpoint import Checkpoint, latest_checkpoint, read_starting_model, write_checkpoint
from server.run_folder import RunFolder
from shared.aggregation import OptimiserState
from shared.errors import RunFolderError, StorageError
from shared.run_records import RoundRecord, RoundTiming
from shared.study_federation import ServerOptimiser
from shared.wire import flat_digest

ARRAYS = {"conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "fc.bias": np.ones(5, np.float32)}
MOMENTUM = ServerOptimiser(name="fedadam")
FEDAVG = ServerOptimiser()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return bare_folder(tmp_path / "run", bare_study(), ARRAYS, ["anna", "berta"])


def record_of(number: int, flat: np.ndarray) -> RoundRecord:
    timing = RoundTiming(push=0, wait=0, aggregate=0, checkpoint=0, total=1)
    return RoundRecord(round=number, started="now", model_in=None, model_out=flat_digest(flat), timing=timing)


def write_round(folder: RunFolder, number: int, optimiser: ServerOptimiser = FEDAVG) -> Checkpoint:
    start = read_starting_model(folder)
    flat = start.flat + np.float32(number)
    state = OptimiserState.start(optimiser, flat.size)
    if state.first.size:
        state = OptimiserState(state.first + np.float32(number), state.second * np.float32(number + 1))
    made = Checkpoint(number, flat, state)
    write_checkpoint(folder, record_of(number, flat), made, start.manifest)
    return made


def latest(folder: RunFolder, optimiser: ServerOptimiser = FEDAVG) -> Checkpoint:
    return latest_checkpoint(folder, read_starting_model(folder).manifest, optimiser)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.round == other.round
    for mine, theirs in (
        (one.flat, other.flat),
        (one.state.first, other.state.first),
        (one.state.second, other.state.second),
    ):
        assert mine.dtype == theirs.dtype == np.float32
        assert mine.tobytes() == theirs.tobytes()


def test_before_any_round_the_starting_model_is_the_checkpoint(folder: RunFolder) -> None:
    start = latest(folder, MOMENTUM)
    assert start.round == 0
    np.testing.assert_array_equal(start.flat[:24], ARRAYS["conv.weight"].reshape(-1))
    np.testing.assert_array_equal(start.state.first, np.zeros(29))


@pytest.mark.parametrize("optimiser", [FEDAVG, MOMENTUM, ServerOptimiser(name="fedavgm")], ids=lambda one: one.name)
def test_a_checkpoint_comes_back_bit_for_bit_with_the_optimisers_state(
    folder: RunFolder, optimiser: ServerOptimiser
) -> None:
    for number in (1, 2):
        made = write_round(folder, number, optimiser)
    assert_same(latest(folder, optimiser), made)


def test_the_file_of_a_round_is_an_ordinary_state_dict(folder: RunFolder) -> None:
    write_round(folder, 1)
    arrays = load_file(folder.round_path(1) / "model.safetensors")
    assert {name: array.shape for name, array in arrays.items()} == {
        name: array.shape for name, array in ARRAYS.items()
    }
    np.testing.assert_array_equal(arrays["conv.weight"], ARRAYS["conv.weight"] + 1)


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    written = set()
    for number in range(8):
        again = bare_folder(tmp_path / str(number), bare_study(), ARRAYS, ["anna"])
        write_round(again, 1)
        written.add((again.round_path(1) / "model.safetensors").read_bytes())
    assert len(written) == 1


def test_old_weights_are_forgotten_and_every_record_stays(folder: RunFolder) -> None:
    for number in range(1, 6):
        write_round(folder, number, MOMENTUM)
    kept = sorted(int(path.parent.name) for path in folder.path.glob("rounds/*/model.safetensors"))
    assert kept == [4, 5]
    assert len(list(folder.path.glob("rounds/*/optimiser-*.npy"))) == 4
    assert [record.round for record in folder.rounds()] == [1, 2, 3, 4, 5]


def test_kept_updates_stay_when_weights_are_forgotten(folder: RunFolder) -> None:
    start = read_starting_model(folder)
    for number in range(1, 5):
        incoming = folder.path / "rounds" / ".incoming"
        incoming.mkdir()
        np.save(incoming / "anna.npy", start.flat)
        write_checkpoint(
            folder, record_of(number, start.flat), Checkpoint(number, start.flat, OptimiserState.start(FEDAVG, 29)),
            start.manifest, incoming,
        )  # fmt: skip
    assert len(list(folder.path.glob("rounds/*/updates/anna.npy"))) == 4


STEPS = ["save_file", "write_atomic", "_sync", "_with_seconds"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "kind", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk full", "killed"]
)
def test_a_round_that_ends_between_two_steps_leaves_the_round_before(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, step: str, kind: BaseException
) -> None:
    before = write_round(folder, 1)

    def broken(*_args: object, **_keywords: object) -> None:
        raise kind

    with monkeypatch.context() as patched:
        patched.setattr(module, step, broken)
        with pytest.raises(StorageError if isinstance(kind, OSError) else KeyboardInterrupt):
            write_round(folder, 2)
    assert [record.round for record in folder.rounds()] == [1]
    assert_same(latest(folder), before)
    assert_same(latest(RunFolder(folder.path)), before)
    after = write_round(folder, 2)  # and the round can be done again
    assert_same(latest(folder), after)
    assert not list(folder.path.glob("rounds/.*"))


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_at_the_last_moment_leaves_one_whole_round(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """The rename of the folder is the moment at which a round comes to be."""
    write_round(folder, 1)
    done = 0
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        nonlocal done
        if done == renames:
            raise KeyboardInterrupt
        done += 1
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        if renames == 0:
            with pytest.raises(KeyboardInterrupt):
                write_round(folder, 2)
        else:
            write_round(folder, 2)
    assert latest(folder).round == 1 + renames


def test_round_0_can_be_prepared_again_after_a_kill_before_round_1(folder: RunFolder) -> None:
    start = read_starting_model(folder)
    for _ in range(2):
        write_checkpoint(folder, record_of(0, start.flat), None, start.manifest)
    assert [record.round for record in folder.rounds()] == [0]
    assert not list(folder.path.glob("rounds/.*"))


def test_the_record_says_how_long_the_checkpoint_took(folder: RunFolder) -> None:
    write_round(folder, 1)
    timing = folder.rounds()[0].timing
    assert timing.checkpoint > 0
    assert timing.total == pytest.approx(1 + timing.checkpoint)


def changed(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def test_changed_weights_of_a_round_are_noticed(folder: RunFolder) -> None:
    write_round(folder, 1)
    changed(folder.round_path(1) / "model.safetensors")
    with pytest.raises(RunFolderError, match=r"0001/model\.safetensors: its digest is not the one in round\.json"):
        latest(folder)


def test_a_changed_starting_model_is_noticed(folder: RunFolder) -> None:
    changed(folder.path / "model" / "initial.safetensors")
    with pytest.raises(RunFolderError, match=r"initial\.safetensors: its digest is not the one in manifest\.json"):
        read_starting_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser-first.npy", "optimiser-second.npy", "round.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_file_ends_in_a_sentence_that_names_it(folder: RunFolder, name: str, damage: str) -> None:
    write_round(folder, 1, MOMENTUM)
    path = folder.round_path(1) / name
    if damage == "missing":
        if name == "model.safetensors":
            path.write_bytes(b"not safetensors")
        else:
            path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else len(path.read_bytes()) // 2])
    with pytest.raises(RunFolderError, match=str(path)):
        latest(folder, MOMENTUM)


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from server.checkpoint import Checkpoint, read_starting_model, write_checkpoint
from server.run_folder import RunFolder
from shared.aggregation import OptimiserState
from shared.errors import StorageError
from shared.study_federation import ServerOptimiser
from tests.server.test_checkpoint import record_of

folder = RunFolder(Path(sys.argv[1]))
start = read_starting_model(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
made = Checkpoint(2, start.flat, OptimiserState.start(ServerOptimiser(name="fedadam"), start.flat.size))
try:
    write_checkpoint(folder, record_of(2, start.flat), made, start.manifest)
except StorageError as problem:
    print(problem)
    sys.exit(problem.exit_code)
"""


@pytest.mark.parametrize("limit", [10, 100_000, 200_100])
def test_a_full_disk_ends_in_a_sentence_and_keeps_the_rounds_before(tmp_path: Path, limit: int) -> None:
    """No room for the record, for the weights (200 kB), or for the optimiser's state, which is longer by its header."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    folder = bare_folder(tmp_path / "run", bare_study(), {"w": np.ones(50_000, np.float32)}, ["anna", "berta"])
    before = write_round(folder, 1)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder.path), str(limit)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "the checkpoint of round 2 can't be written" in done.stdout
    assert "the rounds before it are kept" in done.stdout
    assert_same(latest(folder), before)
    assert not list(folder.path.glob("rounds/.*"))
