"""The modules that rewrites insert."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zero_convert.nn.functional import pad_channels, relu0, relu6_0, subsample
from zero_convert.nn.layers import HadamardTransform, ScalarBias, ScalarScale

from .odd_nets import ramp


def matrix_of(transform: HadamardTransform) -> Tensor:
    """Column i is what the transform makes of the i-th unit vector.  # (d, d)"""
    assert transform.trailing == 0
    return transform(torch.eye(transform.channels)).T


def sylvester(d: int) -> Tensor:
    """(-1)^popcount(i & j).  # (d, d)"""
    return torch.tensor([[float(1 - 2 * ((i & j).bit_count() % 2)) for j in range(d)] for i in range(d)])


@pytest.mark.parametrize("d", [1, 2, 4, 64, 256])
def test_a_power_of_two_gives_the_sylvester_matrix_over_sqrt_d(d: int) -> None:
    assert torch.equal(matrix_of(HadamardTransform(d, 0)), sylvester(d) * (1 / d**0.5))


@pytest.mark.parametrize("d", [12, 20, 24, 96, 320])
def test_other_hadamard_orders_are_orthogonal_with_entries_of_one_magnitude(d: int) -> None:
    transform = HadamardTransform(d, 0)
    matrix = matrix_of(transform)
    assert transform.isometry
    assert torch.allclose(matrix.abs(), torch.full((d, d), d**-0.5))
    assert torch.allclose(matrix.double().T @ matrix.double(), torch.eye(d).double(), atol=1e-6)


@pytest.mark.parametrize(("d", "order"), [(3, 4), (7, 8), (9, 16), (92, 128)])
def test_an_order_that_does_not_exist_is_cut_from_the_next_power_of_two(d: int, order: int) -> None:
    transform = HadamardTransform(d, 0)
    assert not transform.isometry
    assert torch.allclose(matrix_of(transform), sylvester(order)[:d, :d] / order**0.5, atol=0, rtol=1e-7)


@pytest.mark.parametrize("mixing", ["none", "permute", "signs"])
@pytest.mark.parametrize("d", [1, 7, 12, 24, 64])
def test_the_kronecker_path_equals_the_dense_one(d: int, mixing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = ramp(3, d, 5, 2)
    dense = HadamardTransform(d, 2, mixing, "layer")(x)
    monkeypatch.setattr(HadamardTransform, "DENSE", 0)
    assert torch.allclose(HadamardTransform(d, 2, mixing, "layer")(x), dense, atol=1e-6)


def test_beyond_the_dense_size_no_square_matrix_is_held() -> None:
    transform = HadamardTransform(4096, 0)
    assert sum(b.numel() for b in transform.buffers()) <= 3 * 4096
    x = ramp(2, 4096)
    assert torch.allclose(transform(transform(x)), x, atol=1e-5)


@pytest.mark.parametrize("trailing", [0, 1, 2, 3])
def test_only_the_channel_axis_is_mixed(trailing: int) -> None:
    x = ramp(2, 12, *[3] * trailing)
    transform = HadamardTransform(12, trailing)
    matrix = matrix_of(HadamardTransform(12, 0))
    assert torch.allclose(transform(x), torch.einsum("ij,nj...->ni...", matrix, x), atol=1e-6)


@pytest.mark.parametrize("dense", [True, False])
def test_a_transform_keeps_the_order_in_memory(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HadamardTransform, "DENSE", 2048 if dense else 0)
    transform, x = HadamardTransform(12, 2), ramp(2, 12, 3, 5)
    assert transform(x).is_contiguous() and transform(x[:, :, ::2, 1:]).is_contiguous()
    last = transform(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert torch.equal(last, transform(x))


def test_mixing_is_fixed_by_the_key_alone() -> None:
    plain = matrix_of(HadamardTransform(64, 0))
    for mixing in ("permute", "signs"):
        one, same, other = (matrix_of(HadamardTransform(64, 0, mixing, key)) for key in ("a", "a", "b"))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert not torch.equal(one, plain)
        assert torch.allclose(one.T @ one, torch.eye(64), atol=1e-6)


def test_permute_reorders_the_columns_and_signs_flips_them() -> None:
    plain = matrix_of(HadamardTransform(64, 0))
    permuted = matrix_of(HadamardTransform(64, 0, "permute", "a"))
    signed = matrix_of(HadamardTransform(64, 0, "signs", "a"))
    assert sorted(map(tuple, plain.T.tolist())) == sorted(map(tuple, permuted.T.tolist()))
    flips = signed / plain
    assert torch.equal(flips, flips[:1].expand_as(flips))
    assert set(flips[0].tolist()) == {1.0, -1.0}


def test_a_transform_has_nothing_to_train_and_nothing_to_save() -> None:
    for mixing in ("none", "permute", "signs"):
        transform = HadamardTransform(12, 2, mixing, "a")
        assert not list(transform.parameters())
        assert not transform.state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mixing", ["none", "permute", "signs"])
def test_every_precision_works_and_stays(dtype: torch.dtype, mixing: str) -> None:
    x = ramp(2, 24, 3)
    transform = HadamardTransform(24, 1, mixing, "a")
    expected = transform(x)
    found = transform.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, atol=1e-6 if dtype == torch.float64 else 0.05)


def test_copies_are_independent_and_equal() -> None:
    transform = HadamardTransform(24, 0, "permute", "a")
    twin = copy.deepcopy(transform)
    x = ramp(2, 24)
    assert torch.equal(transform(x), twin(x))
    twin.right.zero_()
    assert not torch.equal(transform(x), twin(x))


def slope(function: object, at: float) -> float:
    x = torch.tensor([at], requires_grad=True)
    function(x).backward()  # type: ignore[operator]
    assert x.grad is not None
    return x.grad.item()


def test_relu0_is_relu_with_slope_one_at_exactly_zero() -> None:
    x = ramp(50) * 9
    assert torch.equal(relu0(x), F.relu(x))
    assert [slope(relu0, at) for at in (-1.0, -1e-30, 0.0, -0.0, 2.0)] == [0, 0, 1, 1, 1]
    assert torch.isnan(relu0(torch.tensor(float("nan"))))


def test_relu6_0_is_relu6_with_slope_one_at_exactly_zero() -> None:
    x = ramp(50) * 9
    assert torch.equal(relu6_0(x), F.relu6(x))
    assert [slope(relu6_0, at) for at in (-1.0, 0.0, 3.0, 7.0)] == [0, 1, 1, 0]


def test_channels_are_appended_at_the_channel_axis() -> None:
    x = ramp(2, 3, 4, 5)
    padded = pad_channels(x, 7, 2)
    assert padded.shape == (2, 7, 4, 5)
    assert torch.equal(padded[:, :3], x)
    assert not padded[:, 3:].any()
    assert pad_channels(ramp(2, 3), 4, 0).shape == (2, 4)


def test_subsampling_crops_pads_and_steps() -> None:
    x = torch.arange(7.0).reshape(1, 1, 7)
    assert subsample(x, (2,), ((0, 0),)).flatten().tolist() == [0, 2, 4, 6]
    assert subsample(x, (2,), ((1, 2),)).flatten().tolist() == [1, 3]
    assert subsample(x, (3,), ((-2, -1),)).flatten().tolist() == [0, 1, 4, 0]


def test_scalars_start_neutral_and_learn() -> None:
    x = ramp(2, 3)
    for module in (ScalarBias(), ScalarScale()):
        assert [tuple(p.shape) for p in module.parameters()] == [(1,)]
        assert torch.equal(module(x), x)
        nn.init.constant_(next(module.parameters()), 3.0)
        assert not torch.equal(module(x), x)
