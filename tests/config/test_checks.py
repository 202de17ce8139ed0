"""Rules between settings: each is broken once, and kept by its nearest neighbour."""

import sys
import unicodedata
from pathlib import Path

import pytest

PRETRAINED = ["model=resnet18"]
SCRATCH = ["model=resnet18", "model.pretrained=false"]
RULES = [
    # broken by, key that is named, words of the rule, kept by
    (["name=a/b"], "name", "is no folder name", ["name=a-b_c.d"]),
    (["name=.."], "name", "is no folder name", ["name=a..b"]),
    (
        ["model.cache_features=true"],
        "model.cache_features",
        "cannot be: the backbone trains (model.freeze=none)",
        ["model.cache_features=true", "model.freeze=backbone"],
    ),
    (
        ["model.cache_features=true", "model.freeze=backbone", "augment=light"],
        "model.cache_features",
        "cannot be: augment=light makes new images in each epoch",
        ["model.cache_features=true", "model.freeze=backbone", "augment=light", "augment.views=4"],
    ),
    (
        ["model.cache_features=false"],
        "model.cache_features",
        "has no effect with model.freeze=none",
        ["model.cache_features=false", "model.freeze=backbone"],
    ),
    (
        ["augment=light", "augment.views=4"],
        "augment.views",
        "has no effect on a backbone that trains",
        ["augment=light", "augment.views=4", "model.freeze=backbone"],
    ),
    (
        ["model.freeze=backbone", "augment.views=4"],
        "augment.views",
        "has no effect without transforms",
        ["model.freeze=backbone"],
    ),
    (
        ["model.freeze=backbone", "augment=light", "augment.views=4", "augment.mixup_alpha=0.2"],
        "augment.views",
        "cannot be with augment.mixup_alpha",
        ["model.freeze=backbone", "augment=light", "augment.views=4"],
    ),
    (
        ["model.freeze=backbone", "augment=light", "augment.views=40"],
        "augment.views",
        "has no effect beyond trainer.epochs=20",
        ["model.freeze=backbone", "augment=light", "augment.views=20"],
    ),
    (
        ["data.device_cache=always", "trainer.overfit_one_batch=true"],
        "data.device_cache",
        "has no effect with trainer.overfit_one_batch=true",
        ["data.device_cache=always"],
    ),
    (
        ["trainer.compile_mode=max_autotune"],
        "trainer.compile_mode",
        "has no effect without trainer.compile",
        ["trainer.compile=true", "trainer.compile_mode=max_autotune"],
    ),
    (
        ["trainer.compile=true", "trainer.compile_mode=reduce_overhead", "trainer.grad_accum_steps=2"],
        "trainer.compile_mode",
        "takes whole batches",
        ["trainer.compile=true", "trainer.compile_mode=reduce_overhead"],
    ),
    (["name='...'"], "name", "is no folder name", ["name=x"]),
    (["trainer.device=gpu"], "trainer.device", "must be auto, cpu", ["trainer.device=cuda:1"]),
    (["trainer.device=cuda:x"], "trainer.device", "must be auto, cpu", ["trainer.device=mps"]),
    (
        ["trainer.device=cpu", "trainer.precision=fp16"],
        "trainer.precision",
        "needs a GPU, but trainer.device=cpu",
        ["trainer.device=cpu", "trainer.precision=bf16"],
    ),
    (["data.mean=[0.1,0.2,0.3]"], "data.mean", "must have one value", ["data.mean=[0.1]"]),
    (
        [*SCRATCH, "data.channels=3", "data.std=[0.1,0.2]"],
        "data.std",
        "must have 3 values, one per channel, or one",
        [*SCRATCH, "data.channels=3", "data.std=[0.1,0.2,0.3]", "data.mean=[0.5]"],
    ),
    (["data.normalize=weights"], "data.normalize", "needs pretrained weights", [*PRETRAINED, "data.normalize=weights"]),
    (
        [*PRETRAINED, "data.mean=[0.5]"],
        "data.mean",
        "has no effect with data.normalize=auto: the weights' own",
        [*PRETRAINED, "data.mean=[0.5]", "data.normalize=data"],
    ),
    (
        ["data.crop_fraction=0.9"],
        "data.crop_fraction",
        "no effect with data.resize=squash",
        ["data.crop_fraction=0.9", "data.resize=resize_crop"],
    ),
    (
        ["data.batch_size=30", "trainer.grad_accum_steps=4"],
        "data.batch_size",
        "cannot be split evenly",
        ["data.batch_size=32", "trainer.grad_accum_steps=4"],
    ),
    (["data.num_workers=-1"], "data.num_workers", "whole number at least 0, or auto", ["data.num_workers=0"]),
    (["data.num_workers=some"], "data.num_workers", "whole number at least 0, or auto", ["data.num_workers=auto"]),
    (
        ["data=huggingface", "data.path=x", "data.alpha_color=[0,0]"],
        "data.alpha_color",
        "must have three values",
        ["data=huggingface", "data.path=x", "data.alpha_color=[0,0,0]"],
    ),
    (
        ["data=dataset", "data.target=my.Birds", "data.alpha_color=[0,0]"],
        "data.alpha_color",
        "must have three values",
        ["data=dataset", "data.target=my.Birds", "data.alpha_color=[0,0,0]"],
    ),
    (
        ["data=huggingface", "data.path=x", "data.val_split=dev", "data.val_fraction=0.3"],
        "data.val_fraction",
        "has no effect with data.val_split=dev",
        ["data=huggingface", "data.path=x", "data.val_fraction=0.3"],
    ),
    (
        ["data=dataset", "data.target=Birds"],
        "data.target",
        "import path with a dot",
        ["data=dataset", "data.target=a.B"],
    ),
    (
        ["model=custom", "model.target=a..B"],
        "model.target",
        "import path with a dot",
        ["model=custom", "model.target=a.B"],
    ),
    (
        ["augment.mixup_alpha=0.2", "augment.cutmix_share=0.3"],
        "augment.cutmix_share",
        "unless both mixup and cutmix are on",
        ["augment.mixup_alpha=0.2", "augment.cutmix_alpha=1", "augment.cutmix_share=0.3"],
    ),
    (["augment.mix_prob=0.5"], "augment.mix_prob", "no effect", ["augment.mix_prob=0.5", "augment.cutmix_alpha=1"]),
    (
        ["augment.mix_prob=0", "augment.mixup_alpha=1"],
        "augment.mixup_alpha",
        "no effect with augment.mix_prob=0",
        ["augment.mixup_alpha=1"],
    ),
    (
        ["augment.library=albumentations"],
        "augment.library",
        "without transforms",
        ["augment.library=torchvision", "augment=light"],
    ),
    (
        ["model.unfreeze_epoch=2"],
        "model.unfreeze_epoch",
        "no effect with model.freeze=none",
        ["model.unfreeze_epoch=2", "model.freeze=backbone"],
    ),
    (
        ["model.freeze=backbone", "model.unfreeze_epoch=9", "trainer.epochs=5"],
        "model.unfreeze_epoch",
        "the run ends after epoch 5",
        ["model.freeze=backbone", "model.unfreeze_epoch=5", "trainer.epochs=5"],
    ),
    (
        ["model.freeze=backbone", "optimizer.layer_decay=0.7"],
        "optimizer.layer_decay",
        "the backbone never trains",
        ["model.freeze=backbone", "model.unfreeze_epoch=2", "optimizer.layer_decay=0.7"],
    ),
    (
        [*SCRATCH, "model.weights=IMAGENET1K_V1"],
        "model.weights",
        "no effect with model.pretrained=false",
        [*PRETRAINED, "model.weights=IMAGENET1K_V1"],
    ),
    ([*PRETRAINED, "model.weights=mine.pth"], "model.weights", "no such file", [*PRETRAINED, "model.weights=DEFAULT"]),
    (
        ["model=torchvision", "model.arch=resnext50"],
        "model.arch",
        "no classification network of torchvision",
        ["model=torchvision", "model.arch=resnext50_32x4d"],
    ),
    (
        ["model=torchvision", "model.arch=inception_v3", "data.image_size=64"],
        "data.image_size",
        "needs at least 75",
        ["model=torchvision", "model.arch=inception_v3", "data.image_size=75"],
    ),
    (["trainer.monitor=val/acc"], "trainer.monitor", "is no metric of evaluation", ["trainer.monitor=val/macro_f1"]),
    (
        ["trainer.monitor=val/loss", "trainer.monitor_mode=max"],
        "trainer.monitor_mode",
        "would keep the worst: val/loss is better at its min",
        ["trainer.monitor=val/loss", "trainer.monitor_mode=min"],
    ),
    (
        ["trainer.early_stop_min_delta=0.01"],
        "trainer.early_stop_min_delta",
        "without trainer.early_stop_patience",
        ["trainer.early_stop_min_delta=0.01", "trainer.early_stop_patience=3"],
    ),
    (
        ["trainer.early_stop_from_epoch=5"],
        "trainer.early_stop_from_epoch",
        "without trainer.early_stop_patience",
        ["trainer.early_stop_from_epoch=5", "trainer.early_stop_patience=3"],
    ),
    (
        ["trainer.early_stop_from_epoch=5", "trainer.early_stop_patience=3", "trainer.epochs=4"],
        "trainer.early_stop_from_epoch",
        "is behind the end of the run, trainer.epochs=4",
        ["trainer.early_stop_from_epoch=4", "trainer.early_stop_patience=3", "trainer.epochs=4"],
    ),
    (
        ["optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0"],
        "optimizer.nesterov",
        "no effect with optimizer.momentum=0",
        ["optimizer=sgd", "optimizer.nesterov=true"],
    ),
    (["optimizer.betas=[0.9]"], "optimizer.betas", "must have two values", ["optimizer.betas=[0.8,0.99]"]),
    (
        ["optimizer=sgd", "optimizer.decay_norm_and_bias=true"],
        "optimizer.decay_norm_and_bias",
        "no effect with optimizer.weight_decay=0",
        ["optimizer=sgd", "optimizer.decay_norm_and_bias=true", "optimizer.weight_decay=0.1"],
    ),
    (
        ["scheduler.warmup_epochs=1", "scheduler.warmup_steps=5"],
        "scheduler.warmup_epochs",
        "scheduler.warmup_steps=5 takes its place",
        ["scheduler.warmup_steps=5"],
    ),
    (
        ["scheduler.warmup_start_factor=0.1"],
        "scheduler.warmup_start_factor",
        "without a warm-up",
        ["scheduler.warmup_start_factor=0.1", "scheduler.warmup_epochs=1"],
    ),
    (
        ["scheduler=onecycle", "scheduler.warmup_epochs=1"],
        "scheduler.warmup_epochs",
        "brings its own warm-up",
        ["scheduler=onecycle"],
    ),
    (
        ["scheduler.warmup_epochs=5", "trainer.epochs=5"],
        "scheduler.warmup_epochs",
        "as long as the run: trainer.epochs=5",
        ["scheduler.warmup_epochs=4.5", "trainer.epochs=5"],
    ),
    (
        ["scheduler.warmup_steps=7", "trainer.max_steps=7"],
        "scheduler.warmup_steps",
        "as long as the run: trainer.max_steps=7",
        ["scheduler.warmup_steps=6", "trainer.max_steps=7"],
    ),
    (
        ["scheduler=multistep", "scheduler.milestones_epochs=[3,3]"],
        "scheduler.milestones_epochs",
        "must rise",
        ["scheduler=multistep", "scheduler.milestones_epochs=[3,4]"],
    ),
    (
        ["scheduler=step", "scheduler.step_epochs=5", "trainer.epochs=5"],
        "scheduler.step_epochs",
        "the run ends after trainer.epochs=5, before the first drop",
        ["scheduler=step", "scheduler.step_epochs=4", "trainer.epochs=5"],
    ),
]


@pytest.mark.parametrize(
    ("broken", "key", "words", "kept"), RULES, ids=[f"{rule[1]}-{i}" for i, rule in enumerate(RULES)]
)
def test_rule(problems_of, broken, key, words, kept):
    (problem,) = problems_of(*broken)
    assert problem.key == key
    assert words in problem.rule
    assert problems_of(*kept) == []


def test_debug_smoke_goes_with_any_schedule(problems_of):
    assert problems_of("debug=smoke", "scheduler=step") == []
    assert problems_of("debug=smoke", "scheduler.warmup_epochs=5") == []


@pytest.mark.parametrize(
    ("made", "broken", "words"),
    [
        ([], "data.root=photos", "no such folder"),
        (["photos/cat/"], "data.root=", "is empty"),
        (["photos"], "data.root=photos", "holds nothing, no class folders"),
        (["photos/a.jpg"], "data.root=photos/a.jpg", "is a file, not a folder"),
        (["photos/a.jpg"], "data.root=photos", "holds only files, no class folders"),
        (["photos/.hidden/"], "data.root=photos", "no class folders"),
        (["photos/val/cat/"], "data.root=photos", "has val/ but no train/"),
        (["photos/train/", "photos/val/cat/"], "data.root=photos", "train/ has no class folders"),
    ],
)
def test_folder(problems_of, tmp_path, made, broken, words):
    for name in made:
        path = tmp_path / name
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.mkdir(parents=True, exist_ok=True)
    (problem,) = problems_of("data=custom", broken)
    assert problem.key == "data.root" and words in problem.rule


def test_folder_with_val_needs_no_fraction(problems_of, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "photos" / split / "cat").mkdir(parents=True)
    command = ["data=custom", "data.root=photos"]
    assert problems_of(*command) == []
    assert [problem.key for problem in problems_of(*command, "data.val_fraction=0.2")] == ["data.val_fraction"]
    (tmp_path / "photos" / "val").rename(tmp_path / "elsewhere")
    assert problems_of(*command, "data.val_fraction=0.2") == []


def test_custom_extensions_have_dots(problems_of, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    command = ["data=custom", "data.root=photos"]
    assert problems_of(*command, "data.extensions=[.jpg]") == []
    assert [problem.key for problem in problems_of(*command, "data.extensions=[jpg]")] == ["data.extensions"]


def test_manifest(problems_of, tmp_path):
    command = ["data=csv", "data.file=labels.csv"]
    (tmp_path / "label.csv").touch()
    (problem,) = problems_of(*command)
    assert problem.rule == "no such file" and problem.remedy.endswith("has no labels.csv, but label.csv is there")
    (tmp_path / "labels.csv").touch()
    assert [problem.rule for problem in problems_of(*command)] == ["is empty; its first row has to name the columns"]
    (tmp_path / "labels.csv").write_text("path,label\n")
    assert problems_of(*command) == []
    assert [problem.key for problem in problems_of(*command, "data.root=nowhere")] == ["data.root"]
    assert [problem.key for problem in problems_of(*command, "data.delimiter=;;")] == ["data.delimiter"]


def test_output_root_below_a_file(problems_of, tmp_path):
    (tmp_path / "taken").touch()
    assert [problem.key for problem in problems_of("output_root=taken/runs")] == ["output_root"]


def test_evaluate(problems_of, tmp_path):
    def keys(*tokens):
        return [problem.key for problem in problems_of(*tokens, verb="evaluate")]

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.pt").touch()
    good = "checkpoint=run/checkpoints/best.pt"
    assert keys(good) == []
    assert keys("checkpoint=run/best.pt") == ["checkpoint"]
    assert keys(good, "device=gpu") == ["device"]
    assert keys(good, "device=cpu", "precision=fp16") == ["precision"]
    assert keys(good, "data.root=nowhere", "data.file=nothing") == ["data.root", "data.file"]
    assert keys(good, "optimizer.lr=1") == ["optimizer.lr"]
    (problem,) = problems_of("checkpoint=run", verb="evaluate")
    assert problem.remedy == "did you mean checkpoint=run/checkpoints/best.pt?"


# Who set it


def write_experiment(folder, text):
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")


def test_no_effect_in_an_experiment_file_counts_as_set(problems_of, tmp_path):
    write_experiment(tmp_path, "trainer:\n  early_stop_min_delta: 0.1\n")
    (problem,) = problems_of("experiment=mine", config_dir="conf")
    assert problem.key == "trainer.early_stop_min_delta"
    assert problem.origin == "in conf/experiment/mine.yaml"


def test_command_line_need_not_undo_an_experiments_section(problems_of, tmp_path):
    write_experiment(tmp_path, "scheduler:\n  warmup_epochs: 2\n")
    assert problems_of("experiment=mine", "scheduler=onecycle", config_dir="conf") == []


def test_values_that_an_option_brings_are_nobodys_mistake(problems_of):
    # conf/data/cifar10.yaml sets mean and std, which pretrained weights make idle
    assert problems_of("data=cifar10") == []
    assert [problem.key for problem in problems_of("data=cifar10", "data.std=[1,1,1]")] == ["data.std"]


@pytest.mark.parametrize(
    ("tokens", "package", "key", "remedy"),
    [
        (("model=timm", "model.arch=resnet18"), "timm", "model", "uv sync --extra timm, or pip install timm"),
        (("data=huggingface", "data.path=x"), "datasets", "data", "uv sync --extra hf, or pip install datasets"),
        (("logger=mlflow",), "mlflow", "logger", "uv sync --extra mlflow, or pip install mlflow-skinny"),
    ],
)
def test_missing_package_is_named_with_what_installs_it(problems_of, monkeypatch, tokens, package, key, remedy):
    monkeypatch.setitem(sys.modules, package, None)
    (problem,) = problems_of(*tokens)
    assert (problem.key, problem.remedy) == (key, remedy)


def test_own_statistics_win_over_those_of_a_local_file(composer_of, tmp_path):
    from cvtrain.config.load import typed_config
    from cvtrain.config.schema.data import Normalize
    from cvtrain.config.schema.root import register_schemas

    register_schemas()
    path = tmp_path / "mine.pt"
    path.touch()
    tokens = ["data=cifar10", "model=resnet18", f"model.weights='{path}'"]
    for more, normalize in (([], Normalize.auto), (["data.mean=[0.5,0.5,0.5]"], Normalize.data)):
        composer = composer_of("train")
        config = typed_config(composer.compose([*tokens, *more]), composer, [*tokens, *more])
        assert config.data.normalize is normalize


def test_unreadable_root_is_one_problem(problems_of, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("cvtrain.config.checks.data_files.os.scandir", refuse)
    (problem,) = problems_of("data=custom", f"data.root={tmp_path / 'photos'}")
    assert (problem.key, problem.rule) == ("data.root", "cannot be read: Permission denied")


@pytest.mark.parametrize(("stored", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_root_in_another_unicode_form_is_found(compose_config, tmp_path, stored, typed):
    name = "V\u00f6gel \u00e9t\u00e9"
    folder = tmp_path / unicodedata.normalize(stored, name) / unicodedata.normalize(stored, "\u00fc")
    for class_name in ("a", "b"):
        (folder / class_name).mkdir(parents=True)
    given = tmp_path / unicodedata.normalize(typed, name) / unicodedata.normalize(typed, "\u00fc")
    assert not given.exists()
    assert Path(compose_config("data=custom", f"data.root={given}").data.root) == folder
