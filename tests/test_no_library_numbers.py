"""No generator, matrix library or transcendental function of any library is on the way to a weight."""

from __future__ import annotations

import ast
import contextlib
import importlib
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zero_convert import schemes
from zero_convert.conversion import prepare
from zero_convert.errors import CoverageError
from zero_convert.options import Options

from .nets import tiny_resnet
from .odd_nets import TinyViT, ramp

PACKAGE = Path(__file__).parents[1] / "zero_convert"
# Everything that makes values: formulas, what they are made of, and schemes.
MAKERS = ("formulas", "initialization", "schemes")
LIBM = ("pow", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh", "erf", "cbrt")
PRODUCTS = ("dot", "vdot", "inner", "matmul", "einsum", "tensordot", "linalg", "random", "power", "float_power")
TORCH = ("mm", "bmm", "addmm", "addbmm", "baddbmm", "mv", "addmv", "dot", "vdot", "ger", "convolution", "linear", "pow")
DRAWS = (
    "normal",
    "uniform",
    "rand",
    "bernoulli",
    "multinomial",
    "exponential",
    "cauchy",
    "geometric",
    "poisson",
    "dropout",
)


class Guard(TorchDispatchMode):
    """Fails at the first operation of torch that draws, multiplies matrices, decomposes them, or is transcendental."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.strip("_")
        if name in (*TORCH, *LIBM) or name.startswith((*DRAWS, "linalg")):
            raise AssertionError(f"torch's {name} is on the way to a weight")
        return func(*args, **(kwargs or {}))


def forbid(monkeypatch: pytest.MonkeyPatch, owner: object, names: tuple[str, ...]) -> None:
    for name in names:

        def refuse(*args: object, name: str = name, **kwargs: object) -> None:
            raise AssertionError(f"{name} is on the way to a weight")

        if callable(getattr(owner, name, None)):
            monkeypatch.setattr(owner, name, refuse)


def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    forbid(monkeypatch, math, LIBM)
    forbid(monkeypatch, np, (*LIBM, *PRODUCTS))
    forbid(monkeypatch, random, tuple(name for name in dir(random.Random) if not name.startswith("_")))
    for owner in (np.random, np.linalg):
        forbid(monkeypatch, owner, tuple(name for name in dir(owner) if not name.startswith("_")))
    return Guard()


def weight_normed() -> nn.Module:
    normed = nn.utils.parametrizations.weight_norm
    return nn.Sequential(normed(nn.Linear(6, 8)), nn.LSTM(8, 4), Last(), nn.Linear(4, 2))


class Last(nn.Module):
    def forward(self, x: tuple[torch.Tensor, Any]) -> torch.Tensor:
        return x[0]


NETS: tuple[tuple[Callable[[], nn.Module], tuple[int, ...]], ...] = (
    (tiny_resnet, (2, 3, 8, 8)),
    (TinyViT, (2, 3, 8, 8)),
    (weight_normed, (2, 3, 6)),
)


@pytest.mark.parametrize("scheme", schemes.names())
def test_no_weight_comes_from_a_library(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = 0
    for make, shape in NETS:
        with contextlib.suppress(CoverageError):  # declined
            made = prepare(make(), Options((ramp(*shape),), scheme=scheme))
            with monkeypatch.context() as patch, guard(patch):
                assignments = made.fill(write=True)
            filled += 1
            state = made.traced.root.state_dict()
            assert not [a for a in assignments if torch.isnan(state[a.tensor.name]).any()]
    assert filled >= 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: torch.randn(2),
        lambda: torch.empty(2).uniform_(),
        lambda: torch.ones(2, 2) @ torch.ones(2, 2),
        lambda: torch.linalg.qr(torch.eye(2)),
        lambda: torch.exp(torch.ones(2)),
        lambda: np.random.standard_normal(2),
        lambda: np.linalg.qr(np.eye(2)),
        lambda: np.dot(np.eye(2), np.eye(2)),
        lambda: math.pow(2, 0.5),
        lambda: random.random(),
    ],
)
def test_the_guard_sees_each_of_them(spoil: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="on the way to a weight"), monkeypatch.context() as patch, guard(patch):
        spoil()


def suspicious(source: str) -> list[str]:
    """What in a file of Python multiplies matrices or draws: operators that no guard can see, and names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.MatMult):
            found.append("@")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("np", "numpy", "math", "torch") and node.attr in (*LIBM, *PRODUCTS):
                found.append(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
            found += [name for name in names if set(name.split(".")) & {"random", "scipy", "secrets", "linalg"}]
    return found


def test_no_file_that_makes_values_spells_such_a_function() -> None:
    files = [file for name in MAKERS for file in sorted((PACKAGE / name).rglob("*.py"))]
    assert {str(file): suspicious(file.read_text("utf-8")) for file in files} == {str(file): [] for file in files}
    for text in ("a @ b", "np.dot(a, b)", "math.pow(a, b)", "import random", "from numpy import linalg"):
        assert suspicious(text)
    assert importlib.import_module("zero_convert.formulas.hashed").__file__ in map(str, files)
