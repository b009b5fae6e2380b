"""A network beyond 1.8 GB has its tensors in a file beside the model, by itself, and is read back by everybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import zero_convert as zc
from zero_convert.artifacts.verify import verify
from zero_convert.exporters.onnx import INLINE

WIDTH = 21_300  # a weight of 1,814,760,000 bytes


@pytest.mark.slow
def test_a_model_of_two_gigabytes_is_written_and_read(tmp_path: Path) -> None:
    assert 4 * WIDTH**2 > INLINE
    net = nn.Linear(WIDTH, WIDTH, bias=False)
    result = zc.convert(net, (torch.ones(1, WIDTH),), scheme="zero-2022", validate="none")
    del net
    with (tmp_path / "a.onnx.data").open("wb") as longer:  # of an earlier, larger model; holes take no space
        longer.truncate(4 * WIDTH**2 + 4096)
    (made,) = result.save(tmp_path / "a.onnx", force=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data", "a.onnx.receipt.json"]
    assert made.paths == (tmp_path / "a.onnx", tmp_path / "a.onnx.data")
    assert made.data.size == made.data.path.stat().st_size == 4 * WIDTH**2
    assert made.size < 10_000
    assert verify(made.path).findings == ()
    onnx.checker.check_model(made.path, full_check=True)
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    x = np.arange(WIDTH, dtype=np.float32).reshape(1, -1)
    assert np.array_equal(session.run(None, {"input": x})[0], x)  # a partial identity
    with made.paths[1].open("r+b") as file:
        file.seek(4 * WIDTH**2 - 1)
        file.write(b"\x01")
    assert [(each.what, each.tensor) for each in verify(made.path).findings] == [
        ("values", "weight"),
        ("weights digest", ""),
        ("data file", ""),
    ]
