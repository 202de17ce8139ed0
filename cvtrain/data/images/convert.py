"""The one rule that brings every kind of image to 8-bit RGB or grey. `docs/data.md` states it for users."""

from typing import Any

import numpy as np
import torch
from PIL import Image, TiffImagePlugin

from cvtrain.data.images.errors import ImageError

ORIENTATION_TAG = 0x0112
WHITE = (255, 255, 255)

# What turns the stored pixels upright, by EXIF orientation (CIPA DC-008, "Orientation"). 1: nothing.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Formats whose "I" pixels are 0..65535: Pillow widens 16-bit grey of these to 32 bits.
SIXTEEN_BIT_IN_32 = ("PNG", "PPM")

_CHUNK = 1024  # images converted at once by `to_channels`: the sums need 4 bytes per value

MODE_OF_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def image_to_array(image: Any, channels: int, alpha_color: tuple[int, ...] = WHITE, bit_depth: int = 16) -> np.ndarray:
    """Any image as (H, W, channels) uint8: upright, without transparency, RGB or grey.

    Args:
        image: a PIL image of any mode; an array (H, W) or (H, W, 1..4); or a tensor (H, W) or (1..4, H, W).
            Arrays and tensors hold bool, uint8, uint16 or floating-point values in 0..1.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma).
        alpha_color: RGB colour behind transparent pixels, 0..255.
        bit_depth: bits that 16-bit values use, 8..16, such as 12 of many cameras; larger values are white.

    Raises:
        ImageError: pixels whose range is not known, an unknown layout, or no pixels at all.
        Exception: whatever Pillow raises for a file that it cannot decode, since PIL images decode lazily.
    """
    if isinstance(image, Image.Image):
        image.load()
        return pil_to_array(image, channels, alpha_color, read_orientation(image), bit_depth)
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        image = (tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).numpy()
    if not isinstance(image, np.ndarray):
        raise ImageError(f"an image must be a PIL image, an array or a tensor, not {type(image).__name__}")
    pixels = _array_to_uint8(image, bit_depth)
    if pixels.shape[2] == channels:
        return np.ascontiguousarray(pixels)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, channels, axis=2)
    # The squeeze is for one channel only, which has left by now: PIL takes (H, W, 2..4).
    return pil_to_array(Image.fromarray(np.ascontiguousarray(pixels)), channels, alpha_color, 1)


def pil_to_array(
    image: Image.Image, channels: int, alpha_color: tuple[int, ...], orientation: int, bit_depth: int = 16
) -> np.ndarray:
    """A loaded PIL image as (H, W, channels) uint8, see `image_to_array`; `orientation` is EXIF's, 1..8."""
    if 0 in image.size:
        raise ImageError(f"the image has no pixels: {image.width} x {image.height}")
    flat = _without_alpha(_to_8_bit(image, bit_depth), alpha_color)
    if channels == 1:
        # From RGB by ITU-R 601 in integers: (19595 R + 38470 G + 7471 B + 32768) >> 16.
        flat = flat if flat.mode == "L" else flat.convert("RGB").convert("L")
    elif flat.mode != "RGB":
        flat = flat.convert("RGB")
    if orientation in TURNS:
        flat = flat.transpose(TURNS[orientation])
    return np.array(flat).reshape(flat.height, flat.width, channels)


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1..8; 1 where there is none, it is out of range or the EXIF block is damaged.

    For a TIFF file it is the one that is left to apply after `load`: Pillow from 11 on turns these itself.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        orientation = image.tag_v2.get(ORIENTATION_TAG, 1)
    else:
        orientation = _exif_orientation(image.info.get("exif"))
    return orientation if orientation in TURNS else 1


def _exif_orientation(block: bytes | None) -> Any:
    if not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        return exif.get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow's parser raises many types; the pixels do not depend on a damaged EXIF block.
        return 1


def high_bits(values: np.ndarray, bit_depth: int) -> np.ndarray:
    """Return uint8, the first 8 of the `bit_depth` bits that uint16 `values` use; larger values become 255."""
    return (np.minimum(values, 2**bit_depth - 1) >> (bit_depth - 8)).astype(np.uint8)


def _to_8_bit(image: Image.Image, bit_depth: int) -> Image.Image:
    """The image with 8 bits per channel. Pillow itself has taken the high byte of 16-bit RGB."""
    if image.mode == "F":
        raise ImageError("floating-point pixels have no fixed range: save the image with 8 or 16 bits")
    if image.mode == "I" and image.format not in SIXTEEN_BIT_IN_32:
        raise ImageError("32-bit integer pixels have no fixed range: save the image with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.uint16)
    grey = Image.fromarray(high_bits(values, bit_depth))
    if "transparency" in image.info:
        opaque = (values != image.info["transparency"]).astype(np.uint8) * 255
        return Image.merge("LA", (grey, Image.fromarray(opaque)))
    return grey


def _without_alpha(image: Image.Image, alpha_color: tuple[int, ...]) -> Image.Image:
    """Mode L or RGB, or one that converts to RGB; transparent pixels are laid over `alpha_color`."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        # Exactly rounded: (alpha * pixel + (255 - alpha) * color) / 255.
        background = Image.new("RGB", image.size, tuple(alpha_color))
        background.paste(rgba, mask=rgba.getchannel("A"))
        return background
    return image.convert("L") if image.mode == "1" else image


def _array_to_uint8(pixels: np.ndarray, bit_depth: int) -> np.ndarray:
    """(H, W) or (H, W, 1..4) of bool, uint8, uint16 or floats in 0..1, as (H, W, 1..4) uint8."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in MODE_OF_CHANNELS:
        raise ImageError(
            f"an image of shape {pixels.shape}: arrays must be (H, W) or (H, W, 1..4), tensors (H, W) or (1..4, H, W)"
        )
    if 0 in pixels.shape:
        raise ImageError(f"the image has no pixels: {pixels.shape[1]} x {pixels.shape[0]}")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return high_bits(pixels, bit_depth)
    if np.issubdtype(pixels.dtype, np.floating):
        # NaN fails both comparisons.
        if pixels.min() >= 0 and pixels.max() <= 1:
            return np.rint(pixels * 255).astype(np.uint8)
        raise ImageError(
            f"floating-point pixels from {pixels.min():g} to {pixels.max():g}: they must be in 0..1. "
            "Leave normalisation to data.normalize, which is applied on the device"
        )
    raise ImageError(f"pixels of type {pixels.dtype}: they must be uint8, uint16, bool or floating-point in 0..1")


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """`images` (N, H, W, 1 or 3) uint8 as (N, H, W, channels) uint8, C-contiguous.

    Grey to RGB repeats the value. RGB to grey is ITU-R 601 luma in Pillow's fixed point (mode L, `Convert.c`):
    (19595 R + 38470 G + 7471 B + 32768) >> 16, so that a set in arrays and the same set in files give equal pixels.
    """
    if images.shape[3] == channels:
        return np.ascontiguousarray(images)
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    grey = np.empty((*images.shape[:3], 1), dtype=np.uint8)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)
    for first in range(0, len(images), _CHUNK):
        luma = images[first : first + _CHUNK].astype(np.uint32) @ weights  # (n, H, W)
        grey[first : first + _CHUNK, ..., 0] = (luma + 32768) >> 16
    return grey


def place_image(image: torch.Tensor, place: torch.Tensor) -> None:
    """Copy `image` (C, S, S) uint8, in any memory layout, to `place` (S, S, C) contiguous."""
    if image.shape[0] == 1 or not image.is_contiguous():
        place.copy_(image.permute(1, 2, 0))
        return
    import cv2

    # Channel by channel to pixel by pixel: for 224 x 224, OpenCV took 12 us on a busy core, torch 200, NumPy 110.
    cv2.merge(list(image.numpy()), place.numpy())
