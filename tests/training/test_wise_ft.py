"""`trainer.average=wise_ft`: the weights in between, what best.pt and last.pt hold, what a resumed run knows."""

import json
import logging

import pytest
import torch
from torch.nn import functional as F

from cvtrain.checkpoint import load_checkpoint
from cvtrain.commands.train import train
from cvtrain.training.wise_ft import SHARES, mix_weights

RUN = (
    "model=custom",
    "model.target=feature_networks.PlainHead",
    "model.head=classifier",
    "data.batch_size=32",
    "augment=none",
    "plots=false",
    "data.num_workers=0",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.monitor=val/loss",
    "trainer.average=wise_ft",
    "optimizer=sgd",
    "model.head_init=logreg",
)


@pytest.fixture
def weights(tmp_path):
    from feature_networks import PlainHead, save_weights

    return save_weights(PlainHead, tmp_path)


def test_weights_in_between():
    start = {"w": torch.tensor([0.0, 4.0]), "count": torch.tensor(3)}
    end = {"w": torch.tensor([8.0, 0.0]), "count": torch.tensor(9)}
    mixed = mix_weights(start, end, 0.25)
    assert mixed["w"].tolist() == [2.0, 3.0] and mixed["count"].item() == 9


def val_loss(run_dir, state):
    """By a plain loop over the val split with the weights `state`."""
    from feature_networks import PlainHead

    from cvtrain.commands.evaluate import read_config
    from cvtrain.data.build import build_eval_loader
    from cvtrain.data.normalize import Normalizer
    from cvtrain.data.sources.build import build_splits

    last = load_checkpoint(run_dir / "checkpoints" / "last.pt")
    config = read_config(last, run_dir)
    model = PlainHead(10, 1)
    model.load_state_dict(state)
    normalizer = Normalizer(last["preprocessing"]["mean"], last["preprocessing"]["std"], torch.contiguous_format)
    loader = build_eval_loader(config.data, build_splits(config.data).val, device=torch.device("cpu"))
    losses = []
    with torch.no_grad():
        for batch in loader.epoch(0):
            losses.append(F.cross_entropy(model.eval()(normalizer(batch.images)), batch.labels, reduction="none"))
    return torch.cat(losses).mean().item()


def test_the_best_of_the_mixtures_is_kept(compose_config, weights, tmp_path, caplog):
    # A rate so large that the end is beyond the best weights.
    overrides = (*RUN, weights, "trainer.epochs=1", "optimizer.lr=0.01", "optimizer.backbone_lr_scale=1")
    with caplog.at_level(logging.INFO):
        result = train(compose_config(*overrides), run_dir=tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    start, last, best = (load_checkpoint(folder / name) for name in ("start.pt", "last.pt", "best.pt"))
    losses = {share: val_loss(tmp_path / "run", mix_weights(start["model"], last["model"], share)) for share in SHARES}
    share = min(losses, key=losses.get)
    assert best["end_share"] == share and result.monitor == pytest.approx(losses[share], rel=1e-5)
    assert losses[share] < val_loss(tmp_path / "run", last["model"]) and losses[share] < val_loss(
        tmp_path / "run", start["model"]
    )
    for name, tensor in mix_weights(start["model"], last["model"], share).items():
        assert torch.equal(best["model"][name], tensor), name
    assert last["monitor"]["best"] == result.monitor  # so that a run that goes on does not take less for the best
    assert f"by the average of the start and the end ({share:g} of the end)" in caplog.text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best"]["average"] == share

    caplog.clear()
    table = (tmp_path / "run" / "predictions_val.csv").read_bytes()
    with caplog.at_level(logging.INFO):
        again = train(compose_config(*overrides, f"resume={tmp_path / 'run'}"), run_dir=tmp_path / "run")
    assert again.monitor == result.monitor
    assert (tmp_path / "run" / "predictions_val.csv").read_bytes() == table
    assert f"({share:g} of the end)" in caplog.text


def test_without_its_start_a_run_says_so_and_ends_well(compose_config, weights, tmp_path, caplog):
    overrides = (*RUN, weights, "optimizer.lr=0.05")
    train(compose_config(*overrides, "trainer.epochs=1"), run_dir=tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "start.pt").unlink()
    result = train(
        compose_config(*overrides, "trainer.epochs=2", f"resume={tmp_path / 'run'}"), run_dir=tmp_path / "run"
    )
    assert "trainer.average=wise_ft: nothing to average with" in caplog.text
    assert result.monitor is not None and result.exit_code == 0
