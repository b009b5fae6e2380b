"""Weights outside of the state dict: named and refused under every scheme, and nothing that only looks like it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import zero_convert as zc
from zero_convert.errors import CoverageError
from zero_convert.graph.unregistered import find

from . import outside_nets

FILE = Path(outside_nets.__file__)
X = (torch.zeros(2, 4),)
SCHEMES = ("zero-2021", "zero-2022")

# class → (what the message names, the remedy)
REFUSED = {
    "Listed": ("blocks[0].weight", "nn.ModuleList"),
    "Paired": ("pair[0].weight", "nn.ModuleList"),
    "Named": ("table['a'].weight", "nn.ModuleDict"),
    "Nested": ("levels[0]['gate'][0].weight", "nn.Module"),
    "Described": ("parts.layer.weight", "constructor"),
    "Slotted": ("helper.layer.weight", "constructor"),
    "Closed": ("act, closure `layer`.weight", "constructor"),
    "Partial": ("mix.keywords['weight']", "nn.Parameter"),
    "Hooked": ("closure `extra`.weight", "constructor"),
    "ClassLevel": ("ClassLevel.shared[0].weight", "nn.ModuleList"),
    "Global": ("global `GLOBAL_LAYER`.weight", "constructor"),
    "Bypassed": ("side.weight", "constructor"),
    "Inside": ("part.1.more[0].weight", "nn.ModuleList"),
    "InLayer": ("layer.more[0].weight", "nn.ModuleList"),
    "Deciding": ("ways[", "nn.ModuleList"),
    "MadeThere": ("a layer that the forward makes (", "constructor"),
    "NormThere": ("a layer that the forward makes (", "constructor"),
    "MadeInside": ("a layer that the forward makes (", "constructor"),
    "Parameters": ("gains[0]", "nn.ParameterList"),
    "Trainable": ("gain", "nn.Parameter"),
    "Drawn": ("mix", "register_buffer"),
    "DrawnInList": ("mixes[0]", "register_buffer"),
    "DrawnDefault": ("default of `table`", "register_buffer"),
    "DrawnGlobal": ("global `GLOBAL_TABLE`", "register_buffer"),
}
ACCEPTED = (
    *(
        "References",
        "Mask",
        "Normalizing",
        "Masks",
        "Positions",
        "Teacher",
        "Parent",
        "Cached",
        "Literals",
        "Tokenized",
    ),
    "DrawnOrder",
)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_no_file_would_hold_are_named_with_their_line_and_the_remedy(name: str, scheme: str) -> None:
    wanted, remedy = REFUSED[name]
    for model in (f"{FILE}:{name}", getattr(outside_nets, name)()):
        with pytest.raises(CoverageError) as caught:
            zc.plan(model, X, scheme=scheme)
        assert wanted in caught.value.where
        assert remedy in caught.value.fix
        assert re.search(r"outside_nets\.py:\d+", caught.value.where)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ACCEPTED)
def test_references_constants_and_what_the_forward_never_reads_are_no_weights(name: str, scheme: str) -> None:
    result = zc.convert(getattr(outside_nets, name)(), X, scheme=scheme, device="cpu")
    assert not result.failed
    assert set(result.module.state_dict()) == set(getattr(outside_nets, name)().state_dict())


def test_a_drawn_permutation_is_refused_where_the_constructor_was_seen() -> None:
    with pytest.raises(CoverageError, match="order"):
        zc.plan(f"{FILE}:DrawnOrder", X)


def test_an_idle_layer_is_a_note_in_the_plan() -> None:
    plan = zc.plan(f"{FILE}:Teacher", X)
    assert any("teacher[0].weight" in note for note in plan.notes)


@pytest.mark.parametrize("name", ["Mask", "Masks"])
def test_a_constant_mask_keeps_its_values_in_the_result_in_onnx_and_in_what_is_loaded(
    name: str, tmp_path: Path
) -> None:
    result = zc.convert(f"{FILE}:{name}", X, scheme="zero-2022", device="cpu", validate="full", formats=("onnx",))
    assert not result.failed
    result.save(tmp_path / "net.safetensors")
    own, loaded = result.module.eval(), zc.load(tmp_path / "net.safetensors", f"{FILE}:{name}", X).eval()
    plain = getattr(outside_nets, name)()
    plain.load_state_dict(result.module.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(own(x), plain.eval()(x)) and torch.equal(loaded(x), own(x))


def test_what_was_looked_for_is_left_as_it_was() -> None:
    """Made-up values stand in for drawn ones only while the forward is watched."""
    net = outside_nets.ClassLevel()
    before = net.shared[0].weight.detach().clone()
    with pytest.raises(CoverageError):
        zc.plan(net, X)
    assert torch.equal(net.shared[0].weight, before)


def test_libraries_layers_hold_nothing_outside() -> None:
    torchvision = pytest.importorskip("torchvision")
    net = nn.Sequential(
        torchvision.models.resnet18(), nn.LSTM(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    )
    assert find(net) == ()
