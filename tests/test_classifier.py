"""A checkpoint as a classifier: the numbers of `evaluate`, from paths, PIL images and arrays."""

import csv
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from two_classes import write_photos

import cvtrain as face
from cvtrain.checkpoint import load_checkpoint, save_checkpoint
from cvtrain.data.images.errors import BadImageError

OPTIONS = (
    "data.image_size=16",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.epochs=1",
    "trainer.device=cpu",
    "trainer.eval_flip=true",
    "plots=false",
    "augment=none",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def run(request, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    network = ("model=small_convnet", f"trainer.precision={request.param}")
    return face.train("data=custom", f"data.root={photos}", *network, *OPTIONS, run_dir=folder)


def val_paths(run, photos):
    with (run.run_dir / "predictions_val.csv").open(newline="", encoding="utf-8") as file:
        return [photos / row["path"] for row in csv.DictReader(file)]


def test_predictions_equal_those_of_evaluate_to_the_bit(run, photos, tmp_path):
    expected = face.evaluate(run.best_checkpoint, run_dir=tmp_path).evaluation.predictions
    classifier = face.load(run.best_checkpoint, device="cpu")
    predictions = classifier.predict(val_paths(run, photos), top_k=2)
    assert len(predictions) == 8
    probs = np.array([each.probs for each in predictions], dtype=np.float32)
    np.testing.assert_array_equal(probs, expected.top_probs)
    names = [[classifier.classes[i] for i in row] for row in expected.top_classes]
    assert [list(each.classes) for each in predictions] == names
    assert (predictions[0].label, predictions[0].prob) == (names[0][0], expected.top_probs[0, 0])


def test_other_batches_differ_by_rounding_only(run, photos):
    classifier = face.load(run.best_checkpoint, device="cpu")
    together = classifier.predict(val_paths(run, photos))
    alone = [classifier.predict(path)[0] for path in val_paths(run, photos)]
    np.testing.assert_allclose([each.prob for each in alone], [each.prob for each in together], atol=0.02)


def test_kinds_of_images_agree(run, photos):
    classifier = face.load(run.best_checkpoint, device="cpu")
    path = val_paths(run, photos)[0]
    with Image.open(path) as image:
        pixels = np.asarray(image)
        from_pil = classifier.preprocess(image)
    for other in (path, str(path), pixels, pixels / 255.0, torch.from_numpy(pixels.copy()).permute(2, 0, 1)):
        assert torch.equal(classifier.preprocess(other), from_pil)
    grey = pixels[:, :, 0]
    assert torch.equal(classifier.preprocess(grey), classifier.preprocess(np.repeat(grey[:, :, None], 3, axis=2)))
    assert classifier.predict(np.stack([pixels, pixels])) == classifier.predict([pixels, pixels])


def test_module_takes_preprocessed_images(run, photos):
    classifier = face.load(run.best_checkpoint, device="cpu")
    images = torch.stack([classifier.preprocess(path) for path in val_paths(run, photos)[:4]])
    assert (images.shape, images.dtype) == ((4, 3, 16, 16), torch.float32)
    with torch.inference_mode():
        logits = classifier.module(images)
    assert (logits.shape, classifier.module.training) == ((4, 2), False)
    assert "2 classes, 3 x 16 x 16, cpu" in repr(classifier)


def test_wrong_arguments(run, photos, tmp_path):
    classifier = face.load(run.best_checkpoint, device="cpu")
    with pytest.raises(ValueError, match=r"top_k=3: must be 1\.\.2"):
        classifier.predict(val_paths(run, photos)[:1], top_k=3)
    assert classifier.predict([]) == []
    with pytest.raises(face.ConfigError, match="there is no such file"):
        face.load(tmp_path / "none.pt")
    with pytest.raises(face.ConfigError, match=r"device=cuda:99"):
        face.load(run.best_checkpoint, device="cuda:99")
    with pytest.raises(face.ConfigError, match=r"model\.target"):
        face.load(run.best_checkpoint, model_target="my.Net")


def test_checkpoint_names_no_code(photos, tmp_path):
    network = ("model=custom", "model.target=custom_networks.KnowsItsImages", "trainer.precision=fp32")
    result = face.train("data=custom", f"data.root={photos}", *network, *OPTIONS, run_dir=tmp_path)
    with pytest.raises(face.ConfigError, match=r"never names code.*\n.*model_target='custom_networks"):
        face.load(result.best_checkpoint)
    classifier = face.load(result.best_checkpoint, "cpu", model_target="custom_networks.KnowsItsImages")
    assert classifier.predict(val_paths(result, photos), top_k=2)[0].classes in (("ant", "bee"), ("bee", "ant"))


def test_checkpoint_that_asks_for_huge_images_has_to_be_trusted(run, tmp_path):
    state = load_checkpoint(run.best_checkpoint)
    state["config"]["data"]["image_size"] = state["preprocessing"]["image_size"] = 8192
    state["config"]["data"]["batch_size"] = 4096
    path = tmp_path / "huge.pt"
    save_checkpoint(path, state)
    with pytest.raises(face.ConfigError, match=r"images of 8192 pixels, more than 2048.*\n.*image_size=8192\)"):
        face.load(path, "cpu")
    assert face.load(path, "cpu", image_size=16).preprocess(np.zeros((20, 20, 3), np.uint8)).shape == (3, 16, 16)
    assert face.load(path, "cpu", image_size=8192).batch_size == 4  # 2^28 pixels


def test_unreadable_images_carry_their_error(run, photos, tmp_path):
    classifier = face.load(run.best_checkpoint, device="cpu")
    good = val_paths(run, photos)
    (tmp_path / "cut.jpg").write_bytes(good[0].read_bytes()[:300])
    images = [tmp_path / "cut.jpg", good[0], tmp_path / "none.jpg", np.full((4, 4), 7.0), "folder", *good[1:4], 3]
    found = classifier.predict(images, top_k=2)
    causes = ["truncated", "No such file", "floating-point pixels from 7 to 7", "No such file", "not int"]
    assert [bool(each.error) for each in found] == [True, False, True, True, True, False, False, False, True]
    for each, cause in zip([each for each in found if each.error], causes, strict=True):
        assert cause in each.error
        assert (each.classes, each.probs, each.label, each.prob) == ((), (), None, None)
    # The batches are 4, 4 and 1 images long, and an unreadable one is left out of its batch.
    assert [found[1]] == classifier.predict(good[:1], top_k=2)
    assert found[5:8] == classifier.predict(good[1:4], top_k=2)
    assert [each.error is None for each in classifier.predict(tmp_path / "cut.jpg")] == [False]


def test_iterators_are_taken_batch_by_batch(run, photos):
    classifier = face.load(run.best_checkpoint, device="cpu")
    paths = val_paths(run, photos)
    assert classifier.predict(iter(paths)) == classifier.predict(paths)


def test_embedding_is_what_the_head_receives(run, photos, tmp_path):
    classifier = face.load(run.best_checkpoint, device="cpu")
    paths = val_paths(run, photos)
    found = classifier.embed(paths)
    images = torch.stack([classifier.preprocess(path) for path in paths])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=classifier.dtype == torch.bfloat16):
        network = classifier.module
        maps = [network.blocks(F.gelu(network.patches(each))) for each in (images, images.flip(3))]
        expected = [each.amax(dim=(2, 3)).float() for each in maps]
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=0.02, atol=0.02)
    assert (found.shape, found.dtype) == ((8, network.head.in_features), torch.float32)
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(BadImageError, match="empty"):
        classifier.embed([paths[0], tmp_path / "empty.jpg"])


def test_threads_get_what_one_gets(run, photos):
    classifier = face.load(run.best_checkpoint, device="cpu")
    paths, limit = val_paths(run, photos), Image.MAX_IMAGE_PIXELS
    expected = classifier.predict(paths, top_k=2)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: classifier.predict(paths, top_k=2), range(16)):
            assert found == expected
    assert limit == Image.MAX_IMAGE_PIXELS


def test_batch_out_of_memory_is_computed_in_halves(run, photos, monkeypatch, caplog):
    classifier = face.load(run.best_checkpoint, device="cpu")
    paths, forward, sizes = val_paths(run, photos)[:4], classifier.module.forward, []
    expected = classifier.predict(paths)

    def small_device(images):
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images)

    monkeypatch.setattr(classifier.module, "forward", small_device)
    found = classifier.predict(paths)
    assert [each.label for each in found] == [each.label for each in expected]
    np.testing.assert_allclose([each.prob for each in found], [each.prob for each in expected], atol=0.02)
    assert sizes == [4, 2, *[1] * 8]  # with the mirror image of each
    assert "out of memory with 4 images at once: going on with 2" in caplog.text
