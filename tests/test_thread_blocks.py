"""What changes the process, block by block: for its own thread only, and gone in whatever order blocks end."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import random as held
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from zero_convert.checks.harness.isolation import in_float64, pinned
from zero_convert.runtime import messages, rng, user_code
from zero_convert.runtime.eager import eager
from zero_convert.runtime.export import export_in_this_thread
from zero_convert.runtime.patches import replaced
from zero_convert.runtime.threads import one_thread
from zero_convert.sources.building.nan_constructor import nan_filled

T = TypeVar("T")


def in_thread(function: Callable[[], T]) -> T:
    """What the function returns, or raises, in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


class Namespace:
    def value(self) -> str:
        return "original"

    @classmethod
    def of_class(cls) -> str:
        return f"original of {cls.__name__}"


class Inherits(Namespace):
    pass


def blocks() -> dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]:
    """Everything that changes the process for its own thread."""
    return {
        "patches": lambda: replaced(Namespace, "value", lambda _: lambda self: "mine"),
        "generators": rng.seeded,
        "constructor": nan_filled,
        "checks": lambda: pinned("cpu"),
        "float64": in_float64,
        "eager": eager,
        "warnings": messages.without_warnings,
        "logs": messages.without_logs,
        "prints": lambda: messages.printed_to(io.StringIO(), "stdout", "stderr"),
        "imports": lambda: user_code.importable(Path("nowhere")),
        "one thread": one_thread,
    }


def process() -> dict[str, Any]:
    """What another thread can see of the process, compared by identity where it is an object."""
    owners: list[Any] = [
        nn.Module,
        nn.init,
        torch,
        torch.random,
        random,
        np.random,
        logging.Logger,
        warnings,
        Namespace,
    ]
    owners += [warnings.catch_warnings, torch._C.ScriptFunction, torch.fx._symbolic_trace]
    seen = {f"{owner.__name__}.{name}": id(value) for owner in owners for name, value in vars(owner).items()}
    held_here = globals()["held"]
    backends = torch.backends
    return {
        **seen,
        "streams": (id(sys.stdout), id(sys.stderr)),
        "filters": list(warnings.filters),
        "finders": list(map(id, sys.meta_path)),
        "paths": list(sys.path),
        "held": id(held_here),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        **behaviour(),
        "precision": [one.fp32_precision for one in (backends, backends.mkldnn.matmul, backends.mkldnn.conv)],
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


def behaviour() -> dict[str, Any]:
    """What a thread gets that computes, draws, constructs, prints, logs and is warned."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(11)
    layer, empty = nn.Linear(3, 2), torch.zeros(2)
    nn.init.trunc_normal_(layer.weight)
    numbers = (torch.rand(2).tolist(), random.random(), random.gauss(0, 1), held(), np.random.rand(), empty.dtype)
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    logger, records = logging.getLogger("tests.beside"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.error("logged")
    logger.removeHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("warned", stacklevel=1)
    return {
        "numbers": numbers,
        "weights": layer.weight.tolist(),
        "records": records,
        "warnings": [str(warning.message) for warning in caught],
        "switches": (
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_deterministic_debug_mode(),
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.compiler.is_compiling(),
        ),
        "value": (Namespace().value(), Inherits.of_class()),
        "calls": type(nn.Linear(1, 1)(torch.zeros(1, 1))).__name__,
    }


@pytest.mark.parametrize("name", blocks())
def test_another_thread_sees_nothing_of_a_block(name: str) -> None:
    before, all_of_it = in_thread(behaviour), process()
    with blocks()[name]():
        assert in_thread(behaviour) == before
    assert process() == all_of_it


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("first_ends", ["first", "last"])
@pytest.mark.parametrize("name", blocks())
def test_blocks_of_two_threads_end_in_any_order(name: str, first_ends: str, error: type[BaseException] | None) -> None:
    before = process()
    begun, over = threading.Event(), threading.Event()

    def other() -> dict[str, Any]:
        with blocks()[name]():
            begun.set()
            over.wait()
        return behaviour()

    usual = in_thread(behaviour)
    with ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(ValueError, KeyboardInterrupt), blocks()[name]():
            answer = pool.submit(other)
            begun.wait()
            if first_ends == "last":
                over.set()
                assert answer.result() == usual
            if error is not None:
                raise error
        assert behaviour() == usual
        over.set()
        assert answer.result() == usual
    assert process() == before


def test_what_somebody_else_replaced_meanwhile_stays_until_they_put_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with replaced(Namespace, "value", lambda _: lambda self: "mine"):
        ours = Namespace.value
        monkeypatch.setattr(Namespace, "value", lambda self: f"theirs of {ours(self)}")
        assert Namespace().value() == "theirs of mine"
    assert Namespace().value() == "theirs of original"
    monkeypatch.undo()
    assert Namespace().value() == "original"
    with replaced(Namespace, "value", lambda before: lambda self: f"mine of {before(self)}"):
        assert Namespace().value() == "mine of original"
        assert in_thread(Namespace().value) == "original"


def test_methods_of_a_class_and_nested_blocks() -> None:
    with replaced(Namespace, "of_class", lambda before: lambda cls: f"mine of {before(cls)}"):
        with replaced(Namespace, "of_class", lambda before: lambda cls: f"inner of {before(cls)}"):
            assert Inherits.of_class() == "inner of mine of original of Inherits"
            assert in_thread(Inherits.of_class) == "original of Inherits"
        assert Inherits.of_class() == "mine of original of Inherits"


# ---------------------------------------------------------------------------------------------------------------------
# messages, signals


def test_a_warning_of_another_thread_is_seen_there_and_its_filters_are_its_own() -> None:
    """`catch_warnings` of one thread ends the filters of another: those of a conversion come back, and go at last."""
    before = list(warnings.filters)
    inside, turn = threading.Event(), threading.Event()

    def other() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            inside.set()
            turn.wait()
            warnings.warn("there", stacklevel=1)
        warnings.simplefilter("error", ImportWarning)
        with pytest.raises(ImportWarning):
            warnings.warn("an error there", ImportWarning, stacklevel=1)
        return [str(warning.message) for warning in caught]

    with warnings.catch_warnings(), ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("error")
        mine = list(warnings.filters)
        answer = pool.submit(other)
        inside.wait()
        with messages.without_warnings():
            turn.set()
            assert answer.result() == ["there"]
            warnings.warn("dropped", stacklevel=1)
        with pytest.raises(UserWarning, match="seen"):
            warnings.warn("seen", stacklevel=1)
        assert [one for one in warnings.filters if one not in mine] == [("error", None, ImportWarning, None, 0)]
    assert warnings.filters == before


def test_logs_and_prints_of_another_thread_come_through(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger, moved = logging.getLogger("tests.beside"), io.StringIO()

    def speak(who: str) -> None:
        print(who)
        logger.error(who)

    with messages.printed_to(moved), messages.without_logs(logger="tests"):
        speak("mine")
        in_thread(lambda: speak("theirs"))
        logging.getLogger("testsuite").error("another logger")
    assert (capsys.readouterr().out, moved.getvalue()) == ("theirs\n", "mine\n")
    assert caplog.messages == ["theirs", "another logger"]


def test_modules_beside_a_users_file_are_found_by_its_thread_only(tmp_path: Path) -> None:
    (tmp_path / "beside_a_file.py").write_text("x = 1\n")
    with user_code.importable(tmp_path):
        with pytest.raises(ModuleNotFoundError):
            in_thread(lambda: __import__("beside_a_file"))
        assert __import__("beside_a_file").x == 1
    assert sys.modules.pop("beside_a_file").__file__ == str(tmp_path / "beside_a_file.py")


def test_what_another_thread_compiled_stays_compiled() -> None:
    runs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        return lambda *args: runs.append(1) or graph(*args)

    net = torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), backend=backend, fullgraph=True)
    with eager():
        net(torch.ones(1, 2))
        assert not runs
        in_thread(lambda: net(torch.ones(1, 2)))
        assert len(runs) == 1


def seen() -> list[Any]:
    """What `torch.export` changes, as the calling thread sees it."""
    compiler, backends = torch.compiler, torch.backends
    flags = [compiler.is_compiling(), compiler.is_exporting(), torch.onnx.is_in_onnx_export()]
    flags += [backends.mkldnn.enabled, backends.cudnn.enabled, backends.nnpack.is_available()]
    largest = max([torch.tensor([1.0]), torch.tensor([2.0])])
    torch.rand(1)
    return [*map(bool, flags), repr(math.pow(2, 3)), largest.tolist(), nn.Flatten()(torch.zeros(1, 1)).shape]


def test_another_thread_sees_nothing_of_an_export() -> None:
    pytest.importorskip("onnxscript")
    here: list[list[bool]] = []
    there: list[list[Any]] = []

    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            compiler = torch.compiler
            here.append(
                [*map(bool, (compiler.is_compiling(), compiler.is_exporting(), torch.onnx.is_in_onnx_export()))]
            )
            there.append(in_thread(seen))
            return x + 1

    before, state = seen(), torch.get_rng_state()
    with export_in_this_thread(), torch.no_grad():
        torch.onnx.export(Looks().eval(), (torch.zeros(2),), dynamo=True, verbose=False, optimize=False)
    assert here and all(flags == [True, True, True] for flags in here)
    assert there == [before] * len(here) and seen() == before
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.rand(len(here) + 1)
    assert torch.equal(torch.get_rng_state(), after), "the draws of other threads, and no others"
