"""Thumbnails and measurements of the images that a page names."""

import base64
import io
import re

import numpy as np
import pytest
from made_sets import encoded, picture, write
from PIL import Image

from cvtrain.data.images.reader import build_reader
from cvtrain.data.sources.digits import build_digits
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import FileSource
from cvtrain.report.pictures import Pictures


@pytest.fixture
def source(tmp_path):
    turned = picture(2, 300, 500)
    exif = turned.getexif()
    exif[0x0112] = 6
    files = {
        "plain.jpg": encoded(picture(1, 600, 900), quality=90),
        "turned.jpg": encoded(turned, exif=exif),
        "grey.jpg": encoded(picture(3).convert("L")),
        "cmyk.jpg": encoded(picture(4).convert("CMYK")),
        "clear.png": encoded(picture(5).convert("RGBA"), "PNG"),
    }
    files["cut.jpg"] = files["plain.jpg"][:900]
    files["empty.jpg"] = b""
    write(tmp_path, files)
    reader = build_reader(library="opencv")
    names = [*files, "gone.jpg"]
    paths = PathTable.from_strings(names)
    return FileSource(root=tmp_path, paths=paths, labels=np.zeros(len(names), np.int64), reader=reader)


def decoded(element):
    return Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)', element)[1])))


def test_thumbnails_are_upright_and_small(source):
    names = ["plain.jpg", "turned.jpg", "grey.jpg", "cmyk.jpg", "clear.png"]
    pictures = Pictures(source, names)
    sizes = [decoded(pictures.element(name)).size for name in names]
    assert sizes == [(128, 85), (77, 128), (120, 90), (120, 90), (120, 90)]
    assert all(len(pictures.element(name)) < 12_000 for name in names)


def test_brightness_and_size_are_those_of_the_whole_image(source):
    names = [source.name(place) for place in range(len(source))]
    found = dict(Pictures(source, names).measure(names))
    assert sorted(found) == ["clear.png", "cmyk.jpg", "grey.jpg", "plain.jpg", "turned.jpg"]
    for name, measured in found.items():
        pixels = source.read(names.index(name))
        assert measured.brightness == pytest.approx(pixels.mean(), abs=1.0)
        assert measured.num_pixels == pixels.shape[0] * pixels.shape[1]


def test_what_cannot_be_read_has_no_picture_and_ends_nothing(source):
    pictures = Pictures(source, ["cut.jpg", "empty.jpg", "gone.jpg", "other.jpg"])
    assert [pictures.element(name) for name in ("cut.jpg", "empty.jpg", "gone.jpg", "other.jpg")] == [""] * 4
    assert not Pictures(None, ["plain.jpg"])
    assert Pictures(None, ["plain.jpg"]).element("plain.jpg") == ""


def test_a_full_page_takes_no_more(source):
    pictures = Pictures(source, ["plain.jpg", "turned.jpg"], max_bytes=100)
    assert pictures.element("plain.jpg") and pictures.element("turned.jpg") == ""


def test_images_in_memory_have_pictures():
    from cvtrain.config.schema.data import DigitsConfig

    source = build_digits(DigitsConfig()).val
    name = source.name(3)
    assert decoded(Pictures(source, [name]).element(name)).size == (8, 8)
