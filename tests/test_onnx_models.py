"""Networks of full size in ONNX: the weights of the safetensors file bit for bit, and what torch computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.onnx_models import MODELS, SCHEMES, row


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_full_size_computes_the_same_in_onnx_runtime(name: str, scheme: str, tmp_path: Path) -> None:
    line, sound = row(name, scheme, tmp_path)
    assert sound, line
