"""The schemes as pure functions of facts: no network here."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from zero_convert import schemes
from zero_convert.errors import UsageError
from zero_convert.formulas import Formula
from zero_convert.initialization.scheme import SEED
from zero_convert.records import Geometry, Join, Layer, Option, SignalPath, Structure, Tensor

R2 = np.float32(1 / math.sqrt(2))


def tensor(name: str, *shape: int, buffer: bool = False) -> Tensor:
    return Tensor(name, shape, "F32", not buffer, buffer)


def layer(kind: str, role: str, *tensors: Tensor, geometry: Geometry | None = None, **more) -> Layer:
    return Layer("a", kind, kind.title(), role, tensors, geometry, way=SignalPath("layer", "b", ("relu",)), **more)


def conv(m: int, n: int, *kernel: int, groups: int = 1, stride: int = 1, role: str = "trunk", join=None) -> Layer:
    g = Geometry(m, n, kernel, (stride,) * len(kernel), ((0, 0),) * len(kernel), (1,) * len(kernel), groups)
    return layer("convolution", role, tensor("a.weight", m, n // groups, *kernel), geometry=g, join=join)


def linear(m: int, n: int, role: str = "trunk", **more) -> Layer:
    return layer("linear", role, tensor("a.weight", m, n), tensor("a.bias", m), geometry=Geometry(m, n), **more)


def fill(scheme: str, what: Layer, structure: Structure | None = None, **options: str) -> dict[str, np.ndarray]:
    chosen = schemes.get(scheme)
    given = chosen.fill(what, structure or Structure((what,), ()), schemes.complete_options(chosen, dict(options)))
    assert given is not None
    values = {}
    for name, rule in given.items():
        values[name] = np.full(rule.shape, np.nan, np.float32)
        rule.fill(values[name])
    return values


# -- zero-2022 ---------------------------------------------------------------------------------------------------------


def test_wide_and_square_matrices_are_partial_identities() -> None:
    assert fill("zero-2022", linear(3, 5))["weight"].tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert fill("zero-2022", linear(2, 2))["weight"].tolist() == [[1, 0], [0, 1]]


def test_tall_matrices_are_cropped_hadamard_matrices() -> None:
    h = 0.5
    assert fill("zero-2022", linear(4, 3))["weight"].tolist() == [[h, h, h], [h, -h, h], [h, h, -h], [h, -h, -h]]


def test_an_odd_exponent_keeps_its_root_of_two() -> None:
    """Ports that divide k by two as integers lose it."""
    assert fill("zero-2022", linear(2, 1))["weight"].tolist() == [[R2], [R2]]
    assert np.abs(fill("zero-2022", linear(6, 4))["weight"]).max() == np.float32(1 / math.sqrt(8))


def test_the_printed_scale_is_an_option() -> None:
    assert fill("zero-2022", linear(4, 1), c="paper")["weight"].tolist() == [[R2]] * 4


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (3, 5), (3, 3, 3), (1, 7)])
def test_a_convolution_is_its_matrix_at_the_centre_tap_and_zero_elsewhere(kernel: tuple[int, ...]) -> None:
    """Ports leave random values at the other taps, and crash for one dimension."""
    weight = fill("zero-2022", conv(4, 2, *kernel))["weight"]
    centre = (..., *(k // 2 for k in kernel))
    assert weight[centre].tolist() == [[0.5, 0.5], [0.5, -0.5], [0.5, 0.5], [0.5, -0.5]]
    weight[centre] = 0
    assert not weight.any()


def test_groups_get_the_rule_each() -> None:
    weight = fill("zero-2022", conv(4, 4, 3, groups=2))["weight"]
    assert weight[:, :, 1].tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert fill("zero-2022", conv(6, 6, 3, 3, groups=6))["weight"][:, 0, 1, 1].tolist() == [1] * 6


def test_patches_are_one_matrix_on_the_flattened_patch() -> None:
    weight = fill("zero-2022", conv(4, 2, 2, 2, stride=2))["weight"]
    assert weight.reshape(4, 8).tolist() == np.eye(4, 8).tolist()


def test_the_last_convolution_of_a_branch_is_zero_and_a_transformers_is_not() -> None:
    def structure(first: Layer, last: Layer) -> Structure:
        join = Join(0, "add", "x", "b", "x", "identity", ("first", "a"), (), "plain", (), "", 4, 4, 1)
        return Structure((Layer("first", first.kind, "", "branch", (), first.geometry), last), (join,))

    last = linear(4, 8, "branch-last", join=0)
    assert not fill("zero-2022", last, structure(conv(8, 4, 3), last))["weight"].any()
    assert fill("zero-2022", last, structure(linear(8, 4), last))["weight"].any()


def test_a_branch_with_convolution_and_attention_does_not_end_in_zero() -> None:
    """Its values V are 0 already; with the output projection 0 as well, neither would ever get a gradient."""
    join = Join(0, "add", "x", "b", "x", "identity", ("conv", "qkv", "a"), (), "plain", (), "", 4, 4, 1)
    qkv = Layer("qkv", "linear", "", "branch", (), Geometry(12, 4), sections=(("value", 12),))
    last = linear(4, 4, "branch-last", join=0)
    structure = Structure((Layer("conv", "convolution", "", "branch", (), None), qkv, last), (join,))
    assert fill("zero-2022", last, structure)["weight"].any()


@pytest.mark.parametrize(("scheme", "value"), [("zero-2021", 1), ("zero-2022", np.nan)])
def test_slopes_of_activations(scheme: str, value: float) -> None:
    slope = layer("activation", "trunk", tensor("a.weight", 1))
    assert np.array_equal(fill(scheme, slope)["weight"], [value], equal_nan=True)


def test_attention_starts_with_queries_only() -> None:
    attention = layer("attention", "branch", tensor("a.in_proj_weight", 6, 2), geometry=Geometry(2, 2))
    assert fill("zero-2022", attention)["in_proj_weight"].tolist() == [[1, 0], [0, 1]] + [[0, 0]] * 4
    parts = (("query", 2), ("key", 2), ("value", 2))
    fused = fill("zero-2022", linear(6, 2, "branch", sections=parts))["weight"]
    assert fused.tolist() == [[1, 0], [0, 1]] + [[0, 0]] * 4


def test_an_attention_of_which_nothing_else_carries_the_signal_starts_with_values() -> None:
    attention = layer("attention", "trunk", tensor("a.in_proj_weight", 6, 2), geometry=Geometry(2, 2))
    assert fill("zero-2022", attention)["in_proj_weight"].tolist() == [[1, 0], [0, 1], [0, 0], [0, 0], [1, 0], [0, 1]]
    parts = (("query", 2), ("key", 2), ("value", 2))
    for alone in (linear(6, 2, sections=parts), linear(6, 2, "branch", sections=parts, before_relu=True)):
        assert fill("zero-2022", alone)["weight"].tolist() == [[1, 0], [0, 1], [0, 0], [0, 0], [1, 0], [0, 1]]


def test_spanning_columns_tell_all_rows_apart() -> None:
    first = fill("zero-2022", linear(2048, 784))["weight"]
    spanning = fill("zero-2022", linear(2048, 784), columns="spanning")["weight"]
    assert len(np.unique(first, axis=0)) == 1024
    assert len(np.unique(spanning, axis=0)) == 2048


@pytest.mark.parametrize("m", [96, 192, 320, 384, 768, 1280, 1536, 3072])
@pytest.mark.parametrize("order", ["sylvester", "exact"])
def test_spanning_columns_tell_all_rows_apart_at_usual_widths(m: int, order: str) -> None:
    for n in (m // 2, m // 4):
        weight = fill("zero-2022", linear(m, n), columns="spanning", order=order)["weight"]
        assert len(np.unique(np.packbits(weight > 0, axis=1), axis=0)) == m


def test_exact_orders_are_isometries_where_a_crop_is_not() -> None:
    exact = fill("zero-2022", linear(768, 588), order="exact")["weight"].astype(np.float64)
    cropped = fill("zero-2022", linear(768, 588))["weight"].astype(np.float64)
    assert np.abs(exact.T @ exact - np.eye(588)).max() < 1e-6
    assert np.linalg.svd(cropped, compute_uv=False).min() < 0.6


# -- zero-2021 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["branch-last", "head", "gate-last"])
def test_what_a_skip_or_the_loss_covers_is_zero(role: str) -> None:
    assert not fill("zero-2021", linear(3, 3, role))["weight"].any()


@pytest.mark.parametrize("role", ["stem", "branch", "trunk", "shortcut", "gate"])
def test_everything_else_is_a_partial_identity(role: str) -> None:
    assert fill("zero-2021", linear(3, 2, role))["weight"].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert fill("zero-2021", conv(2, 3, 3, 3, role=role))["weight"][:, :, 1, 1].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_attention_is_an_identity_in_all_three_parts() -> None:
    attention = layer("attention", "branch", tensor("a.in_proj_weight", 6, 2), geometry=Geometry(2, 2))
    assert fill("zero-2021", attention)["in_proj_weight"].tolist() == [[1, 0], [0, 1]] * 3


def test_scalars_of_the_norm_free_form() -> None:
    assert fill("zero-2021", layer("bias", "trunk", tensor("a.bias", 1)))["bias"].tolist() == [0]
    assert fill("zero-2021", layer("scale", "trunk", tensor("a.scale", 1)))["scale"].tolist() == [1]


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", schemes.names())
def test_norms_start_as_the_identity_with_or_without_parameters(scheme: str) -> None:
    statistics = (tensor("a.running_mean", 2, buffer=True), tensor("a.running_var", 2, buffer=True))
    full = fill(scheme, layer("norm", "trunk", tensor("a.weight", 2), tensor("a.bias", 2), *statistics))
    assert {name: value.tolist() for name, value in full.items()} == {
        "weight": [1, 1],
        "bias": [0, 0],
        "running_mean": [0, 0],
        "running_var": [1, 1],
    }
    assert set(fill(scheme, layer("norm", "trunk", *statistics))) == {"running_mean", "running_var"}


@pytest.mark.parametrize("scheme", schemes.names())
def test_a_missing_bias_is_no_trouble_and_a_present_one_is_zero(scheme: str) -> None:
    assert set(fill(scheme, conv(2, 2, 3))) == {"weight"}
    assert fill(scheme, linear(2, 2))["bias"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("scheme", "use", "value"),
    [
        ("zero-2021", "added", 0),
        ("zero-2021", "indexed", 0),
        ("zero-2021", "multiplied", 1),
        ("zero-2021", "temperature", 1),
        ("zero-2022", "added", 0),
        ("zero-2022", "indexed", 0),
        ("zero-2022", "multiplied", np.nan),  # kept: whatever was there
    ],
)
def test_raw_parameters_follow_their_use(scheme: str, use: str, value: float) -> None:
    what = layer("parameter", "trunk", tensor("a.p", 3), uses=(("p", use),))
    assert np.array_equal(fill(scheme, what)["p"], [value] * 3, equal_nan=True)


def test_tokens_are_rows_of_the_partial_identity_or_codes_that_are_not_constant() -> None:
    """A class token of zeros would stay zero through every zero branch, and all before the head would be dead; a
    LayerNorm leaves nothing of 0 or of a constant."""
    one = layer("parameter", "trunk", tensor("a.p", 1, 1, 3), uses=(("p", "concatenated"),))
    two = layer("parameter", "trunk", tensor("a.p", 1, 2, 3), uses=(("p", "concatenated"),))
    flat = layer("parameter", "trunk", tensor("a.p", 3), uses=(("p", "concatenated"),))
    assert fill("zero-2021", one)["p"].tolist() == [[[1, 0, 0]]]
    assert fill("zero-2021", two)["p"].tolist() == [[[1, 0, 0], [0, 1, 0]]]
    assert fill("zero-2021", flat)["p"].tolist() == [1, 0, 0]
    two_by_four = layer("parameter", "trunk", tensor("a.p", 1, 2, 4), uses=(("p", "concatenated"),))
    assert fill("zero-2022", two_by_four)["p"].tolist() == [[[0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5]]]
    table = layer("embedding", "trunk", tensor("a.weight", 2, 4))
    assert fill("zero-2022", table)["weight"].tolist() == [[0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5]]


@pytest.mark.parametrize("scheme", schemes.names())
def test_what_no_rule_covers_is_said_to_be_uncovered(scheme: str) -> None:
    chosen = schemes.get(scheme)
    options = schemes.complete_options(chosen, {})
    unknown = [
        layer("", "trunk", tensor("a.w", 3)),
        layer("parameter", "trunk", tensor("a.p", 3), uses=(("p", "read"),)),
    ]
    unknown.append(layer("linear", "trunk", tensor("a.weight_g", 3), geometry=Geometry(3, 3)))
    assert [dict(chosen.fill(what, Structure((what,), ()), options) or {}) for what in unknown] == [{}] * 3


@pytest.mark.parametrize("scheme", schemes.names())
def test_a_scheme_is_pure(scheme: str) -> None:
    chosen = schemes.get(scheme)
    options: dict[str, Option] = schemes.complete_options(chosen, {})
    what = conv(12, 4, 3, 3)
    first: Formula = chosen.fill(what, Structure((what,), ()), options)["weight"]  # type: ignore[index]
    again: Formula = chosen.fill(what, Structure((what,), ()), options)["weight"]  # type: ignore[index]
    assert first == again
    whole = np.empty(first.shape, np.float32)
    first.fill(whole)
    assert np.array_equal(first.window(5, 9), whole[5:9])


def test_schemes_are_found_by_name_and_alias() -> None:
    assert {"zero-2021", "zero-2022"} <= set(schemes.names())
    assert schemes.get("zero") is schemes.get("zero-2021")


@pytest.mark.parametrize("scheme", schemes.names())
def test_a_schemes_text_has_its_fixed_parts(scheme: str) -> None:
    text = schemes.get(scheme).doc
    parts = ("Source:", "Mathematics.", "Applies to:", "Needs:", "Paper against code.", "Exact:", "arXiv")
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["mixng=none"], "mixing"),
        (["mixing=permut"], "permute"),
        (["mixing"], "key=value"),
        (["norm=keep", "norm=none"], "twice"),
    ],
)
def test_wrong_options_are_refused_with_the_nearest_right_one(pairs: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        schemes.complete_options(schemes.get("zero-2021"), schemes.read_pairs(pairs))


SEEDED = schemes.Scheme("seeded", "", "", (SEED,), lambda options: (), lambda layer, structure, options: None)


@pytest.mark.parametrize(("value", "read"), [("7", 7), ("007", 7), (7, 7), ("0", 0), (2**53 - 1, 2**53 - 1)])
def test_a_whole_number_is_the_same_option_however_it_is_given(value: Option, read: int) -> None:
    chosen = schemes.complete_options(SEEDED, {"seed": value})
    assert chosen == {"seed": read} and type(chosen["seed"]) is int
    assert schemes.complete_options(SEEDED, {}) == {"seed": 0}


@pytest.mark.parametrize("value", ["", "-1", "1.0", "1e3", "٣", " 1", "0x1", "one", True, 1.0, -1, 2**53, "9" * 5000])
def test_what_is_no_whole_number_in_range_is_refused(value: Option) -> None:
    with pytest.raises(UsageError, match=r"0…9007199254740991"):
        schemes.complete_options(SEEDED, {"seed": value})


def test_an_unknown_scheme_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="zero-2021"):
        schemes.get("zero-2012")


def test_schemes_do_not_need_torch() -> None:
    code = "import sys, zero_convert.schemes as s; [s.get(n) for n in s.names()]; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
