"""A conversion beside other threads: a training has the bits that it has alone, several conversions their bytes."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import random as held  # as many files of augmentations do
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from zero_convert.runtime import rng
from zero_convert.runtime.patches import one_at_a_time

from . import nets
from .test_random_forwards import dropping
from .test_thread_blocks import in_thread, process

IMAGES = (torch.zeros(2, 3, 16, 16),)
BERT = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}

# ---------------------------------------------------------------------------------------------------------------------
# training beside conversions


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.head = nn.Linear(8, 4)
        nn.init.trunc_normal_(self.head.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def train(turn: Callable[[], object]) -> list[bytes]:
    """200 steps with everything random and everything that a process has once; what they computed, bit for bit."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(5)
    net = Trained()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    seen = [str(torch.get_num_threads()).encode()]
    rows = torch.arange(64) % 7
    for step in range(200):
        turn()
        x = torch.randn(8, 3, 8, 8) + torch.from_numpy(np.random.normal(size=(8, 3, 8, 8))).float() * held()
        if random.random() < 0.5:
            x = x.flip(3)
        x = x * random.uniform(0.5, 1.5) + torch.full((8, 1, 1, 1), 0.1)
        loss = nn.functional.cross_entropy(net(x), torch.randint(0, 4, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            fresh = nn.Linear(7, 3)
            nn.init.trunc_normal_(fresh.weight)
            sums = torch.zeros(7).scatter_add_(0, rows, torch.rand(64))
            seen += [t.detach().numpy().tobytes() for t in (fresh.weight, fresh.bias, sums, torch.zeros(2) + 0.5)]
    return [*seen, *(t.numpy().tobytes() for t in net.state_dict().values()), str(random.getstate()).encode()]


CONVERSIONS: dict[str, Callable[..., Any]] = {
    "fx": partial(zc.convert, nets.tiny_resnet(), IMAGES, device="cpu"),
    "regions": partial(zc.convert, dropping(held), (torch.ones(4, 5),), scheme="zero-2022", device="cpu"),
    "transformers": partial(zc.convert, "transformers:bert", model_args=BERT, scheme="zero-2022", device="cpu"),
}


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns a hundred times as often as usual, and torch has two threads for each."""
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(5e-5)
    torch.set_num_threads(2)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("eager_switching")
def test_a_training_beside_conversions_has_the_bits_of_the_same_training_alone() -> None:
    alone = in_thread(lambda: train(lambda: None))
    digests = {name: convert().weights_digest for name, convert in CONVERSIONS.items()}
    turns = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        begun: list[Any] = []

        def progress(step: str, detail: str) -> None:
            if not begun:  # its thread begins amid a conversion
                begun.append(pool.submit(train, turns.acquire))
            turns.release(3)

        for name, convert in CONVERSIONS.items():
            result = convert(progress=progress)
            assert result.weights_digest == digests[name] and not result.failed
        turns.release(200)
        beside = begun[0].result()
    assert beside == alone


@pytest.mark.slow
@pytest.mark.usefixtures("eager_switching")
def test_a_training_beside_an_export_has_the_bits_of_the_same_training_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    results = [zc.convert(nets.tiny_resnet(), IMAGES, validate="none") for _ in range(2)]
    results[0].save(tmp_path / "alone.onnx")
    alone, ended = in_thread(lambda: train(lambda: None)), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(lambda: [train(lambda: None) for _ in iter(ended.is_set, True)])
        results[1].save(tmp_path / "beside.onnx")
        ended.set()
    assert runs.result() and all(run == alone for run in runs.result())
    assert (tmp_path / "beside.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# several conversions


def bytes_of(name: str, **arguments: Any) -> str:
    stream = io.BytesIO()
    CONVERSIONS[name](**arguments).write(stream)
    return hashlib.sha256(stream.getvalue()).hexdigest()


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize(("threads", "conversions"), [(2, 2), (4, 8)])
def test_conversions_in_several_threads_make_the_bytes_that_each_makes_alone(threads: int, conversions: int) -> None:
    names = [list(CONVERSIONS)[number % 3] for number in range(conversions)]
    alone = {name: bytes_of(name, validate="none") for name in CONVERSIONS}
    with ThreadPoolExecutor(threads) as pool:  # none of them is the main thread
        beside = list(pool.map(partial(bytes_of, validate="none"), names))
    assert beside == [alone[name] for name in names]


def test_a_conversion_may_begin_another() -> None:
    digests: dict[str, str] = {}

    def progress(step: str, detail: str) -> None:
        digests.setdefault("inner", "")
        if not digests["inner"]:
            digests["inner"] = CONVERSIONS["transformers"](validate="none").weights_digest

    outer = CONVERSIONS["fx"](validate="none", progress=progress).weights_digest
    assert outer == CONVERSIONS["fx"](validate="none").weights_digest
    assert digests["inner"] == CONVERSIONS["transformers"](validate="none").weights_digest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_goes_on_while_its_parent_converts() -> None:
    """As a worker of a training's DataLoader, whose parent's other thread holds the locks."""
    reading, writing = os.pipe()
    entered, over = threading.Event(), threading.Event()

    def progress(step: str, detail: str) -> None:
        entered.set()
        over.wait()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(CONVERSIONS["fx"], validate="none", progress=progress)
        entered.wait()
        child = os.fork()
        if not child:
            signal.alarm(20)
            with one_at_a_time(), rng.seeded():
                os.write(writing, repr(random.random()).encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        over.set()
        assert answer.result().weights_digest
    with rng.seeded():
        assert status == 0 and os.read(reading, 99).decode() == repr(random.random())


def test_an_interrupt_ends_a_conversion_and_leaves_nothing_behind() -> None:
    before, steps = process(), list[str]()

    def progress(step: str, detail: str) -> None:
        steps.append(step)
        if detail.startswith("channels"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        CONVERSIONS["fx"](progress=progress)
    assert steps[-1] == "validate" and process() == before
    assert in_thread(partial(CONVERSIONS["fx"], validate="none")).weights_digest  # no lock is held
