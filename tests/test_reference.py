"""`zero-2021` is the authors' network: at the start, in both modes, and through training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import ResNet, resnet50
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck

import zero_convert as zc
from tests.nets import cifar_resnet18
from tests.reference_net import Basic, Bottleneck, ReferenceResNet
from zero_convert.graph.example_values import reference_values

GOLDEN = Path(__file__).parent.parent / "fixtures" / "zero_2021_reference.npz"


def convert(model: nn.Module, shape: tuple[int, ...], **options: str) -> nn.Module:
    return zc.convert(model, (torch.from_numpy(reference_values(shape)),), options=options, validate="none").module


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def features(module: nn.Module, head: str, x: torch.Tensor) -> np.ndarray:
    """What enters the classifier."""
    seen: list[torch.Tensor] = []
    handle = module.get_submodule(head).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    module(x)
    handle.remove()
    return seen[0].numpy()


@pytest.fixture(scope="module")
def r50() -> nn.Module:
    return convert(resnet50(), (1, 3, 96, 96))


def test_resnet50_has_the_published_number_of_trainable_values(r50: nn.Module) -> None:
    assert trainable(r50) == 25_549_480
    assert trainable(convert(resnet50(), (1, 3, 96, 96), norm="none")) == 25_504_024


def test_cifar_resnet18_has_the_published_number_of_trainable_values() -> None:
    assert trainable(convert(cifar_resnet18(), (1, 3, 32, 32))) == 11_172_298


def test_resnet50_features_equal_the_authors_network_in_both_modes(r50: nn.Module) -> None:
    golden = np.load(GOLDEN)
    x = torch.from_numpy(reference_values((4, 3, 96, 96)))
    start = {name: value.clone() for name, value in r50.state_dict().items()}
    r50.eval()
    assert np.abs(features(r50, "fc", x) - golden["resnet50_bn/features_eval"]).max() < 1e-6
    assert r50(x).abs().max() == 0
    r50.double().train()
    assert np.abs(features(r50, "fc", x.double()) - golden["resnet50_bn/features_train"]).max() < 1e-6
    r50.float().load_state_dict(start)


def dense(m: int, n: int) -> torch.Tensor:
    """Algorithm 1 as printed, with dense products in float64 and the released scale."""
    if m <= n:
        return torch.eye(m, n)
    k = (m - 1).bit_length()
    h = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(k):
        h = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), h)
    eyes = torch.eye(m, 2**k, dtype=torch.float64), torch.eye(2**k, n, dtype=torch.float64)
    return (eyes[0] @ h @ eyes[1] / 2 ** (k / 2)).float()


def test_every_element_of_a_whole_network_equals_the_published_formula() -> None:
    model = resnet50()
    converted = zc.convert(model, scheme="zero-2022", validate="none").module
    last = {f"layer{i}.{j}.conv3" for i, depth in enumerate([3, 4, 6, 3], 1) for j in range(depth)}
    for name, module in converted.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            expected = torch.zeros_like(module.weight)
            if name not in last:
                centre = tuple(k // 2 for k in expected.shape[2:])
                expected[(..., *centre)] = dense(*expected.shape[:2])
            assert torch.equal(module.weight, expected), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()


def steps(module: nn.Module, x: torch.Tensor, count: int, rate: float) -> tuple[list[float], list[float], torch.Tensor]:
    """Losses, gradient norms and the logits afterwards, of plain SGD in float64."""
    module = module.double().train()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=rate, momentum=0.9)
    losses, norms = [], []
    for _ in range(count):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), torch.arange(len(x)))
        loss.backward()
        losses.append(loss.item())
        norms.append(
            float(
                torch.stack(
                    [p.grad.norm() for p in module.parameters() if p.grad is not None and p.requires_grad]
                ).norm()
            )
        )
        optimizer.step()
    return losses, norms, module.eval()(x).detach()


@pytest.mark.parametrize(
    ("model", "reference", "shape", "options", "count", "rate"),
    [
        pytest.param(
            lambda: ResNet(TorchvisionBottleneck, [2, 2, 1, 1], 10),
            lambda: ReferenceResNet(Bottleneck, [2, 2, 1, 1], 10),
            (4, 3, 65, 64),
            {},
            3,
            0.01,
            id="bottleneck",
        ),
        pytest.param(
            lambda: ResNet(TorchvisionBottleneck, [2, 2, 1, 1], 10),
            lambda: ReferenceResNet(Bottleneck, [2, 2, 1, 1], 10, norm=False),
            (4, 3, 64, 65),
            {"norm": "none"},
            5,
            0.05,
            marks=pytest.mark.slow,
            id="bottleneck, norm=none",
        ),
        pytest.param(
            cifar_resnet18,
            lambda: ReferenceResNet(Basic, [2, 2, 2, 2], 10, small=True),
            (4, 3, 32, 32),
            {},
            3,
            0.01,
            id="basic, CIFAR stem",
        ),
    ],
)
def test_training_follows_the_reference_network(model, reference, shape, options, count, rate) -> None:
    x = torch.from_numpy(reference_values(shape)).double()
    mine = steps(convert(model(), shape, **options), x, count, rate)
    theirs = steps(reference(), x, count, rate)
    assert mine[0] == pytest.approx(theirs[0], rel=1e-9)
    assert mine[1] == pytest.approx(theirs[1], rel=1e-7)
    assert torch.allclose(mine[2], theirs[2], rtol=1e-6, atol=1e-9)
    assert max(theirs[1]) > 0 and losses_move(theirs[0])


def losses_move(losses: list[float]) -> bool:
    return abs(losses[-1] - losses[0]) > 1e-3


def test_the_gradient_of_a_relu_at_zero_is_one(r50: nn.Module) -> None:
    """With torch's derivative of 0, no parameter behind a zero layer would ever move."""
    from zero_convert.nn.functional import relu0

    x = torch.tensor([-1.0, 0.0, 2.0, float("nan")], requires_grad=True)
    relu0(x)[:3].sum().backward()
    assert x.grad is not None and x.grad[:3].tolist() == [0.0, 1.0, 1.0]
    assert relu0(x)[3].isnan()


def test_transforms_are_frozen_and_old_shortcut_norms_are_gone(r50: nn.Module) -> None:
    names = set(r50.state_dict())
    assert "layer1.0.downsample.0.weight" in names
    assert not any(name.startswith("layer1.0.downsample.1") or "transform" in name for name in names)
    assert len([m for m in r50.modules() if type(m).__name__ == "HadamardTransform"]) == 5
