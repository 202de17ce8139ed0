"""Pictures: sizes, pixels and colours that can be foreseen; equal input, equal bytes; no global state."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cvtrain.report.figure import printable_text
from cvtrain.report.image_grid import plot_images
from cvtrain.report.plots import epoch_ends, epochs_at, plot_confusion, plot_curves


def rows(steps: int = 100) -> list[dict[str, float | None]]:
    found: list[dict[str, float | None]] = []
    for step in range(10, steps + 1, 10):
        found.append({"step": step, "epoch": 1, "train/loss": 1 / step, "train/accuracy": 0.5, "train/lr": 1e-3})
    found.append({"step": steps, "epoch": 1, "train/epoch_loss": 0.3, "train/epoch_accuracy": 0.5})
    found.append({"step": steps, "epoch": 1, "val/loss": None, "val/accuracy": 0.6})
    return found


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def count(path: Path, color: tuple[int, int, int], tolerance: int = 2) -> int:
    return int((np.abs(pixels(path) - np.array(color)).max(axis=-1) <= tolerance).sum())


def test_curves_are_drawn_in_their_colors_and_missing_panels_left_out(tmp_path: Path) -> None:
    plot_curves(rows(), tmp_path / "all.png")
    plot_curves([{"step": 1, "epoch": 1, "train/loss": 1.0}], tmp_path / "loss.png")
    assert pixels(tmp_path / "all.png").shape == (525, 1980, 3)
    assert pixels(tmp_path / "loss.png").shape == (525, 660, 3)
    train, val, rate = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)
    assert count(tmp_path / "all.png", train) > 100
    assert count(tmp_path / "all.png", val) > 50
    assert count(tmp_path / "all.png", rate) > 500
    assert count(tmp_path / "loss.png", val) == count(tmp_path / "loss.png", rate) == 0


@pytest.mark.parametrize(
    "found",
    [
        [],
        [{"step": 0, "epoch": 1, "val/loss": None}],
        [{"step": 5, "epoch": 1, "train/loss": None, "val/loss": None, "val/accuracy": 0.0}],
        [{"step": step, "epoch": 1, "train/loss": 10.0**-step} for step in range(5)],
    ],
    ids=["none", "only null", "null and zero", "log scale"],
)
def test_curves_of_unusual_runs(tmp_path: Path, found: list[dict[str, float | None]]) -> None:
    plot_curves(found, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").shape[0] == 525


def test_x_axis_is_epochs() -> None:
    rows = [{"step": step, "epoch": epoch, "train/epoch_loss": 1.0} for epoch, step in ((1, 45), (2, 90), (3, 99))]
    ends = epoch_ends(rows)  # the third epoch was cut short
    assert [epochs_at(step, ends) for step in (0, 9, 45, 90, 99)] == pytest.approx([0, 0.2, 1, 2, 2.2])
    assert epochs_at(7, epoch_ends([])) == 7


def test_best_checkpoint_is_marked(tmp_path: Path) -> None:
    plot_curves(rows(), tmp_path / "plain.png")
    plot_curves(rows(), tmp_path / "marked.png", best_step=100)
    val = (0xD5, 0x5E, 0x00)
    assert count(tmp_path / "marked.png", val) > count(tmp_path / "plain.png", val) + 100


def confusion(matrix: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions with this confusion matrix."""
    true, predicted = np.indices(np.shape(matrix)).reshape(2, -1)
    return np.repeat(true, np.ravel(matrix)), np.repeat(predicted, np.ravel(matrix))


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plot_curves(rows(), tmp_path / name)
        plot_confusion(*confusion([[3, 1], [0, 2]]), ["a", "b"], tmp_path / f"confusion_{name}")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "confusion_a.png").read_bytes() == (tmp_path / "confusion_b.png").read_bytes()


def test_the_users_matplotlib_is_left_as_it_was_and_has_no_say(tmp_path: Path) -> None:
    plot_curves(rows(), tmp_path / "plain.png")
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        plot_curves(rows(), tmp_path / "styled.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_confusion_colors_are_shares_of_the_row(tmp_path: Path) -> None:
    # Rows of 100 and of 2 images, both half right: equal colours although the counts differ.
    plot_confusion(*confusion([[50, 50], [1, 1]]), ["many", "few"], tmp_path / "halves.png")
    half = tuple(round(255 * part) for part in matplotlib.colormaps["Blues"](0.5)[:3])
    side = round(2.4 * 150)
    # Numbers stand on some of it.
    assert 0.97 * side**2 < count(tmp_path / "halves.png", half) <= side**2 + 200


def test_confusion_row_without_images_is_grey(tmp_path: Path) -> None:
    plot_confusion(*confusion([[4, 0], [0, 0]]), ["seen", "unseen"], tmp_path / "c.png")
    side = round(2.4 * 150)
    assert count(tmp_path / "c.png", (0xEE, 0xEE, 0xEE), 0) == pytest.approx(side**2 / 2, rel=0.02)


@pytest.mark.parametrize("num_classes", [1, 40, 300])
def test_confusion_size_is_bounded(tmp_path: Path, num_classes: int) -> None:
    labels = np.repeat(np.arange(num_classes), 7)
    names = [f"a class with a rather long name {index}" for index in range(num_classes)]
    plot_confusion(labels, np.roll(labels, 1), names, tmp_path / "c.png")
    height, width, _ = pixels(tmp_path / "c.png").shape
    assert 400 < height < 15 * 150
    assert 400 < width < 16 * 150
    # Nothing is cut off: the border is white all around.
    picture = pixels(tmp_path / "c.png")
    assert (picture[0] == 255).all() and (picture[-1] == 255).all()
    assert (picture[:, 0] == 255).all() and (picture[:, -1] == 255).all()


MEMORY = """
import resource, sys
import numpy as np, torch
from cvtrain.metrics import ClassificationMetrics
from cvtrain.report.plots import plot_confusion
K, N = int(sys.argv[1]), 30_000
generator = np.random.default_rng(0)
labels = generator.integers(0, K, N)
preds = np.where(generator.random(N) < 0.7, labels, generator.integers(0, K, N))
preds[:9] = 5
labels[:9] = 3
plot_confusion(labels[:100], preds[:100] % 10, [str(n) for n in range(K)], sys.argv[2])  # imports and fonts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
metrics = ClassificationMetrics(K)
for start in range(0, 256, 64):
    part = torch.from_numpy(labels[start : start + 64])
    metrics.update(torch.zeros(64, K).index_put_((torch.arange(64), part), torch.ones(())), part, torch.ones(64))
assert metrics.compute()["accuracy"] == 1.0
assert len(metrics.per_class()) == K
plot_confusion(labels, preds, [f"class {n}" for n in range(K)], sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("num_classes", [10_000, 21_841])
def test_memory_of_many_classes_is_flat(tmp_path: Path, num_classes: int) -> None:
    """A dense matrix took 8.6 GB of 10,000 classes."""
    command = [sys.executable, "-c", MEMORY, str(num_classes), str(tmp_path / "c.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200  # MiB
    assert pixels(tmp_path / "c.png").shape[0] < 1600


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_pixels(tmp_path: Path, channels: int) -> None:
    images = np.zeros((2, channels, 2, 2), np.uint8)
    images[0, :, 0, 0] = 200
    plot_images(images, ["one", "two"], tmp_path / "grid.png")
    cell = 1.6 * 150
    assert count(tmp_path / "grid.png", (200, 200, 200), 0) == pytest.approx(cell**2 / 4, rel=0.03)
    assert count(tmp_path / "grid.png", (0, 0, 0), 0) == pytest.approx(cell**2 * 7 / 4, rel=0.03)


def test_color_channels_keep_their_order(tmp_path: Path) -> None:
    images = np.zeros((1, 3, 4, 4), np.uint8)
    images[0, 0] = 250
    images[0, 2] = 40
    plot_images(images, ["red"], tmp_path / "grid.png")
    assert count(tmp_path / "grid.png", (250, 0, 40), 0) == pytest.approx((1.6 * 150) ** 2, rel=0.03)


def test_image_grid_is_bounded_and_takes_tensors(tmp_path: Path) -> None:
    import torch

    plot_images(torch.zeros(70, 1, 8, 8, dtype=torch.uint8), ["x"] * 70, tmp_path / "grid.png", title="Seventy")
    cell = 1.6 * 150
    assert count(tmp_path / "grid.png", (0, 0, 0), 0) == pytest.approx(64 * cell**2, rel=0.03)


@pytest.mark.parametrize(
    ("images", "captions"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), ["a", "b"]),
        (np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"]),
        (np.zeros((2, 3, 4, 4), np.uint8), ["a"]),
    ],
)
def test_images_of_the_wrong_kind(tmp_path: Path, images: np.ndarray, captions: list[str]) -> None:
    with pytest.raises(ValueError, match="they must be uint8 of shape"):
        plot_images(images, captions, tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []


def test_names_in_any_script_draw_without_a_warning(tmp_path: Path) -> None:
    names = ["猫", "कुत्ता", "🐝 bee", "$x^2$ $", "tab\tand\x00null", "ümlaut_ß", "a\nb"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(np.arange(7), np.arange(7), names, tmp_path / "c.png")
        plot_images(np.zeros((7, 1, 8, 8), np.uint8), names, tmp_path / "i.png", title="猫 $")


def test_drawable() -> None:
    assert printable_text("ümlaut_ß ants") == "ümlaut_ß ants"
    assert printable_text("$5 and $6") == r"\$5 and \$6"
    assert printable_text("a\tb") == "a b"
    assert printable_text("abcdefghij", 5) == "ab…ij"
    assert printable_text("abcde", 5) == "abcde"
    # No font of a test machine holds Linear A, and its letters have no plainer form.
    assert printable_text("\U00010600") == "<10600>"
    assert printable_text("\U0001d400") in ("A", "\U0001d400")


def test_an_unfinished_picture_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = tmp_path / "curves.png"
    plot_curves([], path)
    before = path.read_bytes()

    def print_png(self: FigureCanvasAgg, file: io.BytesIO, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", print_png)
    with pytest.raises(OSError, match="disk full"):
        plot_curves(rows(), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.png"]
