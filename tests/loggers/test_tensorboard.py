"""Event files, read back by TensorBoard's own reader."""

from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cvtrain.loggers.tensorboard import TensorBoardLogger


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_scalars_images_and_texts(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), (10, 200, 30)).save(tmp_path / "plot.png")
    logger = TensorBoardLogger(run_dir=tmp_path, config={"optimizer": {"lr": 0.1}, "note": "a|b"})
    logger.log_metrics(10, 0, {"train/loss": 0.5})
    logger.log_metrics(20, 1, {"train/loss": 0.25, "val/accuracy": 0.75})
    logger.log_image("val/confusion", tmp_path / "plot.png", 20)
    logger.log_summary({"best": {"val/accuracy": 0.75}})
    logger.finish(0)
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(10, 0.5), (20, 0.25)]
    assert [(event.step, event.value) for event in found.Scalars("val/accuracy")] == [(20, 0.75)]
    assert [(event.step, event.value) for event in found.Scalars("epoch")] == [(10, 1.0), (20, 2.0)]
    (image,) = found.Images("val/confusion")
    assert (image.step, image.width, image.height) == (20, 5, 4)
    (text,) = found.Tensors("config/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert table == "| name | value |\n| --- | --- |\n| optimizer.lr | 0.1 |\n| note | a\\|b |"
    (text,) = found.Tensors("summary/text_summary")
    assert "| best.val/accuracy | 0.75 |" in text.tensor_proto.string_val[0].decode()


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TensorBoardLogger(run_dir=tmp_path, config={})
    for step in (10, 20, 30):
        first.log_metrics(step, 0, {"loss": float(step)})
    first.finish(1)
    # File names hold the second, and the reader takes files in that order.
    import time

    later = time.time() + 5
    monkeypatch.setattr(time, "time", lambda: later)
    second = TensorBoardLogger(run_dir=tmp_path, config={}, resume_step=20)
    second.log_metrics(30, 0, {"loss": 0.5})
    second.finish(0)
    found = [(event.step, event.value) for event in events(tmp_path).Scalars("loss")]
    assert found == [(10, 10.0), (20, 20.0), (30, 0.5)]
