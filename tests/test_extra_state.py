"""State dicts that are more, or something else, than the tensors of the modules."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import zero_convert as zc
from zero_convert.artifacts.receipt import read_receipt
from zero_convert.errors import CoverageError, LoadError, MalformedError, UntrustedError
from zero_convert.graph.state import digest, extra_state, read, spell, stored_tensors

X = (torch.linspace(-1, 1, 16).reshape(2, 8),)
SCHEMES = ("zero-2021", "zero-2022")


class Part(nn.Module):
    """Adds `state` to the state dict."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.lin, self.state = nn.Linear(8, 8), state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.lin(x))


class Net(nn.Module):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self.stem, self.parts, self.head = nn.Linear(8, 8), nn.Sequential(Part(state), Part(state)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.parts(self.stem(x)))


class Leaf(nn.Linear):
    """Tracing keeps it whole, so that it stays what it is."""

    def __init__(self, state: Any) -> None:
        super().__init__(8, 8)
        self.state = state

    get_extra_state, set_extra_state = Part.get_extra_state, Part.set_extra_state


class Leaves(Net):
    def __init__(self, state: Any) -> None:
        super().__init__(state)
        self.parts = nn.Sequential(Leaf(state), nn.ReLU())


class Root(Net):
    def __init__(self, state: Any) -> None:
        super().__init__(state)
        self.parts, self.state = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), state

    get_extra_state, set_extra_state = Part.get_extra_state, Part.set_extra_state


STATES: dict[str, Any] = {
    "a dict": {"seen": 3, "policy": {"margin": 0.1, "tags": ["a", "b"]}},
    "None": None,
    "bytes": b"\x80\x04\x95",
    "a number": 7,
    "a float": float("inf"),
    "a string": "größe",
    "nested": OrderedDict(a=(1, [2.5, None]), b={"x", "y"}, c=torch.Size([2, 3])),
    "with tensors": {"scale": torch.tensor([1.0, -0.0]), "history": [torch.zeros(2, 3, dtype=torch.bfloat16)]},
    "numpy": {"amax": np.arange(3.0), "count": np.int64(4)},
    "types": {"dtype": torch.float16, "device": torch.device("cpu"), "c": 1 + 2j},
    "a tensor": torch.tensor([1, 2, 3]),
    "a floating tensor": torch.tensor(0.5),
    "an empty tensor": torch.empty(0, dtype=torch.uint8),
}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return spell(a, "a") == spell(b, "b")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("net", [Net, Leaves, Root])
@pytest.mark.parametrize("what", STATES)
def test_extra_state_is_in_the_receipt_and_comes_back(what: str, net: type[Net], scheme: str, tmp_path: Path) -> None:
    state, path = STATES[what], tmp_path / "net.safetensors"
    result = zc.convert(net(state), X, scheme=scheme, device="cpu", validate="none")
    given = result.module.state_dict()
    assert [k for k in given if k.endswith("_extra_state")] == [
        k for k in net(state).state_dict() if k.endswith("_extra_state")
    ]
    result.save(path)
    assert load_file(path).keys() | result.recipe.ties.keys() == {k for k, v in given.items() if isinstance(v, Tensor)}
    told = read_receipt(f"{path}.receipt.json").identity.recipe.extra_state
    assert told == {k: digest(spell(v, k)) for k, v in given.items() if not isinstance(v, Tensor)}
    other = net("another" if not isinstance(state, Tensor) else torch.zeros_like(state))
    loaded = zc.load(path, other, X, trust=True)
    for name, value in loaded.state_dict().items():
        assert _same(value, given[name])
    torch.testing.assert_close(loaded.eval()(*X), result.module.eval()(*X), rtol=0, atol=0)
    assert not zc.validate(path, net(state), X, device="cpu").failed


def test_an_onnx_file_without_the_state_is_compared_by_its_digest(tmp_path: Path) -> None:
    zc.convert(Net({"a": 1}), X, scheme="zero-2022", validate="none").save(tmp_path / "m.onnx")
    values = zc.validate(tmp_path / "m.onnx", Net({"a": 1}), X, device="cpu").checks[0]
    assert values.status == "pass" and "extra state, which the file does not hold, has its digest" in values.summary
    values = zc.validate(tmp_path / "m.onnx", Net({"a": 2}), X, device="cpu").checks[0]
    assert values.status == "fail" and "parts.0" in values.summary and values.remedy


def test_a_result_can_be_copied_with_its_extra_state_and_gives_the_same_bytes_again(tmp_path: Path) -> None:
    import copy
    import pickle

    result = zc.convert(Root({"a": 1}), X, device="cpu", validate="none")
    for twin in (copy.deepcopy(result.module), pickle.loads(pickle.dumps(result.module))):
        assert twin.state_dict()["_extra_state"] == {"a": 1}
    again = zc.convert(Root({"a": 1}), X, device="cpu", validate="none")
    assert result.save(tmp_path / "a.safetensors")[0].sha256 == again.save(tmp_path / "b.safetensors")[0].sha256
    result.module(*X)
    assert result.save(tmp_path / "c.safetensors")[0].sha256 == again.save(tmp_path / "d.safetensors")[0].sha256


class Handle:
    pass


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("state", "got"),
    [
        (Handle(), "Handle"),
        ({"deep": [Handle()]}, "Handle"),
        ({1: object}, "type"),
        (lambda: None, "function"),
        ({"t": torch.tensor([float("nan")])}, "NaN"),
        (b"x" * (1 << 21), "characters"),
    ],
    ids=["an object", "inside", "a class", "a function", "drawn", "large"],
)
def test_extra_state_without_bytes_of_its_own_is_refused_by_name(state: Any, got: str, scheme: str) -> None:
    with pytest.raises(CoverageError) as caught:
        zc.plan(Net(state), X, scheme=scheme)
    assert "parts.0._extra_state" in caught.value.where and got in caught.value.got and caught.value.fix


class Failing(Part):
    def get_extra_state(self) -> Any:
        raise RuntimeError("not calibrated")


class Deaf(Part):
    def set_extra_state(self, state: Any) -> None:
        pass


def test_a_state_that_cannot_be_read_or_put_back_is_named(tmp_path: Path) -> None:
    net = Net(1)
    net.parts[0] = Failing(1)
    with pytest.raises(CoverageError, match=r"parts\.0\._extra_state, Failing"):
        zc.plan(net, X)

    def leaves(state: Any) -> Net:
        made = Leaves(state)
        made.parts[0].__class__ = type("Deaf", (Leaf,), {"set_extra_state": Deaf.set_extra_state})
        return made

    path = tmp_path / "net.safetensors"
    zc.convert(leaves(1), X, device="cpu", validate="none").save(path)
    zc.load(path, leaves(1), X)  # it is what it was
    with pytest.raises(LoadError, match=r"parts\.0\._extra_state"):
        zc.load(path, leaves(2), X)


def test_bytes_of_a_file_reach_the_module_only_where_the_file_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    zc.convert(Leaves(b"pickle?"), X, device="cpu", validate="none").save(path)
    zc.load(path, Leaves(b"pickle?"), X)
    with pytest.raises(UntrustedError, match=r"parts\.0\._extra_state"):
        zc.load(path, Leaves(io.BytesIO()), X)


def test_a_changed_extra_state_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    zc.convert(Net({"a": 1}), X, device="cpu", validate="none").save(path)
    with safe_open(path, "pt") as opened:
        about = dict(opened.metadata())
    held = json.loads(about["zero_convert.extra_state"])
    held["parts.0._extra_state"] = spell({"a": 2}, "")
    about["zero_convert.extra_state"] = json.dumps(held)
    save_file(load_file(path), path, about)
    with pytest.raises(MalformedError, match=r"parts\.0\._extra_state"):
        zc.load(path, Net({"a": 1}), X)


@pytest.mark.parametrize(
    "text",
    [
        '{"pickle": 1}',
        "[",
        '{"dtype": "load"}',
        '{"float": "x"}',
        '{"tensor": ["float32", [2], "AAAA"]}',
        '{"a": 1, "b": 2}',
    ],
)
def test_a_strange_text_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        read(text, "file")


def test_the_text_of_a_state_is_the_same_every_time_and_reads_back() -> None:
    for name, value in STATES.items():
        assert spell(read(spell(value, name), name), name) == spell(value, name)


# ---------------------------------------------------------------------------------------------------------------------
# hooks, and methods that are not torch's


def _renames(net: nn.Module) -> None:
    def hook(module: nn.Module, state: dict[str, Any], prefix: str, meta: Any) -> None:
        for name in list(state):
            state[name.replace("parts", "blocks")] = state.pop(name)

    net._register_state_dict_hook(hook)


def _filters(net: nn.Module) -> None:
    net.stem._register_state_dict_hook(lambda m, state, prefix, meta: state.pop(f"{prefix}weight") and None)


def _gathers(net: nn.Module) -> None:
    def hook(module: nn.Module, state: dict[str, Any], prefix: str, meta: Any) -> None:
        state["all"] = torch.cat([state.pop("stem.weight"), state.pop("head.weight")])

    net._register_state_dict_hook(hook)


def _copies(net: nn.Module) -> None:
    net._register_state_dict_hook(lambda m, state, p, meta: OrderedDict((k, v.clone()) for k, v in state.items()))


def _adds(net: nn.Module) -> None:
    net._register_state_dict_hook(lambda m, state, p, meta: state.update(version=3))


def _post(net: nn.Module) -> None:
    net.register_state_dict_post_hook(lambda m, state, p, meta: state.pop("head.bias") and None)


def _before(net: nn.Module) -> None:
    def hook(module: nn.Module, prefix: str, keep_vars: bool) -> None:
        raise RuntimeError("no process group")

    net.register_state_dict_pre_hook(hook)


def _loads(net: nn.Module) -> None:
    """Harmless: it only counts."""
    net.seen = 0
    net._register_state_dict_hook(lambda m, state, p, meta: setattr(m, "seen", m.seen + 1))


HOOKS = (_renames, _filters, _gathers, _copies, _adds, _post, _before, _loads)


class Plain(Net):
    def __init__(self) -> None:
        super().__init__(None)
        self.parts = nn.Sequential(nn.Linear(8, 8), nn.ReLU())


class Deciding(Plain):
    """Its own Python stays."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.parts(x) + x if float(x.sum()) > -1e9 else x)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("net", [Plain, Deciding])
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_names_in_the_file_are_those_of_the_result_and_no_tensor_is_missing(
    hook: Any, net: type[Plain], scheme: str, tmp_path: Path
) -> None:
    own, path = net(), tmp_path / "net.safetensors"
    hook(own)
    result = zc.convert(own, X, scheme=scheme, device="cpu")
    result.save(path)
    assert load_file(path).keys() == result.module.state_dict().keys() >= net().state_dict().keys()
    if hook is not _loads:
        assert any("state-dict hooks" in note for note in result.plan.notes)


class Saves(Deciding):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}packed"] = self.stem.weight * 2


class Renames(Deciding):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"net.{name}": value for name, value in super().state_dict(*args, **kwargs).items()}


@pytest.mark.parametrize("net", [Saves, Renames])
def test_a_class_that_writes_another_state_dict_is_refused_by_name_where_it_stays(net: type[Plain]) -> None:
    with pytest.raises(CoverageError, match=net.__name__) as caught:
        zc.plan(net(), X, scheme="zero-2022")
    assert caught.value.exit_code == 3 and caught.value.fix


class Own(Tensor):
    """A class of tensors that changes nothing."""


class Wrapping(Tensor):
    """As quantized weights and shards are: it has no memory of its own."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapping:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> Any:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: Any, size: Any, stride: Any) -> Wrapping:
        return Wrapping(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(x: Any) -> Any:
            return x.inner if isinstance(x, Wrapping) else x

        out = func(*torch.utils._pytree.tree_map(plain, args), **torch.utils._pytree.tree_map(plain, kwargs or {}))
        return Wrapping(out) if isinstance(out, Tensor) and func is torch.ops.aten.detach.default else out


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("made", [Wrapping, lambda x: x.as_subclass(Own)], ids=["without memory", "with memory"])
def test_a_tensor_of_another_class_is_refused_by_name(made: Any, scheme: str) -> None:
    net, buffered = Plain(), Plain()
    net.stem.weight = nn.Parameter(made(torch.ones(8, 8)))
    buffered.stem.register_buffer("table", made(torch.ones(2)))
    for module, name in ((net, "weight"), (buffered, "table")):
        with pytest.raises(LoadError, match=rf"stem\.{name}") as caught:
            zc.plan(module, X, scheme=scheme)
        assert caught.value.exit_code == 3 and made(torch.ones(1)).__class__.__name__ in caught.value.got


def test_names_are_those_of_a_plain_state_dict() -> None:
    net = nn.Sequential(
        nn.BatchNorm1d(3), nn.LSTM(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), Part(1)
    )
    net.append(net[0])
    assert list(stored_tensors(net)) == [k for k, v in net.state_dict().items() if isinstance(v, Tensor)]
    assert list(extra_state(net)) == ["3._extra_state"]
