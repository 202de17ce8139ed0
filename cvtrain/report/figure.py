"""What all pictures of a run share: a style that needs no global state, colours, text that can be drawn."""

import contextlib
import functools
import io
import os
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cvtrain.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Okabe and Ito's colours (2008), told apart by people with any colour vision.
TRAIN_COLOR, VAL_COLOR, RATE_COLOR = "#0072B2", "#D55E00", "#009E73"
INK, GRID, MISSING = "#222222", "#DDDDDD", "#EEEEEE"
DPI = 150

# Families that hold scripts which DejaVu Sans lacks, on the systems where they are common.
_FALLBACK_FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans",
)
_STYLE: Any = {
    "font.size": 9,
    "text.color": INK,
    "text.usetex": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Within it, figures are drawn in the project's style whatever the user's matplotlibrc says."""
    import matplotlib

    # The backend is left out by rc_context, so a notebook's stays.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *_fallback_fonts()[0]]
        yield


def new_figure(width: float, height: float) -> "Figure":
    """A figure of inches that belongs to nobody: no pyplot, no window, the Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def place_square(figure: "Figure", axes: "Axes", image: "AxesImage", *, side: float, bar_label: str) -> None:
    """Give `axes` a square of `side` inches, a colour bar to its right, and the figure the size that its labels need.

    Constrained layout does not keep the labels of an axes with a fixed aspect inside the figure.
    """
    pad, bar_gap, bar_width, bar_labels = 0.15, 0.2, 0.18, 0.75
    width, height = figure.get_size_inches()
    figure.set_layout_engine("none")
    axes.set_position((0.4, 0.4, side / width, side / height))
    # What the labels take on each side does not depend on where the square stands.
    extent: Any = axes.get_tightbbox()
    box = axes.get_window_extent()
    left = (box.x0 - extent.x0) / figure.dpi + pad
    bottom = (box.y0 - extent.y0) / figure.dpi + pad
    top = (extent.y1 - box.y1) / figure.dpi + pad
    width, height = left + side + bar_gap + bar_width + bar_labels, bottom + side + top
    figure.set_size_inches(width, height)
    axes.set_position((left / width, bottom / height, side / width, side / height))
    bar_height = min(side, 5.0)
    bar = figure.add_axes(
        (
            (left + side + bar_gap) / width,
            (bottom + (side - bar_height) / 2) / height,
            bar_width / width,
            bar_height / height,
        )
    )
    figure.colorbar(image, cax=bar, label=bar_label).outline.set_visible(False)


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a PNG atomically; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # Figure.savefig would draw everything twice. Level 1 compresses faster than the default, into larger files.
    figure.canvas.print_png(buffer, metadata={"Software": None}, pil_kwargs={"compress_level": 1})  # type: ignore[attr-defined]
    with atomic_write(path, text=False) as file:
        file.write(buffer.getvalue())


def printable_text(text: str, max_chars: int = 0) -> str:
    """`text` as it can be drawn: no mathematics, no control characters, no boxes for letters that no font has.

    A letter without a glyph is replaced by its plain form (e for an e with rare accents), else by its code point in
    brackets, so that two names stay two names.

    Args:
        text: a class name or a file name.
        max_chars: longer texts lose their middle to an ellipsis; 0: no limit.
    """
    known = _known_characters()
    letters = []
    for letter in unicodedata.normalize("NFC", text):
        if letter in "\n" or (ord(letter) in known and letter.isprintable()):
            letters.append(letter)
        elif letter.isspace():
            letters.append(" ")
        else:
            plain = [part for part in unicodedata.normalize("NFKD", letter) if ord(part) in known and part.isalnum()]
            letters.append("".join(plain) or f"<{ord(letter):X}>")
    shown = "".join(letters)
    if max_chars and len(shown) > max_chars:
        head = max_chars // 2
        shown = f"{shown[:head]}…{shown[len(shown) - (max_chars - 1 - head) :]}"
    # matplotlib reads $...$ as mathematics.
    return shown.replace("$", r"\$")


@functools.cache
def _fallback_fonts() -> tuple[list[str], frozenset[int]]:
    """Those of the fallback families that this machine has, and the characters that they add."""
    from matplotlib import font_manager

    families: list[str] = []
    characters: set[int] = set()
    available = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    for family in _FALLBACK_FAMILIES:
        if family in available:
            families.append(family)
            characters.update(font_manager.get_font(available[family]).get_charmap())
    return families, frozenset(characters)


@functools.cache
def _known_characters() -> frozenset[int]:
    from matplotlib import font_manager

    dejavu = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(dejavu.get_charmap()) | _fallback_fonts()[1]
