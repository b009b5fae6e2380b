"""What one would write without zero-convert: ResNet-50 to a safetensors file. The other side of `benchmarks.convert`.

    python -m benchmarks.plain floor FILE    torchvision's network as constructed, and `save_file`
    python -m benchmarks.plain dense FILE    the same, filled with the published formula in between

The formula is ZerO's final version (TMLR 2022, algorithms 1 and 2) as printed, with its dense products and the
released factor: a matrix m×n is I(m, n) where m ≤ n, else I(m, p) · H_p/2^(k/2) · I(p, n) with p = 2^k ≥ m, put at the
centre tap of a kernel. Norms keep 1 and 0, biases are 0. This file imports nothing of ours.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet50


def sylvester(k: int) -> Tensor:
    """H of order 2^k, values ±1.  # (2^k, 2^k)"""
    h = torch.ones(1, 1)
    for _ in range(k):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


def dense(m: int, n: int) -> Tensor:
    """The matrix of algorithm 1.  # (m, n)"""
    if m <= n:
        return torch.eye(m, n)
    k = (m - 1).bit_length()
    p = 2**k
    return torch.eye(m, p) @ (sylvester(k) / 2 ** (k / 2)) @ torch.eye(p, n)


def fill(network: nn.Module) -> None:
    """Writes the formula into every convolution and linear layer."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            centre = tuple(size // 2 for size in layer.kernel_size)
            layer.weight.zero_()
            layer.weight[(..., *centre)] = dense(layer.out_channels, layer.in_channels)
        elif isinstance(layer, nn.Linear):
            layer.weight.copy_(dense(layer.out_features, layer.in_features))
            layer.bias.zero_()


def main(what: str, path: str) -> None:
    """Builds the network, fills it if `what` is "dense", and writes it to `path`."""
    network = resnet50()
    if what == "dense":
        with torch.no_grad():
            fill(network)
    save_file(network.state_dict(), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
