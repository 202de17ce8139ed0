"""The evaluation resize: closed forms on constant images, and torchvision's own transforms to the bit."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cvtrain.data.images.resize import PAD_VALUE, build_eval_transform

POLICIES = ("resize_crop", "squash", "pad")


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def chw(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.mark.parametrize("resize", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (31, 7), (9, 100), (1, 1), (3, 3)])
def test_result_is_a_square_with_channels_last_in_memory(resize: str, channels: int, shape: tuple[int, int]) -> None:
    result = build_eval_transform(image_size=24, resize=resize, crop_fraction=0.875)(noise(*shape, channels))
    assert (
        result.shape == (channels, 24, 24) and result.dtype == torch.uint8 and result.permute(1, 2, 0).is_contiguous()
    )


@pytest.mark.parametrize("resize", POLICIES)
def test_an_image_of_the_right_size_is_not_touched(resize: str) -> None:
    image = noise(24, 24)
    result = build_eval_transform(image_size=24, resize=resize, crop_fraction=0.5)(image)
    assert torch.equal(result, chw(image))


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (100, 90)])
def test_resize_crop_is_torchvisions_resize_and_centre_crop(shape: tuple[int, int]) -> None:
    # 0.875 of 256 is 224: what torchvision's weights were scored with.
    image = noise(*shape)
    result = build_eval_transform(image_size=224, resize="resize_crop", crop_fraction=0.875)(image)
    reference = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])(chw(image))
    assert torch.equal(result, reference)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (100, 90)])
def test_pixels_are_pillows_within_rounding(interpolation: str, shape: tuple[int, int]) -> None:
    # Waves between 30 and 225: where a value is cut at 0 or 255 between the two passes, their order counts.
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = [127.5 + 97.5 * np.sin(rows / (5 + channel)) * np.cos(columns / 7) for channel in range(3)]
    image = np.stack(waves, axis=2).astype(np.uint8)
    transform = build_eval_transform(image_size=224, resize="squash", crop_fraction=1.0, interpolation=interpolation)
    kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    reference = np.asarray(Image.fromarray(image).resize((224, 224), kernel))
    error = np.abs(transform(image).permute(1, 2, 0).numpy().astype(int) - reference.astype(int))
    assert error.max() <= (1 if interpolation == "bilinear" else 2)
    assert (error > 1).mean() < 0.001


@pytest.mark.parametrize(
    ("image_size", "crop_fraction", "short_side"),
    [(224, 0.875, 256), (224, 0.9, 248), (224, 224 / 232, 232), (288, 1.0, 288), (240, 0.882, 272), (260, 0.89, 292)],
)
def test_short_side_is_rounded_down_as_in_timm(image_size: int, crop_fraction: float, short_side: int) -> None:
    transform = build_eval_transform(image_size=image_size, resize="resize_crop", crop_fraction=crop_fraction)
    assert transform.short_side == short_side


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="'nearest': must be bilinear or bicubic"):
        build_eval_transform(image_size=16, resize="pad", crop_fraction=0.875, interpolation="nearest")


def test_resize_crop_of_one_keeps_the_whole_short_side() -> None:
    # 8 x 16 with columns 0..15: the centre crop at the same scale is columns 4..11.
    image = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, :, None], (8, 16, 1)).copy()
    result = build_eval_transform(image_size=8, resize="resize_crop", crop_fraction=1.0)(image)
    assert torch.equal(result[0], torch.arange(4, 12, dtype=torch.uint8).expand(8, 8))


def test_squash_shows_every_part_of_the_image() -> None:
    # Halves of 0 and 200, four times as wide as high: after squashing each half still fills its half.
    image = np.zeros((16, 64, 3), np.uint8)
    image[:, 32:] = 200
    result = build_eval_transform(image_size=16, resize="squash", crop_fraction=0.875)(image)
    assert (result[:, :, :7] == 0).all() and (result[:, :, 9:] == 200).all()


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((10, 40), (7, 5), (0, 20)),  # 20 x 5; 15 rows of bars: 7 above, 8 below
        ((40, 10), (0, 20), (7, 5)),
        ((20, 18), (0, 20), (1, 18)),
        ((1, 400), (9, 1), (0, 20)),  # never thinner than one pixel
    ],
)
def test_pad_keeps_the_aspect_and_centres(shape: tuple, rows: tuple, columns: tuple) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    result = build_eval_transform(image_size=20, resize="pad", crop_fraction=0.875)(image)
    expected = torch.full((3, 20, 20), PAD_VALUE, dtype=torch.uint8)
    expected[:, rows[0] : sum(rows), columns[0] : sum(columns)] = 200
    assert torch.equal(result, expected)


def test_shrinking_is_antialiased() -> None:
    # A checkerboard of 0 and 255 shrunk by 4 is its mean; without antialiasing bilinear would pick four pixels.
    image = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    result = build_eval_transform(image_size=16, resize="squash", crop_fraction=0.875)(image)
    assert (result[:, 1:-1, 1:-1].int() - 127).abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1)])
def test_a_thin_strip_needs_no_gigabytes(shape: tuple[int, int]) -> None:
    # Enlarging all of it to a short side of 256 would make 256 x 51,200,000 pixels.
    image = np.full((*shape, 3), 7, np.uint8)
    result = build_eval_transform(image_size=224, resize="resize_crop", crop_fraction=0.875)(image)
    assert torch.equal(result, torch.full((3, 224, 224), 7, dtype=torch.uint8))


def test_read_only_and_strided_arrays_are_taken_and_left_as_they_are() -> None:
    image = noise(30, 40)
    transform = build_eval_transform(image_size=16, resize="squash", crop_fraction=0.875)
    expected = transform(image[:, ::-1].copy())
    flipped = image[:, ::-1]
    flipped.flags.writeable = False
    assert torch.equal(transform(flipped), expected)
    np.testing.assert_array_equal(image, noise(30, 40))


def test_it_can_be_pickled() -> None:
    transform = build_eval_transform(image_size=16, resize="pad", crop_fraction=0.875)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(noise(9, 30)), transform(noise(9, 30)))


def test_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="'stretch': must be resize_crop, squash or pad"):
        build_eval_transform(image_size=16, resize="stretch", crop_fraction=0.875)
