"""IDInit: its values typed from the paper, its row sums and its bound on real networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from tests import nets
from tests.test_checks import answers, convert
from tests.test_schemes import conv, fill, linear
from zero_convert import checks
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.isolation import pinned
from zero_convert.checks.subject import Subject
from zero_convert.formulas import Average, CyclicIdentity, OpposedIdentity, Unfolded
from zero_convert.records import Check

E = np.float32(1e-6)


def last(m: int, n: int, *kernel: int, **more):
    return conv(m, n, *kernel, role="branch-last", join=0, **more) if kernel else linear(m, n, "branch-last", join=0)


# -- values ------------------------------------------------------------------------------------------------------------


def test_the_identity_goes_round_where_it_ends() -> None:
    assert fill("idinit", linear(3, 2))["weight"].tolist() == [[1, 0], [0, 1], [1, 0]]
    assert fill("idinit", linear(2, 3))["weight"].tolist() == [[1, 0, 0], [0, 1, 0]]
    root = float(np.float32(np.sqrt(2)))
    assert fill("idinit", linear(2, 2), tau="sqrt2")["weight"].tolist() == [[root, 0], [0, root]]


def test_the_last_layer_of_a_branch_is_an_identity_and_its_opposite() -> None:
    assert (fill("idinit", last(3, 2))["weight"] / E).tolist() == [[1, -1], [-1, 1], [1, -1]]
    assert (fill("idinit", last(2, 4))["weight"] / E).tolist() == [[1, 0, -1, 0], [0, 1, 0, -1]]
    assert (fill("idinit", last(3, 5))["weight"] / E).tolist() == [[1, 0, 0, -1, 0], [0, 1, 0, 0, -1], [0, 0, 1, -1, 0]]
    assert (fill("idinit", last(3, 3))["weight"] / E).tolist() == [[1, -1, 0], [0, 1, -1], [-1, 0, 1]]
    assert fill("idinit", last(2, 1))["weight"].tolist() == [[0], [0]]


def test_orders_of_the_columns() -> None:
    """3 outputs, 2 inputs, 1×3 taps: columns (tap, channel), columns (channel, tap), or the centre tap alone."""
    layer = conv(3, 2, 1, 3)
    first = fill("idinit", layer)["weight"][:, :, 0]  # (out, channel, tap)
    assert first.tolist() == [[[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]]]
    channels = fill("idinit", layer, order="channels-first")["weight"][:, :, 0]
    assert channels.tolist() == [[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 0]]]
    centre = fill("idinit", layer, order="centre")["weight"][:, :, 0]
    assert centre.tolist() == [[[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 0]]]


def test_groups_have_the_matrix_each_and_transposed_layers_the_adjoint() -> None:
    weight = fill("idinit", conv(4, 4, 1, 3, groups=2))["weight"][:, :, 0]
    assert weight[:2].tolist() == weight[2:].tolist() == [[[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]]
    plain = Unfolded(CyclicIdentity(4, 6), (3,))
    adjoint = Unfolded(CyclicIdentity(4, 6), (3,), transposed=True)
    assert np.array_equal(adjoint.window(0, 2), np.moveaxis(plain.window(0, 4), 0, 1))


@pytest.mark.parametrize(
    "rule",
    [
        Average(5, 3),
        CyclicIdentity(7, 3),
        CyclicIdentity(3, 7, 0.5),
        OpposedIdentity(7, 3, 1e-6),
        OpposedIdentity(3, 7, 1e-6),
        OpposedIdentity(3, 1, 1e-6),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_windows_and_single_entries_are_the_whole(rule, dtype) -> None:
    whole = np.full(rule.shape, np.nan, dtype)
    rule.fill(whole)
    assert np.array_equal(rule.window(1, 3, dtype), whole[1:3])
    assert np.array_equal(rule.entries(range(rule.m), range(rule.n), dtype), whole)
    columns = np.arange(rule.n)[::-1]
    assert np.array_equal(rule.entries(np.array([2, 0]), columns, dtype), whole[[2, 0]][:, ::-1])


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_windows_of_flattened_kernels_are_the_whole(channels_first: bool, groups: int, transposed: bool) -> None:
    rule = Unfolded(OpposedIdentity(4, 12, 1.0), (2, 3), groups, transposed, channels_first)
    whole = np.full(rule.shape, np.nan, np.float32)
    rule.fill(whole)
    assert np.array_equal(rule.window(1, len(whole) - 1), whole[1:-1])
    assert np.abs(whole).sum() == groups * 4 * 2


# -- real networks -----------------------------------------------------------------------------------------------------

IMAGES = torch.zeros(1, 3, 32, 32)
REAL: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "resnet18": (models.resnet18, IMAGES),
    "resnet50": (models.resnet50, IMAGES),
    "pre-activation": (nets.PreActivationResNet, IMAGES),
    "plain": (nets.PlainCnn, IMAGES),
    "mlp": (nets.mlp, torch.zeros(2, 20)),
    "vit": (lambda: models.VisionTransformer(32, 8, 3, 2, 16, 32), IMAGES),
}


def weights(subject: Subject) -> dict[str, tuple[str, torch.Tensor]]:
    """Role and weight of every convolution and linear layer."""
    root = subject.traced.root
    return {
        layer.name: (layer.role, root.get_parameter(f"{layer.name}.weight").detach())
        for layer in subject.structure.layers
        if layer.kind in ("convolution", "linear")
    }


@pytest.mark.parametrize(
    ("order", "tau"),
    [
        ("taps-first", "1"),
        pytest.param("taps-first", "sqrt2", marks=pytest.mark.slow),
        pytest.param("channels-first", "1", marks=pytest.mark.slow),
        pytest.param("centre", "1", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("net", REAL)
def test_rows_sum_to_zero_and_entries_are_zero_epsilon_or_tau(net: str, order: str, tau: str) -> None:
    make, inputs = REAL[net]
    subject = convert(make(), inputs, "idinit", order=order, tau=tau)
    found = weights(subject)
    t = float(np.float32(np.sqrt(2))) if tau == "sqrt2" else 1.0
    ends = [name for name, (role, _) in found.items() if role == "branch-last"]
    assert len(ends) == {"resnet18": 8, "resnet50": 16, "pre-activation": 3, "plain": 0, "mlp": 0, "vit": 6}[net]
    for name, (role, weight) in found.items():
        flat = weight.flatten(1)
        if role == "branch-last":
            assert set(flat.unique().tolist()) == {0.0, float(E), -float(E)}, name
            assert not flat.sum(1).any() and bool((flat.count_nonzero(1) == 2).all()), name
        else:
            assert set(flat.unique().tolist()) == {0.0, t}, name
            assert bool((flat.count_nonzero(1) == 1).all()), name
    for name, value in subject.traced.root.named_parameters():
        assert not name.endswith("bias") or not value.any()


def bound(subject: Subject) -> Check | None:
    with pinned("cpu"):
        return checks.answer("branch_bound", CheckContext(subject, "quick", "cpu"))


@pytest.mark.parametrize("net", REAL)
def test_every_branch_keeps_its_bound(net: str) -> None:
    make, inputs = REAL[net]
    check = bound(convert(make(), inputs, "idinit"))
    if net in ("plain", "mlp"):
        assert check is None
        return
    assert check is not None and check.status == "pass", check
    shares = check.numbers["shares_of_the_limit"]
    assert len(shares) == {"resnet18": 8, "resnet50": 16, "pre-activation": 3, "vit": 3}[net]
    # A transformer's wide layer repeats its input, and the value and its opposite read the same: rounding is left.
    assert (max(shares.values()) < 1e-6) == (net == "vit")


def test_the_bound_is_the_schemes_word_and_not_the_weights() -> None:
    subject = convert(nets.PreActivationResNet(), IMAGES, "idinit")
    with torch.no_grad():
        subject.traced.root.get_parameter("body.1.conv2.weight").mul_(5)
    found = bound(subject)
    assert found is not None and found.status == "fail" and found.numbers["shares_of_the_limit"]


@pytest.mark.parametrize("make", [nets.PreActivationResNet, nets.NormFreeNet, nets.tiny_resnet])
def test_no_check_fails(make: Callable[[], nn.Module]) -> None:
    found = answers(convert(make(), IMAGES, "idinit"))
    assert {name: check.summary for name, check in found.items() if check.status == "fail"} == {}
    assert found["branch_bound"].status == "pass"


def test_a_branch_that_a_factor_silences_ends_in_an_identity() -> None:
    silent = replace(last(2, 2), zeroed_by_scale=True)
    assert fill("idinit", silent)["weight"].tolist() == [[1, 0], [0, 1]]
