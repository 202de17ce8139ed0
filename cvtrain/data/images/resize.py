"""Resizing for evaluation, and for training without a random crop: any image to a square."""

import numpy as np
import torch
from torch.nn import functional as F

# Grey of the bars of `pad`: near the mean of photos, and the customary value of letterboxing (YOLOv5).
PAD_VALUE = 114

# An image is at most this many times as long as it is short when resize_crop resizes it: the centre crop shows
# none of the rest, and a strip of 10 x 100,000 pixels would be enlarged to gigabytes.
MAX_ASPECT = 16


class EvalTransform:
    """(H, W, C) uint8 to a (C, S, S) uint8 tensor, resized with antialiasing. Can be pickled.

    The tensor's channels are last in memory, as they are in an image. One that is S x S already is not touched, under
    any policy.

    Args:
        image_size: S, in pixels.
        resize: resize_crop (short side to S / crop_fraction, rounded down; then the S x S in the centre), squash
            (both sides to S, the aspect is lost) or pad (long side to S, centred on grey PAD_VALUE).
        crop_fraction: for resize_crop, in (0, 1].
        interpolation: bilinear or bicubic.
    """

    def __init__(self, *, image_size: int, resize: str, crop_fraction: float, interpolation: str = "bilinear") -> None:
        if resize not in ("resize_crop", "squash", "pad"):
            raise ValueError(f"resize {resize!r}: must be resize_crop, squash or pad")
        self.image_size = image_size
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation {interpolation!r}: must be bilinear or bicubic")
        self.resize = resize
        self.interpolation = interpolation
        # Rounded down, as in timm; 224 / (224 / 232) is a little less than 232.
        self.short_side = max(image_size, int(image_size / crop_fraction + 1e-6))

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        pixels = self._square(image)
        # from_numpy warns about memory that cannot be written, such as that of the cache, and wants no steps backwards.
        is_usable = pixels.flags.writeable and pixels.flags.c_contiguous
        return torch.from_numpy(pixels if is_usable else np.array(pixels, order="C")).permute(2, 0, 1)

    def shrink(self, image: np.ndarray) -> np.ndarray:
        """The part of this transform that can be done once and kept: (H, W, C) uint8 to (h, w, C) uint8.

        `self(self.shrink(image))` equals `self(image)` to the bit. It is the resize without the crop and the bars, so
        that a random crop has something to choose from. An image that the resize would enlarge stays as it is.
        """
        shape = (int(image.shape[0]), int(image.shape[1]))
        height, width = self.shrunk_shape(*shape)
        if (height, width) == shape:
            return image
        part = _cut_long_side(image) if self.resize == "resize_crop" else image
        return resize_pixels(part, height, width, self.interpolation)

    def shrunk_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what `shrink` makes of an image of this size."""
        size = self.image_size
        if (height, width) == (size, size):
            return height, width
        if self.resize == "squash":
            return (size, size) if height * width > size * size else (height, width)
        if self.resize == "pad":
            return self._pad_shape(height, width) if max(height, width) > size else (height, width)
        return self._crop_shape(height, width) if min(height, width) > self.short_side else (height, width)

    def _square(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) to (S, S, C), which may be a view of `image`."""
        size = self.image_size
        if image.shape[:2] == (size, size):
            return image
        if self.resize == "squash":
            return resize_pixels(image, size, size, self.interpolation)
        if self.resize == "pad":
            return self._pad(image)
        height, width = self._crop_shape(*image.shape[:2])
        resized = resize_pixels(_cut_long_side(image), height, width, self.interpolation)
        return _center_crop(resized, size, size)

    def _crop_shape(self, height: int, width: int) -> tuple[int, int]:
        # To the pixel torchvision's Resize(short_side) and CenterCrop(image_size), which cut fractions off the long
        # side: pretrained weights were scored with them.
        short = min(height, width)
        height, width = min(height, MAX_ASPECT * short), min(width, MAX_ASPECT * short)
        return height * self.short_side // short, width * self.short_side // short

    def _pad(self, image: np.ndarray) -> np.ndarray:
        size = self.image_size
        height, width = self._pad_shape(*image.shape[:2])
        left, top = (size - width) // 2, (size - height) // 2
        padded = np.full((size, size, image.shape[2]), PAD_VALUE, np.uint8)
        padded[top : top + height, left : left + width] = resize_pixels(image, height, width, self.interpolation)
        return padded

    def _pad_shape(self, height: int, width: int) -> tuple[int, int]:
        scale = self.image_size / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_pixels(image: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> np.ndarray:
    """(H, W, C) uint8 to (height, width, C) uint8 with antialiasing; `image` itself if it has that size.

    The kernel under torchvision's `resize`, called directly: importing torchvision takes seconds.
    """
    if image.shape[:2] == (height, width):
        return image
    usable = image if image.flags.writeable and image.flags.c_contiguous else np.array(image, order="C")
    # The batch's axis goes in front while the channels are last: strides that the kernel knows as channels last, in
    # which it works without packing its input and output anew. With strides of 1 x C x H x W it took twice as long.
    batch = torch.from_numpy(usable)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(batch, (height, width), mode=interpolation, align_corners=False, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _cut_long_side(image: np.ndarray) -> np.ndarray:
    """The centre of (H, W, C), at most MAX_ASPECT times as long as short."""
    height, width = image.shape[:2]
    longest = MAX_ASPECT * min(height, width)
    return _center_crop(image, min(height, longest), min(width, longest)) if max(height, width) > longest else image


def _center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    # Rounded to even, as torchvision does.
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def build_eval_transform(
    *, image_size: int, resize: str, crop_fraction: float, interpolation: str = "bilinear"
) -> EvalTransform:
    """The resize of `data.resize`: (H, W, C) uint8 to (C, S, S) uint8. See `EvalTransform`."""
    return EvalTransform(image_size=image_size, resize=resize, crop_fraction=crop_fraction, interpolation=interpolation)
