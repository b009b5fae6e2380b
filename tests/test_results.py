"""What a forward returns: tensors are found inside of any object, and no check passes on nothing."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree as pytree

import zero_convert as zc
from zero_convert import checks
from zero_convert.checks.harness.bench import Answer, CheckContext
from zero_convert.graph.results import tensors_of

from .subjects import subject_of

X = (torch.linspace(-1, 1, 16).reshape(2, 8),)


@dataclass
class Record:
    scores: Tensor
    hidden: dict[str, Tensor]
    label: str = "x"


class Plain:
    def __init__(self, value: Tensor) -> None:
        self.value, self.again, self.inner = value, value, {"twice": [2 * value]}
        self.inner_self = self  # a cycle


class Slots:
    __slots__ = ("__secret", "value")

    def __init__(self, value: Tensor) -> None:
        self.value, self.__secret = value, value + 1


class Registered:
    """Its tensors are in no attribute."""

    def __init__(self, value: Tensor) -> None:
        self.get = lambda: value


pytree.register_pytree_node(
    Registered, lambda node: ([node.get()], None), lambda children, _: Registered(next(iter(children)))
)
Pair = namedtuple("Pair", "first second")


def _packed(y: Tensor) -> Any:
    return pack_sequence([y, y[:1]])


# what a forward makes of its 2×4 scores → how many tensors are in it
RESULTS: dict[str, tuple[Any, int]] = {
    "a tensor": (lambda y: y, 1),
    "a nest": (lambda y: {"a": [y, (y + 1, None)], "b": "text"}, 2),
    "an ordered dict": (lambda y: OrderedDict(out=y), 1),
    "a named tuple": (lambda y: Pair(y, y * 2), 2),
    "a dataclass": (lambda y: Record(y, {"h": y * 2}), 2),
    "an object": (Plain, 2),
    "an object with slots": (Slots, 2),
    "a registered class": (Registered, 1),
    "a packed sequence": (_packed, 2),
    "a categorical": (lambda y: Categorical(logits=y), 1),
    "a normal and a value": (lambda y: (Normal(y, torch.ones(4)), y.sum(-1)), 3),
    "an independent": (lambda y: Independent(Normal(y, torch.ones_like(y)), 1), 2),
    "a transformed": (
        lambda y: TransformedDistribution(Normal(y, torch.ones_like(y)), [AffineTransform(y + 1, 2.0)]),
        3,
    ),
    "a multivariate": (lambda y: MultivariateNormal(y, scale_tril=torch.eye(4).expand(2, 4, 4)), 3),
}
NOTHING = {
    "None": lambda y: None,
    "a string": lambda y: "done",
    "a number": lambda y: 3,
    "an empty list": lambda y: [],
    "a set": lambda y: {y},
    "a function": lambda y: lambda: y,
    "an empty object": lambda y: object(),
    "shapes": lambda y: y.shape,
}


class Net(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.make(self.head(x + self.block(x)))


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
@pytest.mark.parametrize("what", RESULTS)
def test_tensors_are_found_inside_of_a_result_by_tracing_and_by_the_checks(what: str, scheme: str) -> None:
    make, count = RESULTS[what]
    assert len(list(tensors_of(make(torch.ones(2, 4))))) == count
    result = zc.convert(Net(make), X, scheme=scheme, device="cpu")
    answers = {check.name: check for check in result.checks}
    assert not result.failed
    assert answers["outputs"].seen["output tensors"] == len(answers["outputs"].numbers["outputs"]) * count
    assert answers["finite"].status == "pass"
    assert answers["repeat"].status == answers["gradients"].status == "pass"
    assert {layer.name: layer.role for layer in result.structure.layers}["head"] == "head"


@pytest.mark.parametrize("what", ["a dataclass", "an object", "a categorical", "a normal and a value", "a nest"])
def test_an_onnx_file_holds_the_same_tensors(what: str) -> None:
    result = zc.convert(Net(RESULTS[what][0]), X, device="cpu", validate="full", formats=("onnx",), scheme="zero-2022")
    parity = next(check for check in result.checks if check.name == "parity")
    assert parity.status == "pass" and parity.seen["output tensors"] == RESULTS[what][1]


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
@pytest.mark.parametrize("what", NOTHING)
def test_a_forward_that_yields_no_tensor_fails_and_no_check_passes_on_nothing(
    what: str, scheme: str, tmp_path: Path
) -> None:
    result = zc.convert(Net(NOTHING[what]), X, scheme=scheme, device="cpu")
    assert [check.name for check in result.failed] == ["outputs"]
    status = {check.name: check.status for check in result.checks}
    assert all(status[name] == "skip" for name in ("finite", "repeat", "precision", "gradients"))
    with pytest.raises(zc.errors.CheckError) as caught:
        result.save(tmp_path / "net.safetensors")
    assert caught.value.exit_code == 1 and not (tmp_path / "net.safetensors").exists()


@pytest.mark.parametrize("name", checks.FILES)
def test_a_check_that_saw_less_than_it_needs_is_skipped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it answers: the smallest subject is declared in its file."""
    file = checks.FILES[name]
    assert file.LEAST and all(least >= 1 for least in file.LEAST.values())
    context = CheckContext(subject_of(Net(RESULTS["a tensor"][0]), *X), "full", "cpu", 1)
    monkeypatch.setattr(file, "NEEDS", ())
    monkeypatch.setattr(file, "LEVELS", ("full",))
    for seen, status in (({}, "skip"), (dict(file.LEAST), "pass")):
        monkeypatch.setattr(file, "ask", lambda context, seen=seen: Answer("pass", "all is well", seen=seen))
        answer = checks.answer(name, context)
        assert answer is not None and answer.status == status and answer.seen == seen
    for status in ("fail", "warn"):
        monkeypatch.setattr(file, "ask", lambda context, status=status: Answer(status, "something"))
        assert checks.answer(name, context).status == status  # type: ignore[union-attr]


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "risotto", "constnet", "idinit"])
def test_every_check_that_passes_says_how_much_it_saw(scheme: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4))
    try:
        result = zc.convert(net, (torch.zeros(2, 3, 8, 8),), scheme=scheme, device="cpu", validate="full")
    except zc.errors.ModelError:
        pytest.skip("the scheme declines it")
    for check in result.checks:
        if check.status == "pass":
            least = checks.FILES[check.name].LEAST
            assert all(check.seen[what] >= count for what, count in least.items()), check
