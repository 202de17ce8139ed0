"""Networks that `cvtrain auto` can try: weights in local files, and published ones."""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cvtrain.config.architectures import TORCHVISION_ARCHS
from cvtrain.config.errors import ConfigError
from cvtrain.config.hints import closest, did_you_mean
from cvtrain.config.overrides import override
from cvtrain.config.schema.auto import AutoSettings, Licenses

log = logging.getLogger(__name__)

# From small to large; each with weights of ImageNet-1k that torchvision or timm offers under a permissive licence.
PUBLISHED = (
    "mobilenet_v3_small",
    "tf_efficientnet_lite0",
    "resnet18",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "resnet50",
    "convnext_tiny",
)
PERMISSIVE = ("apache", "mit", "bsd", "cc0")


@dataclass(frozen=True)
class Candidate:
    """A network with weights.

    Attributes:
        arch: name of the architecture, in timm or torchvision.
        overrides: of a training command that choose it.
        license: of the weights; empty: not known.
    """

    arch: str
    overrides: tuple[str, ...]
    license: str = ""


def list_candidates(settings: AutoSettings) -> list[Candidate]:
    """Return the networks that the settings name, local files first.

    Raises:
        ConfigError: a file's name is no architecture, or there is no such architecture.
    """
    found = []
    for entry in settings.weights:
        name, equals, file = entry.partition("=")
        path = Path(file if equals else entry).expanduser()
        arch = name if equals else path.name.partition(".")[0]
        found.append(_candidate(arch, "auto.weights", entry, path))
    named = settings.models if settings.models is not None else [] if settings.weights else list(PUBLISHED)
    for arch in named:
        candidate = _candidate(arch, "auto.models", arch, None)
        license = candidate.license.lower()
        if settings.licenses is Licenses.permissive and license and not license.startswith(PERMISSIVE):
            log.warning("%s: left out, its weights are under %s; auto.licenses=any takes it", arch, candidate.license)
            continue
        found.append(candidate)
    return found


def _candidate(name: str, key: str, value: str, weights: Path | None) -> Candidate:
    library, _, arch = name.rpartition("/")
    for group, names in (("torchvision", TORCHVISION_ARCHS), ("timm", _timm_archs())):
        if arch in names and library in ("", group):
            tokens = [f"model={group}", override("model.arch", arch)]
            tokens += [override("model.weights", str(weights))] if weights else ["model.pretrained=true"]
            return Candidate(arch, tuple(tokens), _license(group, arch))
    close = did_you_mean(closest(arch, [*TORCHVISION_ARCHS, *_timm_archs()]))
    remedy = "name it: '" + key + '=["ARCH=' + value + "\"]'" if weights else "cvtrain list models names some"
    raise ConfigError(key, value, f"{name} is no architecture of torchvision or timm", close or remedy)


def _timm_archs() -> list[str]:
    if find_spec("timm") is None:
        return []
    import timm

    return timm.list_models()


def _license(group: str, arch: str) -> str:
    if group == "torchvision":
        return "BSD-3-Clause"
    import timm

    record = timm.get_pretrained_cfg(arch)
    return (record.license or "") if record is not None else ""
