"""What a constructor drew with Python's or numpy's generators is drawn, and no constant of its author."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zero_convert as zc
from tests import drawn_nets as nets
from zero_convert.errors import CoverageError

X = torch.linspace(-1, 1, 12).reshape(2, 6)
MODEL = "tests.drawn_nets:build"


def convert(draw: str, kind: str, scheme: str) -> zc.Result:
    return zc.convert(MODEL, (X,), model_args={"draw": draw, "kind": kind}, scheme=scheme, validate="none")


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
@pytest.mark.parametrize("kind", ["layer", "parameter"])
@pytest.mark.parametrize("draw", [name for name in nets.DRAWS if name != "table"])
def test_a_drawn_and_frozen_tensor_is_not_kept(draw: str, kind: str, scheme: str) -> None:
    """It gets a rule like one that torch drew (the matrix rule of a layer), or is refused by name; never its draw."""
    if kind == "parameter" and scheme == "zero-2022":  # whose rules for raw weights are for those that train
        with pytest.raises(CoverageError, match="projection"):
            convert(draw, kind, scheme)
        return
    result = convert(draw, kind, scheme)
    state = result.module.state_dict()
    value = next(v for name, v in state.items() if name.startswith("projection"))
    assert len(value.unique()) <= 3  # a rule's, where eight rows of six draws are all different
    assert convert(draw, kind, scheme).weights_digest == result.weights_digest


@pytest.mark.parametrize("draw", [name for name in nets.DRAWS if name != "table"])
@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_drawn_buffers_and_plain_attributes_are_refused_by_name(draw: str, kind: str) -> None:
    with pytest.raises(CoverageError, match="projection"):
        convert(draw, kind, "zero-2021")


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "fixup", "idinit"])
@pytest.mark.parametrize("kind", ["layer", "parameter", "buffer", "attribute"])
def test_a_table_that_numpy_computes_is_kept(kind: str, scheme: str) -> None:
    result = convert("table", kind, scheme)
    held = result.module.state_dict().get("projection.weight" if kind == "layer" else "projection")
    if kind != "attribute":
        assert held is not None
        assert torch.equal(held, torch.tensor(np.sin(np.arange(48).reshape(8, 6)), dtype=torch.float32))


def test_a_trainable_weight_that_numpy_drew_follows_its_rule() -> None:
    result = zc.convert("tests.drawn_nets:Trained", (X,), scheme="zero-2022", validate="none")
    assert result.module.state_dict()["weight"].unique().numel() <= 3


def test_the_generators_of_the_caller_stay_where_they_were() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    convert("table", "layer", "zero-2022")
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr]
    assert np.random.default_rng(5).standard_normal() == np.random.Generator(np.random.PCG64(5)).standard_normal()
