"""Layers of every kind: what they are taken for, that they start alive, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import zero_convert as zc
from zero_convert.errors import CoverageError, ModelError
from zero_convert.graph.kinds import geometry, is_quantized, kind_of
from zero_convert.structure.neutral_values import neutral

from .odd_nets import Head, ramp
from .test_families import SCHEMES


class Net(nn.Module):
    """Features → layer → the mean over time, read by a linear head."""

    def __init__(self, make: Callable[[], nn.Module], width: int = 8) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(5, 8), make(), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.embed(x))
        return self.head((y[0] if isinstance(y, tuple) else y).mean(1))


class RMSNorm(nn.Module):
    """As in Llama, or as in Gemma: times 1 + weight."""

    def __init__(self, width: int, one_plus: bool = False) -> None:
        super().__init__()
        self.one_plus = one_plus
        self.weight = nn.Parameter(torch.zeros(width) if one_plus else torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y * (1 + self.weight) if self.one_plus else y * self.weight


class Block(nn.Module):
    """Attention with separate projections, fewer keys than queries, then a gated MLP; all of it residual."""

    def __init__(self, spelled: bool = False, interleaved: bool = False, fused: bool = False) -> None:
        super().__init__()
        self.spelled, self.interleaved, self.fused = spelled, interleaved, fused
        self.n1, self.n2 = RMSNorm(8), RMSNorm(8, one_plus=True)
        if interleaved:
            self.qkv = nn.Linear(8, 24)
        else:
            self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.o, self.down = nn.Linear(8, 8), nn.Linear(12, 8)
        if fused:
            self.both = nn.Linear(8, 24)
        else:
            self.gate, self.up = nn.Linear(8, 12), nn.Linear(8, 12)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        b, n, _ = x.shape
        if self.interleaved:
            q, k, v = self.qkv(x).view(b, n, 2, 3, 4).unbind(3)
            return tuple(t.transpose(1, 2) for t in (q, k, v))
        q, k, v = (layer(x).view(b, n, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.heads(self.n1(x))
        if self.spelled:
            y = F.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.5, dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, 8))
        z = self.n2(x)
        gate, up = self.both(z).chunk(2, -1) if self.fused else (self.gate(z), self.up(z))
        return x + self.down(F.silu(gate) * up)


class Experts(nn.Module):
    """Stacked weights, stored (experts, in, out), for all experts at once."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 8, 12)), nn.Parameter(torch.randn(3, 12, 8))
        self.router = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        hidden = F.gelu(torch.einsum("btd,edf->betf", x, self.up))
        return x + (torch.matmul(hidden, self.down) * share.permute(0, 2, 1)[..., None]).sum(1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Bilinear(8, 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, x.flip(1))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            states.append(h)
        return torch.stack(states, 1)


class ToImages(nn.Module):
    """A convolution over time, as the middle of a residual branch."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.a, self.b = wrap(nn.Conv1d(8, 6, 3, padding=1)), nn.Conv1d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(x.transpose(1, 2)))).transpose(1, 2)


class OtherWidths(nn.Module):
    """Attention to a memory of other widths: separate projections of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=10, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = ramp(len(x), 7, 6), ramp(len(x), 7, 10)
        return x + self.attention(self.norm(x), keys, values, need_weights=False)[0]


class Standardized(nn.Conv1d):
    """A convolution whose kernels are standardized before each use (Qiao et al., 2019)."""

    def standard(self) -> Tensor:
        mean, variance = self.weight.mean((1, 2), keepdim=True), self.weight.var((1, 2), keepdim=True, unbiased=False)
        return (self.weight - mean) * torch.rsqrt(variance + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.standard(), self.bias, self.stride, self.padding)


class Gained(Standardized):
    """The same, with a factor for each output (Brock et al., NF-ResNet, 2021)."""

    def __init__(self, inputs: int, outputs: int, one_plus: bool) -> None:
        super().__init__(inputs, outputs, 5)
        self.gain, self.one_plus = nn.Parameter(torch.full((outputs, 1, 1), float(not one_plus))), one_plus

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.standard() * (self.gain + self.one_plus), self.bias)


class StandardizedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = Standardized(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.b = Standardized(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.norm(self.a(x.transpose(1, 2))))).transpose(1, 2)


class Bags(nn.Module):
    """Sums of embeddings of what is positive, beside the features."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(6, 8, mode="sum")

    def forward(self, x: Tensor) -> Tensor:
        index = (x.flatten(1)[:, :12] > 0).long() + torch.arange(12) % 5
        return torch.cat([x, self.bags(index)[:, None].expand(-1, x.shape[1], -1)], 2)


NETS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Net(lambda: nn.LSTM(8, 12, 2, batch_first=True), 12),
    "lstm_both_ways": lambda: Net(lambda: nn.LSTM(8, 6, batch_first=True, bidirectional=True), 12),
    "lstm_projected": lambda: Net(lambda: nn.LSTM(8, 12, batch_first=True, proj_size=5), 5),
    "gru": lambda: Net(lambda: nn.GRU(8, 8, 2, batch_first=True)),
    "rnn": lambda: Net(lambda: nn.RNN(8, 8, batch_first=True)),
    "gru_cell": lambda: Net(Cell),
    "bilinear": lambda: Net(TwoInputs, 10),
    "block": lambda: Net(Block),
    "block_spelled_out": lambda: Net(lambda: Block(spelled=True)),
    "block_interleaved": lambda: Net(lambda: Block(interleaved=True)),
    "block_fused_mlp": lambda: Net(lambda: Block(fused=True)),
    "experts": lambda: Net(Experts),
    "attention_of_other_widths": lambda: Net(OtherWidths),
    "standardized": lambda: Net(StandardizedBlock),
    "bags": lambda: Net(Bags, 16),
    "weight_norm": lambda: Net(lambda: ToImages(parametrizations.weight_norm)),
    "weight_norm_by_tap": lambda: Net(lambda: ToImages(lambda m: parametrizations.weight_norm(m, dim=2))),
    "spectral_norm": lambda: Net(lambda: ToImages(parametrizations.spectral_norm)),
}


def alive(module: nn.Module, *inputs: Tensor, steps: int = 24) -> list[str]:
    """Trainable matrices without a gradient after some normalised steps."""
    waiting = {key: p for key, p in module.named_parameters() if p.requires_grad and p.ndim > 1}
    for _ in range(steps):
        module.zero_grad()
        y = module(*inputs)
        loss = ((y - ramp(*y.shape) / 2) ** 2).mean()
        assert torch.isfinite(loss)
        loss.backward()
        for key, p in module.named_parameters():
            if p.grad is not None and (largest := p.grad.abs().max()) > 0:
                waiting.pop(key, None)
                with torch.no_grad():
                    p -= 0.01 * p.grad / largest
    return list(waiting)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_layer_starts_alive(name: str, scheme: str) -> None:
    x = ramp(4, 6, 5)
    digests = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        result = zc.convert(NETS[name](), (x,), scheme=scheme, validate="none")
        digests.add(result.weights_digest)
    assert len(digests) == 1
    if scheme == "zero-2021":
        values = dict(result.module.named_parameters())
        assert not [n for n, p in values.items() if not ((p == 0) | (p == 1)).all()]
    assert alive(result.module.train(), x) == []


@pytest.mark.parametrize("name", ["block", "block_spelled_out"])
def test_separate_queries_are_the_identity_and_keys_and_values_zero(name: str) -> None:
    layer = zc.convert(NETS[name](), (ramp(2, 6, 5),), scheme="zero-2022", validate="none").module.layer
    assert torch.equal(layer.q.weight, torch.eye(8))
    assert not layer.k.weight.any()
    assert not layer.v.weight.any()
    assert layer.o.weight.any()


def test_rows_interleaved_by_head_are_told_apart() -> None:
    layer = zc.convert(NETS["block_interleaved"](), (ramp(2, 6, 5),), scheme="zero-2022", validate="none").module.layer
    rows = layer.qkv.weight.view(2, 3, 4, 8)
    assert torch.equal(rows[:, 0].reshape(8, 8), torch.eye(8))
    assert not rows[:, 1:].any()


def test_norms_start_at_their_neutral_value_even_after_training() -> None:
    for one_plus, value in ((False, 1.0), (True, 0.0)):
        norm = RMSNorm(8, one_plus)
        assert kind_of(norm) == "norm"
        assert neutral(norm) == (("weight", value),)
        nn.init.zeros_(norm.weight)
        assert neutral(norm) == (("weight", value),)
        nn.init.normal_(norm.weight)
        assert neutral(norm) == (("weight", value),)


@pytest.mark.parametrize("one_plus", [False, True])
def test_gains_start_at_their_neutral_value_even_after_training(one_plus: bool) -> None:
    layer = Gained(6, 9, one_plus)
    assert neutral(layer) == (("gain", float(not one_plus)),)
    nn.init.zeros_(layer.gain)  # as constructors do at the end of a branch
    assert neutral(layer) == (("gain", float(not one_plus)),)
    nn.init.normal_(layer.gain)
    assert neutral(layer) == (("gain", float(not one_plus)),)


def test_a_stored_transposed_matrix_is_one() -> None:
    class Conv1D(nn.Module):
        def __init__(self, outputs: int, inputs: int) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)

    Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"
    layer = Conv1D(6, 8)
    found = geometry(layer)
    assert found is not None
    assert (found.out_channels, found.in_channels, found.transposed) == (6, 8, True)
    made = zc.convert(Net(lambda: Conv1D(16, 8), 16), (ramp(2, 6, 5),), scheme="zero-2022", validate="none").module
    plain = zc.convert(Net(lambda: nn.Linear(8, 16), 16), (ramp(2, 6, 5),), scheme="zero-2022", validate="none").module
    assert torch.equal(made.layer.weight.T, plain.layer.weight)


def test_tables_of_positions_are_zero_and_the_padding_item_too() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.positions = nn.Embedding(9, 8, padding_idx=2), nn.Embedding(6, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids) + self.positions(torch.arange(ids.shape[1]))
            return self.head(x.mean(1))

    for scheme in SCHEMES:
        module = zc.convert(Words(), (torch.arange(12).reshape(2, 6) % 9,), scheme=scheme, validate="none").module
        assert not module.positions.weight.any()
        assert module.words.weight.any(1).tolist() == [i != 2 for i in range(9)]
        assert len(torch.unique(module.words.weight, dim=0)) == 9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_frozen_and_unused_parameters_are_named_in_the_plan_and_stop_nothing(scheme: str) -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))
    module.register_parameter("spare", nn.Parameter(torch.randn(4)))
    module[0].weight.requires_grad_(False)
    rules = {a.tensor.name: a.rule for a in zc.plan(module, (ramp(2, 5),), scheme=scheme, uncovered="keep").assignments}
    assert "unused" in rules["spare"]
    assert "frozen" in rules["0.weight"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_without_closed_form_is_refused_by_name(scheme: str) -> None:
    net = nn.Sequential(nn.Linear(5, 8), parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 3))
    with pytest.raises(CoverageError, match=r"1\.parametrizations.*remove_parametrizations"):
        zc.convert(net, (ramp(2, 5),), scheme=scheme, validate="none")


def test_a_quantized_layer_is_refused_by_name() -> None:
    class Packed(nn.Linear):
        pass

    Packed.__module__ = "torch.ao.nn.quantized.modules.linear"
    with pytest.raises(ModelError, match=r"quantized.*\(Sequential, 1\)"):
        zc.convert(nn.Sequential(nn.Linear(5, 8), Packed(8, 3)), (ramp(2, 5),), validate="none")


def test_the_effective_weight_of_a_weight_norm_follows_the_rule() -> None:
    for scheme in SCHEMES:
        net = nn.Sequential(nn.Conv2d(3, 8, 3), parametrizations.weight_norm(nn.Conv2d(8, 4, 3)), Head(4))
        plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), Head(4))
        made, same = (zc.convert(m, (ramp(2, 3, 8, 8),), scheme=scheme, validate="none").module for m in (net, plain))
        weights = [m.get_submodule("1").weight for m in (made, same)]
        assert torch.equal(*weights)


class Towers(nn.Module):
    """Images pooled by a class token or a probe, and words; only the directions of their features are compared."""

    def __init__(self, probe: bool, function: bool) -> None:
        super().__init__()
        self.probe, self.function = probe, function
        self.patches, self.words = nn.Linear(6, 8), nn.Embedding(20, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.image, self.text = nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def directed(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.function else x / x.norm(dim=-1, keepdim=True)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        x, token = self.patches(images), self.token.expand(len(images), 1, 8)
        if self.probe:
            x = self.attention(token, x, x, need_weights=False)[0]
        else:
            x = torch.cat([token, x], 1)
            y = self.norm(x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
        x = (x + self.down(F.gelu(self.up(self.norm(x)))))[:, 0]
        x = x if self.probe else self.image(x)
        y = self.text(self.words(words).mean(1))
        return self.directed(x) @ self.directed(y).T * self.scale.exp()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize("function", [False, True])
def test_features_of_which_only_the_direction_counts_are_not_zero(scheme: str, probe: bool, function: bool) -> None:
    inputs = ramp(3, 4, 6), torch.arange(12).reshape(3, 4)
    result = zc.convert(Towers(probe, function), inputs, scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    held = "zero_branches" in {check.name for check in result.checks}
    assert held == (scheme == "zero-2021" or not probe), "a branch of linear layers alone is not 0 in the later version"
    roles = {a.tensor.name: a.role for a in result.plan.assignments}
    assert roles["text.weight"] == "trunk", "the directions of its features leave the model, not its values"
    images, words = inputs[0].double(), inputs[1]
    logits = result.module.double()(images, words)
    assert logits.isfinite().all() and logits.abs().max() > 0
    (logits**2).sum().backward()
    largest = max(p.grad.abs().max() for p in result.module.parameters() if p.grad is not None)
    assert 0 < largest < 1e6, "next to 0 a direction has no derivative to speak of"


def test_a_softmax_and_a_norm_with_an_epsilon_leave_a_head_a_head() -> None:
    class Ended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(torch.relu(self.embed(x)))
            made = y.exp() / y.exp().sum(-1, keepdim=True)
            return made + y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)

    result = zc.convert(Ended(), (ramp(3, 5),), scheme="zero-2021", device="cpu")
    assert {a.rule for a in result.plan.assignments if a.role == "head"} == {"constant 0"}


class ReZero(nn.Module):
    """A branch with one number in front of it, 0 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.last = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 1)
        self.alpha, self.head = nn.Parameter(torch.zeros(1)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.alpha.view(1, 1, 1) * self.last(torch.tanh(self.first(x)))
        return self.head(x.mean(2))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_branch_that_a_factor_makes_zero_does_not_end_in_zero_as_well(scheme: str) -> None:
    result = zc.convert(ReZero(), (ramp(3, 4, 6),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    held = next(check for check in result.checks if check.name == "zero_branches")
    assert held.numbers["joins"] >= 1
    assert bool(result.module.last.weight.any()) == (scheme == "zero-2022") != bool(result.module.alpha.any())


class Shared(nn.Module):
    """The last layer of a branch has the weight of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.last = (
            nn.Conv1d(4, 8, 1),
            nn.Conv1d(8, 8, 3, padding=1),
            nn.Conv1d(8, 8, 3, padding=1),
        )
        self.last.weight = self.first.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.last(torch.tanh(self.first(x)))).mean(2))


class SharedTwice(Shared):
    """Its block is run twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + self.last(torch.tanh(self.first(x)))
        return self.head(x.mean(2))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_block_that_is_run_twice_is_held_to_the_same_both_times(scheme: str) -> None:
    result = zc.convert(SharedTwice(), (ramp(3, 4, 6),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    net = SharedTwice()
    net.last.weight = nn.Parameter(torch.zeros(8, 8, 3))
    held = next(c for c in zc.convert(net, (ramp(3, 4, 6),), scheme=scheme).checks if c.name == "zero_branches")
    assert held.numbers["joins"] >= 2 and not held.numbers["not_required"]


def test_a_last_layer_with_the_weight_of_another_is_held_to_no_zero_branch() -> None:
    result = zc.convert(Shared(), (ramp(3, 4, 6),), scheme="zero-2022", device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    assert {a.rule for a in result.plan.assignments if a.tensor.name == "last.weight"} == {"tied to first.weight"}
    assert result.module.last.weight is result.module.first.weight and result.module.last.weight.any()


class Deep(nn.Module):
    """Pre-norm blocks over embedded items, the first of them item 0, or over a class token."""

    def __init__(self, depth: int, reads_items: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 64) if reads_items else nn.Linear(5, 64)
        self.token = None if reads_items else nn.Parameter(torch.randn(1, 1, 64))
        self.norms = nn.ModuleList(nn.LayerNorm(64, eps=1e-6) for _ in range(depth + 1))
        self.first = nn.ModuleList(nn.Linear(64, 128) for _ in range(depth))
        self.second = nn.ModuleList(nn.Linear(128, 64) for _ in range(depth))
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for norm, first, second in zip(self.norms, self.first, self.second, strict=False):
            x = x + second(F.gelu(first(norm(x))))
        return self.head(self.norms[-1](x)[:, 0])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("reads_items", [True, False])
def test_the_first_gradient_of_a_deep_network_of_tokens_is_bounded(reads_items: bool, scheme: str) -> None:
    x = torch.arange(12).reshape(2, 6) * torch.tensor([[1], [0]]) if reads_items else ramp(2, 6, 5)
    net = zc.convert(Deep(24, reads_items), (x,), scheme=scheme, validate="none").module.train()
    F.cross_entropy(net(x), torch.tensor([1, 2])).backward()
    norms = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None])
    assert norms.norm() < 1000


class BareAttention(nn.Module):
    """Attention without an output projection, its scores spelled out or not, fused or not, maybe behind a ReLU."""

    def __init__(self, fused: bool, spelled: bool, rectified: bool) -> None:
        super().__init__()
        self.norm, self.fused, self.spelled, self.rectified = nn.LayerNorm(8), fused, spelled, rectified
        if fused:
            self.qkv = nn.Linear(8, 24)
        else:
            self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 8) if rectified else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = self.qkv(y).chunk(3, -1) if self.fused else (self.q(y), self.k(y), self.v(y))
        if self.spelled:
            y = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return x + self.last(F.relu(y) if self.rectified else y)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("spelled", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_all_rows_of_an_attention_at_the_end_of_a_branch_or_before_a_relu_start_alive(
    fused: bool, spelled: bool, rectified: bool, scheme: str
) -> None:
    result = zc.convert(Net(lambda: BareAttention(fused, spelled, rectified)), (ramp(3, 6, 5),), scheme=scheme)
    assert not result.failed, [check.summary for check in result.failed]
    net = result.module
    moved: dict[str, Tensor] = {}
    for _ in range(12):
        net.zero_grad()
        (net(ramp(3, 6, 5)) - ramp(3, 3)).pow(2).sum().backward()
        with torch.no_grad():
            for name, p in net.layer.named_parameters():
                if p.grad is not None and p.ndim == 2:
                    moved[name] = moved.get(name, torch.zeros(len(p), dtype=torch.bool)) | p.grad.ne(0).any(1)
                    p -= 0.05 * p.grad / (p.grad.norm() + 1e-12)
            for p in net.head.parameters():
                p -= 0.05 * p.grad / (p.grad.norm() + 1e-12)
    still = {name: int((~rows).sum()) for name, rows in moved.items() if not rows.all()}
    assert not still, f"rows that never get a gradient: {still}"


def test_what_adds_floating_numbers_is_no_quantized_layer() -> None:
    assert not is_quantized(torch.ao.nn.quantized.FloatFunctional())
    assert is_quantized(torch.ao.nn.quantized.QFunctional())


class EarlyExit(nn.Module):
    """Its own Python decides, so that no rewrite reaches the ReLUs at the ends of its branches and of its head."""

    def __init__(self, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + F.relu(branch(x))
            if not self.training and self.head(x).softmax(-1).max() > 0.9:
                break
        return F.relu(self.head(x)) if self.rectified else self.head(x)


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_last_layers_before_a_relu_that_no_rewrite_reaches_are_not_zero(scheme: str, rectified: bool) -> None:
    result = zc.convert(EarlyExit(rectified), (ramp(4, 5),), scheme=scheme, device="cpu")
    assert result.plan.capture == "regions"
    assert not result.failed, [check.summary for check in result.failed]
    assert result.module.branches[0].weight.any()
    assert bool(result.module.head.weight.any()) == (rectified or scheme == "zero-2022")


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.middle = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.stem(x))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scripted_part_has_rules(scheme: str) -> None:
    result = zc.convert(Scripted(), (ramp(4, 5),), scheme=scheme, validate="none", device="cpu")
    rules = {a.tensor.name: a.rule for a in result.plan.assignments}
    assert {"middle.0.weight", "middle.2.bias"} < rules.keys()
