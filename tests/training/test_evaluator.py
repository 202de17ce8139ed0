"""`Evaluator` with mirror images: against the mean of the logits, taken by hand."""

import pytest
import torch
from torch import nn

from cvtrain.config.errors import RunError
from cvtrain.config.schema.optim import CrossEntropyConfig
from cvtrain.data.images.errors import BadImage
from cvtrain.data.loader.batch import Batch
from cvtrain.data.normalize import Identity, Normalizer
from cvtrain.losses import build_criterion
from cvtrain.training.evaluator import Evaluator


def make_evaluator(normalizer, *, flip=False):
    criterion = build_criterion(CrossEntropyConfig(name="cross_entropy"), num_classes=5)
    return Evaluator(
        criterion=criterion, normalizer=normalizer, device=torch.device("cpu"), dtype=torch.float32, flip=flip
    )


def test_flips_average_the_logits_of_an_image_and_its_mirror_image():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    images = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8)
    labels = torch.arange(12) % 5
    normalizer = Normalizer((0.5,), (0.25,), torch.contiguous_format)
    batches = [Batch(images[i : i + 5], labels[i : i + 5], torch.arange(i, min(i + 5, 12))) for i in (0, 5, 10)]
    evaluation = make_evaluator(normalizer, flip=True).evaluate(model, batches)
    with torch.no_grad():
        pixels = (images / 255 - 0.5) / 0.25
        logits = (model(pixels) + model(pixels.flip(3))) / 2
    expected = nn.functional.cross_entropy(logits, labels).item()
    assert evaluation.metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert evaluation.predictions.preds.tolist() == logits.argmax(1).tolist()


def test_no_figures_of_images_that_could_not_be_read():
    nothing = torch.empty(0, dtype=torch.int64)
    bad = [BadImage(index, f"{index}.png", "no image") for index in range(3)]
    with pytest.raises(RunError, match="none of 3 images to evaluate could be read"):
        make_evaluator(Identity()).evaluate(
            nn.Identity(), [Batch(torch.empty(0, 3, 4, 4, dtype=torch.uint8), nothing, nothing, bad)]
        )
