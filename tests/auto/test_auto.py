"""`cvtrain auto`: candidates, the order of looks, the paired test, and whole searches on small networks."""

import csv
import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

import cvtrain.auto.search as search_module
from cvtrain.auto.candidates import list_candidates
from cvtrain.auto.compare import compare_predictions
from cvtrain.auto.probe import Probed, stratified_order
from cvtrain.auto.search import AutoSearch, StoppedError
from cvtrain.auto.state import State, Trained, load_state
from cvtrain.commands.auto import auto
from cvtrain.config.durations import parse_duration
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.schema.auto import AutoConfig, AutoSettings, Licenses
from cvtrain.data.sources.build import build_splits
from cvtrain.metrics import wilson_interval

pytest.importorskip("timm")


class Clock:
    """Seconds that pass by themselves, the same in each search."""

    def __init__(self, step=0.01):
        self.step, self.seconds = step, 0.0

    def __call__(self):
        self.seconds += self.step
        return self.seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("10", 600), ("1.5h", 5400), ("2 min", 120), ("1M", 60)]
)
def test_spans_of_time(text, seconds):
    assert parse_duration(text, "budget") == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "5d", "1:30", "5 m 3 s"])
def test_what_is_no_span_of_time(text):
    with pytest.raises(ConfigError, match=r"budget=.*is no span of time"):
        parse_duration(text, "budget")


def test_interval_of_wilson():
    # Newcombe 1998, table I: 81 of 263.
    low, high = wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0) and wilson_interval(0, 10)[0] == pytest.approx(0.0)


def test_tables_of_other_images_are_not_compared(tmp_path):
    for name, rows in (("a", ["x,1,1", "y,1,0"]), ("b", ["x,1,0", "y,1,1"]), ("c", ["z,1,1"])):
        (tmp_path / f"{name}.csv").write_text("path,label,pred\n" + "\n".join(rows) + "\n")
    found = compare_predictions(tmp_path / "a.csv", tmp_path / "b.csv")
    assert (found.won, found.lost, found.is_better) == (1, 1, False)
    with pytest.raises(RunError, match="of different images"):
        compare_predictions(tmp_path / "a.csv", tmp_path / "c.csv")


def test_each_beginning_has_its_share_of_every_class():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    order = stratified_order(labels)
    assert sorted(order) == list(range(160))
    for wanted in (16, 32, 80):
        counts = np.bincount(labels[order[:wanted]], minlength=3)
        np.testing.assert_allclose(counts, wanted / 160 * np.array([100, 50, 10]), atol=1)
    np.testing.assert_array_equal(order, stratified_order(labels))


def test_candidates_by_the_names_of_files(tmp_path):
    settings = AutoSettings(weights=[str(tmp_path / "resnet18.pth"), f"timm/resnet18={tmp_path}/mine.pt"])
    first, second = list_candidates(settings)
    assert first.overrides[:2] == ("model=torchvision", "model.arch=resnet18") and first.license == "BSD-3-Clause"
    assert second.overrides[0] == "model=timm" and "mine.pt" in second.overrides[2]
    assert [candidate.arch for candidate in list_candidates(AutoSettings())][:2] == [
        "mobilenet_v3_small",
        "tf_efficientnet_lite0",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (AutoSettings(weights=["a/photos.pth"]), "photos is no architecture of torchvision or timm"),
        (AutoSettings(models=["resnet81"]), "resnet81 is no architecture.*\n.*did you mean resnet18"),
    ],
)
def test_what_is_no_architecture(settings, message):
    with pytest.raises(ConfigError, match=message):
        list_candidates(settings)


def test_licences_that_forbid_use_are_left_out(monkeypatch, caplog):
    import cvtrain.auto.candidates as module

    monkeypatch.setattr(module, "_license", lambda group, arch: "cc-by-nc-4.0")
    assert list_candidates(AutoSettings(models=["resnet18"])) == []
    assert "resnet18: left out, its weights are under cc-by-nc-4.0" in caplog.text
    assert len(list_candidates(AutoSettings(models=["resnet18"], licenses=Licenses.any))) == 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of noise around a colour: train 20 each, val 10 each."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, number in (("train", 20), ("val", 10)):
        for label, color in enumerate([(200, 60, 60), (60, 200, 60), (60, 60, 200)]):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = generator.normal(color, 60, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    import timm

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for arch in ("test_efficientnet", "test_resnet"):
        torch.save(timm.create_model(arch, pretrained=False).state_dict(), folder / f"{arch}.pth")
    return [str(folder / "test_efficientnet.pth"), str(folder / "test_resnet.pth")]


@pytest.fixture
def tokens(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_module, "MAX_EPOCHS", 2)
    monkeypatch.setattr(search_module, "evaluation_seconds", lambda summary: 0.3)  # 30 val images, as by the clock
    return [
        "data=custom",
        f"data.root={photos}",
        "data.image_size=32",
        "data.num_workers=0",
        "trainer.device=cpu",
        "trainer.precision=fp32",
        "plots=false",
    ]


def search(folder, tokens, settings, *, budget=600.0, step=0.01):
    state = State(tokens, vars(settings) | {"licenses": settings.licenses.value}, budget)
    folder.mkdir(parents=True, exist_ok=True)
    return AutoSearch(folder, state, settings, now=Clock(step))


def test_a_search_leaves_an_ordinary_run_folder(tokens, weights, tmp_path, caplog):
    folder = tmp_path / "found"
    assert search(folder, tokens, AutoSettings(weights=weights)).run() == 0
    state = json.loads((folder / "auto.json").read_text())
    assert [run["folder"].rpartition("_")[2] for run in state["runs"]] == ["frozen", "finetune"] * 2
    assert {probed["arch"] for probed in state["probed"]} == {"test_efficientnet", "test_resnet"}
    # The best run is the folder itself, and its command is written down.
    best = folder / "candidates" / state["best"]
    for name in ("checkpoints/best.pt", "predictions_val.csv", "config.yaml", "summary.json"):
        assert (folder / name).read_bytes() == (best / name).read_bytes(), name
    command = shlex.split((folder / "auto_command.txt").read_text())
    assert command[0] == "cvtrain" and "data=custom" in command and any("model.arch=" in word for word in command)
    rows = list(csv.DictReader((folder / "auto.csv").read_text().splitlines()))
    assert [row["kind"] for row in rows] == ["backbone"] * 2 + ["run"] * 4
    assert all(float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) for row in rows)
    with Image.open(folder / "auto.png") as picture:
        assert picture.size[0] > 600
    # What is kept is never worse on val than what was there before.
    accuracies = {run["folder"]: run["accuracy"] for run in state["runs"]}
    assert accuracies[state["best"]] == max(accuracies.values())

    import cvtrain

    assert len(cvtrain.load(folder / "checkpoints" / "best.pt", device="cpu").classes) == 3


def test_equal_speeds_give_equal_searches(tokens, weights, tmp_path):
    found = []
    for name in ("a", "b"):
        search(tmp_path / name, tokens, AutoSettings(weights=weights[:1]), budget=60.0).run()
        state = json.loads((tmp_path / name / "auto.json").read_text())
        found.append([(run["folder"], run["overrides"], run["accuracy"]) for run in state["runs"]])
    assert found[0] == found[1]


def test_epochs_are_planned_by_the_speed_of_the_regressions_run(tokens, weights, tmp_path, monkeypatch):
    """60 train and 30 val images at 10 ms, and 90 ms more for an image in a step: an epoch takes 6.3 s."""
    monkeypatch.setattr(search_module, "MAX_EPOCHS", 100)
    found = AutoSearch(tmp_path, State([], {}, 60.0), AutoSettings(), now=lambda: 0.0)
    found._splits = build_splits(found._compose(tokens).data)
    commands = []

    def train(name, arch, tokens):
        commands.append(tokens)
        return Trained(name, arch, tokens, 0.9, 30, 4.0, run_seconds=4.0, eval_seconds=0.3)

    monkeypatch.setattr(found, "_train", train)
    probed = Probed(
        "resnet18", "mit", (), 1.0, 10.0, image_size=32, can_shrink=True, forward_seconds=0.01, step_seconds=0.09
    )
    found._train_pretrained(probed, must_fit=False)
    # Of 60 s: 3.1 s around the passes, 0.9 s for features and the first evaluation, 0.9 s for three at the end.
    assert commands[1] == ["trainer.epochs=8", f"trainer.max_minutes={(60 - 3.1 - 0.9 + 0.3 - 0.9) / 60:.3f}"]


def test_a_budget_without_an_epoch_keeps_the_regression(tokens, weights, tmp_path, caplog):
    folder = tmp_path / "short"
    with caplog.at_level("INFO"):
        search(folder, tokens, AutoSettings(weights=weights[:1]), budget=20.0, step=1.0).run()
    state = json.loads((folder / "auto.json").read_text())
    assert [run["folder"] for run in state["runs"]] == ["test_efficientnet_frozen"]
    assert "no time to fine-tune" in caplog.text


def test_networks_that_are_too_large_or_slow_or_missing_are_named(tokens, weights, tmp_path, caplog):
    torch.save({"a": torch.zeros(1)}, tmp_path / "resnet18.pth")
    settings = AutoSettings(weights=[*weights, str(tmp_path / "resnet18.pth")], max_params_m=0.2)
    search(tmp_path / "small", tokens, settings, budget=20.0, step=0.5).run()
    left_out = json.loads((tmp_path / "small" / "auto.json").read_text())["left_out"]
    assert "is more than auto.max_params_m=0.2" in left_out["test_resnet"] and "resnet18" in left_out


def test_a_stopped_search_goes_on(tokens, weights, tmp_path, monkeypatch):
    folder, ran = tmp_path / "stopped", []
    real = search_module.train

    def stop_second(config, **arguments):
        ran.append(arguments["run_dir"].name)
        if len(ran) == 2:
            raise StoppedError(130)
        return real(config, **arguments)

    monkeypatch.setattr(search_module, "train", stop_second)
    assert search(folder, tokens, AutoSettings(weights=weights[:1])).run() == 130
    assert (folder / "checkpoints" / "best.pt").exists()  # the best so far
    state = load_state(folder)
    assert [run.folder for run in state.runs] == ["test_efficientnet_frozen"]
    assert auto(AutoConfig(resume=str(folder)), []) == 0
    assert ran == ["test_efficientnet_frozen", "test_efficientnet_finetune", "test_efficientnet_finetune"]
    with pytest.raises(ConfigError, match="goes on with the settings it had"):
        auto(AutoConfig(resume=str(folder)), ["data.image_size=64"])


def test_without_weights_a_small_network_is_trained_from_scratch(tokens, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(search_module, "SCRATCH", ("model=timm", "model.arch=test_resnet", "model.pretrained=false"))
    search(tmp_path / "scratch", tokens, AutoSettings(models=[]), budget=30.0, step=0.5).run()
    assert "no pretrained weights are at hand" in caplog.text
    assert (tmp_path / "scratch" / "checkpoints" / "best.pt").exists()


@pytest.mark.parametrize("token", ["model=resnet18", "model.arch=resnet18", "recipe=scratch", "trainer.max_minutes=3"])
def test_what_auto_chooses_itself_cannot_be_set(token):
    with pytest.raises(ConfigError, match="is chosen by cvtrain auto"):
        auto(AutoConfig(), [token])


def test_a_wrong_folder_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "only").mkdir(parents=True)
    for name in "abcde":
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "only" / f"{name}.png")
    with pytest.raises(ConfigError, match="at least two classes"):
        auto(AutoConfig(), ["data=custom", "data.root=photos"])
    assert not (tmp_path / "runs").exists()
