"""The adapter of any DICOM tree, on files written here and on the public samples."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.data.cache import prepare_store
from client.data.dicom_folder import DicomFolder
from client.data.image_survey import survey
from client.data.records import Holding
from client.data.registry import adapter_for, open_holding, read_holding
from shared.errors import DataError, ProfileError
from shared.profile import Profile, SiteData
from shared.study_pixels import Preprocessing

read = DicomFolder()
MAMMOGRAPHY, ULTRASOUND = "1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.6.1"


def write(
    path: Path, *, patient: str | None = "P1", frames: int = 1, value: int = 0, image: bool = True, **fields: Any
) -> str:
    """One DICOM file, 20 x 20 pixels of 8 bits; returns its SOP Instance UID. Frame k has the value `value` + k."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = MAMMOGRAPHY
    data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID = generate_uid()
    data.Modality = "MG"
    if patient is not None:
        data.PatientID = patient
    if image:
        data.Rows = data.Columns = 20
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 7, 0, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        if frames > 1:
            data.NumberOfFrames = frames
        levels = value + np.arange(frames, dtype=np.uint8)[:, None, None]
        data.PixelData = np.broadcast_to(levels, (frames, 20, 20)).tobytes()
    for keyword, content in fields.items():
        setattr(data, keyword, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return str(data.SOPInstanceUID)


def labels(root: Path, text: str) -> None:
    (root / "labels.csv").write_text(text)


def data(root: Path, **settings: Any) -> SiteData:
    return SiteData(layout="dicom_folder", root=str(root), synthetic=False, **settings)


def reasons(holding: Holding) -> dict[str, str]:
    return {f"{problem.file.name}:{problem.row or ''}": problem.reason for problem in holding.problems}


def test_the_patient_is_the_headers_and_the_label_the_tables_by_file_or_by_uid(tmp_path: Path) -> None:
    write(
        tmp_path / "study" / "one.dcm",
        patient=" P1 ",
        ViewPosition="CC",
        ImageLaterality="L",
        PatientAge="045Y",
        PatientSex="F",
    )
    uid = write(tmp_path / "study" / "IM0002", patient="P2", Modality="US", Laterality="R", PatientAge="018M")
    labels(tmp_path, f"file,SOPInstanceUID,label,density\nstudy/one.dcm,,benign,B\n,{uid},malignant,2\n")
    one, two = read(tmp_path, unit="image").records
    assert (one.key, one.label, one.patient) == ("study/one.dcm", "benign", "P1")
    assert (two.key, two.label, two.patient) == ("study/IM0002", "malignant", "P2")
    assert one.attributes == {"modality": "mg", "view": "cc", "side": "left", "density": "b"}
    assert one.metadata == {"age": 45.0, "sex": "female", "density": "B"}
    assert two.attributes["side"] == "right" and two.metadata == {"age": 1.5, "density": 2.0}
    assert read(tmp_path, unit="view").records == (one, two)


def test_a_header_field_can_hold_the_label(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", SeriesDescription="Benign")
    write(tmp_path / "b.dcm")
    holding = read_holding(data(tmp_path, label_field="SeriesDescription"), unit="image")
    assert [record.label for record in holding.records] == ["Benign"]
    assert "SeriesDescription, which data.label_field names, is empty" in reasons(holding)["b.dcm:"]


def test_labels_with_two_sources_or_none_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="nothing says what the images show"):
        read(tmp_path, unit="image")
    labels(tmp_path, "file,label\na.dcm,x\n")
    with pytest.raises(DataError, match="two sources"):
        read_holding(data(tmp_path, label_field="SeriesDescription"), unit="image")
    labels(tmp_path, "file,diagnosis\na.dcm,x\n")
    with pytest.raises(DataError, match="'label' is missing; the columns there are diagnosis, file"):
        read(tmp_path, unit="image")


def test_an_empty_patient_id_is_a_problem_unless_the_profile_names_what_stands_in(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", patient=None, StudyInstanceUID="1.2.3")
    write(tmp_path / "b.dcm", patient="", StudyInstanceUID="1.2.3")
    write(tmp_path / "c.dcm", patient="P3")
    labels(tmp_path, "file,label\na.dcm,x\nb.dcm,x\nc.dcm,x\n")
    holding = read(tmp_path, unit="image")
    assert [record.patient for record in holding.records] == ["P3"] and holding.patient_stand_in is None
    assert set(reasons(holding)) == {"a.dcm:", "b.dcm:"}
    assert "e.g. StudyInstanceUID" in reasons(holding)["a.dcm:"]
    holding = read_holding(data(tmp_path, patient_stand_in="StudyInstanceUID"), unit="image")
    assert [record.patient for record in holding.records] == ["1.2.3", "1.2.3", "P3"]
    assert (holding.patient_stand_in, holding.problems) == ("StudyInstanceUID", ())
    holding = read_holding(data(tmp_path, patient_stand_in="AccessionNumber"), unit="image")
    assert "and so is AccessionNumber" in reasons(holding)["a.dcm:"]


def test_the_tables_patient_comes_before_the_headers(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", patient="ANON")
    write(tmp_path / "b.dcm", patient="P2")
    labels(tmp_path, "file,label,patient\na.dcm,x,P1\nb.dcm,x,\n")
    assert [record.patient for record in read(tmp_path, unit="image").records] == ["P1", "P2"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label_field": "SeriesDescripton"}, "data.label_field: .*did you mean SeriesDescription"),
        ({"label_field": "ViewCodeSequence"}, "holds no text"),
        (
            {"patient_stand_in": "the study"},
            "data.patient_stand_in: 'the study' is the keyword of no DICOM header field",
        ),
    ],
)
def test_a_keyword_that_is_none_is_refused(tmp_path: Path, settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(ProfileError, match=sentence):
        adapter_for(data(tmp_path, **settings))


def test_of_several_frames_the_first_is_used_and_told_unless_the_table_names_others(tmp_path: Path) -> None:
    write(tmp_path / "loop.dcm", frames=5, value=10)
    labels(tmp_path, "file,label\nloop.dcm,x\n")
    holding = read(tmp_path, unit="image")
    assert [record.key for record in holding.records] == ["loop.dcm"] and "loop.dcm: 5" in holding.notes[0]
    labels(tmp_path, "file,label,frame\nloop.dcm,x,2\nloop.dcm,x,5\nloop.dcm,x,6\nloop.dcm,x,2\n")
    holding = read(tmp_path, unit="image")
    assert [record.key for record in holding.records] == ["loop.dcm#2", "loop.dcm#5"] and not holding.notes
    assert (
        "loop.dcm has 5 frame(s)" in reasons(holding)["labels.csv:4"]
        and "earlier row" in reasons(holding)["labels.csv:5"]
    )
    store = prepare_store(
        holding.records, Preprocessing(region="whole", size=20, channels=1), tmp_path / "cache", unreadable="stop"
    )
    assert [int(image.max()) for image in store.images] == [11, 14]


def test_files_and_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    uid = write(tmp_path / "a.dcm")
    shutil.copy(tmp_path / "a.dcm", tmp_path / "0-copy.dcm")
    write(tmp_path / "unlisted.dcm")
    write(tmp_path / "empty-label.dcm")
    other = write(tmp_path / "other.dcm")
    (tmp_path / "no.dcm").write_text("not DICOM at all")
    (tmp_path / "empty.dcm").touch()
    labels(
        tmp_path,
        f"file,SOPInstanceUID,label\na.dcm,{uid},x\ngone.dcm,,x\nother.dcm,{uid},x\nempty-label.dcm,,\n,1.2.3,x\n",
    )
    holding = read(tmp_path, unit="image")
    assert [record.key for record in holding.records] == ["a.dcm"]
    found = reasons(holding)
    assert set(found) == {
        "0-copy.dcm:", "unlisted.dcm:", "no.dcm:", "empty.dcm:", "labels.csv:3", "labels.csv:4", "labels.csv:5", "labels.csv:6",
    }  # fmt: skip
    assert "same SOP Instance UID" in found["0-copy.dcm:"] and "no usable row" in found["unlisted.dcm:"]
    assert "is none" in found["no.dcm:"] and "is none" in found["empty.dcm:"]
    assert "is called 'gone.dcm'" in found["labels.csv:3"] and other in found["labels.csv:4"]
    assert (
        "'label' of empty-label.dcm is empty" in found["labels.csv:5"]
        and "has the SOPInstanceUID '1.2.3'" in found["labels.csv:6"]
    )


def test_the_profile_says_whether_a_problem_stops_the_site(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", SeriesDescription="x")
    write(tmp_path / "b.dcm")
    content = {"schema": "consilium/profile/1", "site": "s", "title": "S"}
    stop = Profile.model_validate({**content, "data": data(tmp_path, label_field="SeriesDescription").model_dump()})
    with pytest.raises(DataError, match=r"1 file or row can't be used: .*b.dcm"):
        open_holding(stop, unit="image")
    skip = stop.model_copy(update={"data": stop.data.model_copy(update={"unreadable": "skip"})})
    assert len(open_holding(skip, unit="image").records) == 1


def test_burned_in_text_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "us.dcm", Modality="US", SOPClassUID=ULTRASOUND)
    write(tmp_path / "clean.dcm", Modality="US", BurnedInAnnotation="NO")
    write(tmp_path / "mg.dcm")
    write(tmp_path / "written.dcm", BurnedInAnnotation="YES")
    labels(tmp_path, "file,label\nus.dcm,x\nclean.dcm,x\nmg.dcm,x\nwritten.dcm,x\n")
    (note,) = read(tmp_path, unit="image").notes
    assert "likely in 2 file(s)" in note and "us.dcm" in note and "written.dcm" in note and "clean.dcm" not in note


def test_masks_objects_without_an_image_and_other_files_are_no_images(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm")
    write(tmp_path / "mask.dcm", value=1)
    write(tmp_path / "report.dcm", image=False, Modality="SR")
    Image.fromarray(np.full((20, 20), 255, dtype=np.uint8)).save(tmp_path / "mask.png")
    (tmp_path / "README").write_text("read me")
    labels(tmp_path, "file,label,mask\na.dcm,x,mask.dcm;mask.png\n")
    holding = read(tmp_path, unit="image")
    assert [mask.name for mask in holding.records[0].masks] == ["mask.dcm", "mask.png"]
    assert not holding.problems
    assert "1 DICOM file(s) hold no image" in holding.notes[0] and "1 file(s) of other kinds" in holding.notes[1]


@pytest.mark.parametrize("state", ["missing", "empty", "no images"])
def test_a_folder_of_another_layout_ends_in_a_sentence(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "other"
    if state != "missing":
        folder.mkdir()
    if state == "no images":
        labels(folder, "file,label\na.dcm,x\n")
        (folder / "a.dcm").write_text("no")
    with pytest.raises(DataError, match="other"):
        read(folder, unit="image")


@pytest.mark.real_data
def test_every_public_sample_ends_in_a_record_or_in_a_problem_that_names_it(tmp_path: Path) -> None:
    given = os.environ.get("FEDERATION_DATA")
    if given is None:
        pytest.skip("FEDERATION_DATA is not set: the public samples are not there")
    samples = sorted((Path(given) / "dicom_samples").glob("*.dcm"))
    assert len(samples) == 12
    root = tmp_path / "samples"
    root.mkdir()
    for sample in samples:
        (root / sample.name).symlink_to(sample)
    holding = read_holding(data(root, label_field="Modality", patient_stand_in="StudyInstanceUID"), unit="image")
    found = survey(holding.records, masks="read")
    problems = {problem.file.name: problem.reason for problem in (*holding.problems, *found.problems)}
    usable = {record.image.name for record in found.usable}
    assert usable | set(problems) == {sample.name for sample in samples} and not usable & set(problems)
    assert "same SOP Instance UID" in problems.pop(
        "examples_jpeg2k.dcm" if "examples_jpeg2k.dcm" in problems else "US1_J2KR.dcm"
    )
    assert set(problems) <= {"MG1_JPLY.dcm"}
    assert {record.label for record in found.usable} == {"US", "RG"}
