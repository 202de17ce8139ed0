"""A trainer made by hand from a loader, a model, a loss and an optimizer, without Hydra."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from cvtrain.config.schema.trainer import TrainerConfig
from cvtrain.data.build import BatchDataset, BatchLoader, EpochSampler
from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.normalize import Normalizer
from cvtrain.data.sources.source import ArraySource
from cvtrain.losses import CrossEntropy
from cvtrain.training.state import StopReason
from cvtrain.training.trainer import Trainer


def digits_loader(*, shuffle: bool) -> BatchLoader:
    digits = load_digits()
    images = (digits.images * 15.9).astype("uint8")[..., None]  # (N, 8, 8, 1)
    source = ArraySource(images=images, labels=digits.target, prefix="digits")
    resize = build_eval_transform(image_size=8, resize="squash", crop_fraction=1.0)
    dataset = BatchDataset(source=source, eval_transform=resize, image_size=8, channels=1, seed=0)
    return BatchLoader(dataset=dataset, plan=EpochSampler(len(source), 100, 0, shuffle))


def test_trainer_is_made_and_trained_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    trainer = Trainer(
        TrainerConfig(epochs=3),
        model=model,
        criterion=CrossEntropy(num_classes=10),
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        train_loader=digits_loader(shuffle=True),
        val_loader=digits_loader(shuffle=False),
        normalizer=Normalizer((0.3,), (0.4,), torch.contiguous_format),
    )
    assert trainer.fit() is StopReason.epochs
    assert trainer.step == 3 * 18  # 1,797 images in batches of 100
    assert trainer.last_evaluation.metrics["loss"] == pytest.approx(0.14, abs=0.06)  # log(10) = 2.3 at the start
