"""The zoo benchmark: its count of joins where the number is known, its processes and their limits, its tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo import __main__ as command
from benchmarks.zoo import pool, slices, table
from benchmarks.zoo.joins import count_joins, fill_in
from benchmarks.zoo.one import Task, measure

from .nets import BottleneckNet, NormFreeNet
from .odd_nets import Pyramid, UNetWithSums, ramp
from .zoo_tasks import behave

# -- the count of joins ------------------------------------------------------------------------------------------------


class Lambda(nn.Module):
    """A forward given as a function of the module and the input, over some layers."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def linear(n: int = 6, m: int = 6) -> nn.Linear:
    return nn.Linear(n, m)


def in_place(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    y = net.b(x)
    y += x
    return y.add_(net.c(y))


def spelled(net: Any, x: Tensor) -> Tensor:
    x = torch.add(x, net.a(x))
    x = x.add(net.b(x))
    x = torch.addcmul(x, net.gamma, net.a(x))
    return torch.addmm(x, x, net.b.weight)


def window(net: Any, x: Tensor) -> Tensor:
    """Writes into a part of a tensor, and reads another view of it."""
    whole = torch.zeros(2, 12)
    whole[:, :6] = net.a(x)
    left, right = whole.view(2, 2, 6).unbind(1)
    return left + net.b(right + 0 * left)


def rotary(net: Any, x: Tensor) -> Tensor:
    q = net.a(x)
    return q * torch.cos(x.detach() * 0 + 1) + q.flip(-1) * 0.5


def gate(net: Any, x: Tensor) -> Tensor:
    """A sum weighted by a gate that is computed from both branches: no weights after the last common ancestor."""
    u, v = net.a(x), net.b(x)
    share = torch.sigmoid(net.c(u * v))
    return u * share + v * (1 - share)


def attention(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    """The mask has the shape of the scores; positions are added once; two residual joins."""
    x = x + net.position
    for _ in range(2):
        scores = net.a(x) @ net.b(x).transpose(-1, -2) + mask.to(x.dtype) * -1e4 + net.table
        x = x + scores.softmax(-1) @ net.c(x)
    return x


def relative(net: Any, x: Tensor) -> Tensor:
    """Scores from keys and from relative positions, both times the queries: one residual join, not three."""
    q, k = net.a(x), net.b(x)
    scores = q @ k.transpose(-1, -2) / 2 + (q @ net.rows + (q @ net.columns).expand(1, 4, 4))
    fused = F.scaled_dot_product_attention(q, k, x, attn_mask=q @ net.rows + q @ net.rows.flip(0))
    return x + net.c(scores.softmax(-1) @ fused)


def embeddings(net: Any, tokens: Tensor) -> Tensor:
    x = net.words(tokens) + net.places(torch.cumsum(tokens * 0 + 1, -1)) + net.kinds(tokens * 0)
    return x + net.a(x)


def recurrence(net: Any, x: Tensor) -> Tensor:
    """A recurrence spelled by hand: three sums weighted by a gate, and the three sums inside that are plain joins."""
    h = torch.tanh(net.a(x))
    for _ in range(3):
        z = torch.sigmoid(net.b(h))
        h = (1 - z) * h + z * torch.tanh(h + net.c(h))
    return h


TOKENS = torch.tensor([[1, 2, 3]])
IMAGE = ramp(1, 3, 16, 16)
KNOWN: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], int]] = {
    "no addition": (lambda: nn.Sequential(linear(), nn.ReLU(), linear()), (ramp(2, 6),), 0),
    "bottlenecks, projected and not": (BottleneckNet, (ramp(1, 3, 32, 32),), 3),
    "pre-activation without norms": (lambda: NormFreeNet(depth=4), (IMAGE,), 4),
    "long skip": (UNetWithSums, (IMAGE,), 2),
    "pyramid": (Pyramid, (IMAGE,), 2),
    "in place": (lambda: Lambda(in_place, a=linear(), b=linear(), c=linear()), (ramp(2, 6),), 2),
    "spellings": (
        lambda: Lambda(spelled, a=linear(), b=linear(), gamma=nn.Parameter(torch.ones(6))),
        (ramp(2, 6),),
        4,
    ),
    "parts of one memory": (lambda: Lambda(window, a=linear(), b=linear()), (ramp(2, 6),), 1),
    "two branches": (lambda: Lambda(lambda n, x: n.a(x) + n.b(x), a=linear(), b=linear()), (ramp(2, 6),), 1),
    "parallel branches, one stream": (
        lambda: Lambda(lambda n, x: x + n.a(n.norm(x)) + n.b(n.norm(x)), a=linear(), b=linear(), norm=nn.LayerNorm(6)),
        (ramp(2, 6),),
        2,
    ),
    "two inputs that never meet before": (
        lambda: Lambda(lambda n, x, y: n.a(x) + n.b(y), a=linear(), b=linear()),
        (ramp(2, 6), ramp(2, 6)),
        0,
    ),
    "one weight on two inputs": (
        lambda: Lambda(lambda n, x, y: n.a(x) + n.a(y), a=linear()),
        (ramp(2, 6), ramp(2, 6)),
        0,
    ),
    "broadcast bias": (
        lambda: Lambda(lambda n, x: n.a(x) + n.b(x.mean(0)), a=linear(), b=linear()),
        (ramp(2, 6),),
        0,
    ),
    "norm spelled by hand": (
        lambda: Lambda(lambda n, x: n.a(x) - n.a(x).mean() + n.a(x).var() * torch.ones(2, 6), a=nn.ReLU()),
        (ramp(2, 6),),
        0,
    ),
    "layer scale over a pool": (
        lambda: Lambda(lambda n, x: x + n.gamma * F.avg_pool1d(x, 3, 1, 1), gamma=nn.Parameter(torch.ones(2, 1))),
        (ramp(1, 2, 6),),
        0,
    ),
    "rotary": (lambda: Lambda(rotary, a=linear()), (ramp(2, 6),), 0),
    "weighted sum of branches": (lambda: Lambda(gate, a=linear(), b=linear(), c=linear()), (ramp(2, 6),), 0),
    "attention with mask and tables": (
        lambda: Lambda(
            attention,
            a=linear(),
            b=linear(),
            c=linear(),
            position=nn.Parameter(torch.ones(1, 4, 6)),
            table=nn.Parameter(torch.ones(1, 4, 4)),
        ),
        (ramp(1, 4, 6), torch.ones(1, 4, 4, dtype=torch.bool)),
        2,
    ),
    "scores from queries": (
        lambda: Lambda(
            relative,
            a=linear(),
            b=linear(),
            c=linear(),
            rows=nn.Parameter(torch.ones(6, 4)),
            columns=nn.Parameter(torch.ones(6, 4)),
        ),
        (ramp(1, 4, 6),),
        1,
    ),
    "sum of embeddings": (
        lambda: Lambda(
            embeddings, words=nn.Embedding(9, 6), places=nn.Embedding(9, 6), kinds=nn.Embedding(2, 6), a=linear()
        ),
        (TOKENS,),
        1,
    ),
    "recurrence by hand": (lambda: Lambda(recurrence, a=linear(), b=linear(), c=linear()), (ramp(2, 6),), 3),
    "recurrent layers of torch": (
        lambda: nn.Sequential(nn.GRU(6, 6, batch_first=True)),
        (ramp(1, 5, 6),),
        0,
    ),
    "encoder layers of torch": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3),
        (ramp(1, 5, 8),),
        6,
    ),
    "weight norm": (
        lambda: Lambda(lambda n, x: x + n.a(x), a=nn.utils.parametrizations.weight_norm(linear())),
        (ramp(2, 6),),
        1,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_joins_of_a_real_forward_are_counted(name: str) -> None:
    build, inputs, expected = KNOWN[name]
    found = count_joins(build(), inputs)
    assert len(found) == expected, found


def test_the_place_of_a_join_is_the_innermost_module() -> None:
    found = count_joins(BottleneckNet(), (ramp(1, 3, 32, 32),))
    assert [join.module for join in found] == ["body.0", "body.1", "body.2"]
    assert found[0].shape == (1, 32, 8, 8)


def test_counting_leaves_the_module_as_it_was() -> None:
    net = BottleneckNet()
    net.stem.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    count_joins(net, (ramp(1, 3, 32, 32),))
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_tensors_of_NaN_and_only_those_are_filled_in() -> None:
    net = nn.Sequential(linear(), nn.LayerNorm(6))
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    bias = net[0].bias.clone()
    fill_in(net)
    assert torch.isfinite(net[0].weight).all() and net[0].weight.unique().numel() == 36
    assert torch.equal(net[0].bias, bias) and torch.equal(net[1].weight, torch.ones(6))


# -- slices ------------------------------------------------------------------------------------------------------------


def test_slices_by_pattern_and_by_list(tmp_path: Path) -> None:
    listed = tmp_path / "models.txt"
    listed.write_text("torchvision:resnet18 num_classes=10  # small\n\ntorchvision:alexnet\n# no model\n")
    found = slices.choose(["torchvision:resnet[15]*"], [listed])
    titles = [model.title for model in found]
    assert titles == [
        *("torchvision:resnet101", "torchvision:resnet152", "torchvision:resnet18", "torchvision:resnet50"),
        *("torchvision:resnet18 num_classes=10", "torchvision:alexnet"),
    ]
    assert found[-2].model_args() == {"num_classes": 10}
    assert {model.family for model in found} == {"resnet", "alexnet"}
    with pytest.raises(ValueError, match="no model matches 'torchvision:nothing\\*'"):
        slices.choose(["torchvision:nothing*"])


def test_one_per_family_is_the_smallest_and_limits_are_kept() -> None:
    models = slices.choose(["torchvision:resnet*", "torchvision:mobilenet_v3*"])
    sizes = {model.title: slices.parameters_of(model) or 0 for model in models if "v3" in model.name}
    sizes |= {"torchvision:resnet18": 11_689_512, "torchvision:resnet34": 21_797_672}
    assert sizes["torchvision:mobilenet_v3_small"] == 2_542_856
    chosen = slices.one_per_family(models, sizes)
    assert [model.name for model in chosen] == ["torchvision:resnet18", "torchvision:mobilenet_v3_small"]
    assert "torchvision:resnet34" not in {m.name for m in slices.limited(models, 20e6, sizes)}


# -- processes ---------------------------------------------------------------------------------------------------------


def test_every_way_to_end_is_a_row_and_not_the_end() -> None:
    tasks = ["raises", "dies", "hangs", "eats", "fine"]
    ended = {e.task: e for e in pool.run(behave, tasks, jobs=2, memory=2, seconds=4)}
    assert set(ended) == set(tasks)
    assert ended["fine"].cause == "" and ended["fine"].rows == [{"task": "fine"}]
    assert ended["raises"].cause.startswith("Exited: with code 1")
    assert ended["dies"].cause == "Killed: SIGSEGV" and ended["dies"].stage == "working"
    assert ended["hangs"].cause.startswith("Timeout") and ended["hangs"].seconds < 20
    assert ended["eats"].rows[1:] == [{"task": "eats", "error": "MemoryError"}]


# -- one model ---------------------------------------------------------------------------------------------------------


def rows_of(name: str, **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    try:
        measure(Task(slices.Model(name, family="f"), **options), rows.append, lambda stage: None)
    finally:
        torch.set_num_threads(threads)
    return rows


def test_a_model_goes_through_every_step() -> None:
    first, second = rows_of("tests.nets:BottleneckNet", schemes=("zero-2021", "zero-2022"))
    for row in (first, second):
        assert row["status"] == "failed" and row["stage"] == "read back", "a user's factory is not run from a file"
        assert row["exported"] and row["validated"] and row["initialized"]
        assert row["joins"] == {"seen": 3, "residual": 3} and row["counted"] == 3
        assert len(row["digest"]) == 64 and row["parameters"] > 1000 and row["peak_mib"] > 50
    assert first["rewritten"] == 3 and second["rewritten"] == 0
    assert first["digest"] != second["digest"]


def test_causes_are_one_line() -> None:
    (row,) = rows_of("tests.nets:FailingForward", schemes=("zero-2021",))
    assert row["status"] == "failed" and row["stage"] == "trace"
    assert row["cause"].startswith("TraceError: ") and "\n" not in row["cause"]
    assert row["counted"] is None and row["count_failed"] == "ValueError: this forward always fails"
    (row,) = rows_of("tests.nets:failing_factory", schemes=("zero-2021",))
    assert row["stage"] == "load" and "KeyError" in row["cause"]
    (row,) = rows_of("tests.nets:BottleneckNet", schemes=("zero-2021",), largest=100)
    assert row["status"] == "skipped"


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, made, page = tmp_path / "rows.jsonl", tmp_path / "zoo.json", tmp_path / "zoo.md"
    given = ["torchvision:shufflenet_v2_x0_5", "--scheme", "zero-2022", "--rows", str(rows)]
    assert command.main([*given, "--json", str(made), "--markdown", str(page), "--models"]) == 0
    written = rows.read_text()
    (row,) = map(json.loads, written.splitlines())
    assert row["loaded"] and row["strict"] and row["joins"]["seen"] == row["counted"] == 0
    content = json.loads(made.read_text())
    assert content["zoos"]["torchvision zero-2022"]["loaded"] == 1
    assert content["measured"]["torch"] == table.header()["torch"]
    assert "| torchvision | shufflenetv2 | zero-2022 | 1 | 1 |" in page.read_text()
    rows.write_text(written + '{"model": "torchvision:shuff')  # a run that was killed while it wrote
    capsys.readouterr()
    assert command.main([*given, "--markdown", str(page)]) == 0
    assert "shufflenet" not in capsys.readouterr().err, "the row is not measured again"


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["torchvision:nothing"]) == 2
    assert "no model matches" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([])


def test_totals_count_each_step_and_name_each_failure() -> None:
    base = {"zoo": "z", "family": "f", "scheme": "s", "seconds": 1.5, "peak_mib": 10}
    good = base | {"model": "z:a", "status": "ok", "initialized": True, "joins": {"seen": 4, "residual": 4}}
    rows = [
        good | {"counted": 5, "loaded": True, "declined": {"why": 2}, "captured": 1.0},
        base | {"model": "z:b", "status": "failed", "stage": "trace", "cause": "TraceError: a | b"},
        base | {"model": "z:c", "status": "skipped"},
        base
        | {"model": "z:d", "status": "declined", "cause": "DeclinedError: s declines this network (Net: fc); got why"},
    ]
    total = table.totals(rows)
    assert (total["rows"], total["skipped"], total["ok"], total["failed"]) == (3, 1, 1, 1)
    assert total["declined_by_scheme"] == 1
    assert (total["joins_seen"], total["joins_counted"], total["joins_found"], total["joins_differ"]) == (4, 5, 4, 1)
    assert total["declined"] == {"why": 2} and total["loaded"] == 1 and total["seconds"] == 4.5
    page = table.as_markdown(rows, every_row=True)
    assert "| z:b | s | trace | TraceError: a \\| b |" in page
    assert "| z:a | 4 | 5 |" in page
    failures, declines = page.split("## Declined by the scheme")
    assert "z:d | s" not in failures and "| z:d | s |  | (Net: fc); got why |" in declines


# -- whole families ----------------------------------------------------------------------------------------------------

FAMILIES = Path(command.__file__).with_name("families.txt")


def test_the_list_of_families_names_one_small_model_of_each() -> None:
    pytest.importorskip("timm")
    listed = slices.choose([], [FAMILIES])
    families = {(model.zoo, model.family) for model in listed}
    assert len(families) == len(listed) > 130
    known = slices.family_names(("torchvision", "timm"))
    missing = {(name.partition(":")[0], family) for name, family in known.items()} - families
    assert missing == {("torchvision", "vgg"), ("timm", "vgg"), ("timm", "deepseek_vit"), ("timm", "gemma4_vit")}


@pytest.mark.zoo
@pytest.mark.parametrize("slice_", [["--list", str(FAMILIES)], ["--tiny"]], ids=["families", "transformers"])
def test_one_model_of_each_family_converts(slice_: list[str], tmp_path: Path) -> None:
    """Up to loading back, and 99 % of the joins of a real forward are seen."""
    rows = tmp_path / "rows.jsonl"
    command.main([*slice_, "--rows", str(rows), "--markdown", str(tmp_path / "zoo.md")])
    made = table.read_rows(rows)
    assert len(made) > 2 * 40
    assert not [f"{row['model']} {row['scheme']}: {row['cause']}" for row in made if row["status"] == "failed"]
    joins = [(row["joins"]["seen"], row["counted"]) for row in made if row.get("counted") is not None]
    assert sum(min(pair) for pair in joins) >= 0.99 * sum(counted for _, counted in joins)
