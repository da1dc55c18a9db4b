"""A weights file says which run it comes from, always in the same bytes, and stays an ordinary weights file."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save

from benchmarks.bare_run import bare_study
from shared.canonical import file_digest
from shared.errors import WeightsError, WeightsUnavailableError
from shared.models.weights import read_weights
from shared.provenance import Provenance, read_provenance, with_provenance
from shared.study import study_from_data
from shared.study_model import WeightsFile

TENSORS = {"b.weight": np.arange(5, dtype=np.float32), "a.count": np.array(3, dtype=np.int64)}
TITLED = {**bare_study().to_data(), "title": "Größe der Läsion"}
OF_A_RUN = Provenance(study=TITLED, run="demo-2026-03-02T080000.000Z", round=8, ancestors=("older-1", None))


def written(path: Path, provenance: Provenance = OF_A_RUN) -> Path:
    path.write_bytes(with_provenance(save(TENSORS), provenance))
    return path


def test_what_was_written_is_read_and_the_tensors_are_what_they_were(tmp_path: Path) -> None:
    path = written(tmp_path / "m.safetensors")
    found = read_provenance(path)
    assert found == OF_A_RUN and found.runs == ("older-1", None, OF_A_RUN.run)
    assert study_from_data(found.study).title == "Größe der Läsion"
    for name, values in load(path.read_bytes()).items():
        np.testing.assert_array_equal(values, TENSORS[name])
    with safe_open(str(path), framework="np") as opened:  # the library's own reader agrees
        told = opened.metadata()
    assert json.loads(told["consilium.study"])["name"] == "bare"
    assert (told["consilium.run"], told["consilium.round"]) == (OF_A_RUN.run, "8")
    assert json.loads(told["consilium.ancestors"]) == ["older-1", None]


def test_a_study_reads_its_weights_as_ever(tmp_path: Path) -> None:
    path = written(tmp_path / "m.safetensors")
    tensors = read_weights(WeightsFile(file=str(path), sha256=file_digest(path), source="a run"))
    assert tensors["b.weight"].tolist() == [0, 1, 2, 3, 4]


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from safetensors.numpy import load_file, save;"
        "from shared.provenance import read_provenance, with_provenance; source = Path(sys.argv[1]);"
        "sys.stdout.write(with_provenance(save(load_file(source)), read_provenance(source)).hex())"
    )
    path = written(tmp_path / "m.safetensors")
    said = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert bytes.fromhex(said.stdout) == path.read_bytes()
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


def test_other_files_name_no_run(tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(save(TENSORS, metadata={"format": "pt"}))
    assert read_provenance(plain) is None
    other = tmp_path / "w.pth"
    other.write_bytes(b"anything")
    assert read_provenance(other) is None


@pytest.mark.parametrize(
    "told",
    [
        {"consilium.run": "first"},
        {"consilium.run": "../../keys", "consilium.round": "3", "consilium.study": "{}"},
        {"consilium.run": "first", "consilium.round": "zero", "consilium.study": "{}"},
        {"consilium.run": "first", "consilium.round": "3", "consilium.study": "{}", "consilium.ancestors": '["../a"]'},
    ],
)
def test_half_a_provenance_is_none(tmp_path: Path, told: dict[str, str]) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save(TENSORS, metadata=told))
    with pytest.raises(WeightsError, match="export the model again"):
        read_provenance(path)


def test_a_damaged_or_missing_file_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for content in (
        b"",
        b"12345678",
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 2) + b"[]",
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="header is damaged"):
            read_provenance(path)
    with pytest.raises(WeightsUnavailableError, match="can't be read"):
        read_provenance(tmp_path / "none.safetensors")
