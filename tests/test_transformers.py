"""Models of transformers: tiny ones of many types convert under both schemes, pass the checks and load back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zero_convert as zc

from .tiny_transformers import TINY

transformers = pytest.importorskip("transformers")
SCHEMES = ("zero-2021", "zero-2022")
SOME = ("bert", "clip", "gpt2", "llama", "mixtral", "resnet", "t5", "wav2vec2")  # one of a kind


def cases() -> list[object]:
    return [
        pytest.param(name, scheme, marks=() if name in SOME else pytest.mark.zoo)
        for name in sorted(TINY)
        for scheme in SCHEMES
    ]


@pytest.mark.filterwarnings("ignore")  # what the library warns of is its own
@pytest.mark.parametrize(("name", "scheme"), cases())
def test_model_types_convert_pass_their_checks_and_load_back(name: str, scheme: str, tmp_path: Path) -> None:
    result = zc.convert(f"transformers:{name}", model_args=TINY[name], scheme=scheme, device="cpu")
    assert not [f"{check.name}: {check.summary}" for check in result.failed]
    assert any(join.residual for join in result.plan.joins)
    result.save(tmp_path / "model.safetensors")
    again = zc.load(tmp_path / "model.safetensors").state_dict()
    state = result.module.state_dict()
    assert list(again) == list(state)
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOME)
def test_the_state_fits_the_unmodified_class(name: str) -> None:
    result = zc.convert(
        f"transformers:{name}", model_args=TINY[name], scheme="zero-2022", device="cpu", validate="none"
    )
    config = result.module.config
    fresh = type(result.module)(config)
    fresh.load_state_dict(result.module.state_dict(), strict=True)
    ours = {key: (value.shape, value.dtype) for key, value in result.module.state_dict().items()}
    assert ours == {key: (value.shape, value.dtype) for key, value in fresh.state_dict().items()}
