"""What a run leaves, where a run test would not come to it."""

from types import SimpleNamespace

import numpy as np
import torch

from cvtrain.report.evaluation import draw_mistakes
from cvtrain.report.overlays import overlay_path, read_overlays
from cvtrain.report.plotter import Plotter
from cvtrain.training.evaluator import Predictions


def test_a_run_that_went_on_and_is_always_right_keeps_no_old_mistakes(tmp_path):
    path = tmp_path / "mistakes_val.png"
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)

    class Images:
        def __getitem__(self, key):
            return SimpleNamespace(images=images, indices=torch.from_numpy(key.indices))

    Images.source = SimpleNamespace(name=lambda index: f"photos/{index}.png")
    loader = SimpleNamespace(dataset=Images())
    for pred, is_there in ((1, True), (0, False)):
        predictions = Predictions(
            indices=np.array([5]),
            labels=np.array([0]),
            top_classes=np.array([[pred, 1 - pred]]),
            top_probs=np.array([[0.9, 0.1]], np.float32),
            losses=np.ones(1),
            logits=np.zeros((1, 0), np.float32),
        )
        evaluation = SimpleNamespace(predictions=predictions)
        draw_mistakes(
            Plotter(),
            path,
            evaluation,
            loader=loader,
            classes=("ant", "bee"),
            title="run",
            heat_maps=lambda images, targets: np.ones((1, 4, 4)),
        )
        assert path.exists() == is_there
        overlays = read_overlays(overlay_path(path))
        assert [(name, each.shape) for name, each in overlays.items()] == [("photos/5.png", (4, 4, 3))] * is_there
