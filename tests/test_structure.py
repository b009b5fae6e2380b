"""Structure: what is a residual join, what its sides are, and which role each layer plays."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zero_convert as zc
from zero_convert.records import Join, Structure
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from .nets import BottleneckNet, NormFreeNet, PreActivationResNet, mlp, tiny_resnet
from .odd_nets import ODD, DropPath, FusedAttention, Head, Residual, conv_net, pooled_shortcut, ramp

IMAGE = ramp(2, 3, 8, 8)


def structure(module: nn.Module, *inputs: Tensor) -> Structure:
    return analyze(trace(module, inputs or (IMAGE,)))


def odd(name: str) -> Structure:
    return structure(ODD[name].build(), *ODD[name].inputs())


def roles(found: Structure) -> dict[str, str]:
    return {layer.name: layer.role for layer in found.layers if layer.geometry is not None}


class Net(nn.Module):
    """A stem, two convolutions, and whatever `forward` is given."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))
        self.head = Head(4)
        self.body = body

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, self.stem(x)))


SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x + y": operator.add,
    "y + x": lambda x, y: y + x,
    "x += y": operator.iadd,
    "torch.add(x, y)": torch.add,
    "torch.add by name": lambda x, y: torch.add(input=x, other=y),
    "x.add(y)": lambda x, y: x.add(y),
    "x.add_(y)": lambda x, y: x.add_(y),
}


@pytest.mark.parametrize("add", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_a_sum_is_a_join(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    [join] = structure(Net(lambda net, x: add(net.branch(x), x))).joins
    assert join.residual
    assert (join.shortcut, join.branch, join.shortcut_layers) == ("identity", ("conv1", "conv2"), ())
    assert (join.fork, join.shortcut_node, join.branch_node) == ("stem", "stem", "conv2")
    assert (join.in_channels, join.out_channels, join.stride) == (4, 4, 1)


def test_a_sum_of_activations_is_no_join() -> None:
    assert not structure(Net(lambda net, x: F.relu(x) + torch.tanh(x))).joins


def test_a_doubled_value_is_no_join() -> None:
    assert not structure(Net(lambda net, x: (y := net.branch(x)) + y)).joins


def test_a_broadcast_bias_is_no_join() -> None:
    assert not structure(Net(lambda net, x: x + net.conv1(F.adaptive_avg_pool2d(x, 1)))).joins


def test_a_sum_with_a_constant_or_a_position_is_no_join() -> None:
    assert not structure(Net(lambda net, x: x + 1.0)).joins
    assert [join.branch for join in odd("vit").joins] == [("attention.qkv", "attention.proj"), ("mlp.0", "mlp.2")]


def test_two_branches_that_meet_are_no_residual_join() -> None:
    [join] = structure(Net(lambda net, x: net.conv1(x) + net.conv2(x))).joins
    assert not join.residual
    assert "neither" in join.reason


def test_concatenations_are_reported_and_no_joins() -> None:
    found = odd("dense_concat")
    assert not found.joins
    assert any("3 concatenations" in note for note in found.notes)


@pytest.mark.parametrize(
    ("shortcut", "kind", "layers"),
    [
        (nn.Identity(), "identity", ()),
        (nn.Dropout(0.1), "identity", ()),
        (nn.MaxPool2d(3, 1, 1), "pooling", ()),
        (nn.Conv2d(4, 4, 1), "projection", ("conv1.0",)),
        (nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), "projection", ("conv1.0.1",)),
        (nn.Tanh(), "other", ()),
    ],
)
def test_shortcuts_by_kind(shortcut: nn.Module, kind: str, layers: tuple[str, ...]) -> None:
    net = Net(lambda net, x: net.conv1[0](x) + net.conv2(x))
    net.conv1 = nn.Sequential(shortcut)
    net.conv2 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    [join] = structure(net).joins
    assert (join.residual, join.shortcut, join.shortcut_layers) == (True, kind, layers)
    assert join.branch == ("conv2.0", "conv2.1")


def test_a_strided_block_tells_its_sizes() -> None:
    first, second = structure(tiny_resnet()).joins
    assert (first.shortcut, first.in_channels, first.out_channels, first.stride) == ("identity", 8, 8, 1)
    assert (second.shortcut, second.in_channels, second.out_channels, second.stride) == ("projection", 8, 16, 2)
    assert structure(BottleneckNet(), ramp(2, 3, 32, 32)).joins[2].stride == 2


def test_orders_are_told_apart() -> None:
    def orders(found: Structure) -> list[str]:
        return [join.order for join in found.joins]

    assert orders(structure(tiny_resnet())) == ["post-activation"] * 2
    assert orders(structure(PreActivationResNet())) == ["pre-activation"] * 3
    assert orders(structure(NormFreeNet())) == ["pre-activation"] * 3
    assert orders(odd("dilated_groups")) == ["plain", "post-activation", "post-activation"]


def test_nested_joins_have_their_own_layers() -> None:
    inner_one, inner_two, outer = odd("nested").joins
    assert inner_one.branch == ("1.branch.0.branch.0", "1.branch.0.branch.2")
    assert inner_two.branch == ("1.branch.1.branch.0", "1.branch.1.branch.2")
    assert outer.branch[-1] == "1.branch.2"
    assert outer.fork == inner_one.fork
    found = roles(odd("nested"))
    assert [found[name] for name in (*inner_one.branch, *inner_two.branch, "1.branch.2")] == [
        "branch", "branch-last", "branch", "branch-last", "branch-last",
    ]  # fmt: skip


def test_a_branch_that_ends_in_an_inner_sum_is_zero_only_with_both_its_ends() -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        y = net.conv1(x)
        return x + (y + net.conv2(y))

    found = structure(Net(body))
    assert [join.residual for join in found.joins] == [True, True]
    assert roles(found) == {"stem": "stem", "conv1": "branch-last", "conv2": "branch-last", "head.fc": "head"}


def test_a_feature_pyramid_is_no_chain_of_residual_joins() -> None:
    first, second = odd("pyramid").joins
    assert first.residual
    assert first.shortcut == "projection"
    assert not second.residual
    assert second.reason == f"its branch ends in the shortcut of {first.node}"


def test_parallel_attention_and_mlp_are_two_joins_from_one_fork() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.attention = nn.Linear(5, 6), nn.LayerNorm(6), FusedAttention(6, 2)
            self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            y = self.norm(x)
            return self.head(x + self.attention(y) + self.mlp(y))

    found = structure(Parallel(), ramp(2, 4, 5))
    first, second = found.joins
    assert first.residual
    assert second.residual
    assert first.fork == second.fork == "embed"
    assert (first.branch, second.branch) == (("attention.qkv", "attention.proj"), ("mlp.0", "mlp.2"))
    assert roles(found)["attention.proj"] == roles(found)["mlp.2"] == "branch-last"


@pytest.mark.parametrize("name", ["gate_before_norm", "gate_after_norm"])
def test_gates_are_found_and_are_no_part_of_the_branch(name: str) -> None:
    found = odd(name)
    at = 4 if name == "gate_before_norm" else 5
    assert [gate.layers for gate in found.gates] == [(f"{i}.branch.{at}.fc1", f"{i}.branch.{at}.fc2") for i in (1, 2)]
    assert [join.branch for join in found.joins] == [(f"{i}.branch.0", f"{i}.branch.3") for i in (1, 2)]
    assert (roles(found)[f"1.branch.{at}.fc1"], roles(found)[f"1.branch.{at}.fc2"]) == ("gate", "gate-last")
    assert roles(found)["1.branch.3"] == "branch-last"
    assert all(join.chain for join in found.joins)


class ScaledBlock(nn.Module):
    """Layer scale and stochastic depth, the way ConvNeXt has them."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-6))
        self.depthwise, self.point, self.drop = nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.Conv2d(4, 4, 1), drop

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.gamma * self.point(F.gelu(self.depthwise(x))))


@pytest.mark.parametrize("drop", [DropPath(0.2), nn.Dropout(0.2), nn.Dropout2d(0.2)], ids=lambda m: type(m).__name__)
def test_layer_scale_and_stochastic_depth_lie_on_the_branch(drop: nn.Module) -> None:
    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 3), ScaledBlock(drop), Head(4)), (IMAGE,))
    for graph in traced.graphs:
        found = analyze(traced, graph)
        [join] = found.joins
        assert join.residual
        assert (join.shortcut, join.branch) == ("identity", ("1.depthwise", "1.point"))
        assert join.chain, "a mask does not break the chain"
        assert not found.gates
        [scale] = [layer for layer in found.layers if layer.kind == "parameter"]
        assert dict(scale.uses) == {"gamma": "multiplied"}


def test_first_and_last_layers_are_stem_and_head() -> None:
    assert roles(structure(mlp(), ramp(4, 20))) == {"0": "stem", "2": "trunk", "4": "head"}
    assert roles(structure(nn.Linear(3, 2), ramp(4, 3))) == {"": "head"}
    several = roles(odd("dict_output"))
    assert (several["stem"], several["classes"], several["boxes"]) == ("stem", "head", "head")
    both = roles(odd("two_inputs"))
    assert (both["image"], both["vector"]) == ("stem", "stem")


def test_layers_come_in_order_of_execution_with_all_their_tensors() -> None:
    net = tiny_resnet()
    found = structure(net)
    names = [layer.name for layer in found.layers]
    assert names.index("blocks.0.conv1") < names.index("blocks.0.bn1") < names.index("blocks.1.conv1")
    tensors = [tensor.name for layer in found.layers for tensor in layer.tensors]
    assert sorted(tensors) == sorted(net.state_dict())
    assert found.layer("bn1").tensors[0].trainable
    assert {t.local for t in found.layer("bn1").tensors if t.buffer} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_a_module_used_twice_is_one_layer_in_both_branches() -> None:
    found = odd("shared_conv")
    assert [join.branch for join in found.joins] == [("shared", "last")] * 2
    assert [layer.name for layer in found.layers].count("shared") == 1
    assert (roles(found)["shared"], roles(found)["last"]) == ("branch", "branch-last")


def test_tied_weights_belong_to_both_layers_by_name() -> None:
    found = odd("tied_language_model")
    owned = [tensor.name for layer in found.layers for tensor in layer.tensors]
    assert {"embed.weight", "out.weight"} <= set(owned)
    assert len(owned) == len(set(owned))


def test_queries_keys_and_values_in_one_layer_are_three_parts() -> None:
    parts = {layer.name: layer.parts for layer in odd("vit").layers if layer.kind == "linear"}
    assert parts == {"attention.qkv": 3, "attention.proj": 1, "mlp.0": 1, "mlp.2": 1, "head": 1}
    tripled = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.Softmax(-1))
    assert {layer.parts for layer in structure(tripled, ramp(2, 4)).layers} == {1}


def test_raw_parameters_are_known_by_their_use() -> None:
    uses = {key: use for layer in odd("vit").layers for key, use in layer.uses}
    assert uses == {"cls": "concatenated", "pos": "added", "gamma": "multiplied"}
    uses = {key: use for layer in odd("functional").layers for key, use in layer.uses}
    assert uses == {"weight": "weight", "scale": "multiplied", "shift": "added"}


class RelativePositions(nn.Module):
    """Rows of a table, taken by indices that are made of sizes, are multiplied with the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.table = nn.Linear(4, 4), nn.Parameter(torch.zeros(9, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, n = self.q(x), x.shape[1]
        index = torch.arange(n)[:, None] - torch.arange(n)[None] + 4
        return torch.einsum("bnc,nmc->bnm", q, self.table[index]) + q @ x.transpose(1, 2)


def test_rows_taken_by_indices_make_a_parameter_a_table() -> None:
    traced = trace(RelativePositions(), (torch.zeros(2, 5, 4),))
    [layer] = [layer for layer in analyze(traced).layers if layer.name == ""]
    assert layer.uses == (("table", "indexed"),)


def test_attention_ends_in_its_output_projection() -> None:
    found = odd("post_norm")
    assert found.joins[0].branch == ("attention",)
    named = {layer.name: layer.role for layer in found.layers}
    assert (named["attention"], named["attention.out_proj"]) == ("branch", "branch-last")


def test_what_a_leaf_hides_is_told() -> None:
    found = odd("with_leaf")
    assert found.layer("odd.linear").reason == "inside odd, which tracing kept whole"


def same_but_for_names(a: Join, b: Join) -> bool:
    return (a.branch, a.shortcut, a.order, a.shortcut_layers) == (b.branch, b.shortcut, b.order, b.shortcut_layers)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, lambda c: nn.GroupNorm(2, c), nn.Identity])
def test_norms_make_no_difference_to_the_joins(norm: Callable[[int], nn.Module]) -> None:
    plain = structure(conv_net(nn.BatchNorm2d)).joins
    found = structure(conv_net(norm)).joins
    assert len(found) == len(plain) == 3
    assert all(map(same_but_for_names, plain, found))


def test_pooling_before_a_projection_belongs_to_the_shortcut() -> None:
    pooled, projected = structure(pooled_shortcut(nn.MaxPool2d(3, 2, 1))).joins
    assert (pooled.shortcut, projected.shortcut) == ("pooling", "projection")
    assert projected.shortcut_layers == ("2.shortcut.1",)


def test_analysis_changes_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Residual(nn.Conv2d(4, 4, 3, padding=1)), Head(4))
    traced = trace(net, (IMAGE,))
    before = str(traced.train), list(net.state_dict())
    assert analyze(traced) == analyze(traced)
    assert (str(traced.train), list(net.state_dict())) == before


class TwoSignals(nn.Module):
    """As in the cells of NASNet: what is added to a pooled signal holds another signal as well."""

    def __init__(self, pooled_sum: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.pooled_sum = nn.Linear(4, 2), pooled_sum

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = self.left(a) + self.right(b)
        y = F.avg_pool2d(a, 3, 1, 1) + (F.avg_pool2d(y, 3, 1, 1) if self.pooled_sum else self.right(y))
        return self.head(y.mean((2, 3)))


def test_a_branch_that_carries_another_signal_is_no_residual_branch() -> None:
    (join,) = [j for j in analyze(trace(TwoSignals(True), (ramp(1, 3, 6, 6),))).joins if j.shortcut == "pooling"]
    assert not join.residual and "does not come from the fork" in join.reason
    (join,) = [j for j in analyze(trace(TwoSignals(False), (ramp(1, 3, 6, 6),))).joins if j.shortcut == "pooling"]
    assert join.residual  # its last layer decides over both signals
    result = zc.convert(TwoSignals(True), (ramp(4, 3, 6, 6),), device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
