"""A hundred layers without norms: fifty steps of plain SGD from each scheme's start, on synthetic pictures of 8×8."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import zero_convert as zc
from tests.nets import NormFreeNet
from zero_convert.graph.example_values import reference_values
from zero_convert.runtime.threads import one_thread

X = torch.from_numpy(reference_values((32, 3, 8, 8)))
Y = torch.arange(32) % 10
# Risotto's blocks are no identities: their gradients add up over all layers, and larger steps leave the isometry.
RATES = {
    "zero-2021": 0.1,
    "zero-2022": 0.01,
    "constnet": 0.1,
    "idinit": 0.01,
    "fixup": 0.1,
    "skipinit": 0.1,
    "rezero": 0.1,
    "risotto": 1e-4,
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", RATES)
def test_a_hundred_layers_without_norms_train_for_fifty_steps(scheme: str) -> None:
    net = zc.convert(NormFreeNet(16, 49), (X[:1],), scheme=scheme, validate="none").module.train()
    assert sum(p.ndim > 1 for p in net.parameters()) >= 100
    optimizer = torch.optim.SGD(net.parameters(), RATES[scheme])
    losses = []
    with one_thread():
        for _ in range(50):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(X), Y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    assert min(losses[-10:]) < losses[0]
