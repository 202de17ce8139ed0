"""The one rule for every kind of pixel, for every reader, against closed forms."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import READERS, composite, encode, luma, noise, photo, write
from PIL import Image

from cvtrain.config.schema.data import CustomConfig
from cvtrain.data.images.reader import BadImageError, build_reader, image_to_array
from cvtrain.data.sources.build import build_splits


@pytest.fixture(params=READERS)
def library(request: pytest.FixtureRequest) -> str:
    return request.param


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


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 3)])
def test_values_that_use_12_of_16_bits(tmp_path: Path, library: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).integers(0, 4096, shape, dtype=np.uint16)
    values[0, 0] = 5000  # beyond what 12 bits hold
    high = np.minimum(values // 16, 255).astype(np.uint8)
    result = build_reader(library=library, bit_depth=12)(write(tmp_path, png_16_bit(values)))
    np.testing.assert_array_equal(result, high if len(shape) == 3 else high[..., None].repeat(3, axis=2))
    np.testing.assert_array_equal(image_to_array(values, 3, bit_depth=12), result)


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 3)])
def test_16_bit_images_that_are_nearly_black_are_noticed(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for split, number in (("train", 0), ("train", 1), ("val", 2)):
        for name in ("ants", "bees"):
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng(number).integers(0, 4096, shape, dtype=np.uint16)
            (tmp_path / split / name / f"{number}.png").write_bytes(png_16_bit(values))
    warning = "the values of the 16-bit images use 12 bits, so that they are nearly black: set data.bit_depth=12"
    assert warning in build_splits(CustomConfig(root=str(tmp_path))).warnings
    assert warning not in build_splits(CustomConfig(root=str(tmp_path), bit_depth=12)).warnings


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
