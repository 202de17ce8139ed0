"""Small runs on digits that one process and several must do alike."""

import hashlib
from dataclasses import replace

import torch

from cvtrain.config.composer import Composer
from cvtrain.config.load import typed_config
from cvtrain.config.resolvers import register_resolvers
from cvtrain.config.schema.root import Config, register_schemas
from cvtrain.training.build import Run
from cvtrain.training.trainer import Trainer

SETTINGS = (
    "model.dropout=0",
    "model.hidden=[32]",
    "plots=false",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.progress=false",
    "trainer.epochs=2",
    "trainer.log_every_steps=3",
    "trainer.limit_val_batches=null",
    "checkpoint.every_steps=4",
)
# 1,438 images for training and 359 for val: batches of 206 have uneven shares, and the last ones are short.
RUNS = {
    "plain": ("data.batch_size=206", "trainer.ema_decay=0.9", "trainer.clip_grad_norm=1"),
    "weighted": ("data.batch_size=480", "data.balance=class_weights", "trainer.grad_accum_steps=3", "trainer.epochs=1"),
    "gaps": ("data.batch_size=204", "trainer.epochs=1", "trainer.grad_accum_steps=2"),
    "skipping": ("data.batch_size=719", "trainer.epochs=1", "trainer.on_nonfinite=skip"),
}


def compose(overrides: tuple[str, ...], *more: str) -> Config:
    register_schemas()
    composer = Composer("train")
    register_resolvers(composer)
    named = {token.partition("=")[0] for token in (*overrides, *more)}
    tokens = [token for token in SETTINGS if token.partition("=")[0] not in named]
    given = {token.partition("=")[0] for token in more}
    tokens = [*tokens, *(token for token in overrides if token.partition("=")[0] not in given), *more]
    return typed_config(composer.compose(tokens), composer, tokens)


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of every bit of the weights and buffers."""
    return hashlib.sha256(b"".join(v.detach().numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def train_steps(run: Run) -> list[float]:
    """Train; gives the logged training losses."""
    losses: list[float] = []
    log_metrics = run.logger.log_metrics

    def watched(step, epoch, values):
        losses.extend(value for name, value in values.items() if name == "train/loss")
        log_metrics(step, epoch, values)

    run.logger.log_metrics = watched
    run.trainer.fit()
    return losses


def leave_gaps(trainer: Trainer) -> None:
    """Take every seventh image out of its training batch, as if it could not be read."""
    epoch = trainer.train_loader.epoch

    def with_gaps(number, start_batch=0):
        for batch in epoch(number, start_batch):
            kept = batch.indices % 7 != 0
            yield replace(batch, images=batch.images[kept], labels=batch.labels[kept], indices=batch.indices[kept])

    trainer.train_loader.epoch = with_gaps


def poison(trainer: Trainer, *, on: bool) -> None:
    """Make the loss of the second step NaN."""
    forward = trainer.forward
    trainer.forward = lambda images: forward(images) * (float("nan") if on and trainer.step == 1 else 1.0)
