"""A grid of images with captions, written as one PNG, atomically."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvtrain.report.figure import new_figure, printable_text, save_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

MAX_IMAGES = 64


def plot_images(
    images: ArrayLike,
    captions: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    group: int = 1,
) -> None:
    """A grid of images with their captions, which may have several lines; the first 64 images are drawn.

    Args:
        images: (N, C, H, W) uint8, C = 1 (grey) or 3 (RGB); an array or a tensor on the CPU.
        captions: N texts.
        path: the PNG.
        title: a line above the grid.
        group: images that follow each other and stay in one row.
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.dtype != np.uint8 or len(pixels) != len(captions):
        raise ValueError(
            f"images {pixels.dtype} of shape {pixels.shape} with {len(captions)} captions: "
            "they must be uint8 of shape (N, 1 or 3, H, W), with N captions"
        )
    pixels, captions = pixels[:MAX_IMAGES], list(captions[:MAX_IMAGES])
    columns = max(1, min(8, max(math.ceil(math.sqrt(len(pixels))), min(4, len(pixels)))))
    columns = -(-columns // group) * group
    grid_rows = math.ceil(len(pixels) / columns)
    # Inches: every picture is a square cell, with a gap to the right and its caption below.
    cell, gap, line, top = 1.6, 0.16, 0.145, 0.4 if title else 0.12
    caption_height = line * max((caption.count("\n") + 1 for caption in captions), default=0) + 0.14
    width = max(columns, 2) * (cell + gap) + gap
    height = max(1, grid_rows) * (cell + caption_height) + top
    with style():
        figure = new_figure(width, height)
        # Places are known, in inches. Axes for each image, or a layout engine, would take longer than all the rest.
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
        axes.set_axis_off()
        if title:
            heading = figure.text(
                gap / width, 1 - 0.13 / height, printable_text(title, 90), va="top", size=10, weight="bold"
            )
            _shrink(heading, 10, width - 2 * gap, figure.dpi)
        for index, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
            row, column = divmod(index, columns)
            left = gap + column * (cell + gap)
            bottom = height - top - (row + 1) * cell - row * caption_height
            _draw_image(axes, image, left, bottom, cell)
            text = figure.text(
                (left + cell / 2) / width,
                (bottom - 0.04) / height,
                "\n".join(printable_text(part, 32) for part in caption.split("\n")),
                ha="center",
                va="top",
                size=8,
                linespacing=1.15,
            )
            _shrink(text, 8, cell + gap * 0.6, figure.dpi)
        save_figure(figure, path)


def _shrink(text: "Text", size: float, inches: float, dpi: float) -> None:
    """Make `text`, of `size` points, no wider than `inches`, down to 3.5 points."""
    drawn_inches = text.get_window_extent().width / dpi
    text.set_fontsize(max(3.5, size * min(1.0, inches / max(drawn_inches, 1e-6))))


def _draw_image(axes: "Axes", image: NDArray[np.uint8], left: float, bottom: float, cell: float) -> None:
    """Draw `image` in the middle of the square of `cell` inches at (`left`, `bottom`)."""
    channels, height, width = image.shape
    half_width, half_height = (cell / 2 * side / max(height, width) for side in (width, height))
    x, y = left + cell / 2, bottom + cell / 2
    extent = (x - half_width, x + half_width, y - half_height, y + half_height)
    # Small images are shown as the pixels that they are.
    interpolation = "nearest" if max(height, width) <= 64 else "antialiased"
    shown = image[0] if channels == 1 else image.transpose(1, 2, 0)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation=interpolation, extent=extent, aspect="auto")
