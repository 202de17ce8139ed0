import numpy as np

from cvtrain.report.plots import plot_confusion
from cvtrain.report.plotter import Plotter

LABELS, PREDS = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])


def test_picture_that_fails_is_a_warning(tmp_path, caplog):
    plotter = Plotter()
    (tmp_path / "file").write_text("no folder")
    plotter.draw(plot_confusion, LABELS, PREDS, ("ant", "bee"), tmp_path / "file" / "confusion.png")
    plotter.draw(plot_confusion, LABELS, PREDS, ("ant", "bee"), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").exists()
    assert [record.getMessage().split(":")[:2] for record in caplog.records] == [
        ["a picture could not be drawn", " FileExistsError"]
    ]
