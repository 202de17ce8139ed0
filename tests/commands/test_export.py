"""`export`: a folder that other programs use, which is there only if it answers as the checkpoint does."""

import csv
import errno
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from two_classes import OPTIONS

import cvtrain as face
from cvtrain.checkpoint import load_checkpoint, save_checkpoint
from cvtrain.commands import export as verb
from cvtrain.commands.export import export
from cvtrain.config.checks import export as checks
from cvtrain.config.compose import compose_verb
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.export.proof import Limits
from cvtrain.runtime.files import file_sha256


@pytest.fixture
def start(run, tmp_path, monkeypatch):
    """`start("format=onnx", ...)` runs the verb in an empty folder, and returns its result."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: export(compose_verb("export", [f"checkpoint={run.best_checkpoint}", *words])[0])


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def classify(folder, *paths):
    """What classify.py of an export prints, in a process without cvtrain."""
    command = [sys.executable, "-I", str(folder / "classify.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_export_answers_as_the_checkpoint_does(run, photos, start, tmp_path):
    state = load_checkpoint(run.best_checkpoint)
    checkpoint = tmp_path.parent / f"{tmp_path.name}.pt"
    save_checkpoint(checkpoint, {**state, "temperature": 1.7})
    result = start("format=onnx", f"checkpoint={checkpoint}")
    assert result.folder.name == "export_onnx" and names_in(tmp_path) == ["export_onnx"]
    assert names_in(result.folder) == ["classify.py", "model.onnx", "preprocess.json", "proof.json"]
    proof = result.proof
    assert (proof.num_images, proof.num_agreeing, proof.pixel_difference) == (8, 8, 0)
    assert proof.difference < 1e-5
    right = round(8 * run.metrics["val/accuracy"])
    assert proof.num_right == (right, right)
    assert set(proof.latency_ms) == {"1", "8", "32"}
    record = json.loads((result.folder / "proof.json").read_text())
    assert record["model_sha256"] == file_sha256(result.folder / "model.onnx")
    spec = json.loads((result.folder / "preprocess.json").read_text())
    assert spec["classes"] == ["ant", "bee"] and spec["checkpoint_sha256"] == file_sha256(checkpoint)
    assert spec["temperature"] == 1.7

    (tmp_path / "text.jpg").write_text("no image")
    shown = classify(result.folder, photos / "bee" / "3.jpg", tmp_path / "text.jpg")
    path, name, prob = shown.stdout.split()
    expected = face.load(checkpoint, device="cpu").predict(photos / "bee" / "3.jpg")[0]
    assert (path, name) == (str(photos / "bee" / "3.jpg"), expected.label)
    assert float(prob) == pytest.approx(expected.prob, abs=1e-5)
    assert shown.returncode == 3 and "cannot identify image file" in shown.stderr


def test_a_program_of_torch_answers_any_photos_as_the_checkpoint_does(start, photos):
    result = start("format=pt2", f"source={photos}", "tta=flip", "proof_images=4")
    assert names_in(result.folder) == ["classify.py", "model.pt2", "preprocess.json", "proof.json"]
    assert result.proof.num_agreeing == 4 and result.proof.difference < 1e-6 and result.proof.num_right is None


@pytest.fixture(scope="module")
def timm_run(photos, tmp_path_factory):
    pytest.importorskip("timm")
    words = [word for word in OPTIONS if not word.startswith(("model=", "data.image_size="))]
    words += ["model=timm", "model.arch=test_vit", "model.pretrained=false", "data.image_size=32"]
    return face.train(*words, f"data.root={photos}", run_dir=tmp_path_factory.mktemp("timm_run"))


def test_timm_loads_the_folder_with_the_same_logits(timm_run, tmp_path):
    import timm

    words = [f"checkpoint={timm_run.best_checkpoint}", "format=hf", f"output={tmp_path / 'hub'}"]
    result = export(compose_verb("export", words)[0])
    names = ["README.md", "config.json", "model.safetensors", "preprocess.json", "proof.json"]
    assert names_in(result.folder) == names
    assert result.proof.same_pixels < 1e-6 and result.proof.pixel_difference <= 1
    classifier = face.load(timm_run.best_checkpoint, device="cpu")
    network = timm.create_model(f"local-dir:{result.folder}", pretrained=True).eval()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), classifier.module(images), atol=1e-5, rtol=0)
    assert network.pretrained_cfg["label_names"] == ["ant", "bee"]
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: timm" in card and "same class" in card and "{" not in card


def test_timm_cannot_hold_every_network(start):
    with pytest.raises(ConfigError, match="networks of timm, and the checkpoint's is model=small_convnet"):
        start("format=hf")
    with pytest.raises(ConfigError, match="input=image: has no effect with format=hf"):
        start("format=hf", "input=image")


def test_eight_bits_are_calibrated_on_training_images_alone(run, start, photos, monkeypatch):
    read = []
    batches = verb._calibration_batches

    def recorded(config, classifier, spec, splits):
        source = splits.train
        reader = source.reader
        source.reader = lambda path: read.append(path) or reader(path)
        yield from batches(config, classifier, spec, splits)

    monkeypatch.setattr(verb, "_calibration_batches", recorded)
    result = start("precision=int8", "calibration_images=12", "max_drop=1", "proof_images=8")
    assert result.folder.name == "export_onnx_int8"
    with (run.run_dir / "predictions_val.csv").open() as file:
        val = {str(photos / row["path"]) for row in csv.DictReader(file)}
    assert len(val) == 8 and len(read) == 12 and not val & set(read)
    import onnx

    model = onnx.load(str(result.folder / "model.onnx"))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") > 0 and "Softmax" in kinds
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert weights and all(np.abs(onnx.numpy_helper.to_array(each).astype(int)).max() <= 64 for each in weights)
    assert "cvtrain.classes" in {entry.key for entry in model.metadata_props}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Limits(difference=1e-4)),
        (["format=hf"], Limits(difference=1e-4, agreement=0.99)),
        (["precision=fp16"], Limits(agreement=0.995, drop=0.01)),
        (["precision=int8", "max_drop=0.02"], Limits(drop=0.02)),
    ],
)
def test_what_still_counts_as_the_same_answers(run, words, expected):
    assert verb._limits(compose_verb("export", [f"checkpoint={run.best_checkpoint}", *words])[0]) == expected


def test_half_precision_with_normalised_images_in_and_logits_out(start):
    result = start("precision=fp16", "max_drop=0", "input=tensor")
    import onnx

    model = onnx.load(str(result.folder / "model.onnx"))
    kinds = {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 64}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert [entry.dim_param or entry.dim_value for entry in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        16,
        16,
    ]
    assert model.graph.output[0].name == "logits"
    assert result.proof.num_agreeing == 8 and 0 < result.proof.difference < 0.01


def spoiled(network, file, spec):
    """Write a model whose pixels are a little brighter."""
    network.mean -= 0.01
    verb.write_onnx(network, file, spec)


def test_a_model_that_answers_otherwise_is_not_left(start, tmp_path, monkeypatch):
    monkeypatch.setitem(verb.WRITERS, "onnx", spoiled)
    with pytest.raises(RunError, match=r"answers otherwise than the checkpoint: a probability differs by 0\.0"):
        start("proof_images=3")
    assert names_in(tmp_path) == []


def test_an_earlier_export_stays_until_the_new_one_is_proved(start, tmp_path, monkeypatch):
    old = tmp_path / "export_onnx"
    old.mkdir()
    for name in ("proof.json", "preprocess.json", "model.onnx"):
        (old / name).write_text("old")
    with pytest.raises(ConfigError, match="is there already\n  choose another, or set overwrite=true"):
        start()

    def fail(network, file, spec):
        file.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(verb.WRITERS, "onnx", fail)
        with pytest.raises(RunError, match="export_onnx could not be written: No space left on device"):
            start("overwrite=true")
        patch.setitem(verb.WRITERS, "onnx", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            start("overwrite=true")
    assert names_in(tmp_path) == ["export_onnx"] and (old / "model.onnx").read_text() == "old"
    start("overwrite=true", "proof_images=2")
    assert names_in(tmp_path) == ["export_onnx"] and (old / "model.onnx").stat().st_size > 1000


def test_a_folder_of_something_else_is_never_replaced(start, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else than an export"):
        start("output=mine", "overwrite=true")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=nothing.pt"], "checkpoint=nothing.pt: no such file"),
        (["format=tflite"], "format=tflite: must be one of onnx"),
        (["output=model.onnx"], "is the name of a file; an export is a folder\n  output=model makes model/model.onnx"),
        (["source=nowhere"], "source=nowhere: no such file or folder"),
        (["data.root=nowhere"], "data.root=nowhere: no such folder"),
        (["source=.", "data.root=."], "data.root=.: has no effect with source"),
        (["precision=int8", "format=pt2"], "precision=int8: needs format=onnx, not pt2"),
        (["precision=int8", "source=."], "precision=int8: needs the run's own images"),
        (["max_drop=0.1"], "max_drop=0.1: has no effect with precision=fp32"),
        (["calibration_images=9", "precision=fp16"], "has no effect without precision=int8"),
        (["output=/dev/null"], "is a file, and an export is a folder"),
    ],
)
def test_wrong_commands(start, tmp_path, words, message):
    with pytest.raises(ConfigError) as caught:
        start(*words)
    assert message in str(caught.value)
    assert names_in(tmp_path) == []


def test_missing_packages_are_named_with_the_command_that_installs_them(start, monkeypatch):
    found = checks.importlib.util.find_spec
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ConfigError, match="uv sync --extra export, or pip install onnxscript"):
        start()


def test_another_programs_file_and_lost_images_are_named(start, photos, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="is no checkpoint of cvtrain's"):
        export(compose_verb("export", [f"checkpoint={tmp_path / 'other.pt'}"])[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"proved with the run's val images, and they cannot be had\n.*source=PHOTOS"):
        start(f"data.root={tmp_path / 'empty'}")
    (tmp_path / "empty" / "cut.jpg").write_bytes((photos / "ant" / "0.jpg").read_bytes()[:200])
    with pytest.raises(RunError, match=r"none could be read:\n  cut\.jpg: truncated"):
        start(f"source={tmp_path / 'empty'}")
    assert names_in(tmp_path) == ["empty", "other.pt"]


def test_images_that_lie_in_no_file_are_proved_through_files(tmp_path):
    result = face.train("trainer.max_steps=5", "plots=false", "trainer.device=cpu", run_dir=tmp_path / "run")
    words = [f"checkpoint={result.best_checkpoint}", f"output={tmp_path / 'export'}", "proof_images=40"]
    proof = export(compose_verb("export", words)[0]).proof
    assert (proof.num_images, proof.num_agreeing, proof.pixel_difference) == (40, 40, 0)
