"""conf/: every file composes, says what it is, and agrees with the tables and references written from it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cvtrain.config.architectures import TORCHVISION_ARCHS
from cvtrain.config.composer import conf_dir
from cvtrain.config.reflection import settings_by_key
from cvtrain.config.schema.root import GROUP_SCHEMAS, VERBS

ROOT = Path(__file__).resolve().parents[2]
GROUPS = [*GROUP_SCHEMAS, "experiment", "debug"]
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((conf_dir() / group).glob("*.yaml"))]
# What an option needs besides its name.
NEEDS = {
    "data=custom": ["data.root=photos"],
    "data=folder": ["data.root=photos"],
    "data=csv": ["data.file=labels.csv"],
    "data=dataset": ["data.target=a.B"],
    "data=huggingface": ["data.path=x"],
    "model=torchvision": ["model.arch=alexnet"],
    "model=timm": ["model.arch=convnext_nano"],
    "model=custom": ["model.target=a.B"],
    "scheduler=step": ["scheduler.step_epochs=3"],
    "scheduler=multistep": ["scheduler.milestones_epochs=[3]"],
    "experiment=ants_bees_finetune": ["data.root=photos"],
    "experiment=ants_bees_frozen": ["data.root=photos"],
    "experiment=ants_bees_scratch": ["data.root=photos"],
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes_and_keeps_every_rule(problems_of, tmp_path, group, option):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "labels.csv").write_text("path,label\n")
    token = f"{group}={option}"
    assert problems_of(token, *NEEDS.get(token, [])) == []


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_says_what_it_is(group, option):
    lines = (conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    comment = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert comment.startswith("# ") and len(comment) > 20
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "experiment"])
def test_experiment_is_a_claim_and_names_its_run(option):
    text = (conf_dir() / "experiment" / f"{option}.yaml").read_text(encoding="utf-8")
    assert f"# command:  cvtrain experiment={option}" in text
    assert "# result:   " in text
    assert f"\nname: {option}\n" in text


@pytest.mark.parametrize(
    ("tokens", "augment", "model"),
    [
        ([], "none", "mlp"),
        (["data=mnist"], "none", "mlp"),
        (["data=cifar10"], "light", "resnet18"),
        (["data=custom", "data.root=photos"], "standard", "resnet18"),
        (["data=custom", "data.root=photos", "augment=strong", "model=vgg11"], "strong", "vgg11"),
        (["experiment=cifar10_resnet18", "model=resnet34"], "light", "resnet34"),
    ],
)
def test_data_chooses_defaults_that_the_command_line_overrules(
    compose_config, tmp_path, monkeypatch, tokens, augment, model
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    config = compose_config(*tokens)
    assert (config.augment.name, config.model.name) == (augment, model)


def test_data_folder_is_data_custom(compose_config, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    folder, custom = (
        compose_config(f"data={name}", f"data.root={tmp_path / 'photos'}") for name in ("folder", "custom")
    )
    assert folder == custom


def test_debug_overfit_takes_an_experiments_augmentation_out(compose_config):
    config = compose_config("experiment=cifar10_resnet18", "debug=overfit")
    assert config.augment.transforms == [] and config.trainer.overfit_one_batch
    assert config.name == "overfit"


def test_every_schema_has_an_option():
    for group, schemas in GROUP_SCHEMAS.items():
        text = "".join(file.read_text(encoding="utf-8") for file in (conf_dir() / group).glob("*.yaml"))
        for name in schemas:
            assert f"/schema/{group}/{name}@" in text


def test_every_setting_says_what_it_means():
    for verb in VERBS:
        for key, owners in settings_by_key(verb).items():
            for item in owners.values():
                assert item.rule is not None and item.rule.help, key


def test_architectures_are_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    listed = set(torchvision.models.list_models(module=torchvision.models))
    assert set(TORCHVISION_ARCHS) == listed


def test_option_files_name_architectures_that_exist():
    for file in (conf_dir() / "model").glob("*.yaml"):
        match = re.search(r"^arch: (\w+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            assert match[1] == file.stem and match[1] in TORCHVISION_ARCHS


@pytest.mark.parametrize("script", ["config_reference.py", "record_errors.py"])
def test_docs_are_true(script):
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr


def test_at_least_twenty_wrong_commands_are_recorded():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\$ cvtrain ", text, re.MULTILINE)) >= 20
    assert text.count("(exit 2)") == len(re.findall(r"^\$ cvtrain ", text, re.MULTILINE))
