"""The lines at the start of a run: data, model, recipe, device and folder."""

from torch import nn

from cvtrain.config.schema.model import TorchvisionModelConfig
from cvtrain.config.schema.root import Config
from cvtrain.data.sources.splits import describe_classes
from cvtrain.models.stem import has_small_stem
from cvtrain.models.summary import summarize_model
from cvtrain.optim.param_groups import format_groups
from cvtrain.runtime.console import display_path
from cvtrain.runtime.precision import precision_name
from cvtrain.training.build import Run, image_shape


def describe_start(run: Run) -> list[tuple[str, str]]:
    """Return what a person checks before a run is worth waiting for: about six lines, each with its table or "".

    Tables: images per class below `data`, layers below `model`, parameter groups below `recipe`.
    """
    config, trainer = run.config, run.trainer
    images = ", ".join(f"{len(source):,} {split}" for split, source in run.splits.parts().items())
    origin = getattr(config.data, "root", None) or getattr(config.data, "file", None)
    source = f"{config.data.name} {origin}" if origin else config.data.name
    notes = ["; ".join(run.splits.notes), *run.splits.left_out] if run.splits.notes else run.splits.left_out
    workers = "" if config.data.num_workers == "auto" else f", {config.data.num_workers} data workers"
    layers = str(summarize_model(trainer.model, image_shape(config)))
    return [
        (
            f"data: {source}: {images} images, {len(run.splits.classes):,} classes",
            "\n".join(describe_classes(run.splits)),
        ),
        *((f"data: {line}", "") for line in notes),
        (f"model: {describe_model(config, trainer.model)}", layers),
        (f"recipe: {describe_recipe(run)}", format_groups(trainer.optimizer.param_groups)),
        (f"device: {trainer.device}, {precision_name(trainer.dtype)}{workers}, seed {config.seed}", ""),
        (f"run folder: {display_path(run.run_dir)}", ""),
    ]


def describe_model(config: Config, model: nn.Module) -> str:
    """Return the network's name, size and input, and its stem if that is not the usual one."""
    settings, data = config.model, config.data
    params = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    words = [settings.name, f"{params:,} parameters" if trained == params else f"{trained:,} of {params:,} parameters"]
    weights = getattr(settings, "weights", None)
    if weights is not None or hasattr(settings, "pretrained"):
        is_pretrained = weights is not None or getattr(settings, "pretrained", False)
        words.append(f"weights {weights or 'pretrained'}" if is_pretrained else "random weights")
    words.append(f"images {data.channels}x{data.image_size}x{data.image_size}")
    if isinstance(settings, TorchvisionModelConfig) and has_small_stem(settings.arch):
        conv = getattr(model, "conv1", None)
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
            words.append("stem 3x3 without pooling, as images are small (model.stem=imagenet: 7x7)")
    return ", ".join(words)


def describe_recipe(run: Run) -> str:
    """Return optimizer, schedule, length, batch, augmentation and normalization."""
    config, loader = run.config, run.loaders.train
    optimizer, trainer = config.optimizer, config.trainer
    parts = f" in {trainer.grad_accum_steps} parts" if trainer.grad_accum_steps > 1 else ""
    mean, std = (
        "[" + ", ".join(f"{value:.3g}" for value in tensor.flatten().tolist()) + "]"
        for tensor in (run.normalizer.mean, run.normalizer.std)
    )
    length = f"{trainer.epochs} epochs of {loader.num_batches:,} steps" if trainer.epochs else "no steps"
    backbone = f" (backbone {optimizer.backbone_lr_scale:g} of it)" if optimizer.backbone_lr_scale != 1 else ""
    return (
        f"{config.recipe.value}, {optimizer.name} lr {optimizer.lr:g}{backbone}, {config.scheduler.name}, {length}, "
        f"batch {loader.batch_size}{parts}, augment {config.augment.name}, mean {mean} std {std}"
    )
