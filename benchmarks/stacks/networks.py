"""Small members of families that people train: each a function that builds one and its example inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

IDS = torch.arange(14).reshape(2, 7) % 90 + 3


def _image(side: int) -> tuple[Tensor]:
    return (torch.linspace(-1, 1, 2 * 3 * side * side).reshape(2, 3, side, side).sin(),)


def _torchvision(name: str, side: int = 64, **options: Any) -> tuple[nn.Module, Any]:
    import torchvision

    return torchvision.models.get_model(name, num_classes=10, **options), _image(side)


def _timm(name: str, side: int = 64, **options: Any) -> tuple[nn.Module, Any]:
    import timm

    return timm.create_model(name, num_classes=10, **options), _image(side)


def _transformers(kind: str) -> tuple[nn.Module, Any]:
    import transformers as tf

    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    text = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    words = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "bert":
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return tf.BertForSequenceClassification(tf.BertConfig(**text, **still, vocab_size=100)), inputs
    if kind == "gpt2":
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return tf.GPT2LMHeadModel(
            tf.GPT2Config(n_embd=64, n_layer=3, n_head=4, n_positions=64, **words, **still)
        ), inputs
    if kind == "llama":
        return tf.LlamaForCausalLM(tf.LlamaConfig(**text, num_key_value_heads=2, vocab_size=100)), inputs
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4}
    config = tf.T5Config(**sizes, vocab_size=100, decoder_start_token_id=0, dropout_rate=0.0)
    return tf.T5ForConditionalGeneration(config), {**inputs, "decoder_input_ids": IDS[:, :5]}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "torchvision resnet18": partial(_torchvision, "resnet18"),
    "torchvision resnet50": partial(_torchvision, "resnet50"),
    "torchvision regnet_y_400mf": partial(_torchvision, "regnet_y_400mf"),
    "torchvision convnext_tiny": partial(_torchvision, "convnext_tiny"),
    "torchvision vit_b_16": partial(_torchvision, "vit_b_16", image_size=64),
    "torchvision swin_t": partial(_torchvision, "swin_t"),
    "timm vit_tiny": partial(_timm, "vit_tiny_patch16_224", img_size=64),
    "timm resnet18": partial(_timm, "resnet18"),
    "timm efficientnet_b0": partial(_timm, "efficientnet_b0"),
    "transformers bert": partial(_transformers, "bert"),
    "transformers gpt2": partial(_transformers, "gpt2"),
    "transformers llama": partial(_transformers, "llama"),
    "transformers t5": partial(_transformers, "t5"),
}
