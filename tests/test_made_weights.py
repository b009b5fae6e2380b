"""Weights that a forward computes by hand start as the scheme says of the effective weight, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from tests import made_nets as nets
from zero_convert.errors import CoverageError

# From the papers. zero-2021: the last layer of a branch and the head are 0, the others partial identities, wrapped
# around where they grow. zero-2022: identities, and Hadamard / sqrt(16) where they grow (8 -> 16).
EYE = torch.eye(8)
SIGNS = torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(8)] for i in range(16)])


def batch(image: bool = False) -> Tensor:
    shape = (2, 3, 8, 8) if image else (2, 8)
    return torch.linspace(-1, 1, torch.Size(shape).numel()).sin().reshape(shape)


def converted(net: nn.Module, scheme: str, image: bool = False) -> zc.Result:
    result = zc.convert(net, (batch(image),), scheme=scheme)
    assert [(check.name, check.summary) for check in result.failed] == []
    return result


def made(net: nets.Net, result: zc.Result, name: str) -> Tensor:
    """The effective weight of a layer with the values of the result."""
    layer: nets.Linear = net.get_submodule(name)  # type: ignore[assignment]
    state = {key.removeprefix(f"{name}."): v for key, v in result.module.state_dict().items() if key.startswith(name)}
    layer.load_state_dict(state)
    return layer.weight().detach()


def rows_of_length_1(w: Tensor) -> Tensor:
    return w / w.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("how", {**nets.LENGTHS, **nets.SUMS})
def test_a_weight_with_a_length_or_a_sum_is_what_the_scheme_says(how: str) -> None:
    kind = {**nets.LENGTHS, **nets.SUMS}[how]
    net = nets.Net(*kind)
    new = converted(net, "zero-2022")
    assert torch.allclose(made(net, new, "a"), EYE, atol=1e-6)
    assert torch.allclose(made(net, new, "d"), SIGNS / 4, atol=1e-6)
    old = converted(net, "zero-2021")
    assert torch.allclose(made(net, old, "a"), EYE, atol=1e-6)
    assert not made(net, old, "c").any() and not made(net, old, "e").any() and not made(net, old, "head").any()
    wide = made(net, old, "d")  # two ones a row below row 8; with lengths that are 0 or 1 a row has length 1
    assert torch.allclose(wide[:8], EYE, atol=1e-6)
    assert torch.equal(wide[8:].ne(0).sum(1), torch.full((8,), 2)) and wide.unique(dim=0).shape[0] == 16
    assert set(torch.cat([p.flatten() for p in old.module.parameters()]).unique().tolist()) <= {0.0, 1.0}


def test_one_length_for_the_whole_is_that_of_the_whole() -> None:
    net = nets.Net(*nets.WHOLE["one length"])
    new = converted(net, "zero-2022")
    assert torch.allclose(made(net, new, "a"), EYE, atol=1e-6)
    assert torch.allclose(made(net, new, "d"), SIGNS / 4, atol=1e-6)
    assert not made(net, converted(net, "zero-2021"), "c").any()


@pytest.mark.parametrize("how", nets.DIRECTIONS)
def test_a_weight_without_a_length_is_never_zero(how: str) -> None:
    net = nets.Net(*nets.DIRECTIONS[how])
    new, old = converted(net, "zero-2022"), converted(net, "zero-2021")
    assert torch.allclose(made(net, new, "d"), rows_of_length_1(SIGNS), atol=1e-6)
    for result in (new, old):
        assert torch.allclose(made(net, result, "a"), EYE, atol=1e-6)
        assert torch.allclose(made(net, result, "c"), EYE, atol=1e-6)  # 0 is 0/0


def test_a_standardized_weight_is_nearly_the_identity() -> None:
    net = nets.standardized()
    for scheme in ("zero-2021", "zero-2022"):
        centred = EYE - 1 / 8
        expected = centred / centred.std(1, keepdim=True)
        assert torch.allclose(made(net, converted(net, scheme), "a"), expected, atol=1e-3)
        assert torch.allclose(made(net, converted(net, scheme), "c"), expected, atol=1e-3)


@pytest.mark.parametrize("how", nets.PRODUCTS)
def test_a_product_of_two_follows_the_rule_in_each_and_the_last_is_zero(how: str) -> None:
    net = nets.Net(*nets.PRODUCTS[how])
    part = torch.zeros(8, 8)
    part[0, 0] = part[1, 1] = 1
    for scheme in ("zero-2021", "zero-2022"):
        result = converted(net, scheme)
        state = result.module.state_dict()
        assert torch.equal(state["a.A"], torch.eye(2, 8))
        assert torch.linalg.matrix_rank(made(net, result, "a")) == nets.RANK
        if scheme == "zero-2021":
            assert torch.allclose(made(net, result, "a")[:2], part[:2])
            assert not state["c.B"].any() and state["c.A"].any() and not made(net, result, "head").any()


@pytest.mark.parametrize("layer", [nets.Cosine, nets.Lengths, nets.Adapter, nets.Merged, nets.Standardized])
@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "idinit"])
def test_layers_of_torch_with_a_forward_of_their_own_are_asked(layer: type[nn.Module], scheme: str) -> None:
    image = issubclass(layer, nn.Conv2d)
    result = converted(nets.Layers(layer), scheme, image)
    state = result.module.state_dict()
    assert result.module.state_dict().keys() >= {"a.weight", "c.weight"}
    if scheme != "idinit":  # whose branches of 1e-6 are far below the rest
        assert next(check for check in result.checks if check.name == "gradient_norms").status == "pass"
    if layer in (nets.Adapter, nets.Merged):
        assert not state["a.B"].any() and torch.equal(state["a.A"], torch.eye(2, 8))
    if layer in (nets.Cosine, nets.Standardized):
        assert all(row.any() for row in state["c.weight"])


@pytest.mark.parametrize("how", nets.REFUSED)
@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "fixup", "idinit"])
def test_what_is_none_of_these_is_refused_by_name(how: str, scheme: str) -> None:
    with pytest.raises(CoverageError) as refused:
        zc.convert(nets.Net(*nets.REFUSED[how]), (batch(),), scheme=scheme)
    text = str(refused.value)
    assert "a.v" in text and "becomes a weight by" in text and "--scheme FILE.py" in text
    assert "--uncovered zeros" not in text  # exp(0) is a matrix of ones, of rank 1; relu(0) never moves


def test_the_scheme_of_ones_own_that_the_refusal_names_works(tmp_path: Path) -> None:
    scheme = tmp_path / "mine.py"
    scheme.write_text('''"""Mine.

Source: none. Mathematics. Codes for what exp makes a weight. Applies to: all. Needs: nothing. Paper against code. None.
Exact: yes.
"""
from zero_convert.formulas import Hadamard
from zero_convert.initialization.scheme import Scheme
from zero_convert.schemes.zero_2022 import SCHEME as BASE


def fill(layer, structure, options):
    if layer.refusal:
        return {t.local: Hadamard(*t.shape, 0.5) if len(t.shape) == 2 else BASE_ZERO(t) for t in layer.tensors}
    return BASE.fill(layer, structure, {"c": "released", "columns": "first", "order": "sylvester"})


def BASE_ZERO(t):
    from zero_convert.formulas import Constant
    return Constant(t.shape, 0.0)


SCHEME = Scheme(name="mine", title="mine", doc=__doc__, options=(), rewrites=lambda options: (), fill=fill)
''')
    result = zc.convert(nets.exponential(), (batch(),), scheme=str(scheme), validate="none")
    assert torch.equal(result.module.state_dict()["a.v"], SIGNS[:8] / 2)


@pytest.mark.parametrize("scheme", ["fixup", "skipinit", "rezero", "risotto"])
def test_schemes_of_hashed_values_know_lengths_and_decline_directions(scheme: str) -> None:
    how = nets.Net(*nets.DIRECTIONS["normalize(v)"])
    with pytest.raises(CoverageError, match="--scheme"):
        zc.convert(how, (batch(),), scheme=scheme)
    if scheme == "fixup":
        net = nets.Net(*nets.LENGTHS["v·(g/‖v‖)"])
        result = zc.convert(net, (batch(),), scheme=scheme)
        assert not made(net, result, "c").any() and made(net, result, "a").any()
