"""Readers: the same upright pixels from plain files, whichever library decodes."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from made_images import ORIENTATION, READERS, encode, luma, noise, orientation_block, photo, write
from PIL import Image

from cvtrain.data.images.decoders import DECODERS, Decoder
from cvtrain.data.images.reader import BadImageError, build_reader

# What undoes each EXIF orientation, written with numpy: the reference for all readers.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.fixture(params=READERS)
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("image_format", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_colour_is_read_to_the_bit(
    tmp_path: Path, library: str, image_format: str, options: dict, channels: int
) -> None:
    pixels = noise(13, 29)
    path = write(tmp_path, encode(pixels, image_format, **options))
    result = build_reader(library=library, channels=channels)(path)
    assert result.dtype == np.uint8 and result.flags.c_contiguous and result.flags.writeable
    np.testing.assert_array_equal(result, pixels if channels == 3 else luma(pixels))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "PPM"])
def test_grey_is_repeated_or_kept(tmp_path: Path, library: str, image_format: str) -> None:
    path = write(tmp_path, encode(photo()[..., 0], image_format))
    grey = build_reader(library=library, channels=1)(path)
    assert grey.shape == (61, 48, 1)
    with Image.open(path) as image:
        np.testing.assert_array_equal(grey[..., 0], np.asarray(image))
    np.testing.assert_array_equal(build_reader(library=library)(path), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 60},
        {"quality": 95, "subsampling": 0},
        {"quality": 90, "subsampling": 1},
        {"quality": 75, "progressive": True},
        {"quality": 75, "optimize": True, "restart_marker_rows": 1},
    ],
)
def test_jpeg_differs_by_little_between_readers(tmp_path: Path, library: str, options: dict) -> None:
    # Measured: 0 with Pillow 13, OpenCV 5, scikit-image 0.26 and torchvision 0.29, all built on libjpeg-turbo. A build
    # on another libjpeg may round its inverse DCT and chroma upsampling differently.
    path = write(tmp_path, encode(photo(240, 320), "JPEG", **options))
    expected = build_reader(library="pillow")(path).astype(int)
    difference = np.abs(build_reader(library=library)(path) - expected)
    assert difference.max() <= 4
    assert difference.mean() <= 0.1


def test_lossy_webp_is_equal_between_readers(tmp_path: Path, library: str) -> None:
    path = write(tmp_path, encode(photo(), "WEBP", quality=70))
    np.testing.assert_array_equal(build_reader(library=library)(path), build_reader(library="pillow")(path))


@pytest.mark.parametrize("library", ["opencv", "skimage", "torchvision"])
def test_plain_files_do_reach_the_library(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(data: bytes, image_format: str, mode: str) -> np.ndarray:
        calls.append(image_format)
        return DECODERS_BEFORE[library].decode(data, image_format, mode)

    DECODERS_BEFORE = dict(DECODERS)
    reader = build_reader(library=library)
    monkeypatch.setitem(DECODERS, library, Decoder(count, DECODERS[library].formats))
    plain = [encode(photo(), "JPEG"), encode(photo()[..., 0], "JPEG"), encode(photo(), "WEBP")]
    for data in [*plain, encode(photo(), "PNG"), encode(photo(), "BMP"), encode(noise(5, 5, 4), "PNG")]:
        reader(write(tmp_path, data))
    assert calls == ["JPEG", "JPEG"] + ([] if library == "torchvision" else ["PNG"])


def test_a_library_without_a_decoder_is_replaced_by_pillow_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(data: bytes, image_format: str, mode: str) -> np.ndarray:
        raise RuntimeError("Couldn't load custom C++ ops")

    monkeypatch.setitem(DECODERS, "torchvision", Decoder(missing, DECODERS["torchvision"].formats))
    with caplog.at_level(logging.WARNING):
        reader = build_reader(library="torchvision")
    assert "this installation of torchvision decodes no JPEG files" in caplog.text
    assert reader.library == "pillow"  # type: ignore[attr-defined]


def test_what_a_library_cannot_decode_pillow_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes, image_format: str, mode: str) -> np.ndarray:
        raise ValueError("no")

    reader = build_reader(library="opencv")
    monkeypatch.setitem(DECODERS, "opencv", Decoder(refuse, DECODERS["opencv"].formats))
    pixels = noise(7, 5)
    np.testing.assert_array_equal(reader(write(tmp_path, encode(pixels, "PNG"))), pixels)


def test_unknown_library_is_refused() -> None:
    with pytest.raises(ValueError, match="'cairo': must be one of pillow, opencv, skimage, torchvision"):
        build_reader(library="cairo")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(tmp_path: Path, library: str, image_format: str, orientation: int) -> None:
    options: dict = {"WEBP": {"lossless": True}}.get(image_format, {})
    stored = build_reader()(write(tmp_path, encode(photo(24, 40), image_format, **options)))
    if image_format == "TIFF":
        data = encode(photo(24, 40), image_format, tiffinfo={ORIENTATION: orientation})
    else:
        data = encode(photo(24, 40), image_format, exif=orientation_block(orientation), **options)
    result = build_reader(library=library)(write(tmp_path, data))
    np.testing.assert_array_equal(result, UPRIGHT[orientation](stored))
    grey = build_reader(library=library, channels=1)(write(tmp_path, data))
    np.testing.assert_array_equal(grey, luma(result))


@pytest.mark.parametrize("block", [orientation_block(0), orientation_block(9), b"Exif\0\0MM\0*broken", b"Exif\0\0"])
def test_senseless_exif_leaves_the_image_as_stored(tmp_path: Path, library: str, block: bytes) -> None:
    stored = build_reader()(write(tmp_path, encode(photo(24, 40), "JPEG")))
    result = build_reader(library=library)(write(tmp_path, encode(photo(24, 40), "JPEG", exif=block)))
    np.testing.assert_array_equal(result, stored)


def test_orientation_of_a_grey_file(tmp_path: Path, library: str) -> None:
    data = encode(noise(4, 6)[..., 0], "PNG", exif=orientation_block(6))
    stored = build_reader(channels=1)(write(tmp_path, encode(noise(4, 6)[..., 0], "PNG")))
    result = build_reader(library=library, channels=1)(write(tmp_path, data))
    np.testing.assert_array_equal(result, np.rot90(stored, -1))


def test_reading_is_silent(tmp_path: Path, library: str, recwarn: pytest.WarningsRecorder) -> None:
    image = Image.fromarray(noise(4, 4)[..., 0], "P")  # Pillow warns of palettes with transparency in bytes
    image.putpalette(noise(1, 256)[0].tobytes())
    data = encode(image, "PNG", transparency=bytes(range(256)))
    build_reader(library=library)(write(tmp_path, data))
    build_reader(library=library)(write(tmp_path, encode(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")))
    assert not recwarn.list


def test_readers_can_be_pickled(tmp_path: Path, library: str) -> None:
    path = write(tmp_path, encode(noise(5, 6, 4), "PNG"))
    reader = build_reader(library=library, channels=1, alpha_color=(1, 2, 3), max_image_pixels=30)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))(path), reader(path))


def test_bad_image_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(BadImageError("a/b.jpg", "the file is empty (0 bytes)", 17)))
    assert (error.path, error.cause, error.index) == ("a/b.jpg", "the file is empty (0 bytes)", 17)
    assert str(error).startswith("a/b.jpg (image 17 of its split): the file is empty (0 bytes)\n")
