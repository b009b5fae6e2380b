"""A live network gets the values of a start in place, whole or in shards; its digest is that of the file."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zero_convert as zc
from zero_convert.errors import UsageError
from zero_convert.nn.layers import HadamardTransform

from .live_nets import NETS, residual

X = torch.ones(2, 3, 8, 8)


def converted(name: str = "residual", **options: Any) -> zc.Result:
    build, inputs = NETS[name]
    return zc.convert(build(), inputs, validate="none", **options)


def emptied(result: zc.Result) -> nn.Module:
    """The network with other numbers everywhere, its ties as they were."""
    net = copy.deepcopy(result.module)
    for value in (*net.parameters(), *net.buffers()):
        value.detach().fill_(3)
    return net


def same(net: nn.Module, result: zc.Result) -> bool:
    digests, state = zc.digest(net), result.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    return (digests.weights, digests.start) == (result.weights_digest, result.start_digest)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "idinit", "rezero"])
def test_a_network_gets_the_values_of_a_result(scheme: str, dtype: str) -> None:
    result = converted(scheme=scheme, dtype=dtype)
    net = emptied(result)
    assert zc.digest(net).weights != result.weights_digest
    assert zc.fill_(net, result) is net
    assert same(net, result)
    x = X.to(getattr(torch, dtype))
    assert torch.equal(net.eval()(x), result.module.eval()(x))


@pytest.mark.parametrize("name", ["grouped", "recurrent", "bert", "llama", "vit"])
def test_every_kind_of_network_is_filled(name: str) -> None:
    result = converted(name, scheme="zero-2022")
    assert same(zc.fill_(emptied(result), result), result)


def test_a_start_is_taken_from_its_file(tmp_path: Path) -> None:
    result = converted("bert", scheme="zero-2021")
    result.save(tmp_path / "start.safetensors")
    net = zc.fill_(emptied(result), tmp_path / "start.safetensors", keep=["*position_ids", "*token_type_ids"])
    assert zc.digest(net).start == result.start_digest


def test_the_original_class_is_filled_where_the_scheme_keeps_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result, net = converted(scheme="zero-2022"), residual()
    zc.fill_(net, result)
    digests = zc.digest(net)
    assert digests == zc.Digests(result.weights_digest, "", "")


class Scaled(nn.Module):
    """A network with values that no formula gives: a table that is stored, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))
        self.register_buffer("hidden", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * self.table + self.hidden)


def test_what_is_kept_as_constructed_comes_with_the_result_alone(tmp_path: Path) -> None:
    x = (torch.ones(2, 4),)
    plan, result = zc.plan(Scaled(), x, scheme="zero-2022"), zc.convert(Scaled(), x, scheme="zero-2022")
    result.save(tmp_path / "x.safetensors")
    starts = ((plan, "table", ["table", "hid*"]), (tmp_path / "x.safetensors", "hidden", ["hidden"]))
    for start, missing, keep in starts:
        net = emptied(result)
        with pytest.raises(UsageError, match=rf"no value for tensors of the network.*{missing}.*keep="):
            zc.fill_(net, start)
        net.hidden.copy_(result.module.hidden)
        if start is plan:
            net.table.copy_(result.module.table)
        assert same(zc.fill_(net, start, keep=keep), result)
    net = zc.fill_(emptied(result), result)
    assert same(net, result) and torch.equal(net.hidden, torch.arange(4.0))


def test_a_plan_fills_without_any_values_in_memory() -> None:
    build, inputs = NETS["residual"]
    net = zc.fill_(residual(), zc.plan(build(), inputs, scheme="zero-2022"))
    assert zc.digest(net).weights == converted(scheme="zero-2022").weights_digest


def test_storage_that_comes_after_meta_is_filled() -> None:
    result = converted(scheme="zero-2021", options={"mixing": "permute"})
    net = copy.deepcopy(result.module).to("meta")
    with pytest.raises(UsageError, match=r"no storage.*to_empty"):
        zc.fill_(net, result)
    net.to_empty(device="cpu")
    for value in net.buffers():
        value.fill_(5)
    assert same(zc.fill_(net, result), result)
    transforms = [
        [part for part in root.modules() if isinstance(part, HadamardTransform)] for root in (net, result.module)
    ]
    assert transforms[0]  # what is computed from their order alone is there again
    for ours, theirs in zip(*transforms, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


def test_what_was_trained_gets_its_start_again() -> None:
    result = converted(scheme="zero-2022")
    start = result.start_digest
    optimizer = torch.optim.SGD(result.module.parameters(), 0.1)
    result.module(X).square().mean().backward()
    optimizer.step()
    assert zc.digest(result.module).start != start
    assert zc.digest(zc.fill_(result.module, result)).start == start


@pytest.mark.parametrize("wrap", ["compile", "checkpoint"])
def test_wrapped_networks_have_their_own_names(wrap: str) -> None:
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapper

    result = converted(scheme="zero-2022")
    net = emptied(result)
    if wrap == "compile":
        net = torch.compile(net)  # type: ignore[assignment]
    else:
        wrapper.apply_activation_checkpointing(net, check_fn=lambda part: type(part).__name__ == "Block")
        assert any("_checkpoint_wrapped_module" in name for name, _ in net.named_parameters())
    zc.fill_(net, result)
    assert zc.digest(net).weights == result.weights_digest


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit


def test_another_network_is_refused_and_left_as_it_is() -> None:
    result = converted(scheme="zero-2022")
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Linear(11, 5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UsageError, match=r"no value for tensors.*1\.weight"):
        zc.fill_(net, result)
    wide = residual()
    wide[0] = nn.Conv2d(3, 6, 5)
    with pytest.raises(UsageError, match=r"other shapes.*0\.weight \(6, 3, 5, 5\), expected \(6, 3, 3, 3\)"):
        zc.fill_(wide, result)
    with pytest.raises(UsageError, match=r"lacks tensors.*5\.bias"):
        zc.fill_(nn.Sequential(*list(residual())[:5]), result)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_another_type_is_refused() -> None:
    with pytest.raises(UsageError, match=r"other types.*float32, expected torch.bfloat16.*--dtype"):
        zc.fill_(residual(), converted(scheme="zero-2022", dtype="bfloat16"))


def test_ties_that_are_apart_are_named_with_lines_that_tie_them() -> None:
    result = converted("bert", scheme="zero-2022")
    net = emptied(result).to("meta").to_empty(device="cpu")
    with pytest.raises(UsageError, match="tied tensors are apart") as raised:
        zc.fill_(net, result)
    exec(str(raised.value).split("with net the network: ")[1].rstrip("."), {"net": net})
    zc.fill_(net, result)
    assert zc.digest(net).weights == result.weights_digest


def test_nothing_is_filled_from_what_is_no_start() -> None:
    with pytest.raises(UsageError, match="expected a Result, a Plan, or the path of a file"):
        zc.fill_(residual(), 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"filled from safetensors"):
        zc.fill_(residual(), "start.onnx")


def test_a_network_without_storage_has_no_digest() -> None:
    with pytest.raises(UsageError, match=r"no storage \(0\.weight\).*fill_"):
        zc.digest(residual().to("meta"))


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def run(world: int, *arguments: str) -> list[Any]:
    """The answers of all processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = subprocess.run(
        [*command, "-m", "tests.live_worker", *arguments], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(answer) for answer in re.findall(r"\[[^\[\]]*\]", done.stdout)]


def test_shards_of_two_processes_have_the_bits_of_the_whole() -> None:
    answers = run(2, "residual,llama", "zero-2021", "fsdp,columns")
    assert len(answers) == 2 * 2 * 2 and all(answer[-1] for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_every_layout_of_every_network_has_the_bits_of_the_whole(world: int) -> None:
    schemes = "zero-2021,zero-2022,idinit,rezero,fixup,skipinit,constnet"  # risotto declines odd widths
    answers = run(world, ",".join(NETS), schemes)
    assert all(answer[-1] for answer in answers)
    assert {answer[0] for answer in answers} == set(NETS) and {answer[1] for answer in answers} == set(
        schemes.split(",")
    )
    cases = len(NETS) * 6 + 2  # constnet has no rule for an embedding, and declines transformers
    assert len(answers) == world * {2: 4, 4: 7}[world] * cases


@pytest.mark.slow
def test_the_example_fills_shards_with_the_bits_of_the_whole() -> None:
    example = Path(__file__).parent.parent / "examples" / "fsdp2.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(example)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    expected = zc.convert("resnet18", scheme="zero-2022", validate="none").weights_digest
    assert re.findall(r"zc1 (\w+)", done.stdout) == [expected] * 2
    assert len(set(re.findall(r"loss ([\d.]+)", done.stdout))) == 2
