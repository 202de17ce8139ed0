import inspect
import logging
import pickle

import numpy as np
import pytest
import torch
from seeded_transforms import check_function_of_the_seed, photo
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.transform_names import TORCHVISION
from cvtrain.data.augment import build_train_transform

SIDE = 32

# Those that cannot be built without arguments, or that need company to make the size.
ARGUMENTS = {
    "GaussianBlur": {"kernel_size": 3},
    "JPEG": {"quality": [20, 80]},
    "Pad": {"padding": 4},
    "RandomAdjustSharpness": {"sharpness_factor": 2},
    "RandomAffine": {"degrees": 10},
    "RandomPosterize": {"bits": 3},
    "RandomRotation": {"degrees": 10},
    "RandomSolarize": {"threshold": 128},
    "RandomResize": {"min_size": 40, "max_size": 60},
    "RandomShortestSize": {"min_size": 40},
    "ScaleJitter": {"target_size": [40, 50], "scale_range": [1.0, 2.0]},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "Grayscale": {"num_output_channels": 3},
}
ENLARGING = ("Pad", "RandomResize", "RandomShortestSize", "RandomZoomOut", "ScaleJitter")
MAKES_COLOUR = ("Grayscale", "RGB")
# torchvision 0.29 announces that it will leave images' encoding to another package.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


def resize(image):
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    return F.resize(tensor, [SIDE, SIDE], antialias=True).contiguous()


def build(*transforms, channels=3, image_size=SIDE, eval_transform=resize):
    augment = AugmentConfig(name="test", transforms=list(transforms))
    return build_train_transform(augment, image_size=image_size, channels=channels, eval_transform=eval_transform)


def error_of(*transforms, **options):
    with pytest.raises(ConfigError) as caught:
        build(*transforms, **options)
    return str(caught.value)


def seeded(transform, image, seed):
    """What torchvision itself makes of an image after torch.manual_seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transform(torch.from_numpy(image).permute(2, 0, 1))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", TORCHVISION.names)
def test_every_name_runs_on_uint8_as_a_function_of_the_seed(name, channels):
    item = {name: ARGUMENTS.get(name)}
    if channels == 1 and name in MAKES_COLOUR:
        assert "makes 3 channels where data.channels is 1" in error_of("EvalResize", item, channels=1)
        return
    transform = build("EvalResize", item, *["CenterCrop"] * (name in ENLARGING), channels=channels)
    check_function_of_the_seed(transform, channels=channels, side=SIDE)


def test_every_transform_of_the_library_is_offered_or_refused():
    library = {
        name
        for name, cls in vars(v2).items()
        if inspect.isclass(cls) and issubclass(cls, v2.Transform) and cls is not v2.Transform
    }
    assert library <= {*TORCHVISION.names, *TORCHVISION.compositions, *TORCHVISION.refused}


def test_an_empty_list_is_no_transform():
    assert build() is None


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**64 - 1])
def test_pixels_are_those_of_torchvision_with_that_seed(seed):
    ours = build(
        {"RandomResizedCrop": {"scale": [0.35, 1.0], "interpolation": "bicubic"}},
        "RandomHorizontalFlip",
        {"ColorJitter": {"brightness": 0.2, "hue": 0.02}},
    )
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, scale=(0.35, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, hue=0.02),
        ]
    )
    image = photo(80, 60)
    assert torch.equal(ours(image, seed), seeded(theirs, image, seed))


def test_nested_lists_are_those_of_torchvision():
    ours = build(
        "EvalResize",
        {"RandomApply": {"p": 0.3, "transforms": [{"RandomChoice": {"transforms": ["RandomInvert", "RandAugment"]}}]}},
        {"RandomOrder": {"transforms": ["RandomVerticalFlip", {"Compose": {"transforms": ["RandomEqualize"]}}]}},
    )
    theirs = v2.Compose(
        [
            v2.RandomApply([v2.RandomChoice([v2.RandomInvert(), v2.RandAugment()])], p=0.3),
            v2.RandomOrder([v2.RandomVerticalFlip(), v2.Compose([v2.RandomEqualize()])]),
        ]
    )
    image = photo()
    resized = np.ascontiguousarray(resize(image).permute(1, 2, 0).numpy())
    for seed in range(20):
        assert torch.equal(ours(image, seed), seeded(theirs, resized, seed))


def test_a_percentage_is_that_share_of_the_image_in_whole_pixels():
    ours = build("EvalResize", {"RandomCrop": {"padding": "12.5%"}}, {"Resize": {"size": ["150%", "50.4%"]}}, "Resize")
    assert ours.chain.steps[0].transform.padding == [4, 4, 4, 4]
    assert ours.chain.steps[1].transform.size == [48, 16]
    assert ours.chain.steps[2].transform.size == [32, 32]


def test_crop_with_padding_is_one_of_the_shifts_of_the_padded_image():
    transform = build("EvalResize", {"RandomCrop": {"padding": "12.5%", "padding_mode": "reflect"}})
    image = photo(SIDE, SIDE)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    shifts = {
        padded[row : row + SIDE, column : column + SIDE].tobytes(): (row, column)
        for row in range(9)
        for column in range(9)
    }
    seen = {shifts[transform(image, seed).permute(1, 2, 0).numpy().tobytes()] for seed in range(1000)}
    assert len(seen) == 81


def test_without_a_transform_that_sizes_the_evaluation_resize_comes_first():
    image = photo(50, 70)
    transform = build({"RandomHorizontalFlip": {"p": 1.0}})
    assert torch.equal(transform(image, 0), resize(image).flip(2))
    assert torch.equal(build("EvalResize", {"RandomHorizontalFlip": {"p": 1.0}})(image, 0), resize(image).flip(2))
    assert torch.equal(build("EvalResize")(image, 0), resize(image))


def test_with_a_transform_that_sizes_images_come_as_they_were_read():
    def never(image):
        raise AssertionError("the evaluation resize ran")

    image = photo(70, 60)
    transform = build({"RandomApply": {"p": 1.0, "transforms": ["CenterCrop"]}}, eval_transform=never)
    assert np.array_equal(transform(image, 0).permute(1, 2, 0).numpy(), image[19:51, 14:46])


def test_read_only_images_are_taken():
    image = photo()
    image.flags.writeable = False
    assert torch.equal(build("RandomResizedCrop")(image, 3), build("RandomResizedCrop")(photo(), 3))


def test_a_transform_survives_the_way_to_a_spawned_worker():
    transform = build("EvalResize", "RandAugment", {"RandomApply": {"transforms": ["RandomInvert"]}})
    copy = pickle.loads(pickle.dumps(transform))
    assert all(torch.equal(copy(photo(), seed), transform(photo(), seed)) for seed in range(10))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"RandomCrop": {"pading": 4}},
            "augment.transforms[0].RandomCrop.pading=4: RandomCrop of torchvision takes no argument pading\n"
            "  closest: padding, padding_mode; it takes size, padding, pad_if_needed, fill, padding_mode",
        ),
        ({"RandomErasing": {"inplace": True}}, "takes no argument inplace"),
        ({"Identity": {"p": 1}}, "Identity of torchvision takes no argument p\n  it takes none"),
        ("RandomPosterize", "RandomPosterize of torchvision needs bits\n  write RandomPosterize: {bits: ...}"),
        (
            {"RandomResizedCrop": {"interpolation": "bilinar"}},
            "augment.transforms[0].RandomResizedCrop.interpolation=bilinar: interpolation is one of nearest, ",
        ),
        ({"AutoAugment": {"policy": "mnist"}}, "policy is one of imagenet, cifar10, svhn"),
        (
            {"ColorJitter": {"hue": 3}},
            "augment.transforms[0].ColorJitter={hue:3}: torchvision refuses these arguments: ",
        ),
        ({"RandomHorizontalFlip": {"p": "often"}}, "augment.transforms[0].RandomHorizontalFlip"),
        (
            {"RandomApply": {"transforms": ["Grayscale", {"Pad": {"padding": "x"}}]}},
            "augment.transforms[0].RandomApply",
        ),
    ],
)
def test_a_wrong_argument_is_told_with_its_remedy(item, message):
    assert message in error_of(item)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (["RandomHorizontalFlip", {"Pad": {"padding": 2}}], "RandomHorizontalFlip -> Pad makes 36 x 36 pixels, not da"),
        (
            [{"Resize": {"size": 32}}],
            "Resize makes 32 x 38 pixels, not data.image_size=32 squared\n  end with RandomCrop",
        ),
        # Rarely applied: as configured, a short try would not have met it.
        ([{"RandomApply": {"p": 0.001, "transforms": [{"Pad": {"padding": 2}}]}}], "makes 36 x 36 pixels"),
        (
            [{"RandomCrop": {"size": 100}}],
            "[0].RandomCrop: fails on an image of 43 x 52 pixels and 3 channels: ValueEr",
        ),
        (["Grayscale"], "Grayscale makes 1 channel where data.channels is 3"),
    ],
)
def test_a_list_that_misses_the_shape_is_refused_when_it_is_built(transforms, message):
    assert message in error_of(*transforms)


def test_an_image_that_a_transform_cannot_deal_with_is_told_by_its_size():
    transform = build("RandomCrop")
    with pytest.raises(ConfigError) as caught:
        transform(photo(20, 50), 0)
    assert "augment.transforms[0].RandomCrop: fails on an image of 20 x 50 pixels and 3 channels" in str(caught.value)


def idle(caplog):
    return [record.args[0] for record in caplog.records if "changed no pixel" in record.message]


@pytest.mark.parametrize(
    ("transforms", "channels", "idle_keys"),
    [
        (["EvalResize", "RandomCrop"], 3, ["augment.transforms[1].RandomCrop"]),
        (["ColorJitter", "RandomInvert"], 3, ["augment.transforms[0].ColorJitter"]),
        (["RandomGrayscale", "RandomHorizontalFlip"], 1, ["augment.transforms[0].RandomGrayscale"]),
        ([{"ColorJitter": {"hue": 0.1}}], 1, ["augment.transforms[0].ColorJitter"]),
        (["EvalResize", {"Pad": {"padding": 2}}, "RandomCrop", "CenterCrop"], 3, ["augment.transforms[3].CenterCrop"]),
        (["RandomResizedCrop", "RandomHorizontalFlip", {"ColorJitter": {"hue": 0.1}}, "Identity"], 3, []),
    ],
)
def test_a_transform_without_effect_is_named_in_the_log(transforms, channels, idle_keys, caplog):
    with caplog.at_level(logging.WARNING):
        build(*transforms, channels=channels)
    assert idle(caplog) == idle_keys
