"""The last check of a conversion to ONNX: ONNX Runtime computes the file as it will be, before it is written."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from . import checks
from .exporters.onnx import needs_data_file
from .graph.traced import Subject
from .records import Check
from .result import Result
from .runtime.signals import undone_by


def export_parity(result: Result, subject: Subject, *, device: str, strict: bool) -> Check:
    """The answer of `parity` for the ONNX file that the result would be saved as. The file is gone afterwards.

    Args:
        subject: that the checks were asked of; it holds the result's module.
        device: from `checks.resolve`.
        strict: the device was named, so that nothing may fall back to the CPU.

    Raises:
        ModelError: torch cannot export the model.
        DeviceError: ONNX Runtime fell back to the CPU.
    """
    if needs_data_file(result.entries()):
        question = "Do torch and ONNX Runtime return the same?"
        return Check(
            "parity", "skip", question, "the model is beyond one file; `validate FILE` compares it once written"
        )
    with tempfile.TemporaryDirectory() as folder, undone_by(lambda: shutil.rmtree(folder, ignore_errors=True)):
        path = Path(folder, "model.onnx")
        with path.open("wb") as stream:
            result.write(stream, "onnx")
        return checks.compare_export(subject, path, device=device, dtype=result.recipe.dtype, strict=strict)
