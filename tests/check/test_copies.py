"""Copies of made pictures: every kind is found, with its partner, and no two different pictures are."""

import numpy as np
import pytest
from made_sets import checked, encoded, picture, write
from PIL import Image

from cvtrain.check import measure
from cvtrain.check.copies import compare, copy_findings, find_copies, look_at
from cvtrain.check.measure import measure_images

TURN = Image.Transpose
CLASSES = ("ants", "bees")


def tagged(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif.tobytes())


KINDS = {
    "quality 50": lambda image: encoded(image, quality=50),
    "half": lambda image: encoded(image.resize((60, 45)), quality=80),
    "double": lambda image: encoded(image.resize((240, 180)), quality=80),
    "mirrored": lambda image: encoded(image.transpose(TURN.FLIP_LEFT_RIGHT)),
    "turned": lambda image: encoded(image.transpose(TURN.ROTATE_90)),
    "by EXIF": lambda image: tagged(image, 6),
    "by EXIF, mirrored": lambda image: tagged(image, 5),
    "PNG": lambda image: encoded(image, "PNG"),
}


def look(images):
    return find_copies(images, measure_images(images, num_workers=0))


@pytest.mark.parametrize("kept", [0, 1000])
def test_every_kind_is_found_and_no_false_pair(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(measure, "MAX_LOOKS", kept)
    files = {f"{seed}.jpg": encoded(picture(seed), quality=95) for seed in range(120)}
    files |= {f"copy{number}.jpg": make(picture(number)) for number, make in enumerate(KINDS.values())}
    train = {f"{seed}.jpg": seed % 2 for seed in range(120)}
    val = {f"copy{number}.jpg": number % 2 for number in range(len(KINDS))}
    images, _ = checked(write(tmp_path, files), {"train": train, "val": val}, CLASSES)
    findings = list(copy_findings(images, look(images)))
    pairs = {images.name(each.index): images.name(each.partner) for each in findings}
    assert pairs == {f"copy{number}.jpg": f"{number}.jpg" for number in range(len(KINDS))}
    assert {each.check for each in findings} == {"leakage"}
    is_turned = {number: "turned" in each.detail for number, each in enumerate(findings)}
    assert [number for number, turned in is_turned.items() if turned] == [3, 4, 5, 6]
    assert all(each.score >= 0.95 for each in findings)


def test_bytes_and_pixels(tmp_path):
    png = encoded(picture(0), "PNG")
    files = {
        "a.png": png,
        "b.png": png,
        "c.png": encoded(picture(0), "PNG", compress_level=1),
        "d.png": encoded(picture(0).point(lambda value: value ^ 1), "PNG"),
        "e.png": encoded(picture(1), "PNG"),
    }
    train = {"a.png": 0, "b.png": 1, "c.png": 0, "d.png": 0, "e.png": 0}
    images, _ = checked(write(tmp_path, files), {"train": train, "val": {"e.png": 0}}, CLASSES)
    found = {each.index: each for each in copy_findings(images, look(images))}
    assert [(index, each.check, each.partner) for index, each in found.items()] == [
        (1, "conflict", 0),
        (2, "conflict", 1),
        (3, "conflict", 1),
        (5, "leakage", 4),
    ]
    assert [each.detail.split(",")[0] for each in found.values()] == [
        "same bytes",
        "same pixels",
        "near copy",
        "same bytes",
    ]
    assert [found[index].score for index in (1, 2, 5)] == [1, 1, 1]


def test_small_images_are_compared_exactly(tmp_path):
    small = picture(3, 12, 12)
    files = {"a.png": encoded(small, "PNG"), "b.jpg": encoded(small), "c.png": encoded(small, "PNG", compress_level=0)}
    images, _ = checked(write(tmp_path, files), {"train": {"a.png": 0, "b.jpg": 0}, "val": {"c.png": 0}}, CLASSES)
    assert [(each.index, each.detail) for each in copy_findings(images, look(images))] == [(2, "same pixels, in train")]


def test_unreadable_images_are_no_copies_but_equal_files_are(tmp_path):
    files = {"a.jpg": b"none", "b.jpg": b"none", "c.jpg": b"", "d.jpg": b""}
    images, _ = checked(
        write(tmp_path, files), {"train": {"a.jpg": 0, "c.jpg": 0}, "val": {"b.jpg": 0, "d.jpg": 0}}, CLASSES
    )
    assert [(each.index, each.partner) for each in copy_findings(images, look(images))] == [(2, 0)]


def test_partner_of_a_large_group_is_the_first(tmp_path):
    data = encoded(picture(0))
    names = [f"{number}.jpg" for number in range(30)]
    images, _ = checked(
        write(tmp_path, dict.fromkeys(names, data)),
        {"train": dict.fromkeys(names[:20], 0), "val": dict.fromkeys(names[20:], 0)},
        CLASSES,
    )
    findings = list(copy_findings(images, look(images)))
    assert [each.partner for each in findings] == [0] * 29
    assert [each.check for each in findings] == ["copy"] * 19 + ["leakage"] * 10


@pytest.mark.parametrize("change", [0.0, 40.0])
def test_brightness_is_not_compared_away(change):
    one = np.asarray(picture(0).resize((64, 64)))
    other = (one.astype(float) + change).clip(0, 255).astype(np.uint8)
    assert (compare(look_at(one, 64), look_at(other, 64)) is not None) == (change == 0.0)


def test_same_scene_with_another_object_is_no_copy():
    scene = np.asarray(picture(0).resize((64, 64)))
    moved = scene.copy()
    moved[20:44, 16:28], moved[20:44, 36:48] = 20, 230
    assert compare(look_at(scene, 64), look_at(moved, 64)) is None
