"""Small networks of uneven sizes, for shards: convolutions, grouped and transposed ones, tokens, recurrences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.down = nn.Conv2d(channels, out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.down(x))


def residual() -> nn.Module:
    layers = [nn.Conv2d(3, 6, 3, padding=1), Block(6, 6, 1), Block(6, 11, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(11, 5))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 10, 2, 2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 3, padding=1, groups=5),
        nn.ReLU(),
        nn.ConvTranspose2d(20, 6, 2, 2, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.cell, self.head = nn.Embedding(13, 9), nn.GRU(9, 7, batch_first=True), nn.Linear(7, 13)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cell(self.words(ids))[0])


def image_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=20, num_classes=5)


def bert() -> nn.Module:
    import transformers

    small = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    return transformers.BertForMaskedLM(transformers.BertConfig(**small, vocab_size=31, max_position_embeddings=16))


def llama() -> nn.Module:
    import transformers

    small = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, vocab_size=31, max_position_embeddings=16))


IDS = torch.arange(10).reshape(2, 5)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "residual": (residual, (torch.ones(2, 3, 8, 8),)),
    "grouped": (grouped, (torch.ones(2, 4, 8, 8),)),
    "recurrent": (Recurrent, (IDS,)),
    "vit": (image_transformer, (torch.ones(2, 3, 16, 16),)),
    "bert": (bert, (IDS,)),
    "llama": (llama, (IDS,)),
}
