"""Readers: one pixel rule for every kind of file, the same judgement of bad files, whichever library decodes."""

import io
import logging
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.data import readers
from cvtrain.data.decoders import DECODERS, Decoder
from cvtrain.data.readers import BadImageError, build_reader, image_to_array

READERS = ("pillow", "opencv", "skimage", "torchvision")
ORIENTATION = 0x0112

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


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def photo(height: int = 61, width: int = 48) -> np.ndarray:
    """Smooth colours with some texture, (height, width, 3) uint8: what JPEG is made for."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9 + y / 17), np.cos(y / 7), np.sin((x + y) / 5)], axis=2)
    return (127 + 100 * waves + noise(height, width) / 16).clip(0, 255).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, image_format, **options)
    return file.getvalue()


def orientation_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def write(folder: Path, data: bytes, name: str = "image.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 in integers, (H, W, 3) to (H, W, 1), the naive reference."""
    red, green, blue = (rgb[..., c].astype(np.int64) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)[..., None]


def composite(rgba: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return np.floor(alpha * rgba[..., :3] + (1 - alpha) * np.array(color) + 0.5).astype(np.uint8)


@pytest.fixture(params=READERS)
def library(request: pytest.FixtureRequest) -> str:
    return request.param


# ---------------------------------------------------------------- plain files


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
    assert calls == ["JPEG", "JPEG", "WEBP"] + ([] if library == "torchvision" else ["PNG"])


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


# ---------------------------------------------------------------- orientation


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


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (10, 200, 77)])
def test_alpha_is_laid_over_the_colour(tmp_path: Path, library: str, image_format: str, color: tuple) -> None:
    rgba = noise(16, 16, 4)
    # WebP drops the colour of pixels that are fully transparent unless told to keep it.
    path = write(tmp_path, encode(rgba, image_format, **({"lossless": True} if image_format == "WEBP" else {})))
    result = build_reader(library=library, alpha_color=color)(path)
    np.testing.assert_array_equal(result, composite(rgba, color))
    grey = build_reader(library=library, alpha_color=color, channels=1)(path)
    np.testing.assert_array_equal(grey, luma(composite(rgba, color)))


def test_grey_with_alpha(tmp_path: Path, library: str) -> None:
    grey_alpha = noise(16, 16, 2)
    result = build_reader(library=library, alpha_color=(9, 99, 199))(write(tmp_path, encode(grey_alpha, "PNG")))
    rgba = np.concatenate([grey_alpha[..., :1].repeat(3, axis=2), grey_alpha[..., 1:]], axis=2)
    np.testing.assert_array_equal(result, composite(rgba, (9, 99, 199)))


def test_palette(tmp_path: Path, library: str) -> None:
    palette = noise(1, 4)[0]  # 4 colours
    indices = np.random.default_rng(1).integers(0, 4, (9, 8), dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    for image_format in ("PNG", "BMP", "GIF"):
        result = build_reader(library=library)(write(tmp_path, encode(image, image_format)))
        np.testing.assert_array_equal(result, palette[indices])


@pytest.mark.parametrize("transparency", [2, bytes([255, 0, 40, 130])])
def test_palette_with_transparency(tmp_path: Path, library: str, transparency: int | bytes) -> None:
    palette = noise(1, 4)[0]
    indices = np.random.default_rng(1).integers(0, 4, (9, 8), dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    path = write(tmp_path, encode(image, "PNG", transparency=transparency))
    alpha = np.array([255, 255, 0, 255] if transparency == 2 else list(transparency), dtype=np.uint8)
    expected = composite(np.concatenate([palette, alpha[:, None]], axis=1)[indices], (0, 255, 0))
    np.testing.assert_array_equal(build_reader(library=library, alpha_color=(0, 255, 0))(path), expected)


def test_colour_key_counts_as_transparent(tmp_path: Path, library: str) -> None:
    pixels = noise(6, 6)
    pixels[2, 3] = (1, 2, 3)
    path = write(tmp_path, encode(pixels, "PNG", transparency=(1, 2, 3)))
    expected = pixels.copy()
    expected[2, 3] = (50, 60, 70)
    np.testing.assert_array_equal(build_reader(library=library, alpha_color=(50, 60, 70))(path), expected)


# ---------------------------------------------------------------- other modes


def test_bilevel_is_black_and_white(tmp_path: Path, library: str) -> None:
    bits = noise(9, 17)[..., 0] > 127
    for image_format in ("PNG", "TIFF"):
        result = build_reader(library=library, channels=1)(write(tmp_path, encode(Image.fromarray(bits), image_format)))
        np.testing.assert_array_equal(result[..., 0], bits * np.uint8(255))


def png_16_bit(values: np.ndarray, key: int | None = None) -> bytes:
    """A 16-bit PNG, grey (H, W) or RGB (H, W, 3), by its specification: Pillow writes no 16-bit RGB."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if key is not None:
        chunks.insert(1, (b"tRNS", struct.pack(">H", key)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 3)])
def test_16_bit_keeps_the_high_byte(tmp_path: Path, library: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).integers(0, 65536, shape, dtype=np.uint16)
    high = (values >> 8).astype(np.uint8)
    result = build_reader(library=library)(write(tmp_path, png_16_bit(values)))
    np.testing.assert_array_equal(result, high if len(shape) == 3 else high[..., None].repeat(3, axis=2))


def test_16_bit_grey_of_other_formats(tmp_path: Path, library: str) -> None:
    values = np.random.default_rng(3).integers(0, 65536, (12, 10), dtype=np.uint16)
    pgm = b"P5\n10 12\n65535\n" + values.astype(">u2").tobytes()
    for data in (encode(values, "TIFF"), pgm):
        result = build_reader(library=library, channels=1)(write(tmp_path, data))
        np.testing.assert_array_equal(result[..., 0], values >> 8)


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path, library: str) -> None:
    values = np.array([[1000, 1001], [60000, 0]], dtype=np.uint16)  # 1000 and 1001 share their high byte
    result = build_reader(library=library, alpha_color=(7, 8, 9))(write(tmp_path, png_16_bit(values, key=1001)))
    np.testing.assert_array_equal(result, [[[3, 3, 3], [7, 8, 9]], [[234, 234, 234], [0, 0, 0]]])


@pytest.mark.parametrize(("dtype", "word"), [(np.float32, "floating-point"), (np.int32, "32-bit integer")])
def test_pixels_without_a_fixed_range_are_bad(tmp_path: Path, library: str, dtype: type, word: str) -> None:
    path = write(tmp_path, encode(np.ones((4, 4), dtype=dtype), "TIFF"))
    with pytest.raises(BadImageError, match=f"{word} pixels have no fixed range: save the image with 8 or 16 bits"):
        build_reader(library=library)(path)


def test_cmyk_is_converted_by_pillow(tmp_path: Path, library: str) -> None:
    cmyk = Image.fromarray(photo()).convert("CMYK")
    for image_format in ("TIFF", "JPEG"):  # Pillow writes the Adobe marker and inverts the values of a JPEG
        path = write(tmp_path, encode(cmyk, image_format))
        result = build_reader(library=library)(path)
        with Image.open(path) as image:
            np.testing.assert_array_equal(result, np.asarray(image.convert("RGB")))
        assert np.abs(result.astype(int) - photo()).mean() < 8  # inverted it would be about 127


def test_animations_and_stacks_give_their_first_picture(tmp_path: Path, library: str) -> None:
    first, second = noise(8, 8, seed=1), noise(8, 8, seed=2)
    for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {"quality": 95})):
        data = encode(
            Image.fromarray(first), image_format, save_all=True, append_images=[Image.fromarray(second)], **options
        )
        result = build_reader(library=library)(write(tmp_path, data))
        expected = first
        if image_format == "MPO":  # a JPEG with a second picture behind it
            expected = build_reader()(write(tmp_path, encode(first, "JPEG", quality=95)))
        np.testing.assert_array_equal(result, expected, err_msg=image_format)


def test_animated_gif_gives_its_first_frame(tmp_path: Path, library: str) -> None:
    red, blue = (Image.new("RGB", (5, 4), color) for color in ("red", "blue"))
    data = encode(red, "GIF", save_all=True, append_images=[blue])
    result = build_reader(library=library)(write(tmp_path, data))
    np.testing.assert_array_equal(result, np.broadcast_to(np.array([255, 0, 0], np.uint8), (4, 5, 3)))


# ---------------------------------------------------------------- bad files


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

    monkeypatch.setattr(readers, "open", forbid, raising=False)  # chmod does not bind the superuser
    assert cause_of("pillow", path) == "cannot be opened: Permission denied"


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, encode(np.zeros((30, 40, 3), np.uint8), "PNG"))
    assert build_reader(library=library, max_image_pixels=1200)(path).shape == (30, 40, 3)

    def explode(*arguments: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("cvtrain.data.readers.image_to_array", explode)
    monkeypatch.setattr("cvtrain.data.readers._decode_plain", explode)
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


# ---------------------------------------------------------------- images that are in memory already


def test_arrays_and_tensors_follow_the_rule() -> None:
    rgb = noise(6, 7)
    np.testing.assert_array_equal(image_to_array(rgb, 3), rgb)
    np.testing.assert_array_equal(image_to_array(rgb, 1), luma(rgb))
    np.testing.assert_array_equal(image_to_array(rgb[..., 0], 3), rgb[..., :1].repeat(3, axis=2))
    np.testing.assert_array_equal(image_to_array(noise(6, 7, 4), 3, (1, 2, 3)), composite(noise(6, 7, 4), (1, 2, 3)))
    np.testing.assert_array_equal(image_to_array(torch.from_numpy(rgb).permute(2, 0, 1), 3), rgb)
    np.testing.assert_array_equal(image_to_array(torch.from_numpy(rgb).permute(2, 0, 1).float() / 255, 3), rgb)
    np.testing.assert_array_equal(image_to_array(rgb.astype(np.uint16) * 257, 3), rgb)
    np.testing.assert_array_equal(image_to_array(rgb > 100, 3), (rgb > 100) * np.uint8(255))
    np.testing.assert_array_equal(image_to_array(Image.fromarray(rgb).rotate(90, expand=True), 3), np.rot90(rgb))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4, 3), 1.5), "from 1.5 to 1.5: they must be in 0..1. Leave normalisation to data.normalize"),
        (np.full((4, 4, 3), np.nan), "they must be in 0..1"),
        (np.zeros((4, 4, 3), np.int64), "pixels of type int64"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\): arrays must be \(H, W\) or \(H, W, 1..4\)"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels: 4 x 0"),
        ("cat.jpg", "must be a PIL image, an array or a tensor, not str"),
    ],
)
def test_images_that_no_rule_covers_are_refused(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_to_array(image, 3)
