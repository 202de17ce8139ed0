"""`load`: a checkpoint file as a `Classifier`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvtrain.checkpoint import inference_weights, load_checkpoint
from cvtrain.checkpoint.trust import MAX_BATCH_PIXELS, MAX_IMAGE_SIZE, trusted_model
from cvtrain.classifier import Classifier
from cvtrain.commands.evaluate import build_checked, check_finite, choose_precision, read_config, read_temperature
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import FileDataConfig
from cvtrain.config.schema.model import CustomModelConfig, SavedModelConfig
from cvtrain.config.schema.root import Config, EvaluateConfig
from cvtrain.data.build import eval_transform_of
from cvtrain.data.images.convert import WHITE
from cvtrain.data.images.reader import Reader, build_reader
from cvtrain.data.normalize import Normalizer
from cvtrain.models.weights import load_checkpointed_weights
from cvtrain.runtime.device import choose_memory_format, select_device
from cvtrain.runtime.precision import select_precision


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    *,
    model_target: str | None = None,
    image_size: int | None = None,
) -> Classifier:
    """Return the classifier in a checkpoint file, such as `runs/.../checkpoints/best.pt`.

    Runs no code that the checkpoint names.

    Args:
        device: auto, cpu, cuda, cuda:1 or mps; auto takes the best that is there.
        model_target: import path of the class of a `model=custom` checkpoint.
        image_size: side of the images in pixels; None: as the run had it.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is no checkpoint of cvtrain.
        ConfigError: the class of a `model=custom` checkpoint, or images of more than 2,048 pixels, have to be named; or
            the device is not there.
    """
    file = Path(path)
    settings = EvaluateConfig(checkpoint=str(file), device=device, model=SavedModelConfig(target=model_target))
    state = load_checkpoint(file)
    trained = read_config(state, file)
    if isinstance(trained.model, CustomModelConfig) and model_target is None:
        raise ConfigError(
            rule=f"{file} was made with the class {trained.model.target}, and a checkpoint never names code to run",
            remedy=f"if you trust the class: load({str(file)!r}, model_target={trained.model.target!r})",
        )
    size = image_size or trained.data.image_size
    if image_size is None and size > MAX_IMAGE_SIZE:
        raise ConfigError(
            rule=f"{file} asks for images of {size} pixels, more than {MAX_IMAGE_SIZE}, which take much memory",
            remedy=f"if you trust it: load({str(file)!r}, image_size={size})",
        )
    settings.data.image_size = size
    batch_size = trained.data.eval_batch_size or trained.data.batch_size
    settings.batch_size = max(1, min(batch_size, MAX_BATCH_PIXELS // size**2))
    return build_classifier(state, trained, settings)


def build_classifier(state: dict[str, Any], trained: Config, settings: EvaluateConfig) -> Classifier:
    """Return the classifier of a loaded checkpoint and its run's config, with what `settings` say differently."""
    weights = inference_weights(state)
    check_finite(weights, Path(settings.checkpoint))
    device = select_device(settings.device, key="device")
    built = build_checked(trusted_model(trained.model, settings), trained.data, len(state["classes"]), weights)
    load_checkpointed_weights(built.module, weights)
    memory_format = choose_memory_format(trained.trainer.channels_last, built.convolutional)
    shape = state["preprocessing"]
    return Classifier(
        built.module.to(device).to(memory_format=memory_format).eval(),
        state["classes"],
        reader=_reader(trained.data, shape["channels"]),
        channels=shape["channels"],
        alpha_color=tuple(getattr(trained.data, "alpha_color", WHITE)),
        bit_depth=getattr(trained.data, "bit_depth", 16),
        resize=eval_transform_of(replace(trained.data, image_size=settings.data.image_size or shape["image_size"])),
        normalizer=Normalizer(tuple(shape["mean"]), tuple(shape["std"]), memory_format).to(device),
        head=built.head[0] if built.head and built.head[0] else None,
        dtype=select_precision(choose_precision(settings, state, device.type), device, key="precision"),
        temperature=read_temperature(state, Path(settings.checkpoint)),
        batch_size=settings.batch_size or trained.data.eval_batch_size or trained.data.batch_size,
        flip=trained.trainer.eval_flip if settings.eval_flip is None else settings.eval_flip,
        deterministic=trained.trainer.deterministic,
    )


def _reader(data: Any, channels: int) -> Reader:
    """The reader of the run's image files; of a run on images of another kind, the default one."""
    if not isinstance(data, FileDataConfig):
        return build_reader(channels=channels)
    return build_reader(
        library=data.reader.value,
        channels=channels,
        alpha_color=tuple(data.alpha_color),
        max_image_pixels=data.max_image_pixels,
        bit_depth=data.bit_depth,
    )
