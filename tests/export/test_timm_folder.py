"""What a folder for timm can say, and what it cannot."""

import math

import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import TimmModelConfig, TorchvisionModelConfig
from cvtrain.export.timm_folder import crop_fraction, timm_settings

TIMM = TimmModelConfig(name="timm", arch="resnet18")


@pytest.mark.parametrize(("size", "short_side"), [(224, 256), (224, 232), (8, 9), (224, 224), (299, 341), (17, 1000)])
def test_timm_resizes_to_the_same_short_side(size, short_side):
    assert math.floor(size / crop_fraction(size, short_side)) == short_side


def test_usual_fractions_stay_short():
    assert [crop_fraction(224, 256), crop_fraction(224, 224), crop_fraction(288, 288)] == [0.875, 1.0, 1.0]


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (TorchvisionModelConfig(name="resnet18", arch="resnet18"), {}, "the checkpoint's is model=resnet18"),
        (TIMM, {"resize": "pad"}, "do not know data.resize=pad"),
        (TIMM, {"bit_depth": 12}, "do not know data.bit_depth=12"),
        (TIMM, {"flip": True}, "averages no mirror images(.|\\n)*tta=none exports without them"),
    ],
)
def test_what_timm_cannot_express_is_refused_by_name(model, changes, message):
    spec = {"resize": "resize_crop", "flip": False, "bit_depth": 16}
    assert timm_settings(TIMM, spec) is TIMM
    with pytest.raises(ConfigError, match=message):
        timm_settings(model, {**spec, **changes})
