"""Which weights of a torchvision network to start from, and how they fit a network that differs in its ends."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import PretrainedConfig, is_file_name
from cvtrain.models.download import fetch_state
from cvtrain.models.stem import grey_state
from cvtrain.models.weights import FileWeights, read_state, strip_prefix, with_metadata

# torchvision's networks with `transform_input` learnt on values in -1..1 (see build_torchvision).
_SYMMETRIC = ("googlenet", "inception_v3")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# Published densenets still have names like denselayer1.norm.1.weight for what is now denselayer1.norm1.weight.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)$")


@dataclass(frozen=True)
class WeightsSource:
    """Published weights (`entry` of torchvision's weights enum), a local file, or a local copy of published weights."""

    arch: str
    entry: Any
    path: Path | None

    @property
    def source(self) -> str:
        return str(self.path) if self.path is not None else f"{type(self.entry).__name__}.{self.entry.name}"

    @property
    def without_values(self) -> tuple[str, ...]:
        """Submodules for which these weights hold no numbers (vgg16's IMAGENET1K_FEATURES: NaN in the classifier)."""
        return ("classifier",) if self.entry is not None and self.entry.meta["categories"] is None else ()

    @property
    def image_size(self) -> int | None:
        """Side of the images, in pixels, that the publisher evaluated on."""
        return self.entry.transforms().crop_size[0] if self.entry is not None else None

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per channel that these weights expect.

        For a local file: those of the architecture's published weights. For grey images: the averages over the colours.
        """
        if self.arch in _SYMMETRIC:
            mean, std = (0.5,) * 3, (0.5,) * 3
        else:
            mean, std = tuple(self._preset().mean), tuple(self._preset().std)
        if channels == 1:
            return (sum(mean) / 3,), (sum(std) / 3,)
        return mean, std

    def resize(self) -> tuple[str, float]:
        """Return interpolation and crop fraction that these weights were evaluated with, as `statistics` finds them."""
        preset = self._preset()
        return preset.interpolation.value, preset.crop_size[0] / preset.resize_size[0]

    def _preset(self) -> Any:
        """Return torchvision's evaluation transform."""
        return (self.entry or _default_entry(self.arch)).transforms()

    def read(self, module: nn.Module, entry: str | None) -> FileWeights:
        """Return the state dict, on the CPU, under the names of `module`.

        Raises:
            ConfigError: it cannot be had.
        """
        if self.path is not None:
            return strip_prefix(read_state(self.path, entry=entry), module)
        return FileWeights(fetch_state(self.entry.url), self.source)

    def adapt(
        self,
        state: Mapping[str, Any],
        *,
        input_conv: str | None,
        image_size: int | None,
        patch_size: int | None,
        auxiliary: bool,
    ) -> Mapping[str, Any]:
        """`state` for a network that differs at its input, or has no auxiliary heads; `state` itself is left alone.

        Args:
            input_conv: name of the first convolution if the network is for grey images.
            image_size, patch_size: in pixels, for networks with one learnt embedding per patch: they are interpolated.
            auxiliary: the network has auxiliary heads; without, theirs are left out.
        """
        adapted = {
            _OLD_DENSENET.sub(r"\1\2", name): value
            for name, value in state.items()
            if not (not auxiliary and name.startswith(_AUXILIARY))
            and not (self.without_values and name.startswith(self.without_values))
        }
        result: Mapping[str, Any] = with_metadata(adapted, state, {})
        if image_size is not None and patch_size is not None and "encoder.pos_embedding" in result:
            from torchvision.models.vision_transformer import interpolate_embeddings

            result = interpolate_embeddings(image_size, patch_size, result)  # type: ignore[arg-type]
        return result if input_conv is None else grey_state(result, input_conv)


def _default_entry(arch: str) -> Any:
    from torchvision import models

    return models.get_model_weights(arch).DEFAULT


def choose_weights(config: PretrainedConfig) -> WeightsSource | None:
    """The weights that `config` asks for; None: random ones.

    A local file that has the name of a published one (resnet18-f37072fd.pth) counts as that one.

    Raises:
        ConfigError: the network has no such weights.
    """
    from torchvision import models

    if not config.pretrained:
        return None
    entries = {entry.name: entry for entry in models.get_model_weights(config.arch)}
    if config.weights is not None and is_file_name(config.weights):
        path = Path(config.weights).expanduser()
        same_name = [entry for entry in entries.values() if entry.url.rsplit("/", 1)[-1] == path.name]
        return WeightsSource(config.arch, same_name[0] if same_name else None, path)
    name = (config.weights or "DEFAULT").rsplit(".", 1)[-1]
    if name == "DEFAULT" and entries:
        return WeightsSource(config.arch, models.get_model_weights(config.arch).DEFAULT, None)
    if name not in entries:
        close = difflib.get_close_matches(name.upper(), entries, n=1)
        raise ConfigError(
            key="model.weights",
            value=config.weights,
            rule=f"torchvision has no weights of that name for {config.arch}; it has " + (", ".join(entries) or "none"),
            remedy=f"did you mean {close[0]}?" if close else "a local file ends in .pt, .pth, .bin or .safetensors",
        )
    return WeightsSource(config.arch, entries[name], None)
