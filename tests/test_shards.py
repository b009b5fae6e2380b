"""The part of a tensor that a process holds: the same bits for every mesh and placement, none twice, none left out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from zero_convert.errors import UsageError
from zero_convert.formulas import Bell, Formula
from zero_convert.graph.shards import local_parts, pieces
from zero_convert.initialization.fill import block

from .formula_strategies import whole_formulas


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    """This process is the first of eight, without the others: nothing may be communicated."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    dist.destroy_process_group()


def mesh_with_us_at(place: int, shape: tuple[int, ...]) -> DeviceMesh:
    count = int(np.prod(shape))
    return DeviceMesh("cpu", torch.roll(torch.arange(count), place).reshape(shape))


def strided(dim: int, factor: int) -> Placement:
    from torch.distributed.tensor.placement_types import _StridedShard

    return _StridedShard(dim, split_factor=factor)


def filled(formula: Formula, value: Tensor, at_once: int) -> Tensor:
    """The local tensor, filled part by part."""
    target = value.clone().fill_(float("nan"))
    for part in local_parts(target, "w"):
        for piece in pieces(part, at_once):
            assert torch.isnan(piece.target).all()  # nothing twice
            piece.target.copy_(block(formula, piece.ranges, torch.float32))
    return target.to_local() if isinstance(target, DTensor) else target


def check(formula: Formula, mesh: tuple[int, ...], placements: list[Placement], rank: int, at_once: int) -> None:
    whole = np.empty(formula.shape, np.float32)
    formula.fill(whole)
    value = distribute_tensor(torch.from_numpy(whole), mesh_with_us_at(rank, mesh), placements, src_data_rank=None)
    expected = value.to_local().numpy()
    assert filled(formula, value, at_once).numpy().tobytes() == expected.tobytes()


MESHES = st.sampled_from([(1,), (2,), (3,), (8,), (2, 2), (2, 3), (2, 2, 2)])


@settings(max_examples=200, deadline=None)
@given(whole_formulas, MESHES, st.data())
def test_every_layout_has_the_bits_of_the_whole(formula: Formula, mesh: tuple[int, ...], data: st.DataObject) -> None:
    check_any(formula, mesh, data)


def check_any(formula: Formula, mesh: tuple[int, ...], data: st.DataObject) -> None:
    axes = st.integers(0, len(formula.shape) - 1)
    placements = [
        data.draw(st.one_of(st.just(Replicate()), st.builds(Shard, axes), st.builds(strided, axes, st.integers(1, 3))))
        for _ in mesh
    ]
    rank = data.draw(st.integers(0, int(np.prod(mesh)) - 1))
    check(formula, mesh, placements, rank, data.draw(st.sampled_from([1, 7, 1 << 20])))


EACH = [Replicate(), Shard(0), Shard(1), strided(0, 2), strided(1, 3)]


@pytest.mark.parametrize("placements", list(product(EACH, repeat=2)), ids=str)
def test_two_meshes_in_turn(placements: tuple[Placement, ...]) -> None:
    for rank in range(6):
        check(Bell((7, 11), 1.0, 0, "w"), (2, 3), list(placements), rank, 10)


def test_a_tensor_of_one_process_is_whole_and_scalars_are_scalars() -> None:
    (part,) = local_parts(torch.zeros(3, 4), "w")
    assert part.ranges == ((0, 3), (0, 4)) and part.target.shape == (3, 4)
    (part,) = local_parts(torch.zeros(()), "w")
    assert part.ranges == () and [p.ranges for p in pieces(part, 1)] == [()]
    assert local_parts(torch.zeros(0, 4), "w") == []
    (part,) = local_parts(torch.zeros(5, 4), "w")
    assert [piece.ranges[0] for piece in pieces(part, 9)] == [(0, 2), (2, 4), (4, 5)]


def test_sums_over_processes_and_packed_tensors_are_refused() -> None:
    value = DTensor.from_local(torch.zeros(4), mesh_with_us_at(0, (2,)), [Partial()], run_check=False)
    with pytest.raises(UsageError, match=r"a sum over processes \(w\).*Redistribute"):
        local_parts(value, "w")
    with pytest.raises(UsageError, match="not stored as plain numbers"):
        local_parts(torch.eye(3).to_sparse(), "w")


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(whole_formulas, MESHES, st.data())
def test_ten_thousand_layouts_have_the_bits_of_the_whole(
    formula: Formula, mesh: tuple[int, ...], data: st.DataObject
) -> None:
    check_any(formula, mesh, data)
