"""Whether loading needs trust is what `torch.load(weights_only=True)` answers: it loads the file, or it refuses it."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from tests.odd_containers import Holder, Scaled
from zero_convert import readers


class Color(enum.Enum):
    RED = 1


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.qint8)


def named() -> torch.Tensor:
    value = torch.ones(3)
    value.tag, value.flag = "a", True
    return value


VALUES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"some bytes that are no text \xff",
    "bytearray": lambda: bytearray(b"some bytes \xff"),
    "complex": lambda: 1 + 2j,
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset((1, 2)),
    "Counter": lambda: collections.Counter("aab"),
    "OrderedDict": lambda: collections.OrderedDict(a=1),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "deque": lambda: collections.deque((1, 2)),
    "large number": lambda: 1 << 200,
    "huge number": lambda: 1 << 3000,
    "text": lambda: "名" * 50,
    "long text": lambda: "a" * 300,
    "range": lambda: range(3),
    "slice": lambda: slice(1, 2),
    "Ellipsis": lambda: ...,
    "type": lambda: int,
    "function": lambda: print,
    "error": lambda: ValueError("a"),
    "error of a file": lambda: FileNotFoundError(2, "a"),
    "Size": lambda: torch.Size((1, 2)),
    "device": lambda: torch.device("cpu"),
    "dtype": lambda: torch.float8_e4m3fn,
    "narrow dtype": lambda: torch.uint4,
    "layout": lambda: torch.sparse_csr,
    "scheme": lambda: torch.per_channel_affine,
    "storage": lambda: torch.ones(3).untyped_storage(),
    "typed storage": lambda: torch.ones(3)._typed_storage(),
    "parameter": lambda: nn.Parameter(torch.ones(3)),
    "buffer": lambda: nn.Buffer(torch.ones(3)),
    "attributes": named,
    "class": lambda: torch.ones(3).as_subclass(Scaled),
    "meta": lambda: torch.ones(3, device="meta"),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "quantized": quantized,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 3)], layout=torch.strided),
    "wrapper": lambda: TwoTensor(torch.ones(3), torch.ones(3)),
    "generator": lambda: torch.Generator().get_state(),
    "network": lambda: nn.Linear(2, 2),
    "object": lambda: Holder([torch.ones(2)]),
    "numpy array": lambda: np.ones(3),
    "numpy number": lambda: np.float64(0.5),
    "numpy type": lambda: np.dtype("f4"),
    "Namespace": lambda: argparse.Namespace(lr=0.1),
    "path": lambda: pathlib.PurePosixPath("a"),
    "enum": lambda: Color.RED,
    "date": lambda: datetime.datetime(2020, 1, 1),
    "partial": lambda: functools.partial(print, 1),
}


def loads(path: Path, restricted: bool = True) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(path, weights_only=restricted)
    except Exception:  # any way of refusing
        return False
    return True


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", VALUES)
def test_trust_is_needed_where_torchs_restricted_loader_refuses(name: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for protocol in (2, 3, 4, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = {"weight": torch.ones(2), "value": VALUES[name]()}
            torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        found = readers.read(path)
        broken = name == "nested" and not zipped  # torch writes sizes that are none, and may read anything
        if not broken and loads(path, restricted=False):
            assert (not found.trust) == loads(path), (protocol, found.trust)
        assert protocol < 4 or any("protocol 2 only" in reason for reason in found.trust)


def test_a_jagged_tensor_needs_trust_where_torch_was_only_imported(tmp_path: Path) -> None:
    """A process that made one has imported more, and there torch takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = torch.nested.nested_tensor([torch.ones(2, 3)], layout=torch.jagged)
    torch.save({"weight": value}, tmp_path / "model.pt")
    (reason,) = readers.read(tmp_path / "model.pt").trust
    assert reason.endswith("torch._dynamo.decorators._DimRange")
    code = f"import torch; torch.load({str(tmp_path / 'model.pt')!r}, weights_only=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "torch._dynamo" in done.stderr
