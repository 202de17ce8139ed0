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
    """(H, W, C) uint8 to a contiguous (C, S, S) uint8 tensor, bilinear with antialiasing. Can be pickled.

    An image that is S x S already is not touched, under any policy.

    Args:
        image_size: S, in pixels.
        resize: resize_crop (short side to S / crop_fraction, rounded; then the S x S in the centre), squash (both
            sides to S, the aspect is lost) or pad (long side to S, centred on grey PAD_VALUE).
        crop_fraction: for resize_crop, in (0, 1].
    """

    def __init__(self, *, image_size: int, resize: str, crop_fraction: float) -> None:
        if resize not in ("resize_crop", "squash", "pad"):
            raise ValueError(f"resize {resize!r}: must be resize_crop, squash or pad")
        self.image_size = image_size
        self.resize = resize
        self.short_side = max(image_size, int(image_size / crop_fraction + 0.5))

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        size = self.image_size
        tensor = _to_tensor(image)
        if tensor.shape[1:] == (size, size):
            return tensor.contiguous()
        if self.resize == "squash":
            return _resize(tensor, size, size).contiguous()
        if self.resize == "pad":
            return self._pad(tensor)
        return self._crop(tensor)

    def shrink(self, image: np.ndarray) -> np.ndarray:
        """The part of this transform that can be done once and kept: (H, W, C) uint8 to (h, w, C) uint8.

        `self(self.shrink(image))` equals `self(image)` to the bit. It is the resize without the crop and the bars, so
        that a random crop has something to choose from. An image that the resize would enlarge stays as it is.
        """
        shape = (int(image.shape[0]), int(image.shape[1]))
        height, width = self.shrunk_shape(*shape)
        if (height, width) == shape:
            return image
        tensor = _to_tensor(image)
        if self.resize == "resize_crop":
            tensor = _cut_long_side(tensor)
        resized = _resize(tensor, height, width).numpy()
        pixels = np.empty((height, width, len(resized)), np.uint8)
        for channel, plane in enumerate(resized):  # half the time of a transposition at once
            pixels[:, :, channel] = plane
        return pixels

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

    def _crop(self, tensor: torch.Tensor) -> torch.Tensor:
        resized = _resize(_cut_long_side(tensor), *self._crop_shape(tensor.shape[1], tensor.shape[2]))
        return _center_crop(resized, self.image_size, self.image_size).contiguous()

    def _crop_shape(self, height: int, width: int) -> tuple[int, int]:
        # To the pixel torchvision's Resize(short_side) and CenterCrop(image_size), which cut fractions off the long
        # side: pretrained weights were scored with them.
        short = min(height, width)
        height, width = min(height, MAX_ASPECT * short), min(width, MAX_ASPECT * short)
        return height * self.short_side // short, width * self.short_side // short

    def _pad(self, tensor: torch.Tensor) -> torch.Tensor:
        size = self.image_size
        height, width = self._pad_shape(tensor.shape[1], tensor.shape[2])
        left, top = (size - width) // 2, (size - height) // 2
        bars = (left, size - width - left, top, size - height - top)
        return F.pad(_resize(tensor, height, width), bars, value=PAD_VALUE).contiguous()

    def _pad_shape(self, height: int, width: int) -> tuple[int, int]:
        scale = self.image_size / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) uint8 array to a (C, H, W) tensor whose channels stay last in memory."""
    # from_numpy warns about memory that cannot be written, such as that of the cache.
    writable = image if image.flags.writeable else image.copy()
    return torch.from_numpy(np.ascontiguousarray(writable)).permute(2, 0, 1)


def _cut_long_side(tensor: torch.Tensor) -> torch.Tensor:
    """The centre of (C, H, W), at most MAX_ASPECT times as long as short."""
    height, width = tensor.shape[1:]
    longest = MAX_ASPECT * min(height, width)
    return _center_crop(tensor, min(height, longest), min(width, longest)) if max(height, width) > longest else tensor


def _resize(tensor: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(C, H, W) uint8 to (C, height, width) uint8.

    The kernel under torchvision's `resize`, called directly: importing torchvision takes seconds.
    """
    if tensor.shape[1:] == (height, width):
        return tensor
    return F.interpolate(tensor[None], (height, width), mode="bilinear", align_corners=False, antialias=True)[0]


def _center_crop(tensor: torch.Tensor, height: int, width: int) -> torch.Tensor:
    # Rounded to even, as torchvision does.
    top, left = round((tensor.shape[1] - height) / 2), round((tensor.shape[2] - width) / 2)
    return tensor[:, top : top + height, left : left + width]


def build_eval_transform(*, image_size: int, resize: str, crop_fraction: float) -> EvalTransform:
    """The resize of `data.resize`: (H, W, C) uint8 to (C, S, S) uint8. See `EvalTransform`."""
    return EvalTransform(image_size=image_size, resize=resize, crop_fraction=crop_fraction)
