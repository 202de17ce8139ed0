"""Precision by name, autocast."""

import pytest
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.runtime.precision import autocast, has_native_bf16, select_precision


def test_precision_names_and_fp16_on_cpu():
    cpu = torch.device("cpu")
    assert select_precision("fp32", cpu) is torch.float32
    assert select_precision("bf16", cpu) is torch.bfloat16
    expected = torch.bfloat16 if has_native_bf16(cpu) else torch.float32
    assert select_precision("auto", cpu) is expected
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        select_precision("fp16", cpu)


def test_autocast_is_off_for_fp32_and_on_for_bf16():
    cpu = torch.device("cpu")
    weights = torch.ones(2, 2)
    with autocast(cpu, torch.float32):
        assert (weights @ weights).dtype is torch.float32
    with autocast(cpu, torch.bfloat16):
        assert (weights @ weights).dtype is torch.bfloat16
