import numpy as np

from cvtrain.report.plots import plot_confusion
from cvtrain.report.plotter import Plotter

COUNTS = np.array([[3, 1], [0, 4]])


def test_picture_that_fails_is_a_warning(tmp_path, caplog):
    plotter = Plotter()
    (tmp_path / "file").write_text("no folder")
    plotter.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "file" / "confusion.png")
    plotter.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").exists()
    assert [record.getMessage().split(":")[:2] for record in caplog.records] == [
        ["a picture could not be drawn", " FileExistsError"]
    ]
