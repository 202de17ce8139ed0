"""The file beside an exported model reads and resizes to the bit as cvtrain does."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from made_images import ORIENTATION, encode, noise, photo
from PIL import Image

from cvtrain.data.images.reader import build_reader
from cvtrain.data.images.resize import MAX_ASPECT, PAD_VALUE, build_eval_transform
from cvtrain.export import classify
from cvtrain.export.classify import read_image, resize, to_square


def spec_of(transform):
    return {
        "image_size": transform.image_size,
        "resize": transform.resize,
        "short_side": transform.short_side,
        "interpolation": transform.interpolation,
        "max_aspect": MAX_ASPECT,
        "pad_value": PAD_VALUE,
    }


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("policy", ["resize_crop", "squash", "pad"])
def test_squares_equal_those_of_training_to_the_bit(policy, interpolation):
    rng = np.random.default_rng(0)
    shapes = [(int(h), int(w)) for h, w in rng.integers(1, 200, (30, 2))] + [(32, 32), (5, 400), (400, 5), (1, 1)]
    for number, (height, width) in enumerate(shapes):
        image = noise(height, width, (1, 3)[number % 2], seed=number)
        image = image if number % 3 else (image > 127).astype(np.uint8) * 255
        transform = build_eval_transform(
            image_size=(32, 45)[number % 2], resize=policy, crop_fraction=0.875, interpolation=interpolation
        )
        expected = transform(image).permute(1, 2, 0).numpy()
        assert np.array_equal(to_square(image, spec_of(transform)), expected), (height, width)


def test_halving_is_the_weighted_mean_of_four():
    # Bilinear from 4 to 2: weights 3, 3, 1 of 7 at the edge, as in Pillow.
    line = np.array([10, 20, 40, 80], np.uint8).reshape(1, 4, 1)
    expected = [(3 * 10 + 3 * 20 + 40) / 7, (20 + 3 * 40 + 3 * 80) / 7]
    assert resize(line, 1, 2, "bilinear").ravel().tolist() == [round(value) for value in expected]


def files_of_all_kinds():
    rgb, rng = Image.fromarray(photo()), np.random.default_rng(1)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    alpha = Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8))
    rgba = rgb.resize((30, 20)).convert("RGBA")
    rgba.putalpha(alpha)
    palette = rgb.quantize(16)
    deep = Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16))
    return {
        "rgb.jpg": encode(rgb, "JPEG"),
        "turned.jpg": encode(rgb, "JPEG", exif=exif.tobytes()),
        "grey.jpg": encode(rgb.convert("L"), "JPEG"),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "rgba.png": encode(rgba, "PNG"),
        "grey_alpha.png": encode(rgba.convert("LA"), "PNG"),
        "palette.png": encode(palette, "PNG", transparency=3),
        "palette.gif": encode(palette, "GIF"),
        "bits.png": encode(rgb.convert("1"), "PNG"),
        "deep.png": encode(deep, "PNG"),
        "deep_clear.png": encode(deep, "PNG", transparency=int(np.asarray(deep)[0, 0])),
        "deep.tif": encode(deep, "TIFF"),
        "rgb.webp": encode(rgb, "WEBP", lossless=True),
        "rgb.bmp": encode(rgb, "BMP"),
    }


@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 16), (3, 16), (3, 12)])
def test_images_of_all_kinds_are_read_as_in_training(tmp_path, channels, bit_depth):
    color = (200, 100, 50)
    reader = build_reader(library="opencv", channels=channels, alpha_color=color, bit_depth=bit_depth)
    spec = {"channels": channels, "alpha_color": list(color), "bit_depth": bit_depth}
    for name, data in files_of_all_kinds().items():
        (tmp_path / name).write_bytes(data)
        ours = reader(tmp_path / name)
        theirs = read_image(tmp_path / name, spec)
        assert theirs.dtype == np.uint8
        assert np.array_equal(ours, theirs), name


def test_it_needs_nothing_of_cvtrain(tmp_path):
    code = f"import sys; sys.path.insert(0, {json.dumps(str(tmp_path))}); import classify; print(sorted(sys.modules))"
    shutil.copy(classify.__file__, tmp_path)
    shown = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "'cvtrain" not in shown.stdout and "'torch'" not in shown.stdout and "'PIL'" in shown.stdout
