"""How many copies of a network the checks hold at once."""

from __future__ import annotations

import gc
import weakref

import torch

from zero_convert import checks
from zero_convert.checks.harness import isolation

from . import nets
from .subjects import subject_of


def storages(module):
    return {p.untyped_storage().data_ptr() for p in module.parameters()}


def test_on_the_processor_the_runs_that_change_no_weight_share_them() -> None:
    subject = subject_of(nets.tiny_resnet())
    bench = checks.Bench(subject, "quick", "cpu")
    assert storages(bench.module) == storages(subject.traced.root)
    assert not {id(p) for p in bench.module.parameters()} & {id(p) for p in subject.traced.root.parameters()}
    assert not storages(bench.fresh()) & storages(subject.traced.root)
    assert not storages(bench.copy_on("cpu")) & storages(subject.traced.root)


def test_the_copy_in_float64_goes_when_its_runs_are_done() -> None:
    bench = checks.Bench(subject_of(nets.tiny_resnet()), "quick", "cpu")
    copy = weakref.ref(bench.exact)
    with isolation.pinned("cpu"):
        assert bench.exact_run("train") is not None
        assert copy() is not None
        assert bench.exact_run("evaluate") is not None
    gc.collect()
    assert copy() is None


def test_quick_checks_keep_no_gradient() -> None:
    subject = subject_of(nets.tiny_resnet())
    bench = checks.Bench(subject, "quick", "cpu")
    with isolation.pinned("cpu"), torch.enable_grad():
        assert checks._answer("gradient_norms", bench) is not None
    assert all(p.grad is None for p in bench.module.parameters())
    assert not bench.found["depths own"].backward and bench.found["depths own"].weights
