"""Whole networks under every scheme: the families of torchvision, and the odd networks of `odd_nets`.

By default a few small models and all odd networks with the default options; `-m zoo` adds the other families and all 80
classification models of torchvision, `-m slow` the other options.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import zero_convert as zc
from zero_convert.graph.queries import relu_kind
from zero_convert.graph.traced import Traced
from zero_convert.records import Join
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from .odd_nets import ODD, ramp

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEMES = ("zero-2021", "zero-2022")

# -- torchvision -------------------------------------------------------------------------------------------------------

# One small model of each family → its residual joins.
FAMILIES = {
    "resnet18": 8,
    "resnext50_32x4d": 16,
    "wide_resnet50_2": 16,
    "regnet_x_400mf": 22,
    "regnet_y_400mf": 16,
    "mobilenet_v2": 10,
    "mobilenet_v3_small": 6,
    "efficientnet_b0": 9,
    "convnext_tiny": 18,
    "densenet121": 0,
    "vgg11_bn": 0,
    "mnasnet0_5": 10,
    "shufflenet_v2_x0_5": 0,
    "googlenet": 0,
    "inception_v3": 0,
    "alexnet": 0,
    "squeezenet1_0": 0,
    "swin_t": 24,
    "swin_v2_t": 24,
    "maxvit_t": 44 + 11,
    "vit_b_16": 24,
}
SMALL = ("resnet18", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5")
CHECKED = ("mobilenet_v3_small",)  # small enough for the checks by default
FIXED = {"swin_v2_t": 256, "maxvit_t": 224, "vit_b_16": 224, "swin_t": 224, "inception_v3": 299, "alexnet": 224}
ZOO = [name for name in torchvision.models.list_models(module=torchvision.models) if name not in SMALL]


def side(name: str) -> int:
    """A small image that the model takes."""
    return FIXED.get(name, 64)


def models(names: dict[str, int] | list[str], quick: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.zoo) for name in names]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", models(FAMILIES, SMALL))
def test_families_convert_save_and_load(name: str, scheme: str, tmp_path: Path) -> None:
    checked = name in CHECKED or name not in SMALL
    result = zc.convert(f"torchvision:{name}", scheme=scheme, device="cpu", validate="quick" if checked else "none")
    assert not [f"{check.name}: {check.summary}" for check in result.failed]
    assert not checked or {"outputs", "finite", "gradients", "repeat"} <= {check.name for check in result.checks}
    joins = [join for join in result.plan.joins if join.residual]
    assert len(joins) == FAMILIES[name]
    assert not [join for join in result.plan.joins if not join.residual], "no sum is left over"
    values = result.module.state_dict()
    assert not [key for key, value in values.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if scheme == "zero-2021":
        assert_only_zeros_and_ones(result.module)
        assert_every_join_is_rewritten_or_declined(result)
    else:
        assert not result.plan.edits
        assert_loads_into_the_original(name, values)
    saved = result.save(tmp_path / "start.safetensors")[0]
    assert saved.weights_digest == result.weights_digest
    x = ramp(2, 3, side(name), side(name))
    again = zc.load(saved.path)
    with torch.no_grad():
        expected = result.module.eval()(x)
        assert torch.equal(again.eval()(x), expected)
    assert expected.shape == (2, 1000)
    assert torch.isfinite(expected).all()
    assert (expected == 0).all() == (scheme == "zero-2021"), "logits are exactly 0"


@pytest.mark.zoo
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ZOO)
def test_every_classification_model_converts(name: str, scheme: str) -> None:
    """Without running it: the largest has 645 million parameters."""
    result = zc.convert(f"torchvision:{name}", scheme=scheme, validate="none")
    values = result.module.state_dict()
    assert not [key for key, value in values.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    assert not [join for join in result.plan.joins if not join.residual]
    if scheme == "zero-2021":
        assert_only_zeros_and_ones(result.module)
        assert_every_join_is_rewritten_or_declined(result)


def test_there_are_eighty_classification_models() -> None:
    assert len(ZOO) + len(SMALL) >= 80
    assert set(FAMILIES) <= {*ZOO, *SMALL}


def assert_only_zeros_and_ones(module: nn.Module) -> None:
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert not [name for name, p in trainable.items() if not ((p == 0) | (p == 1)).all()]


def assert_every_join_is_rewritten_or_declined(result: Any) -> None:
    """An edit, applied or declined with a reason, is about the join itself, a layer of its branch, or its shortcut."""
    told: dict[str, bool] = {}
    for edit in result.plan.edits:
        assert edit.applied or edit.reason
        told[edit.target] = edit.applied
    for join in result.plan.joins:
        about = {join.node, *join.branch, *join.shortcut_layers}
        kinds = {result.structure.layer(name).kind for name in join.branch}
        nothing_to_do = join.order == "plain" or len(join.branch) == 1 or "convolution" not in kinds
        assert about & set(told) or nothing_to_do, f"nothing is said about {join.node}"


def assert_loads_into_the_original(name: str, values: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two models warn about their random start
        original = torchvision.models.get_model(name, weights=None)
    original.load_state_dict(values, strict=True)


# -- odd networks ------------------------------------------------------------------------------------------------------

OPTIONS: list[tuple[str, dict[str, str]]] = [
    ("zero-2021", {}),
    ("zero-2022", {}),
    *(
        ("zero-2021", {"norm": norm, "mixing": mixing})
        for norm in ("keep", "none")
        for mixing in ("none", "permute", "signs")
        if (norm, mixing) != ("keep", "none")
    ),
    ("zero-2022", {"c": "paper", "columns": "spanning", "order": "exact"}),
]
# One norm or activation more: the default run has others of their kind.
VARIANTS = {"layer_norm_images", "gelu", "hardswish", "leaky", "circular", "conv1d"}
# zero-2022 changes no architecture: by default only the networks whose roles are not plain.
PLAIN_ROLES = {
    *("layer_norm_images", "group_norm", "instance_norm", "no_norm", "not_affine", "local_response", "silu", "gelu"),
    *("hardswish", "relu6", "leaky", "width_7", "conv1d", "conv3d", "circular", "double", "only_linear", "plain_mlp"),
    *("two_inputs", "odd_names", "one_channel", "max_pool_shortcut", "avg_pool_shortcut", "same_padding", "two_modes"),
    *("denoiser", "named_arguments", "grouped_growth", "dense_concat", "two_stems", "highway", "multi_scale"),
    *("residual_mlp", "decoder", "gate_after_norm", "shared_norm", "first_block", "activated_branch", "drop_path"),
}


def marks(name: str, scheme: str, index: int) -> list[pytest.MarkDecorator]:
    quick = 0 if name in VARIANTS else 1 if name in PLAIN_ROLES else 2
    return [pytest.mark.slow] if index >= quick else []


CASES = [
    pytest.param(
        name, scheme, options, id="-".join((name, scheme, *options.values())), marks=marks(name, scheme, index)
    )
    for name in ODD
    for index, (scheme, options) in enumerate(OPTIONS)
]


def build(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return ODD[name].build()


def inputs_of(name: str, module: nn.Module, **sizes: int) -> tuple[Tensor, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in ODD[name].inputs(**sizes))


def convert(name: str, scheme: str, options: dict[str, str], *, seed: int = 0, **sizes: int) -> zc.Result:
    module = build(name, seed)
    return zc.convert(module, inputs_of(name, module, **sizes), scheme=scheme, options=options, validate="none")


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's, once per process
@pytest.mark.parametrize(("name", "scheme", "options"), CASES)
def test_odd_networks_keep_the_promises(name: str, scheme: str, options: dict[str, str]) -> None:
    result = convert(name, scheme, options)
    module, given = result.module, build(name, 0)
    if scheme == "zero-2021":
        assert_only_zeros_and_ones(module)
    else:
        given.load_state_dict(module.state_dict(), strict=True)
    for training in (True, False):
        assert_zero_branches(result, training, inputs_of(name, module))
        for sizes in ({}, {"batch": 3, "grow": 3}, {"grow": 8}):
            assert_same_shapes_and_finite(name, given.train(training), module.train(training), sizes)
    assert_alive(name, scheme, module)
    grow = 8 if runs(given, inputs_of(name, given, grow=8)) else 0
    assert convert(name, scheme, options, seed=1, grow=grow).weights_digest == result.weights_digest


def runs(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    try:
        module(*inputs)
    except RuntimeError:
        return False
    return True


def assert_same_shapes_and_finite(name: str, given: nn.Module, made: nn.Module, sizes: dict[str, int]) -> None:
    try:
        expected = tensors(copy.deepcopy(given)(*inputs_of(name, given, **sizes)))
    except RuntimeError:
        return  # a size that the network does not take
    found = tensors(copy.deepcopy(made)(*inputs_of(name, made, **sizes)))
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert all(torch.isfinite(t).all() for t in found)


def assert_zero_branches(result: zc.Result, training: bool, inputs: tuple[Tensor, ...]) -> None:
    """Every branch adds exactly 0 in this mode; in zero-2022 only where it is convolutional, without ReLU."""
    module = copy.deepcopy(result.network).train(training)
    if hasattr(module, "train_graph"):
        graph: fx.Graph = module.train_graph if training else module.evaluate_graph
        traced = Traced(module, graph, graph, "")
    else:
        traced = trace(module, inputs)
        graph = traced.train if training else traced.evaluate
    structure = analyze(traced, graph)
    joins = {join.node: join for join in structure.joins if join.residual}
    kinds = {layer.name: layer.kind for layer in structure.layers}
    seen = Recorder(module, graph, joins)
    seen.run(*inputs)
    for node, join in joins.items():
        convolutional = any(kinds[layer] == "convolution" for layer in join.branch)
        required = result.plan.scheme == "zero-2021" or (
            convolutional and not relu_kind(seen.nodes[join.branch_node], module)
        )
        assert not required or seen.largest[node] == 0, f"{node} adds {seen.largest[node]}"


class Recorder(fx.Interpreter):
    """The largest magnitude of each join's branch at the moment it is added."""

    def __init__(self, module: nn.Module, graph: fx.Graph, joins: dict[str, Join]) -> None:
        super().__init__(module, graph=graph, garbage_collect_values=False)
        self.joins, self.largest = joins, {}
        self.nodes = {node.name: node for node in graph.nodes}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.joins:
            value = self.env[self.nodes[self.joins[n.name].branch_node]]
            self.largest[n.name] = float(value.detach().abs().max())
        return super().run_node(n)


def assert_alive(name: str, scheme: str, module: nn.Module) -> None:
    """Every weight of a convolution or linear layer moves within some normalised steps."""
    module = copy.deepcopy(module).train()
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
    waiting = {key: p for key, p in module.named_parameters() if p.requires_grad and p.ndim > 1}
    inputs = inputs_of(name, module, batch=8)
    for _ in range(24):
        module.zero_grad()
        loss = sum(((t - ramp(*t.shape, dtype=t.dtype) / 2) ** 2).mean() for t in tensors(module(*inputs)))
        assert torch.isfinite(loss)
        loss.backward()
        for key, parameter in module.named_parameters():
            if parameter.grad is not None and (largest := parameter.grad.abs().max()) > 0:
                waiting.pop(key, None)
                with torch.no_grad():
                    parameter -= 0.01 * parameter.grad / largest
        if not waiting:
            break
    assert not waiting, f"without a gradient: {list(waiting)}"
