"""Tiny configurations of the model types of transformers, as `--model-arg` takes them: few layers, narrow."""

from __future__ import annotations

from typing import Any

_BERT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
_WITHOUT_WIDTH = {key: value for key, value in _BERT.items() if key != "intermediate_size"}
_TEXT = {**_BERT, "vocab_size": 99}
_LLAMA = {**_TEXT, "num_key_value_heads": 2}
_HEADED = {**_LLAMA, "head_dim": 8}
_GPT2 = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4}
_VIT = {**_BERT, "image_size": 32, "patch_size": 8}
_STAGES = {"depths": [1, 1], "num_heads": [2, 2]}
_BART = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
_SPEECH = {
    **_BERT,
    "conv_dim": [16, 16, 16],
    "conv_stride": [5, 4, 2],
    "conv_kernel": [10, 4, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
_BACKBONE = {"model_type": "resnet", **_RESNET, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 5,
}

TINY: dict[str, dict[str, Any]] = {
    "albert": {**_TEXT, "embedding_size": 16},
    "audio-spectrogram-transformer": {**_BERT, "max_length": 64, "num_mel_bins": 32},
    "bart": _BART,
    "beit": _VIT,
    "bert": _TEXT,
    "blip": {
        "text_config": {**_TEXT, "encoder_hidden_size": 32},
        "vision_config": _VIT,
        "projection_dim": 16,
    },
    "bloom": {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "clip": {"text_config": _TEXT, "vision_config": _VIT, "projection_dim": 16},
    "convnext": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64},
    "convnextv2": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64},
    "data2vec-audio": _SPEECH,
    "deberta-v2": {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deit": _VIT,
    "detr": {**_DETR, "backbone_config": _BACKBONE},
    "dinov2": {**_WITHOUT_WIDTH, "image_size": 32, "patch_size": 8, "mlp_ratio": 2},
    "distilbert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "dpt": {
        **_VIT,
        "image_size": 64,
        "patch_size": 16,
        "backbone_out_indices": [0, 0, 1, 1],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
        "is_hybrid": False,
    },
    "electra": {**_TEXT, "embedding_size": 16},
    "falcon": {**_WITHOUT_WIDTH, "vocab_size": 99},
    "gemma": _HEADED,
    "gemma2": _HEADED,
    "gpt2": _GPT2,
    "gpt_neo": {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_neox": _TEXT,
    "gptj": {**_GPT2, "rotary_dim": 4},
    "hubert": _SPEECH,
    "layoutlm": _TEXT,
    "llama": _LLAMA,
    "longformer": {**_TEXT, "attention_window": [8, 8]},
    "mamba": {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mbart": _BART,
    "mistral": _LLAMA,
    "mixtral": {**_LLAMA, "num_local_experts": 4},
    "mobilenet_v2": {"image_size": 64, "depth_multiplier": 0.25},
    "mobilevit": {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64]},
    "opt": {**_WITHOUT_WIDTH, "vocab_size": 99, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "pegasus": _BART,
    "phi": _TEXT,
    "phi3": {**_LLAMA, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "poolformer": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "qwen2": _LLAMA,
    "qwen3": _HEADED,
    "regnet": _RESNET,
    "resnet": _RESNET,
    "roberta": _TEXT,
    "segformer": {
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_encoder_blocks": 2,
        "sr_ratios": [2, 1],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
    },
    "siglip": {"text_config": _TEXT, "vision_config": _VIT},
    "swin": {**_STAGES, "embed_dim": 16, "image_size": 32, "patch_size": 2, "window_size": 4},
    "t5": {"vocab_size": 99, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64},
    "vilt": {**_TEXT, "image_size": 32, "patch_size": 8},
    "vit": _VIT,
    "wav2vec2": _SPEECH,
    "whisper": {**_BART, "pad_token_id": 0, "num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 40},
    "xlm-roberta": _TEXT,
    "yolos": {**_VIT, "num_detection_tokens": 5, "image_size": [32, 32]},
}

# Models that put the features of an image in place of tokens of the text.
IMAGES_IN_TEXT: dict[str, dict[str, Any]] = {
    "idefics3": {"text_config": {**_LLAMA, "vocab_size": 128300}, "vision_config": _VIT},
    "llava": {"text_config": {**_LLAMA, "vocab_size": 32010}, "vision_config": _VIT},
    "qwen2_vl": {
        "text_config": {**_LLAMA, "hidden_size": 512, "vocab_size": 151660},
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 512, "num_heads": 2},
    },
}
