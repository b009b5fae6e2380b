"""Memory of NaN costs nothing before it is written, and is ordinary memory in every other way."""

from __future__ import annotations

import copy
import gc
import os
import sys
from typing import Any

import pytest
import torch
from torch import nn

import zero_convert as zc
from zero_convert.errors import LoadError
from zero_convert.runtime import nan_memory
from zero_convert.sources.building import memory
from zero_convert.sources.building.nan_constructor import nan_filled

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux only")
MIB = 1 << 20


def private() -> int:
    """MiB that this process alone has."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        rows = dict(line.split(":", 1) for line in file if ":" in line and "-" not in line.split(":")[0])
    return sum(int(rows[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) // 1024


def made(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    tensor = nan_memory.like(torch.empty(shape, dtype=dtype))
    assert tensor is not None
    return tensor


@pytest.mark.parametrize("dtype", sorted(nan_memory.DTYPES, key=str), ids=str)
def test_every_number_is_nan_and_none_costs_memory(dtype: torch.dtype) -> None:
    before = private()
    tensor = made(64 * MIB, dtype=dtype)
    assert tensor.dtype == dtype and private() - before < 24  # the file itself has 16
    assert tensor[::4097].float().isnan().all() if not dtype.is_complex else tensor[::4097].isnan().all()


def test_what_is_written_costs_its_pages_and_is_given_back() -> None:
    tensor, other = made(32, MIB), made(32, MIB)
    before = private()
    tensor[:8] = 1
    assert 24 <= private() - before <= 48
    assert nan_memory.restore(tensor) and private() - before < 16
    tensor[:8] = 1
    assert tensor[8:, ::99].isnan().all() and other[:, ::99].isnan().all()  # nobody else sees it
    assert nan_memory.restore(tensor) and tensor[:, ::99].isnan().all()


def test_a_view_or_other_memory_is_not_restored() -> None:
    tensor = made(4, MIB)
    tensor.zero_()
    assert not nan_memory.restore(tensor[1:]) and not nan_memory.restore(tensor[0].expand(4, MIB))
    assert not nan_memory.restore(torch.zeros(MIB)) and not tensor.any()
    assert nan_memory.restore(tensor.T)


def test_sizes_and_strides_are_those_asked_for() -> None:
    like = torch.empty(8, 3, 256, 256).to(memory_format=torch.channels_last)
    tensor = nan_memory.like(like)
    assert tensor is not None and tensor.stride() == like.stride() and nan_memory.restore(tensor)
    small = (torch.empty(10), torch.empty(MIB, dtype=torch.int64), torch.empty(MIB, device="meta"))
    assert [nan_memory.like(t) for t in small] == [None, None, None]


def test_mappings_go_with_their_tensors() -> None:
    gc.collect()
    before, tensor = len(nan_memory._sizes), made(MIB)
    part = tensor[:3]
    del tensor
    assert len(nan_memory._sizes) == before + 1 and part.isnan().all()
    del part
    gc.collect()
    assert len(nan_memory._sizes) == before


def test_a_forked_process_has_its_own() -> None:
    tensor = made(MIB)
    child = os.fork()
    if child == 0:
        tensor[:9] = 0  # few: threads do not survive a fork
        os._exit(int(tensor[3].item() != 0))
    assert os.waitpid(child, 0)[1] == 0 and tensor.isnan().all()


def test_where_nothing_can_be_mapped_ordinary_memory_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(nan_memory, "_mmap", refuse)
    with nan_filled():
        layer = nn.Linear(1024, 1024)
    assert layer.weight.isnan().all() and nan_memory.unwritten([layer.weight]) == 0


# ---------------------------------------------------------------------------------------------------------------------


class Built(nn.Module):
    """Draws in every way, fixes some values, and draws again over values that it set."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.table = nn.Linear(1024, 1024), nn.Embedding(2048, 512, padding_idx=1)
        self.fixed = nn.Parameter(torch.ones(1024, 1024))
        self.again = nn.Parameter(torch.empty(1024, 1024))
        self.again.detach().numpy()[:] = 3  # unseen by torch
        nn.init.normal_(self.again)
        self.scaled = nn.Parameter(torch.randn(1024, 1024) * 0.02)
        self.partly = nn.Parameter(torch.zeros(1024, 1024))
        nn.init.normal_(self.partly[:512])
        self.then = nn.Parameter(torch.randn(1024, 1024))
        nn.init.constant_(self.then, 5)


def test_a_constructor_finds_the_values_it_would_find_in_ordinary_memory() -> None:
    with nan_filled():
        net = Built()
    assert net.plain.weight.isnan().all() and net.again.isnan().all() and net.scaled.isnan().all()
    assert not net.table.weight[1].any() and net.table.weight[[0, 2]].isnan().all()
    assert (net.fixed == 1).all() and (net.then == 5).all()
    assert net.partly[:512].isnan().all() and not net.partly[512:].any()
    twin = copy.deepcopy(net)
    twin.plain.weight.detach().zero_()
    assert net.plain.weight.isnan().all()
    assert nan_memory.unwritten(net.parameters()) > 0


def test_a_plan_needs_no_memory_for_values_and_a_conversion_is_refused_before_it_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_memory", lambda: (2 << 28, 16 << 30))
    before = private()
    plan = zc.plan("vgg11", scheme="zero-2022")  # 507 MiB of weights
    assert len(plan.assignments) == 22 and private() - before < 200
    with pytest.raises(
        LoadError, match=r"does not fit into memory; got 0\.5 GB free of 17\.2 GB, and weights of 0\.5 GB"
    ):
        zc.convert("vgg11", scheme="zero-2022", validate="none")
