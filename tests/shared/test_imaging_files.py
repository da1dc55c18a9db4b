"""Reading image files: pixels compared with pydicom, Pillow and arrays written on the spot; damage ends in a sentence."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from shared.errors import UnreadableImageError
from shared.imaging import decoder
from shared.imaging.files import read_image

real_samples = pytest.mark.skipif("FEDERATION_DATA" not in os.environ, reason="FEDERATION_DATA is not set")


def dicom_file(
    path: Path,
    stored: np.ndarray,
    *,
    bits: int = 12,
    photometric: str = "MONOCHROME2",
    syntax: UID = ExplicitVRLittleEndian,
    signed: bool = False,
    **elements: object,
) -> Path:
    """A minimal true DICOM mammogram with these stored values."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if syntax.is_implicit_VR else ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.2")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.826.0.1.3680043.8.498.1")
    dataset.Modality = "MG"
    dataset.set_pixel_data(stored, photometric, bits, generate_instance_uid=False)
    dataset.PixelRepresentation = int(signed)
    for name, value in elements.items():
        setattr(dataset, name, value)
    if syntax.is_compressed:
        # GDCM, pydicom's other choice, aborts the whole process on RLE rows of odd length.
        plugin = "pydicom" if syntax == RLELossless else "pylibjpeg"
        dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        # 8-bit values have a byte order too: they are stored in 16-bit words (PS3.5 section 8.1.1), high byte first.
        little = bytes(dataset.PixelData)
        dataset.PixelData = np.frombuffer(little, "<u2").astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


def ramp(bits: int, shape: tuple[int, int] = (37, 41)) -> np.ndarray:
    generator = np.random.default_rng(bits)
    values = generator.integers(0, 2**bits, size=shape).astype(np.uint8 if bits <= 8 else np.uint16)
    values[0, 0], values[-1, -1] = 0, 2**bits - 1
    return values


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_lossless_transfer_syntaxes_give_back_the_stored_values(tmp_path: Path, bits: int, syntax: UID) -> None:
    stored = ramp(bits)
    pixels = read_image(dicom_file(tmp_path / "a.dcm", stored, bits=bits, syntax=syntax))
    assert pixels.bits == bits and pixels.photometric == "MONOCHROME2"
    np.testing.assert_array_equal(pixels.array, stored)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless], ids=lambda s: s.name)
def test_monochrome1_is_inverted_so_that_larger_is_brighter(tmp_path: Path, syntax: UID) -> None:
    stored = ramp(12)
    pixels = read_image(dicom_file(tmp_path / "a.dcm", stored, photometric="MONOCHROME1", syntax=syntax))
    np.testing.assert_array_equal(pixels.array, 4095 - stored)


def test_signed_values_are_shifted_to_start_at_zero(tmp_path: Path) -> None:
    stored = (ramp(12).astype(np.int16) - 2048).astype(np.int16)
    pixels = read_image(dicom_file(tmp_path / "a.dcm", stored, signed=True))
    np.testing.assert_array_equal(pixels.array, stored.astype(int) + 2048)


def test_a_negative_rescale_slope_inverts_and_a_positive_one_changes_nothing(tmp_path: Path) -> None:
    stored = ramp(12)
    up = dicom_file(tmp_path / "up.dcm", stored, RescaleSlope="2.5", RescaleIntercept="-1000")
    down = dicom_file(tmp_path / "down.dcm", stored, RescaleSlope="-1", RescaleIntercept="4095")
    both = dicom_file(
        tmp_path / "both.dcm", stored, photometric="MONOCHROME1", RescaleSlope="-1", RescaleIntercept="4095"
    )
    np.testing.assert_array_equal(read_image(up).array, stored)
    np.testing.assert_array_equal(read_image(down).array, 4095 - stored)
    np.testing.assert_array_equal(read_image(both).array, stored)


def test_bits_above_bits_stored_are_cleared(tmp_path: Path) -> None:
    stored = ramp(12)
    path = dicom_file(tmp_path / "a.dcm", stored)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = (stored | np.uint16(0x8000)).tobytes()
    dataset.save_as(path)
    np.testing.assert_array_equal(read_image(path).array, stored)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_pixel_padding_is_black_in_both_photometrics(tmp_path: Path, photometric: str) -> None:
    stored = np.full((8, 8), 1000, dtype=np.uint16)
    stored[:, :3] = 7
    path = dicom_file(tmp_path / "a.dcm", stored, photometric=photometric)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 7)
    dataset.save_as(path)
    array = read_image(path).array
    assert (array[:, :3] == 0).all()
    assert (array[:, 3:] == (1000 if photometric == "MONOCHROME2" else 3095)).all()


def test_frames_are_chosen_by_number_from_zero(tmp_path: Path) -> None:
    stored = np.stack([np.full((6, 6), value, dtype=np.uint16) for value in (10, 20, 30)])
    path = dicom_file(tmp_path / "a.dcm", stored, syntax=RLELossless)
    assert [int(read_image(path, frame).array[0, 0]) for frame in range(3)] == [10, 20, 30]
    with pytest.raises(UnreadableImageError, match=r"3 frame\(s\), but frame 3"):
        read_image(path, 3)


def test_a_palette_becomes_the_colours_that_pydicom_gives() -> None:
    path = Path(str(get_testdata_file("examples_palette.dcm")))
    dataset = pydicom.dcmread(path)
    reference = pydicom.pixels.apply_color_lut(dataset.pixel_array, dataset) >> 8
    np.testing.assert_array_equal(read_image(path).array, reference)


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "examples_ybr_color.dcm",
        "examples_jpeg2k.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "rtdose.dcm",
        "examples_overlay.dcm",
    ],
)
def test_pydicoms_own_samples_are_read_as_pydicom_reads_them(name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    np.testing.assert_array_equal(read_image(path).array, pydicom.pixels.pixel_array(path, index=0))


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm", "J2K_pixelrep_mismatch.dcm"]
)
def test_signed_samples_keep_pydicoms_values_up_to_the_shift(name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    pixels = read_image(path)
    np.testing.assert_array_equal(
        pixels.array.astype(int) - 2 ** (pixels.bits - 1), pydicom.pixels.pixel_array(path, index=0)
    )


def test_twelve_bit_jpeg_is_decoded_to_the_values_that_pydicom_documents() -> None:
    """pydicom's own tests of this file: element (420, 140) is 244 and (230, 120) is 95."""
    pixels = read_image(Path(str(get_testdata_file("JPEG-lossy.dcm"))))
    assert (pixels.array.shape, pixels.bits) == ((1024, 256), 12)
    assert (int(pixels.array[420, 140]), int(pixels.array[230, 120])) == (244, 95)


@pytest.mark.parametrize("name", ["rtplan.dcm", "reportsi.dcm", "test-SR.dcm", "waveform_ecg.dcm"])
def test_dicom_without_pixels_says_so_and_names_its_kind(name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    with pytest.raises(
        UnreadableImageError, match=rf"{name}: it holds no image: there is no Pixel Data \(SOP class: .+\); "
    ):
        read_image(path)


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def test_pictures_keep_depth_and_colour(tmp_path: Path) -> None:
    grey, deep, colour = ramp(8), ramp(16), np.stack([ramp(8)] * 3, axis=2)
    for name, array, bits in (("grey.png", grey, 8), ("deep.png", deep, 16), ("colour.png", colour, 8)):
        (tmp_path / name).write_bytes(png(array))
        pixels = read_image(tmp_path / name)
        assert pixels.bits == bits
        np.testing.assert_array_equal(pixels.array, array)


def test_alpha_is_dropped_and_black_and_white_has_two_levels(tmp_path: Path) -> None:
    colour = np.stack([ramp(8)] * 4, axis=2)
    (tmp_path / "alpha.png").write_bytes(png(colour))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png").array, colour[..., :3])
    (tmp_path / "bw.png").write_bytes(png(ramp(8) > 127))
    np.testing.assert_array_equal(read_image(tmp_path / "bw.png").array, np.where(ramp(8) > 127, 255, 0))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.dcm", b"", "it is empty"),
        ("empty.png", b"", "it is empty"),
        ("text.png", b"patient,label\n1,benign\n", "not an image of a known format"),
        ("text.dcm", b"patient,label\n1,benign\n" * 20, "not a DICOM file"),
        ("preamble.dcm", bytes(128) + b"DICM", "not a DICOM file, or it is cut off"),
        ("cut.png", png(ramp(8, (200, 200)))[:9000], "damaged or cut off"),
        ("picture.dcm", png(ramp(8)), "not a DICOM file"),
    ],
)
def test_what_is_no_image_ends_in_a_sentence_naming_the_file(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImageError, match=expected) as caught:
        read_image(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name) + ": ") and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_end_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"absent.dcm: it can't be opened \(No such file"):
        read_image(tmp_path / "absent.dcm")
    with pytest.raises(UnreadableImageError, match="can't be opened"):
        read_image(tmp_path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless], ids=lambda s: s.name)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.98])
def test_truncated_dicom_is_refused_wherever_it_is_cut(tmp_path: Path, share: float, syntax: UID) -> None:
    path = dicom_file(tmp_path / "a.dcm", ramp(12, (100, 100)), syntax=syntax)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableImageError, match=r"a\.dcm: "):
        read_image(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_pixels_or_a_sentence_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from([ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless]))
    path = dicom_file(tmp_path / "a.dcm", ramp(12, (40, 40)), syntax=syntax)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        pixels = read_image(path)
    except UnreadableImageError as problem:
        assert str(problem).startswith(str(path))
    else:
        assert pixels.array.ndim in (2, 3) and int(pixels.array.max()) < 2**pixels.bits


def test_a_decoder_that_dies_ends_in_a_sentence_and_the_next_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicom_file(tmp_path / "a.dcm", ramp(12), syntax=JPEG2000Lossless)
    decoder.close_decoders()
    crash = "import os, signal, sys; sys.stdin.readline(); os.kill(os.getpid(), signal.SIGSEGV)"
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_START", crash)
        with pytest.raises(
            UnreadableImageError, match=rf"a\.dcm: the decoder of '.+' ended by signal {signal.SIGSEGV:d} "
        ):
            read_image(path)
    np.testing.assert_array_equal(read_image(path).array, ramp(12))


def test_a_decoder_that_hangs_is_stopped_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicom_file(tmp_path / "a.dcm", ramp(12), syntax=JPEG2000Lossless)
    decoder.close_decoders()
    monkeypatch.setattr(decoder, "_START", "import time; time.sleep(60)")
    monkeypatch.setattr(decoder, "DEADLINE_S", 0.3)
    began = time.monotonic()
    with pytest.raises(UnreadableImageError, match="ended by signal 9"):
        read_image(path)
    assert time.monotonic() - began < 30


def test_no_decoder_outlives_its_parent_even_if_that_is_killed(tmp_path: Path) -> None:
    path = dicom_file(tmp_path / "a.dcm", ramp(12), syntax=JPEG2000Lossless)
    script = (
        "import sys, time; from pathlib import Path; from shared.imaging import decoder, files;"
        "files.read_image(Path(sys.argv[1])); print(decoder._idle[0]._process.pid, flush=True); time.sleep(60)"
    )
    house = str(Path(__file__).parents[2])
    arguments = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": house}
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    for _ in range(200):
        try:
            # A zombie that nobody has waited for yet has ended too.
            if Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail(f"decoder {child} is still there")


def test_several_threads_decode_at_once(tmp_path: Path) -> None:
    paths = [
        dicom_file(tmp_path / f"{bits}.dcm", ramp(bits), bits=bits, syntax=JPEG2000Lossless)
        for bits in (10, 12, 14, 16)
    ]
    results: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        results[index] = read_image(paths[index]).array

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, bits in enumerate((10, 12, 14, 16)):
        np.testing.assert_array_equal(results[index], ramp(bits))


@pytest.mark.real_data
@real_samples
def test_all_real_samples_give_pixels() -> None:
    folder = Path(os.environ["FEDERATION_DATA"]) / "dicom_samples"
    shapes = {path.name: read_image(path).array.shape for path in sorted(folder.glob("*.dcm"))}
    assert len(shapes) == 12
    for name, shape in shapes.items():
        header = pydicom.dcmread(folder / name, stop_before_pixels=True)
        colour = header.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2")
        assert shape == ((header.Rows, header.Columns, 3) if colour else (header.Rows, header.Columns)), name
    # Two lossy compressions of one and the same film: an independent check of the 12-bit JPEG decoder.
    extended, wavelet = (read_image(folder / name).array[::8, ::8].ravel() for name in ("MG1_JPLY.dcm", "MG1_J2KI.dcm"))
    assert np.corrcoef(extended, wavelet)[0, 1] > 0.999
    assert abs(float(extended.mean()) - float(wavelet.mean())) < 1.0
