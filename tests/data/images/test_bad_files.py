"""Files that cannot be read whole: every reader judges alike, with a clear cause and no other type of error."""

import errno
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from made_images import READERS, encode, noise, photo, write
from PIL import Image

from cvtrain.config.errors import RunError
from cvtrain.data.images import integrity
from cvtrain.data.images.reader import BadImageError, build_reader


@pytest.fixture(params=READERS)
def library(request: pytest.FixtureRequest) -> str:
    return request.param


def cause_of(library: str, path: Path, **options: object) -> str:
    with pytest.raises(BadImageError) as caught:
        build_reader(library=library, **options)(path)  # type: ignore[arg-type]
    assert caught.value.path == str(path)
    return caught.value.cause


WHOLE = {
    "jpeg": encode(photo(), "JPEG"),
    "jpeg_with_thumbnail": encode(photo(), "JPEG", exif=b"Exif\0\0" + encode(photo(8, 8), "JPEG")),
    "progressive": encode(photo(), "JPEG", progressive=True),
    "png": encode(photo(), "PNG"),
    "webp": encode(photo(), "WEBP"),
    "webp_lossless": encode(photo(), "WEBP", lossless=True),
    "bmp": encode(photo(), "BMP"),
    "tiff": encode(photo(), "TIFF"),
    "tiff_lzw": encode(photo(), "TIFF", compression="tiff_lzw"),
    "ppm": encode(photo(), "PPM"),
    "gif": encode(photo(), "GIF"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_files_are_bad_wherever_they_are_cut(tmp_path: Path, library: str, name: str) -> None:
    whole = WHOLE[name]
    reader = build_reader(library=library)
    assert reader(write(tmp_path, whole)).shape == (61, 48, 3)
    # A GIF ends with a trailer byte, and no decoder minds its absence or that of the empty block before it.
    cuts = [1, 3, 12, *(len(whole) * part // 12 for part in range(1, 12)), len(whole) - (3 if name == "gif" else 1)]
    for cut in cuts:
        path = write(tmp_path, whole[:cut])
        with pytest.raises(BadImageError):
            reader(path)


def test_causes_of_truncation(tmp_path: Path, library: str) -> None:
    for name, word in (("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WebP")):
        half = WHOLE[name][: len(WHOLE[name]) // 2]
        cause = cause_of(library, write(tmp_path, half))
        assert cause.startswith(f"truncated: the {word} file") and f"after {len(half)}" in cause


def test_a_file_whose_tail_is_zeros_is_bad(tmp_path: Path, library: str) -> None:
    # What an interrupted download leaves where the space had been reserved.
    for name in ("jpeg", "progressive", "png"):
        whole = WHOLE[name]
        half = len(whole) // 2
        cause_of(library, write(tmp_path, whole[:half] + bytes(len(whole) - half)))


def test_damaged_png_is_bad(tmp_path: Path, library: str) -> None:
    damaged = bytearray(WHOLE["png"])
    damaged[len(damaged) // 2] ^= 0xFF
    assert cause_of(library, write(tmp_path, bytes(damaged))) == (
        "damaged: the checksum of PNG chunk IDAT does not match"
    )


def test_jpeg_with_a_stray_marker_is_bad(tmp_path: Path, library: str) -> None:
    # OpenCV returns such a picture with a grey rest, Pillow calls the data stream broken.
    damaged = bytearray(WHOLE["jpeg"])
    middle = len(damaged) * 3 // 4
    damaged[middle : middle + 2] = b"\xff\xb0"
    assert cause_of(library, write(tmp_path, bytes(damaged))) == (
        f"damaged: marker 0xFFB0 within the JPEG picture data at byte {middle}"
    )


def test_data_behind_the_end_is_allowed(tmp_path: Path, library: str) -> None:
    for name in ("jpeg", "png", "webp"):
        result = build_reader(library=library)(write(tmp_path, WHOLE[name] + b"trailer" * 9))
        np.testing.assert_array_equal(result, build_reader()(write(tmp_path, WHOLE[name])))


def test_no_image(tmp_path: Path, library: str) -> None:
    assert cause_of(library, write(tmp_path, b"", "a.jpg")) == "the file is empty (0 bytes)"
    assert cause_of(library, write(tmp_path, b"<!DOCTYPE html><html>", "b.jpg")) == (
        "not an image in a known format: the file starts with '<!DOCTYPE ht'"
    )
    # Pillow would hand PostScript to Ghostscript.
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
    assert cause_of(library, write(tmp_path, eps, "c.jpg")).startswith("not an image in a known format")


def test_files_that_cannot_be_opened(tmp_path: Path, library: str) -> None:
    assert cause_of(library, tmp_path) == "a folder, not a file"
    assert cause_of(library, tmp_path / "gone.jpg") == "cannot be opened: No such file or directory"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert cause_of(library, tmp_path / "pipe.jpg") == "not a regular file"


def test_a_file_without_permission_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, WHOLE["jpeg"])

    def forbid(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(integrity, "open", forbid, raising=False)  # chmod does not bind the superuser
    assert cause_of("pillow", path) == "cannot be opened: Permission denied"


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, encode(np.zeros((30, 40, 3), np.uint8), "PNG"))
    assert build_reader(library=library, max_image_pixels=1200)(path).shape == (30, 40, 3)

    def explode(*arguments: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("cvtrain.data.images.reader.image_to_array", explode)
    monkeypatch.setattr("cvtrain.data.images.reader._decode_plain", explode)
    for limit in (1199, 100):  # Pillow itself warns above its limit and raises from twice that on
        assert cause_of(library, path, max_image_pixels=limit) == (
            f"40 x 30 pixels are more than data.max_image_pixels={limit}"
        )


def test_pillows_own_limit_neither_matters_nor_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = write(tmp_path, encode(noise(30, 40), "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_reader()(path)
        cause_of("pillow", path, max_image_pixels=5)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_readers_agree_on_randomly_damaged_files(tmp_path: Path) -> None:
    """Each reader returns an image or raises BadImageError, and all of them the same of the two."""
    generator = np.random.default_rng(7)
    all_readers = {name: build_reader(library=name) for name in READERS}
    num_bad = 0
    for name in ("jpeg", "progressive", "png", "webp", "gif", "tiff"):
        for _ in range(25):
            damaged = bytearray(WHOLE[name])
            # Half of the damage is in the header, where it hurts more.
            reach = len(damaged) if generator.random() < 0.5 else 64
            for position in generator.integers(2, reach, size=3):
                damaged[position] = generator.integers(0, 256)
            path = write(tmp_path, bytes(damaged))
            outcomes = set()
            for reader in all_readers.values():
                try:
                    outcomes.add(reader(path).shape)
                except BadImageError:
                    outcomes.add("bad")
            assert len(outcomes) == 1, (name, outcomes)
            num_bad += outcomes == {"bad"}
    assert 30 < num_bad < 140  # the damage hits, and not always


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_no_bad_image(tmp_path, monkeypatch, number):
    path = tmp_path / "1.png"
    Image.new("RGB", (8, 8)).save(path)

    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(RunError, match=r"too many open files: .*1\.png cannot be opened(.|\n)*ulimit -n") as caught:
        build_reader()(path)
    assert not isinstance(caught.value, BadImageError)
    again = pickle.loads(pickle.dumps(caught.value))  # as it comes out of a data worker
    assert str(again) == str(caught.value)
