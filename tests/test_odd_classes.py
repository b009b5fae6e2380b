"""Weights that a forward keeps for itself, that a class holds, or that cannot be stored, are refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import zero_convert as zc
from tests import odd_classes
from zero_convert.errors import CoverageError, LoadError

X = torch.linspace(-1, 1, 16).sin().reshape(2, 8)
HIDDEN = {
    "CachedLayer": "odd_classes.py:",
    "CachedTensor": "weight, ",
    "Remembered": "odd_classes.py:",
    "OfTheClass": "function",
    "ObjectOfTheClass": "held.layer",
    "Decides": r"layers\[0\].weight",
    "DecidesByTensor": "matrix",
    "TakesObjects": r"part.layers\[0\].weight",
}


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "idinit"])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_weight_that_no_file_would_hold_is_named_on_every_rung(name: str, scheme: str) -> None:
    with pytest.raises(CoverageError, match=HIDDEN[name]):
        zc.convert(odd_classes.built(name), (X,), scheme=scheme, validate="none")


@pytest.mark.parametrize("name", ["CachedTable", "Noise"])
def test_what_is_computed_or_drawn_anew_is_none(name: str) -> None:
    assert not zc.convert(odd_classes.built(name), (X,), scheme="zero-2021").failed


def test_a_sparse_buffer_is_refused_with_what_to_register() -> None:
    with pytest.raises(LoadError, match=r"adjacency.*sparse_coo.*to_dense"):
        zc.convert(odd_classes.built("Sparse"), (X,))


def frozen(how: str, drawn: bool) -> zc.Result:
    arguments = {"name": "Frozen", "how": how, "drawn": drawn}
    return zc.convert("tests.odd_classes:built", (X,), model_args=arguments, scheme="zero-2021")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", ["weight_norm", "old weight_norm", "orthogonal"])
def test_a_frozen_weight_keeps_its_effective_value_through_its_parametrization(how: str) -> None:
    result, given = frozen(how, drawn=False), odd_classes.built("Frozen", how=how, drawn=False)
    assert not result.failed
    layer: Tensor = result.module.get_submodule("layer")(torch.eye(8))
    assert torch.allclose(layer, given.get_submodule("layer")(torch.eye(8)), atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", ["spectral_norm", "old spectral_norm"])
def test_a_frozen_weight_that_is_divided_by_its_norm_is_refused_and_the_way_out_is_right(how: str) -> None:
    with pytest.raises(CoverageError, match="remove_parametrizations"):
        frozen(how, drawn=False)
    assert not frozen(how, drawn=True).failed


@pytest.mark.parametrize("how", ["weight_norm", "old weight_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_drawn_and_frozen_weight_behind_a_parametrization_gets_a_rule(how: str) -> None:
    result = frozen(how, drawn=True)
    assert not result.failed
    assert torch.allclose(result.module.get_submodule("layer")(torch.eye(8)), torch.eye(8))


def test_layers_whose_final_states_are_all_used_are_all_zero() -> None:
    result = zc.convert(odd_classes.built("States"), (X,), scheme="zero-2021")
    assert not result.failed
    state = result.module.state_dict()
    assert not state["recurrent.weight_ih_l0"].any() and not state["recurrent.weight_ih_l1"].any()
