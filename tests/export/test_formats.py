"""Networks in each format: the same numbers in batches of any size. `-m slow` has every network of torchvision."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from random_networks import random_network
from torchvision import models

from cvtrain.config.schema.model import MLPConfig
from cvtrain.export.classify import load_onnx, load_pt2
from cvtrain.export.formats import write_onnx, write_pt2
from cvtrain.export.network import ExportNetwork
from cvtrain.models import build_model

# Of timm, the small ones that it has for tests.
SAMPLE = ("torchvision/squeezenet1_1", "timm/test_efficientnet", "timm/test_vit")
# One small network of each family.
FAMILIES = (
    "beit_base_patch16_224",
    "caformer_s18",
    "convnext_atto",
    "convnextv2_atto",
    "cspresnet50",
    "darknet53",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "edgenext_xx_small",
    "efficientnet_b0",
    "efficientvit_b0",
    "fastvit_t8",
    "ghostnet_100",
    "hrnet_w18_small",
    "levit_128s",
    "maxvit_pico_rw_256",
    "mixer_s32_224",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "nfnet_f0",
    "regnetx_002",
    "repvgg_a0",
    "res2net50_26w_4s",
    "resnet10t",
    "rexnet_100",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
)
NAMES = [*(f"torchvision/{name}" for name in models.list_models(module=models)), *(f"timm/{name}" for name in FAMILIES)]
MATRIX = [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in SAMPLE)]
# Sizes of images for networks that do not take the small ones.
SIZES = {"torchvision/inception_v3": 96, "torchvision/maxvit_t": 224, "timm/levit_128s": 224, "timm/nfnet_f0": 96}
WRITERS = {"onnx": (write_onnx, load_onnx), "pt2": (write_pt2, load_pt2)}


def network_of(name, *, size):
    """A network with random weights, and statistics of batches that it has seen."""
    module = random_network(name, size=size)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = 1.0
        module.train()(torch.randn(16, 3, size, size))
    module.eval()
    return ExportNetwork(module, mean=(0.5,) * 3, std=(0.25,) * 3, pixels=False)


def spec_of(size, output="logits"):
    return {"image_size": size, "output": output, "classes": ["a", "bé", "\n"], "temperature": 1.5}


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("format", WRITERS)
def test_logits_equal_those_of_torch(name, format, tmp_path):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    size = SIZES.get(name, 64)
    network = network_of(name, size=size)
    write, load = WRITERS[format]
    write(network, tmp_path / f"model.{format}", spec_of(size))
    run = load(tmp_path / f"model.{format}")
    images = torch.randn(42, 3, size, size, generator=torch.Generator().manual_seed(0))
    parts = images.split([1, 2, 7, 32])
    with torch.inference_mode():
        ours = torch.cat([network(part) for part in parts])
    theirs = torch.cat([torch.from_numpy(run(part.numpy())) for part in parts])
    scale = float(ours.abs().max())
    assert float((ours - theirs).abs().max()) <= 1e-4 * max(1.0, scale)
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    assert float((ours.softmax(1) - theirs.softmax(1)).abs().max()) <= 1e-4


@pytest.mark.parametrize("format", WRITERS)
def test_pixels_are_normalised_averaged_and_scaled_inside(format, tmp_path):
    torch.manual_seed(0)
    module = build_model(MLPConfig(name="mlp", hidden=[16]), num_classes=3, channels=1, image_size=8).module.eval()
    network = ExportNetwork(module, mean=(0.3,), std=(0.4,), pixels=True, temperature=1.5, flip=True)
    write, load = WRITERS[format]
    write(network, tmp_path / f"model.{format}", spec_of(8, "probs"))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.3) / 0.4
    with torch.inference_mode():
        logits = (module(images) + module(images.flip(3))) / 2
    expected = (logits / 1.5).softmax(1).numpy()
    np.testing.assert_allclose(load(tmp_path / f"model.{format}")(pixels), expected, atol=1e-6)


def test_onnx_runtime_is_told_to_report_nothing(tmp_path):
    network = ExportNetwork(torch.nn.Flatten(), mean=(0.5,), std=(0.5,), pixels=False)
    write_onnx(network, tmp_path / "model.onnx", spec_of(2))
    load = "from cvtrain.export.classify import load_onnx; import os, sys, pathlib; "
    code = f"{load}load_onnx(pathlib.Path(sys.argv[1])); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "1"


def test_metadata_of_onnx_has_the_preprocessing(tmp_path, monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    network = ExportNetwork(torch.nn.Flatten(), mean=(0.5,), std=(0.5,), pixels=False)
    write_onnx(network, tmp_path / "model.onnx", spec_of(2))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(value) for key, value in found.items() if key.startswith("cvtrain.")} == {
        f"cvtrain.{key}": value for key, value in spec_of(2).items()
    }
    assert session.get_inputs()[0].shape == ["batch", 1, 2, 2]


def test_a_program_of_torch_has_the_preprocessing(tmp_path):
    network = ExportNetwork(torch.nn.Flatten(), mean=(0.5,), std=(0.5,), pixels=False)
    write_pt2(network, tmp_path / "model.pt2", spec_of(2))
    extra = {"preprocess.json": ""}
    torch.export.load(str(tmp_path / "model.pt2"), extra_files=extra)
    assert json.loads(extra["preprocess.json"]) == spec_of(2)


class Branching(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


def test_a_network_that_branches_on_its_images_is_refused_in_a_line(tmp_path):
    from cvtrain.config.errors import RunError

    network = ExportNetwork(Branching(), mean=(0.5,), std=(0.5,), pixels=False)
    for write, _ in WRITERS.values():
        with pytest.raises(RunError, match="torch cannot export this network: ") as caught:
            write(network, tmp_path / "model", spec_of(2))
        assert len(str(caught.value).splitlines()) == 2
