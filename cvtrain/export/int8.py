"""8-bit weights and activations for an ONNX model, by ONNX Runtime's static quantisation."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Images at once; the range of an activation is the mean over these batches of their smallest and largest value.
CALIBRATION_BATCH = 8
# What is computed in 8 bits. Softmax, normalisation layers and the rest of a transformer stay in float32.
_OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip")


def quantize_onnx(file: Path, target: Path, batches: Iterator[np.ndarray]) -> None:
    """Write the ONNX model in `file` with 8-bit weights, one scale per channel, and 8-bit activations.

    Weights have 7 of the 8 bits: sums of two products then fit into 16 bits, and processors without VNNI give the same
    answers as those with it.

    Args:
        file: a model in float32.
        target: the new file.
        batches: of training images, as the model takes them.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # which the import of ONNX Runtime obeys
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it logs its steps, and advice that has been taken, to the root logger
    prepared = target.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True},
        )
    finally:
        root.setLevel(level)
        prepared.unlink(missing_ok=True)
    # The tools keep no metadata of ours, and add their own.
    model, metadata = onnx.load(str(target)), onnx.load(str(file), load_external_data=False).metadata_props
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in metadata})
    onnx.save(model, str(target))
