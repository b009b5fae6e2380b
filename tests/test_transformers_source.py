"""Models of transformers: which names there are, what is built, and what their forward is given."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_transformers import IMAGES_IN_TEXT, TINY
from zero_convert import sources
from zero_convert.errors import LoadError, UsageError
from zero_convert.sources.building.fingerprint import fingerprint
from zero_convert.sources.building.nan_constructor import nan_filled_names
from zero_convert.sources.inputs import run

transformers = pytest.importorskip("transformers")

from zero_convert.sources import transformers as room  # noqa: E402

# One model type for each kind of input and of network; the others are in the zoo.
KINDS = (
    "audio-spectrogram-transformer",
    "bert",
    "blip",
    "clip",
    "detr",
    "gpt2",
    "llama",
    "layoutlm",
    "mamba",
    "mixtral",
    "resnet",
    "swin",
    "t5",
    "wav2vec2",
    "whisper",
)
BERT, LLAMA, CLIP = TINY["bert"], TINY["llama"], TINY["clip"]


def filled(module: nn.Module) -> nn.Module:
    """The module with small numbers for NaN."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.nan_to_num_(0.01)
    return module


def shapes(loaded: sources.Loaded) -> dict[str, tuple[int, ...]]:
    assert isinstance(loaded.example_inputs, dict)
    return {name: tuple(value.shape) for name, value in loaded.example_inputs.items()}


def runs_in_both_modes(name: str, args: dict[str, Any]) -> sources.Loaded:
    loaded = sources.load(f"transformers:{name}", args)
    assert loaded.example_inputs is not None
    module = filled(loaded.module)
    for training in (False, True):
        with torch.no_grad():
            assert run(module.train(training), loaded.example_inputs) is not None
    return loaded


def drawn_anew(name: str, args: dict[str, Any]) -> set[str]:
    """Names of the tensors that two constructions from different seeds make different."""
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = room.build(name, args)
        states.append({**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())})
    return {key for key, value in states[0].items() if not torch.equal(value, states[1][key])}


def check(name: str) -> None:
    loaded = runs_in_both_modes(name, TINY[name])
    assert loaded.name == f"transformers:{name}"
    assert loaded.notes == ()
    again = sources.load(f"transformers:{name}", TINY[name])
    assert drawn_anew(name, TINY[name]) <= nan_filled_names(again.module) | set(again.drawn)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_type_is_built_without_random_values_and_runs_in_both_modes(name: str) -> None:
    check(name)


@pytest.mark.zoo
@pytest.mark.parametrize("name", sorted(set(TINY) - set(KINDS)))
def test_every_tiny_model_type_is_built_without_random_values_and_runs_in_both_modes(name: str) -> None:
    check(name)


def test_nothing_random_means_that_something_was_random_before() -> None:
    assert "encoder.layer.0.output.dense.weight" in drawn_anew("bert", BERT)


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("bert", BERT, {"input_ids": (1, 16), "attention_mask": (1, 16)}),
        ("gpt2", {**TINY["gpt2"], "n_positions": 10}, {"input_ids": (1, 5), "attention_mask": (1, 5)}),
        ("t5", TINY["t5"], {"input_ids": (1, 16), "attention_mask": (1, 16), "decoder_input_ids": (1, 16)}),
        ("vit", {**TINY["vit"], "image_size": [16, 32], "num_channels": 1}, {"pixel_values": (1, 1, 16, 32)}),
        ("clip", CLIP, {"input_ids": (1, 16), "attention_mask": (1, 16), "pixel_values": (1, 3, 32, 32)}),
        ("whisper", TINY["whisper"], {"input_features": (1, 16, 60), "decoder_input_ids": (1, 16)}),
        ("wav2vec2", TINY["wav2vec2"], {"input_values": (1, 3840)}),
        ("audio-spectrogram-transformer", TINY["audio-spectrogram-transformer"], {"input_values": (1, 64, 32)}),
        ("layoutlm", TINY["layoutlm"], {"input_ids": (1, 16), "attention_mask": (1, 16), "bbox": (1, 16, 4)}),
        (
            "vivit",
            {"num_hidden_layers": 1, "hidden_size": 12, "image_size": 32, "num_frames": 4},
            {"pixel_values": (1, 4, 3, 32, 32)},
        ),
    ],
)
def test_inputs_follow_the_configuration(name: str, args: dict[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    loaded = runs_in_both_modes(name, args)
    assert shapes(loaded) == expected
    again = sources.load(f"transformers:{name}", args).example_inputs
    assert isinstance(again, dict) and isinstance(loaded.example_inputs, dict)
    assert all(torch.equal(value, again[key]) for key, value in loaded.example_inputs.items())


def test_token_ids_are_in_the_vocabulary_and_special_only_at_the_end() -> None:
    args = {**TINY["roberta"], "vocab_size": 9}
    ids = sources.load("transformers:roberta", args).example_inputs["input_ids"][0].tolist()  # type: ignore[index,call-overload]
    config = transformers.RobertaConfig()
    special = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
    assert max(ids) < 9
    assert not special & set(ids[:-1])
    assert ids[-1] == config.eos_token_id
    assert len(set(ids)) > 2


@pytest.mark.parametrize("name", IMAGES_IN_TEXT)
def test_an_image_in_a_text_gets_as_many_places_as_it_has_features(name: str) -> None:
    loaded = runs_in_both_modes(name, IMAGES_IN_TEXT[name])
    assert {"input_ids", "pixel_values"} <= shapes(loaded).keys()
    assert loaded.notes == ()
    config = loaded.module.config
    token = getattr(config, "image_token_id", None) or config.image_token_index
    assert (loaded.example_inputs["input_ids"] == token).sum() > 1  # type: ignore[index,call-overload]


def test_inputs_that_leave_a_modality_out_say_so() -> None:
    broken = {**IMAGES_IN_TEXT["llava"], "image_token_index": -1}
    loaded = sources.load("transformers:llava", broken)
    assert "pixel_values" not in shapes(loaded)
    assert loaded.notes == ("the example inputs have no image: forward took none that was tried",)
    narrow = {**IMAGES_IN_TEXT["llava"], "text_config": {**LLAMA, "vocab_size": 32000}}
    (note,) = sources.load("transformers:llava", narrow).notes
    assert note.endswith("its token, 32000, is outside the vocabulary of 32000 (model argument vocab_size)")


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was attempted")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = constants.HF_HUB_OFFLINE
    seen = []
    monkeypatch.setattr(
        transformers.BertModel, "__init__", lambda *args: seen.append(bool(constants.is_offline_mode())) or refuse()
    )
    with pytest.raises(LoadError, match="a connection was attempted"):
        sources.load("transformers:bert", BERT)
    monkeypatch.undo()
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("bert", "detr", "clip", "mamba"):
        sources.load(f"transformers:{name}", TINY[name])
    assert seen == [True]
    assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("BertForSequenceClassification", "transformers.models.bert.modeling_bert.BertForSequenceClassification"),
        ("bert", "transformers.models.bert.modeling_bert.BertModel"),
        ("siglip_text_model", "transformers.models.siglip.modeling_siglip.SiglipTextModel"),
        ("trocr", "transformers.models.trocr.modeling_trocr.TrOCRForCausalLM"),
    ],
)
def test_a_type_or_a_class_names_a_network(name: str, source: str) -> None:
    args = {"num_hidden_layers": 1} if name != "trocr" else {"decoder_layers": 1, "d_model": 32}
    loaded = sources.load(f"transformers:{name}", {**args, "vocab_size": 99})
    assert (loaded.source, loaded.module.training, loaded.nan_filled) == (source, True, True)


def test_a_bare_name_that_only_transformers_knows_is_its() -> None:
    loaded = sources.load("bert", BERT)
    assert (loaded.name, loaded.model_args) == ("transformers:bert", BERT)


def test_transformers_is_imported_only_for_names_of_its_own() -> None:
    code = (
        "import sys, zero_convert.sources as s; s.load('squeezenet1_1'); s.load('timm:resnet10t');"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_model_types_are_listed_and_classes_where_a_pattern_asks() -> None:
    every = sources.names()["transformers"]
    assert {"bert", "llama", "whisper", "clip", "dpt"} <= set(every)
    assert not any(name[:1].isupper() for name in every)
    assert {"llama", "LlamaModel", "LlamaForCausalLM"} <= set(sources.names("llama*")["transformers"])
    assert all("llama" in name.lower() for name in sources.names("llama*")["transformers"])


def test_arguments_are_attributes_of_the_configuration_under_any_of_its_names() -> None:
    config = sources.load("transformers:gpt2", {**TINY["gpt2"], "num_labels": 5}).module.config
    same = sources.load(
        "transformers:gpt2",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 5},
    ).module.config
    assert (config.n_layer, config.n_embd, config.num_labels) == (2, 32, 5)
    assert config.to_dict() == same.to_dict()


def test_arguments_reach_inner_configurations_dotted_or_nested() -> None:
    texts = ["text_config.num_hidden_layers=1", "vision_config.num_hidden_layers=3", "text_config.hidden_size=16"]
    dotted = sources.parse_model_args(texts)
    assert dotted == {
        "text_config.num_hidden_layers": 1,
        "vision_config.num_hidden_layers": 3,
        "text_config.hidden_size": 16,
    }
    small = {"text_config.num_attention_heads": 2, "vision_config.image_size": 32}
    config = sources.load("transformers:clip", {**dotted, **small}).module.config
    assert (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers) == (1, 3)
    assert config.text_config.hidden_size == 16
    assert config.text_config.vocab_size == transformers.CLIPConfig().text_config.vocab_size


@pytest.mark.parametrize(
    ("model", "args", "error", "said"),
    [
        ("bert", {"num_hidden_layer": 2}, UsageError, "BertConfig has no 'num_hidden_layer'"),
        ("bert", {"num_hidden_layer": 2}, UsageError, "Did you mean num_hidden_layers"),
        ("clip", {"text_config": {"layers": 2}}, UsageError, "CLIPTextConfig has no 'layers'"),
        ("clip", {"text_confg.num_hidden_layers": 2}, UsageError, "Did you mean text_config"),
        ("clip", {"text_config.a": 1, "text_config": 3}, UsageError, "given twice"),
        ("bert", {"hidden_size": "wide"}, UsageError, "does not take these arguments"),
        ("llava", {"text_config": {"model_type": "bart_"}}, UsageError, "no such model type"),
        ("bert", {"hidden_size": 30}, LoadError, "ValueError"),
        ("bertt", {}, UsageError, "Did you mean bert"),
        ("BertConfig", {}, UsageError, "no model has this name"),
        ("BertPreTrainedModel", {}, UsageError, "no model has this name"),
        ("BertForSequenceClasification", {}, UsageError, "Did you mean BertForSequenceClassification"),
        ("bert", {"pretrained": True}, UsageError, "trained weights are not used"),
    ],
)
def test_what_cannot_be_built_says_why(model: str, args: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        sources.load(f"transformers:{model}", args)
    assert said in str(caught.value)


def test_a_configuration_without_defaults_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def incomplete(config: object, **given: object) -> None:
        raise ValueError("both parts are needed")

    monkeypatch.setattr(transformers.EncoderDecoderConfig, "__init__", incomplete)
    with pytest.raises(
        LoadError, match=r"no default configuration .*; got ValueError: both parts are needed. Say what"
    ):
        sources.load("transformers:encoder-decoder")


def test_a_library_that_a_model_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> None:
        raise ImportError("BertModel requires the natten library:\n  `pip install natten`")

    monkeypatch.setattr(transformers.BertModel, "__init__", missing)
    with pytest.raises(
        LoadError, match=r"missing .bert.; got BertModel requires the natten library: `pip install natten`"
    ):
        sources.load("transformers:bert", BERT)


def test_no_layer_is_skipped_at_random_and_nothing_cached_unless_asked() -> None:
    usual = sources.load("transformers:wav2vec2", TINY["wav2vec2"]).module.config
    assert (usual.layerdrop, usual.apply_spec_augment) == (0.0, False)
    assert transformers.Wav2Vec2Config().layerdrop > 0
    asked = sources.load("transformers:wav2vec2", {**TINY["wav2vec2"], "layerdrop": 0.5}).module.config
    assert asked.layerdrop == 0.5
    assert sources.load("transformers:llama", LLAMA).module.config.use_cache is False
    assert sources.load("transformers:llama", {**LLAMA, "use_cache": True}).module.config.use_cache is True


@pytest.mark.parametrize("name", ["bert", "clip", "detr", "swin", "wav2vec2", "LlamaForCausalLM"])
def test_a_live_network_is_recognized_and_can_be_rebuilt(name: str) -> None:
    args = TINY.get(name, LLAMA)
    live = room.build(name, args).eval()
    live.config.use_cache = True
    loaded = sources.adopt(live)
    assert loaded.name == f"transformers:{type(live).__name__}"
    rebuilt = sources.load(loaded.name, json.loads(json.dumps(loaded.model_args)))
    assert fingerprint(rebuilt.module) == fingerprint(live)
    assert rebuilt.module.config.num_labels == live.config.num_labels
    assert (live.config.use_cache, loaded.module.config.use_cache) == (True, False)
    assert shapes(rebuilt) == shapes(loaded)


def test_a_changed_network_is_not_recognized_but_gets_inputs_all_the_same() -> None:
    live = room.build("bert", BERT)
    live.encoder.layer[0].output.dropout = nn.Dropout2d(0.1)
    loaded = sources.adopt(live)
    assert loaded.name == ""
    assert shapes(loaded) == {"input_ids": (1, 16), "attention_mask": (1, 16)}


def test_given_inputs_may_have_names() -> None:
    ids = torch.ones(2, 4, dtype=torch.int64)
    live = room.build("bert", BERT)
    loaded = sources.adopt(live, {"input_ids": ids})
    assert shapes(loaded) == {"input_ids": (2, 4)}
    assert loaded.example_inputs["input_ids"] is not ids  # type: ignore[index,call-overload]
    named = sources.load("transformers:bert", BERT, inputs={"input_ids": ids})
    assert shapes(named) == {"input_ids": (2, 4)}
    assert sources.conventional_inputs(named).keys() == {"input_ids", "attention_mask"}  # type: ignore[union-attr]
