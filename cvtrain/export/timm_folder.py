"""A timm network as a folder that timm and the Hugging Face hub know: weights, config.json and a model card."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import ModelConfig, TimmModelConfig

_CARD = """---
tags:
- image-classification
- timm
library_name: timm
pipeline_tag: image-classification
---

# {arch}, {num_classes} classes

Trained with cvtrain {cvtrain} from `timm`'s `{arch}`. `label_names` of config.json are the classes.

```python
import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")
with torch.inference_mode():
    probs = {logits}.softmax(1)
```

## Proof

What cvtrain and this folder say of the same image files, the latter by the lines above:

```
{table}
```
"""


def timm_settings(model: ModelConfig, spec: dict[str, Any]) -> TimmModelConfig:
    """Return the settings of a network of timm, if a folder for timm can express it and its preprocessing.

    Raises:
        ConfigError: it names the network or the setting.
    """
    others = "format=onnx and format=pt2 take any network and preprocessing"
    if not isinstance(model, TimmModelConfig):
        rule = f"is a folder for networks of timm, and the checkpoint's is model={model.name}"
        raise ConfigError("format", "hf", rule, others)
    if spec["resize"] == "pad":
        raise ConfigError("format", "hf", "timm's transforms do not know data.resize=pad", others)
    if spec["bit_depth"] != 16:
        raise ConfigError("format", "hf", f"timm's transforms do not know data.bit_depth={spec['bit_depth']}", others)
    if spec["flip"]:
        rule = "timm averages no mirror images, as trainer.eval_flip or tta=flip have it"
        raise ConfigError("format", "hf", rule, "tta=none exports without them")
    return model


def write_timm(
    module: nn.Module, folder: Path, spec: dict[str, Any], model: TimmModelConfig, *, half: bool = False
) -> None:
    """Write model.safetensors and config.json, which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    The format is that of timm's own `save_for_hf`.

    Args:
        module: the timm network.
        spec: the content of preprocess.json.
        model: the settings that the network was built with.
        half: write weights in float16; timm computes in float32 with them.
    """
    from safetensors.torch import save

    own: Any = module
    record = own.pretrained_cfg
    size, channels = spec["image_size"], spec["channels"]
    arguments: dict[str, Any] = dict(model.kwargs)
    if record.get("fixed_input_size"):
        arguments.setdefault("img_size", size)
    if channels != 3:
        arguments["in_chans"] = channels
    preprocessing = {
        "input_size": [channels, size, size],
        "fixed_input_size": bool(record.get("fixed_input_size")),
        "interpolation": spec["interpolation"],
        "crop_pct": crop_fraction(size, spec["short_side"]) if spec["resize"] == "resize_crop" else 1.0,
        "crop_mode": "center" if spec["resize"] == "resize_crop" else "squash",
        "mean": spec["mean"],
        "std": spec["std"],
        "num_classes": len(spec["classes"]),
        "first_conv": record.get("first_conv"),
        "classifier": record.get("classifier"),
    }
    config = {
        "architecture": model.arch.partition(".")[0],
        "num_classes": len(spec["classes"]),
        "num_features": own.num_features,
        "label_names": spec["classes"],
        "model_args": arguments,
        "pretrained_cfg": preprocessing,
    }
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in own.state_dict().items()}
    if half:
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    (folder / spec["model"]).write_bytes(save(state))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_card(folder: Path, spec: dict[str, Any], model: TimmModelConfig, table: list[str]) -> None:
    """Write README.md, the model card, with the lines of the proof."""
    logits = "model(transform(image)[None])"
    text = _CARD.format(
        arch=model.arch.partition(".")[0],
        num_classes=len(spec["classes"]),
        cvtrain=spec["cvtrain"],
        mode="L" if spec["channels"] == 1 else "RGB",
        logits=logits if spec["temperature"] == 1 else f"({logits} / {spec['temperature']})",
        table="\n".join(table),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def crop_fraction(size: int, short_side: int) -> float:
    """Return the shortest number by which timm, which takes floor(size / number), resizes to `short_side`."""
    for digits in range(1, 8):
        number = round(size / short_side, digits)
        if number > 0 and math.floor(size / number) == short_side:
            return number
    return size / (short_side + 0.5)
