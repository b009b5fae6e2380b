"""What a conversion leaves as it was given: configurations, modes, hooks; and what became of it in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from tests.nets import tiny_resnet
from zero_convert.errors import UsageError

transformers = pytest.importorskip("transformers")

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def llama(**more: Any) -> Any:
    config = transformers.LlamaConfig(**WIDTHS, vocab_size=100, num_key_value_heads=4, **more)
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, bos_token_id=1, eos_token_id=2)
    return transformers.GPT2LMHeadModel(config)


def t5() -> Any:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=64, vocab_size=100)
    )


def whisper() -> Any:
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in
             (("layers", 1), ("attention_heads", 4), ("ffn_dim", 64), ("layerdrop", 0.1))}  # fmt: skip
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return transformers.WhisperModel(
        transformers.WhisperConfig(d_model=32, vocab_size=100, max_source_positions=50, **sizes, **tokens)
    )


def checkpointed() -> Any:
    model = llama().train()
    model.gradient_checkpointing = True
    for part in model.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = True
    model._set_gradient_checkpointing(True)
    return model


def hooked() -> nn.Module:
    model = tiny_resnet()
    model.conv1.register_forward_hook(lambda module, args, output: output)
    return model


def half_frozen() -> nn.Module:
    model = tiny_resnet().train()
    for name, parameter in model.named_parameters():
        if "bn" in name or "norm" in name:
            parameter.requires_grad_(False)
    return model


def parts_in_evaluation() -> nn.Module:
    model = tiny_resnet().train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return model


GIVEN: Mapping[str, Callable[[], Any]] = {
    "llama": llama,
    "llama eager": lambda: llama(attn_implementation="eager"),
    "llama without a cache": lambda: llama(use_cache=False),
    "llama in evaluation mode": lambda: llama().eval(),
    "gpt2": gpt2,
    "t5": t5,
    "whisper": whisper,
    "checkpointing": checkpointed,
    "hooks": hooked,
    "frozen norms": half_frozen,
    "batch norms in evaluation mode": parts_in_evaluation,
}


def attributes(module: nn.Module) -> dict[tuple[str, str], Any]:
    """Every plain attribute of every part, hooks by their number; and whether each parameter learns."""
    found: dict[tuple[str, str], Any] = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name == "config":
                found[path, name] = value.to_dict()
            elif name.endswith("_hooks") and "state_dict" not in name:
                found[path, name] = len(value)
            elif isinstance(value, (str, int, float, bool, type(None), tuple)):
                found[path, name] = value
        for name, parameter in part._parameters.items():
            if parameter is not None:
                found[path, name] = tuple(parameter.shape), parameter.dtype, parameter.requires_grad
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", GIVEN)
def test_what_comes_back_has_the_attributes_of_what_was_given(name: str) -> None:
    given = GIVEN[name]()
    before = attributes(given)
    inputs = (torch.zeros(2, 3, 32, 32),) if isinstance(given, type(tiny_resnet())) else None
    result = zc.convert(given, inputs, scheme="zero-2022", validate="none", uncovered="keep")
    assert attributes(given) == before
    after = attributes(result.module)
    assert {key: after.get(key) for key in before} == before


def test_the_parts_of_a_rewritten_network_have_the_modes_that_they_had() -> None:
    result = zc.convert(parts_in_evaluation(), (torch.zeros(2, 3, 32, 32),), scheme="zero-2021", validate="none")
    modes = {type(part).__name__: part.training for part in result.module.modules()}
    assert modes["BatchNorm2d"] is False and modes["Conv2d"] is True and result.module.training


def test_a_language_model_generates_with_a_cache_and_is_exported_without_one(tmp_path: Path) -> None:
    result = zc.convert(llama().eval(), scheme="zero-2022", validate="none")
    assert result.module.config.use_cache is True
    out = result.module(torch.arange(1, 9)[None])
    assert out.past_key_values is not None and out.past_key_values.get_seq_length() == 8
    saved, _ = result.save(tmp_path / "m.onnx", tmp_path / "m.safetensors")
    onnx = pytest.importorskip("onnx")
    assert [value.name for value in onnx.load(saved.path).graph.output] == ["logits"]
    assert result.module.config.use_cache is True
    back = zc.load(tmp_path / "m.safetensors")
    assert back.config.use_cache is True  # type: ignore[union-attr]
    asked = zc.convert(
        "transformers:llama",
        model_args={**WIDTHS, "num_key_value_heads": 4, "vocab_size": 100, "use_cache": False},
        scheme="zero-2022",
        validate="none",
    )
    assert asked.module.config.use_cache is False  # type: ignore[union-attr]


def trained() -> tuple[zc.Result, Tensor]:
    inputs = torch.linspace(-1, 1, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32)
    result = zc.convert("tests.nets:tiny_resnet", (inputs,), scheme="zero-2021", validate="none")
    return result, inputs


@pytest.mark.parametrize("start", ["file", "conversion"])
@pytest.mark.parametrize("way", ["torch", "safetensors"])
def test_trained_weights_are_written_and_read_as_the_error_says(tmp_path: Path, way: str, start: str) -> None:
    result, inputs = trained()
    result.save(tmp_path / "start.safetensors")
    module, optimizer = result.module, torch.optim.SGD(result.module.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(inputs).square().sum().add(module(inputs).sum()).backward()
        optimizer.step()
    with pytest.raises(UsageError) as refused:
        result.save(tmp_path / "trained.safetensors")
    advice = refused.value.fix
    path = tmp_path / "trained"
    if start == "file":
        assert "zc.load(START)" in advice
        net = zc.load(tmp_path / "start.safetensors", trust=True)
    else:
        assert "zc.convert with the same arguments and .module" in advice
        net = trained()[0].module
    if way == "torch":
        assert "torch.save(module.state_dict(), FILE)" in advice
        assert "net.load_state_dict(torch.load(FILE))" in advice
        torch.save(module.state_dict(), path)
        net.load_state_dict(torch.load(path))
    else:
        from safetensors.torch import load_model, save_model

        assert "safetensors.torch.save_model(module, FILE)" in advice
        assert "safetensors.torch.load_model(net, FILE)" in advice
        save_model(module, str(path))
        load_model(net, str(path))
    assert torch.equal(net.eval()(inputs), module.eval()(inputs))
    assert module(inputs).any()
