"""Networks nobody wrote: 500 random residual networks convert under both schemes, every join seen and told about.

By default a slice that repeats itself exactly; `-m slow` runs the 500.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from torch import Tensor

import zero_convert as zc
from benchmarks.zoo.joins import count_joins
from zero_convert.records import Join

from .random_nets import KINDS, Block, Design, Style, build, designs, inputs_of

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEMES = ("zero-2021", "zero-2022")
QUICK, ALL = 10, 500
PHASES = [Phase.explicit, Phase.generate, Phase.shrink]


def keeps_the_promises(design: Design, scheme: str) -> None:
    net, inputs = build(design), inputs_of(design)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = zc.convert(net, inputs, scheme=scheme, device="cpu", validate="quick")
    assert not result.failed, [f"{c.name}: {c.summary}" for c in result.failed]
    residual = [join for join in result.plan.joins if join.residual]
    assert (len(residual), len(result.plan.joins)) == (net.joins, net.joins + net.sums)
    for join in result.plan.joins:
        assert told(join, result), f"nothing is said about {join.node}"
    assert all(edit.applied or edit.reason for edit in result.plan.edits)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()), "the given module changed"
    assert answers(result.module, inputs).shape == answers(net, inputs).shape
    if scheme == "zero-2022":
        build(design, seed=1).load_state_dict(result.module.state_dict(), strict=True)
    else:
        trainable = [p for p in result.module.parameters() if p.requires_grad]
        assert all(((p == 0) | (p == 1)).all() for p in trainable)
    comes_back(design, result, inputs)
    again = zc.convert(build(design, seed=1), inputs, scheme=scheme, device="cpu", validate="none")
    assert again.weights_digest == result.weights_digest


def answers(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    module.eval()
    with torch.no_grad():
        found: Tensor = module(*inputs)
    module.train()
    return found


def comes_back(design: Design, result: zc.Result, inputs: tuple[Tensor, ...]) -> None:
    """Saved and loaded, it is the same network. A start with failed checks is not saved."""
    if result.failed:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "start.safetensors")
        result.save(path)
        back = zc.load(path, build(design, seed=2), inputs)
    made, found = result.module.state_dict(), back.state_dict()
    assert list(made) == list(found) and all(torch.equal(made[name], found[name]) for name in made)
    assert torch.equal(answers(back, inputs), answers(result.module, inputs))


def told(join: Join, result: zc.Result) -> bool:
    """Rewritten, declined with a reason, or nothing to rewrite.

    zero-2022 changes no architecture; zero-2021 gives skips of their own to the layers of a branch that keep their
    channels and see more than one position, the last one excepted.
    """
    about = {join.node, join.branch_node, *join.branch, *join.shortcut_layers}
    if join.reason or result.plan.scheme == "zero-2022" or any(edit.target in about for edit in result.plan.edits):
        return True
    sizes = [result.structure.layer(name).geometry for name in join.branch[:-1]]
    return not any(g and g.in_channels == g.out_channels and max(g.kernel, default=1) > 1 for g in sizes)


SETTINGS = {"deadline": None, "phases": PHASES, "suppress_health_check": list(HealthCheck)}


UNET = Block(kind="unet", inner=(Block(kind="shared", inner=(Block(kind="branches"),)),))
SHARED = (Block(kind="bottleneck"), Block(kind="shared", inner=(Block(kind="parallel"),)))
DROPPED = (Block(kind="basic", drop=True), Block(kind="branches"), Block(kind="basic"))
REACHED = (Block(kind="basic"), Block(kind="unet", inner=(Block(kind="inverted", dilation=2),)))
WIDE = (Block(kind="basic"), Block(kind="basic", stride=2), Block(kind="basic", width=4, kernel=(5,), dilation=2))


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=QUICK, **SETTINGS)
@given(design=designs())
@example(design=Design(style=Style(), width=8, stem="plain", blocks=(UNET,), tied=True))
@example(design=Design(style=Style(), width=8, stem="plain", blocks=SHARED, tied=True))
@example(design=Design(style=Style(), width=8, stem="plain", blocks=DROPPED))
@example(design=Design(style=Style(norm="weight"), width=8, stem="plain", blocks=WIDE))
@example(
    design=Design(style=Style(norm="weight"), width=8, stem="plain", blocks=(Block(kind="inverted", kernel=(1,)),))
)
@example(design=Design(style=Style(norm="weight"), width=8, stem="strided", blocks=REACHED))
@example(design=Design(style=Style(dims=1), width=6, stem="tokens", blocks=(Block(kind="basic", gate=True),)))
@example(
    design=Design(
        style=Style(dims=1, norm="instance"), width=5, stem="tokens", blocks=(Block(kind="bottleneck", gate=True),)
    )
)
def test_random_networks_keep_the_promises(scheme: str, design: Design) -> None:
    keeps_the_promises(design, scheme)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=ALL, **SETTINGS)
@given(design=designs())
def test_five_hundred_random_networks_keep_the_promises(scheme: str, design: Design) -> None:
    keeps_the_promises(design, scheme)


@settings(max_examples=60, **SETTINGS)
@given(design=designs())
def test_random_networks_run_and_their_joins_are_what_the_generator_says(design: Design) -> None:
    """The generator, and the count that the zoo benchmark takes, hold each other to account."""
    net, inputs = build(design), inputs_of(design)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(*inputs).sum().backward()
    assert len(count_joins(net, inputs)) == net.joins + net.sums


def test_every_kind_of_block_is_drawn() -> None:
    drawn: dict[str, int] = dict.fromkeys(KINDS, 0)

    @settings(max_examples=100, database=None, derandomize=True, **SETTINGS)
    @given(design=designs())
    def look(design: Design) -> None:
        for block in design.blocks:
            drawn[block.kind] += 1

    look()
    assert all(drawn.values()), drawn


def test_a_block_whose_graphs_cannot_be_cut_out_refuses_alone() -> None:
    """Its values go out and come back in; the rest of the tree stands."""
    inner = Block(kind="shared", inner=(Block(kind="shared activation"),))
    design = Design(style=Style(), width=8, stem="plain", blocks=(Block(kind="basic"), inner))
    result = zc.convert(build(design), inputs_of(design), scheme="zero-2021", validate="none")
    assert {"body.1.block"} <= set(result.tree.refused) and "" not in result.tree.refused
    assert "body" in result.tree.kept and answers(result.module, inputs_of(design)).shape
