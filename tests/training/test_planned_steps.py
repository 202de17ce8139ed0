"""The steps that a schedule is stretched over are the steps that are taken; impossible positions are refused."""

import pytest

from cvtrain.checkpoint import load_checkpoint, save_checkpoint
from cvtrain.config.errors import ConfigError
from cvtrain.data.build import check_enough_images
from cvtrain.data.loader.sampler import EpochSampler

BASE = (
    "data=digits",
    "model.hidden=[4]",
    "model.dropout=0",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=cosine",
    "trainer.device=cpu",
    "trainer.limit_val_batches=1",
    "plots=false",
)
# 1,438 training images.
CASES = [
    (("data.batch_size=479", "model.norm=batch"), 3 * 3),  # a last batch of one image
    (("data.batch_size=479",), 4 * 3),
    (("data.batch_size=1437", "model.norm=batch"), 1 * 3),
    (("data.batch_size=718", "model.norm=batch"), 3 * 3),  # a last batch of two
    (("data.batch_size=719", "model.norm=batch"), 2 * 3),
    (("data.batch_size=2000", "model.norm=batch"), 1 * 3),
    (("data.batch_size=1437", "model.norm=batch", "trainer.grad_accum_steps=3"), 1 * 3),
    (("data.batch_size=479", "model.norm=batch", "trainer.max_steps=5"), 5),
    (("data.batch_size=479", "model.norm=batch", "trainer.limit_train_batches=4"), 3 * 3),
    (("data.batch_size=479", "model.norm=batch", "data.balance=oversample"), 3 * 3),
    (("data.batch_size=479", "model.norm=batch", "model.freeze=backbone", "model.cache_features=false"), 4 * 3),
]


@pytest.mark.parametrize(("overrides", "steps"), CASES)
def test_planned_steps_are_taken_and_cosine_ends_at_zero(assembled, overrides, steps):
    run = assembled(*BASE, "trainer.epochs=3", *overrides)
    assert run.trainer.metadata["planned_steps"] == steps
    run.trainer.fit()
    assert run.trainer.step == steps
    assert {group["lr"] for group in run.trainer.optimizer.param_groups} == {0.0}


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("min_share", [1, 2])
def test_each_rank_has_enough_images_of_every_batch(world_size, min_share):
    for num_samples in range(1, 80):
        for batch_size in (world_size, 2 * world_size, 17, 24):
            if batch_size < world_size:
                continue
            ranks = [
                EpochSampler(num_samples, batch_size, 0, True, rank=rank, world_size=world_size, min_share=min_share)
                for rank in range(world_size)
            ]
            sizes = [[len(key.indices) for key in plan.batches(0)] for plan in ranks]
            assert len({len(each) for each in sizes}) == 1 and len(sizes[0]) == ranks[0].num_batches
            needed = min(min_share, batch_size // world_size)
            assert all(size >= needed for each in sizes for size in each)
            assert sum(map(sum, sizes)) == num_samples - ranks[0].num_left_out
            assert ranks[0].num_left_out < needed * world_size


def test_left_out_images_are_logged_once(assembled, caplog):
    with caplog.at_level("INFO"):
        assembled(*BASE, "data.batch_size=479", "model.norm=batch")
    assert caplog.text.count("train: 1 of 1438 images are left out of each epoch") == 1


def test_too_few_images_for_a_step_are_refused():
    with pytest.raises(ConfigError, match="train has 1 images, and a step needs two for batch norm"):
        check_enough_images(EpochSampler(1, 8, 0, True, min_share=2))
    with pytest.raises(ConfigError, match="train has 3 images, and a step needs one for each of 4 processes"):
        check_enough_images(EpochSampler(3, 8, 0, True, world_size=4, min_share=1))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("epoch", 2**40, "epoch 1099511627776"), ("batch", 5, "batch 5"), ("step", 7, "step 7")],
)
def test_impossible_positions_are_refused_by_value(cvtrain, tmp_path, name, value, words):
    command = (*BASE, "trainer.limit_train_batches=3", "data.num_workers=0", f"hydra.run.dir={tmp_path / 'run'}")
    assert cvtrain(*command, "trainer.epochs=2").status == 0
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    entries = load_checkpoint(path)
    entries["position"][name] = value
    entries["position"]["batch"] = value if name == "batch" else 0
    save_checkpoint(path, entries)
    for older in path.parent.glob("*.pt"):
        if older != path:
            older.unlink()
    answer = cvtrain(*command, "trainer.epochs=3", f"resume={path}")
    assert answer.status == 2 and words in answer.err
