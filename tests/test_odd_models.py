"""300 random odd models: no internal error, no file that lacks weights, and what must be refused is refused by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zero_convert as zc
from zero_convert.errors import CoverageError, ModelError, ZeroConvertError
from zero_convert.graph.results import tensors_of

from .odd_models import Odd

SEEDS = range(300)
SCHEMES = ("zero-2021", "zero-2022", "idinit", "fixup", "rezero", "skipinit")
CONVERTED = 0.75  # of those that nothing stands against


def outcome(seed: int, folder: Path) -> str:
    """ "refused", "nothing", "declined" or "converted"; asserts what has to hold of each."""
    torch.manual_seed(seed)
    scheme, net, path = SCHEMES[seed % len(SCHEMES)], Odd(seed), folder / f"{seed}.safetensors"
    failed: list[str] = []
    try:
        result = zc.convert(net, net.inputs, scheme=scheme, device="cpu")
        failed = [check.name for check in result.failed]
        result.save(path, keep_failed=not net.nothing)
    except ZeroConvertError as error:
        caught: ZeroConvertError | None = error
    else:
        caught = None
    if caught is not None:
        assert not path.exists()
        if net.refused:
            assert isinstance(caught, CoverageError) and net.refused in caught.where and caught.fix, str(caught)
            return "refused"
        if net.nothing and caught.exit_code == 1:
            assert failed == ["outputs"]
            return "nothing"
        assert isinstance(caught, ModelError) and caught.exit_code == 3, str(caught)
        return "declined"
    assert not net.refused and not net.nothing
    assert "outputs" not in failed
    _assert_complete(net, result, path)
    return "converted"


def _assert_complete(net: Odd, result: zc.Result, path: Path) -> None:
    held, state = load_file(path), result.module.state_dict()
    names = {name for name, value in state.items() if isinstance(value, torch.Tensor)}
    assert held.keys() | result.recipe.ties.keys() == names
    assert net.weights <= names or any(edit.applied for edit in result.plan.edits)
    assert not any(bool(tensor.isnan().any()) for tensor in held.values())
    loaded = zc.load(path, Odd(int(path.stem)), net.inputs, trust=True).eval()
    own, given = result.module.eval(), net.inputs
    call = (lambda m: m(**given)) if isinstance(given, dict) else (lambda m: m(*given))
    with torch.no_grad():
        one, other = list(tensors_of(call(own))), list(tensors_of(call(loaded)))
    assert one and all(map(torch.equal, one, other))


@pytest.mark.parametrize("seed", SEEDS[:24])
def test_an_odd_model_is_converted_whole_or_refused_by_name(seed: int, tmp_path: Path) -> None:
    assert outcome(seed, tmp_path)


@pytest.mark.slow
def test_300_odd_models(tmp_path: Path) -> None:
    counted, wrong = Counter[str](), {}
    for seed in SEEDS:
        try:
            counted[outcome(seed, tmp_path)] += 1
        except Exception as error:
            wrong[seed] = f"{type(error).__name__}: {error}"[:300]
    assert not wrong
    assert counted["converted"] >= CONVERTED * (counted["converted"] + counted["declined"]), counted
    assert counted["refused"] > 30 and counted["nothing"] > 15, counted
