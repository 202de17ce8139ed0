"""Numeric precision: the dtype of matrix products and the backend flags that go with it."""

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from cvtrain.config.errors import ConfigError


def has_native_bf16(device: torch.device) -> bool:
    """True if the hardware multiplies bfloat16 itself: Ampere and later GPUs, CPUs with AVX512-BF16 or AMX (Linux)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpu_info = Path("/proc/cpuinfo")  # Linux; up to torch 2.15 only private functions tell it
    if device.type == "cpu" and platform.machine() == "x86_64" and cpu_info.is_file():
        return not {"avx512_bf16", "amx_tile"}.isdisjoint(cpu_info.read_text(encoding="utf-8").split())
    return False


def select_precision(name: str, device: torch.device, *, key: str = "trainer.precision") -> torch.dtype:
    """The dtype of matrix products: `auto`, `fp32`, `bf16` or `fp16`; weights stay float32.

    Raises:
        ConfigError: fp16 on a CPU, where it is neither fast nor scaled.
    """
    if name == "auto":
        return torch.bfloat16 if has_native_bf16(device) else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise ConfigError(key=key, value=name, rule="fp16 needs a GPU", remedy=f"use {key}=bf16 or {key}=fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def precision_name(dtype: torch.dtype) -> str:
    """`fp32`, `bf16` or `fp16`."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision for a forward pass; does nothing for float32."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)


@contextlib.contextmanager
def backend_flags(device: torch.device, dtype: torch.dtype, *, deterministic: bool) -> Iterator[None]:
    """Use the fastest GPU kernels for `dtype` inside the block; restores the settings afterwards.

    cuDNN tries its convolutions out on each new shape, of which a run has few; not with `deterministic`, since the
    fastest may differ from run to run. In bf16 and fp16 what is left in float32 may use TF32; fp32 means fp32: no
    TF32, which torch by itself allows in convolutions.
    """
    if device.type != "cuda":
        yield
        return
    mixed = dtype != torch.float32
    before = (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), _allow_conv_tf32(mixed))
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("high" if mixed else "highest")
    _allow_conv_tf32(mixed)  # again: the line before may have set it
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])
        _allow_conv_tf32(before[2])


def _allow_conv_tf32(allow: bool) -> bool:
    """Let convolutions use TF32 or not; gives what was before."""
    conv = getattr(torch.backends.cudnn, "conv", None)
    if conv is None:  # torch < 2.9
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, allow
        return before
    was = conv.fp32_precision
    conv.fp32_precision = "tf32" if allow else "ieee"
    return was == "tf32"
