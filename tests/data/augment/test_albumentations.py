import logging
import os
import pickle
import random
import subprocess
import sys

import albumentations
import cv2
import numpy as np
import pytest
import torch
from seeded_transforms import check_function_of_the_seed, photo

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.augment import AugmentConfig, AugmentLibrary
from cvtrain.config.transform_names import ALBUMENTATIONS
from cvtrain.data.augment import build_train_transform
from cvtrain.data.augment.albumentations import import_albumentations

SIDE = 32

# Those that cannot be built without arguments, or whose defaults are meant for larger images.
ARGUMENTS = {
    "Crop": {"x_max": "100%", "y_max": "100%"},
    "CropAndPad": {"px": 2},
    "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 3},
    "LongestMaxSize": {"max_size": "100%"},
    "RandomSizedCrop": {"min_max_height": [20, 30]},
    "SmallestMaxSize": {"max_size": "100%"},
    "XYMasking": {"num_masks_x": 2, "mask_x_length": 4},
}
CHANGES_SIZE = ("RandomCropFromBorders", "RandomScale")
NEEDS_COLOUR = (
    "ChannelDropout",
    "ChromaticAberration",
    "HEStain",
    "ISONoise",
    "PlanckianJitter",
    "RandomFog",
    "RandomGravel",
    "RandomRain",
    "RandomSnow",
    "RandomSunFlare",
    "Spatter",
)
# What the library says of grey images, on top of doing nothing to them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The image is already:UserWarning"),
    pytest.mark.filterwarnings("ignore:HueSaturationValue. hue_shift and sat_shift:UserWarning"),
]


def shrink(image):
    return torch.from_numpy(image[:SIDE, :SIDE].copy()).permute(2, 0, 1).contiguous()


def build(*transforms, channels=3):
    augment = AugmentConfig(name="test", library=AugmentLibrary.albumentations, transforms=list(transforms))
    return build_train_transform(augment, image_size=SIDE, channels=channels, eval_transform=shrink)


def error_of(*transforms, **options):
    with pytest.raises(ConfigError) as caught:
        build(*transforms, **options)
    return str(caught.value)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ALBUMENTATIONS.names)
def test_every_name_runs_on_uint8_as_a_function_of_the_seed(name, channels):
    item = {name: ARGUMENTS.get(name)}
    if channels == 1 and name in NEEDS_COLOUR:
        assert f"{name}: fails on an image of 32 x 32 pixels and 1 channel: " in error_of(
            "EvalResize", item, channels=1
        )
        return
    if channels == 1 and name == "ToRGB":
        assert "makes 3 channels where data.channels is 1" in error_of("EvalResize", item, channels=1)
        return
    transform = build("EvalResize", item, *["Resize"] * (name in CHANGES_SIZE), channels=channels)
    check_function_of_the_seed(transform, channels=channels, side=SIDE)


def test_every_transform_of_the_library_is_offered_or_refused():
    bases = (albumentations.BasicTransform, albumentations.BaseCompose)
    abstract = {"BasicTransform", "BaseCompose", "DualTransform", "ImageOnlyTransform", "Transform3D"}
    library = {name for name, cls in vars(albumentations).items() if isinstance(cls, type) and issubclass(cls, bases)}
    assert library - abstract == {*ALBUMENTATIONS.names, *ALBUMENTATIONS.compositions, *ALBUMENTATIONS.refused}


def test_pixels_are_those_of_the_library_with_one_generator_for_all():
    ours = build(
        {"RandomResizedCrop": {"scale": [0.35, 1.0], "interpolation": "INTER_CUBIC"}},
        "HorizontalFlip",
        {"OneOf": {"p": 0.7, "transforms": [{"GaussNoise": {"std_range": [0.1, 0.2]}}, "InvertImg"]}},
        {"Affine": {"rotate": [-20, 20], "border_mode": "cv2.BORDER_REFLECT_101", "p": 1.0}},
    )
    theirs = albumentations.Compose(
        [
            albumentations.RandomResizedCrop(size=(SIDE, SIDE), scale=(0.35, 1.0), interpolation=cv2.INTER_CUBIC),
            albumentations.HorizontalFlip(),
            albumentations.OneOf(
                [albumentations.GaussNoise(std_range=(0.1, 0.2)), albumentations.InvertImg()],
                p=0.7,
            ),
            albumentations.Affine(rotate=(-20, 20), border_mode=cv2.BORDER_REFLECT_101, p=1.0),
        ]
    )
    image = photo(80, 60)
    for seed in range(20):
        theirs.set_random_state(np.random.default_rng(seed), random.Random(seed))
        expected = theirs(image=image, force_apply=True)["image"]  # else Compose draws once for itself
        assert np.array_equal(ours(image, seed).permute(1, 2, 0).numpy(), expected)


def test_two_flips_are_independent():
    """With one seed for every transform, as Compose(seed=...) has it, both flip or neither: 1000, 0, 0, 1000."""
    transform = build("EvalResize", "HorizontalFlip", "VerticalFlip")
    image = photo(SIDE, SIDE)
    upright = torch.from_numpy(image).permute(2, 0, 1)
    kinds = [upright, upright.flip(2), upright.flip(1), upright.flip(1, 2)]
    counts = [0, 0, 0, 0]
    for seed in range(2000):
        result = transform(image, seed)
        counts[[torch.equal(result, kind) for kind in kinds].index(True)] += 1
    # 500 each, standard deviation sqrt(2000 * 1/4 * 3/4) = 19: within five of them.
    assert all(abs(count - 500) < 97 for count in counts)


def test_a_transform_survives_the_way_to_a_spawned_worker():
    transform = build("RandomResizedCrop", {"SomeOf": {"n": 1, "transforms": ["InvertImg", "GaussNoise"]}})
    copy = pickle.loads(pickle.dumps(transform))
    assert all(torch.equal(copy(photo(), seed), transform(photo(), seed)) for seed in range(10))


def test_sizes_are_filled_in():
    crop, resize, pad = (
        step.transform for step in build("RandomResizedCrop", "Resize", {"PadIfNeeded": {"min_width": 8}}).chain.steps
    )
    assert crop.size == (SIDE, SIDE)
    assert (resize.height, resize.width) == (SIDE, SIDE)
    assert (pad.min_height, pad.min_width) == (SIDE, 8)


def test_letterbox_of_two_transforms():
    transform = build({"LongestMaxSize": {"max_size": "100%"}}, {"PadIfNeeded": {"fill": 7}})
    result = transform(np.full((20, 80, 3), 200, np.uint8), 0)
    assert result[:, :12].unique().tolist() == [7]
    assert result[:, 12:20].unique().tolist() == [200]
    assert result[:, 20:].unique().tolist() == [7]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"GaussNoise": {"var_limit": [10, 50]}},  # the library itself only warns
            "augment.transforms[0].GaussNoise.var_limit=[10,50]: GaussNoise of albumentations takes no argument var_",
        ),
        ({"HorizontalFlip": {"prob": 1}}, "takes no argument prob\n  it takes p"),
        ({"RandomResizedCrop": {"height": 32, "width": 32}}, "RandomResizedCrop.height=32"),
        (
            {"RandomResizedCrop": {"size": 32}},
            "albumentations refuses these arguments: size: Input should be a valid tuple",
        ),
        ({"HorizontalFlip": {"p": 1.5}}, "refuses these arguments: p: Input should be less than or equal to 1"),
        (
            {"MedianBlur": {"blur_limit": "wide"}},
            "augment.transforms[0].MedianBlur={blur_limit:wide}: albumentations re",
        ),
        ("CropAndPad", "Both px and percent parameters cannot be None simultaneously"),
        ("GridElasticDeform", "GridElasticDeform of albumentations needs num_grid_xy and magnitude"),
        ({"Affine": {"interpolation": "INTER_LINEER"}}, "is no constant of OpenCV\n  it has INTER_AREA, INTER_"),
        ({"HorizontalFlip": {"strict": False}}, "takes no argument strict"),
        ({"OneOrOther": {"first": "InvertImg", "transforms": ["InvertImg", "NoOp"]}}, "takes no argument first"),
    ],
)
def test_a_wrong_argument_is_told_with_its_remedy(item, message):
    assert message in error_of(item)


def test_what_the_library_warns_of_is_logged_once_by_place(caplog):
    with caplog.at_level(logging.WARNING):
        build("ShiftScaleRotate")
    warned = [record.message for record in caplog.records if "special case of Affine" in record.message]
    assert len(warned) == 1
    assert warned[0].startswith("augment.transforms[0].ShiftScaleRotate: ")


@pytest.mark.parametrize("value", [None, "0"])
def test_the_environment_is_as_before_after_the_import(value, monkeypatch):
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", value)
    assert import_albumentations() is albumentations
    assert os.environ.get("NO_ALBUMENTATIONS_UPDATE") == value


def test_neither_the_import_nor_a_spawned_worker_opens_a_socket(tmp_path):
    transform = build("RandomResizedCrop", "HorizontalFlip")
    file = tmp_path / "chain.pickle"
    file.write_bytes(pickle.dumps(transform.chain))
    program = (
        "import pickle, socket, sys\n"
        "import numpy as np\n"
        "def refuse(*args, **kwargs): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "assert 'albumentations' not in sys.modules\n"
        "chain = pickle.load(open(sys.argv[1], 'rb'))\n"
        "image = np.random.default_rng(0).integers(0, 256, (45, 40, 3), dtype=np.uint8)\n"
        "print(int(chain(image, 5).sum()))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, str(int(transform(photo(), 5).sum()))), done.stderr
