"""What is measured of an image, by closed forms, and the same with workers."""

import numpy as np
import pytest
from made_sets import checked, encoded, picture, write
from PIL import Image

from cvtrain.check.measure import CHUNK, camera_of, measure_images, measure_pixels, shrink

ARRAYS = (
    "digests",
    "num_bytes",
    "heights",
    "widths",
    "thumbs",
    "means",
    "contrasts",
    "sharpness",
    "formats",
    "cameras",
)


def test_values_of_a_checkerboard():
    board = (np.indices((40, 60)).sum(axis=0) % 2 * 100 + 50).astype(np.uint8)
    measured = measure_pixels(np.repeat(board[:, :, None], 3, axis=2))
    assert (measured.height, measured.width) == (40, 60)
    assert (measured.mean, measured.contrast) == (100, 50)
    # The Laplacian of every pixel is four times the step, up or down.
    assert measured.sharpness == pytest.approx(400 / 50)
    assert np.abs(measured.thumb.astype(int) - 100).max() <= 13


def test_photos_are_halved_first():
    small = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    large = small.repeat(4, axis=0).repeat(4, axis=1)[:-1]  # an odd side loses its last row
    measured, whole = measure_pixels(large), measure_pixels(small[:-1])
    assert (measured.height, measured.width) == (599, 800)
    assert measured.contrast == pytest.approx(whole.contrast, rel=0.01)
    assert measured.sharpness == pytest.approx(whole.sharpness, rel=0.01)
    strip = measure_pixels(np.zeros((40, 9000, 3), np.uint8))
    assert (strip.height, strip.width, strip.thumb.shape) == (40, 9000, (16, 16))


def test_thumbnail_is_the_mean_of_areas():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    naive = pixels.reshape(16, 4, 16, 6).mean(axis=(1, 3))
    assert np.abs(shrink(pixels, 16) - naive).max() <= 0.5


def test_workers_measure_the_same(tmp_path):
    files = {f"{seed}.jpg": encoded(picture(seed, 30, 40)) for seed in range(CHUNK + 9)}
    files["7.jpg"], files["8.jpg"] = b"", files["8.jpg"][:-30]
    write(tmp_path, files)
    images, _ = checked(tmp_path, {"train": dict.fromkeys(files, 0), "val": {"1.jpg": 0, "gone.jpg": 0}}, ("a",))
    counted = []
    alone, shared = (
        measure_images(images, num_workers=0, on_images=counted.append),
        measure_images(images, num_workers=2),
    )
    assert sum(counted) == len(images) == CHUNK + 11
    for name in ARRAYS:
        assert np.array_equal(getattr(alone, name), getattr(shared, name)), name
    assert alone.errors == shared.errors
    assert sorted(alone.errors) == [7, 8, CHUNK + 10]
    assert np.flatnonzero(~alone.readable).tolist() == [7, 8, CHUNK + 10]
    assert alone.format_names == ["JPEG", ""] or alone.format_names == ["", "JPEG"]


def test_grey_images_have_looks_of_three_channels():
    pixels = np.asarray(picture(0).convert("L"))[:, :, None]
    look = measure_pixels(pixels).look
    assert look.shape == (32, 32, 3)
    assert np.array_equal(look[:, :, 0], look[:, :, 2])
    assert np.array_equal(look[:, :, 0], shrink(pixels, 32))
    assert not measure_pixels(pixels[:31]).look.any()


def test_camera_is_read_from_exif():
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon", "Canon EOS 5D"
    assert camera_of(encoded(picture(0), exif=exif.tobytes())) == "Canon EOS 5D"
    exif[0x0110] = "Model 7"
    assert camera_of(encoded(picture(0), exif=exif.tobytes())) == "Canon Model 7"
    assert camera_of(encoded(picture(0))) == ""
    assert camera_of(b"\xff\xd8\xff Exif\0 damaged") == ""
