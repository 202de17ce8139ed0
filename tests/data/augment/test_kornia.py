import pytest
import torch
from kornia import augmentation
from seeded_transforms import get_rng_state

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.transform_names import KORNIA
from cvtrain.data.augment import build_batch_transform

SIDE = 16
# An argument where the defaults of the library change nothing, or where there are none.
ARGUMENTS = {
    "ColorJiggle": {"brightness": 0.3, "hue": 0.1},
    "ColorJitter": {"brightness": 0.3, "hue": 0.1},
    "RandomAffine": {"degrees": 10.0},
    "RandomElasticTransform": {"kernel_size": [5, 5], "sigma": [2.0, 2.0]},
    "RandomFisheye": {"center_x": [-0.3, 0.3], "center_y": [-0.3, 0.3], "gamma": [0.9, 1.1]},
    "RandomGaussianBlur": {"kernel_size": [3, 3], "sigma": [0.1, 2.0]},
    "RandomGrayscale": {"rgb_weights": [0.2, 0.5, 0.3]},
    "RandomMotionBlur": {"kernel_size": 3, "angle": 35.0, "direction": 0.5},
    "RandomRain": {"drop_height": [2, 4], "drop_width": [-2, 2], "number_of_drops": [10, 20]},
    "RandomRotation": {"degrees": 10.0},
    "RandomRotation90": {"times": [1, 3]},
    "RandomShear": {"shear": 10.0},
    "ImageSequential": {"random_apply": 1, "transforms": ["RandomHorizontalFlip", "RandomInvert"]},
    "PatchSequential": {"patchwise_apply": False, "transforms": ["RandomHorizontalFlip", "RandomInvert"]},
}
NEEDS_COLOUR = (
    "ColorJiggle",
    "ColorJitter",
    "RandomGrayscale",
    "RandomHue",
    "RandomJPEG",
    "RandomPlanckianJitter",
    "RandomRGBShift",
    "RandomSaturation",
    "RandomSnow",
)


def build(*transforms, channels=3, image_size=SIDE):
    augment = AugmentConfig(name="test", batch_transforms=list(transforms))
    return build_batch_transform(augment, num_classes=4, image_size=image_size, channels=channels)


def error_of(*transforms, **options):
    with pytest.raises(ConfigError) as caught:
        build(*transforms, **options)
    return str(caught.value)


def batch(channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, channels, SIDE, SIDE, generator=generator), torch.arange(4)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", [*KORNIA.names, *KORNIA.compositions])
def test_every_name_runs_as_a_function_of_the_seed(name, channels):
    item = {name: ARGUMENTS.get(name)}
    if channels == 1 and name in NEEDS_COLOUR:
        assert f"{name}: fails on an image of 16 x 16 pixels and 1 channel: " in error_of(item, channels=1)
        return
    transform = build(item, channels=channels)
    images, labels = batch(channels)
    given = images.clone()
    states = get_rng_state()
    forwards = [transform(images, labels, seed) for seed in range(4)]
    assert get_rng_state() == states
    torch.manual_seed(1)
    backwards = [transform(images, labels, seed) for seed in reversed(range(4))][::-1]
    for (first, targets), (second, _) in zip(forwards, backwards, strict=True):
        assert first.shape == images.shape
        assert first.dtype == torch.float32
        assert not first.requires_grad
        assert torch.equal(first, second)
        assert targets is labels
    assert torch.equal(images, given)


def test_every_transform_of_the_library_is_offered_or_refused():
    abstract = {name for name in vars(augmentation) if "AugmentationBase" in name}
    library = {name for name, cls in vars(augmentation).items() if isinstance(cls, type)}
    assert library - abstract == {*KORNIA.names, *KORNIA.compositions, *KORNIA.refused}


def test_pixels_are_those_of_the_library_with_that_seed():
    ours = build(
        {"RandomAffine": {"degrees": [-20, 20], "translate": [0.1, 0.1], "p": 0.7}},
        {"ColorJitter": {"brightness": 0.2, "contrast": [0.8, 1.2]}},
        {"RandomResizedCrop": {"scale": [0.5, 1.0]}},
    )
    theirs = [
        augmentation.RandomAffine((-20, 20), translate=(0.1, 0.1), p=0.7),
        augmentation.ColorJitter(brightness=0.2, contrast=(0.8, 1.2)),
        augmentation.RandomResizedCrop((SIDE, SIDE), scale=(0.5, 1.0)),
    ]
    images, labels = batch()
    for seed in (0, 1, 2**63):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = images
            for transform in theirs:
                expected = transform(expected)
        assert torch.equal(ours(images, labels, seed)[0], expected)


def test_images_of_a_batch_are_augmented_each_in_its_own_way():
    images = torch.rand(1, 3, SIDE, SIDE).expand(256, -1, -1, -1).contiguous()
    result, _ = build("RandomHorizontalFlip")(images, torch.zeros(256, dtype=torch.int64), 0)
    flipped = [torch.equal(image, images[0].flip(2)) for image in result]
    kept = [torch.equal(image, images[0]) for image in result]
    assert sum(flipped) + sum(kept) == 256
    assert abs(sum(flipped) - 128) < 40  # five standard deviations of Binomial(256, 1/2)


def test_off_returns_what_it_was_given():
    images, labels = batch()
    transform = build()
    assert (transform.active, transform.mixes) == (False, False)
    result, targets = transform(images, labels, 0)
    assert result is images
    assert targets is labels


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"RandomGamma": {"gama": 2}},
            "augment.batch_transforms[0].RandomGamma.gama=2: RandomGamma of kornia takes no",
        ),
        ({"RandomGamma": {"gama": 2}}, "closest: gamma; it takes gamma, gain, same_on_batch, p"),
        ("RandomAffine", "augment.batch_transforms[0].RandomAffine: RandomAffine of kornia needs degrees"),
        (
            {"RandomHorizontalFlip": {"p": "often"}},
            "[0].RandomHorizontalFlip: fails on an image of 16 x 16 pixels and 3 channels: TypeError",
        ),
        ({"RandomErasing": {"scale": [2, 1]}}, "augment.batch_transforms[0].RandomErasing"),
        (
            {"CenterCrop": {"size": [8, 8]}},
            "augment.batch_transforms: CenterCrop makes (3, 8, 8) of images of (3, 16, 16)",
        ),
        ({"RandomHorizontalFlip": {"keepdim": True}}, "takes no argument keepdim"),
    ],
)
def test_a_wrong_argument_is_told_with_its_remedy(item, message):
    assert message in error_of(item)


def test_sizes_are_filled_in_and_shares_are_of_the_image():
    transform = build(
        "RandomResizedCrop", {"RandomCrop": {"padding": "12.5%"}}, {"CenterCrop": {"size": "50%"}}, "Resize"
    )
    crop, padded, centre, resize = (step.transform for step in transform.augment.steps)
    assert [step.flags["size"] for step in (crop, padded, centre, resize)] == [(16, 16), (16, 16), (8, 8), (16, 16)]
    assert padded.flags["padding"] == 2


def test_without_an_image_size_a_share_is_an_error():
    message = error_of({"RandomCrop": {"size": [16, 16], "padding": "12.5%"}}, image_size=None)
    assert "RandomCrop.padding=12.5%: is a share of an image size that is not known\n  give it in pixels" in message


def test_the_size_may_wait_for_the_first_batch():
    images, labels = batch()
    transform = build({"CenterCrop": {"size": [8, 8]}}, image_size=None)
    with pytest.raises(ConfigError, match=r"CenterCrop makes \(3, 8, 8\) of images of \(3, 16, 16\)"):
        transform(images, labels, 0)


@pytest.mark.gpu
def test_on_a_gpu_neither_generator_is_disturbed_and_nothing_waits():
    transform = build({"RandomAffine": {"degrees": 10.0}}, {"RandomGaussianNoise": {"std": 0.1}}, "RandomPlasmaShadow")
    images, labels = (tensor.cuda() for tensor in batch())
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    first = transform(images, labels, 5)[0]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])
    assert torch.equal(transform(images, labels, 5)[0], first)
