"""Devices by name."""

import pytest
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.runtime.device import available_devices, select_device


def test_wrong_device_lists_those_that_are_there():
    with pytest.raises(ConfigError, match="no such device") as caught:
        select_device("cuda:77")
    assert "trainer.device=cuda:77" in str(caught.value)
    assert "cpu" in str(caught.value)


def test_cpu_is_always_there():
    assert select_device("cpu") == torch.device("cpu")
    assert available_devices()[-1] == "cpu"
