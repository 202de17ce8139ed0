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
        # from_numpy warns about memory that cannot be written, such as a memory-mapped cache.
        writable = image if image.flags.writeable else image.copy()
        tensor = torch.from_numpy(np.ascontiguousarray(writable)).permute(2, 0, 1)  # (C, H, W)
        if tensor.shape[1:] == (size, size):
            return tensor.contiguous()
        if self.resize == "squash":
            return _resize(tensor, size, size).contiguous()
        if self.resize == "pad":
            return self._pad(tensor)
        return self._crop(tensor)

    def _crop(self, tensor: torch.Tensor) -> torch.Tensor:
        height, width = tensor.shape[1:]
        short = min(height, width)
        if max(height, width) > MAX_ASPECT * short:
            height, width = min(height, MAX_ASPECT * short), min(width, MAX_ASPECT * short)
            tensor = _center_crop(tensor, height, width)
        # To the pixel torchvision's Resize(short_side) and CenterCrop(image_size), which cut fractions off the long
        # side: pretrained weights were scored with them.
        new_height, new_width = height * self.short_side // short, width * self.short_side // short
        resized = _resize(tensor, new_height, new_width)
        return _center_crop(resized, self.image_size, self.image_size).contiguous()

    def _pad(self, tensor: torch.Tensor) -> torch.Tensor:
        size = self.image_size
        height, width = tensor.shape[1:]
        scale = size / max(height, width)
        new_height, new_width = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        left, top = (size - new_width) // 2, (size - new_height) // 2
        bars = (left, size - new_width - left, top, size - new_height - top)
        return F.pad(_resize(tensor, new_height, new_width), bars, value=PAD_VALUE).contiguous()


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
