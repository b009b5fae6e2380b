"""How many copies of a network the checks hold at once."""

from __future__ import annotations

import gc
import weakref

import torch

from zero_convert import checks
from zero_convert.checks.harness import isolation
from zero_convert.checks.harness.bench import CheckContext

from . import nets
from .subjects import subject_of


def storages(module):
    return {p.untyped_storage().data_ptr() for p in module.parameters()}


def test_on_the_processor_the_runs_that_change_no_weight_share_them() -> None:
    subject = subject_of(nets.tiny_resnet())
    context = CheckContext(subject, "quick", "cpu")
    assert storages(context.module) == storages(subject.traced.root)
    assert not {id(p) for p in context.module.parameters()} & {id(p) for p in subject.traced.root.parameters()}
    assert not storages(context.fresh()) & storages(subject.traced.root)
    assert not storages(context.copy_on("cpu")) & storages(subject.traced.root)


def test_the_copy_in_float64_goes_when_its_runs_are_done() -> None:
    context = CheckContext(subject_of(nets.tiny_resnet()), "quick", "cpu")
    copy = weakref.ref(context.exact)
    with isolation.pinned("cpu"):
        assert context.exact_run("train") is not None
        assert copy() is not None
        assert context.exact_run("evaluate") is not None
    gc.collect()
    assert copy() is None


def test_quick_checks_keep_no_gradient() -> None:
    subject = subject_of(nets.tiny_resnet())
    context = CheckContext(subject, "quick", "cpu")
    with isolation.pinned("cpu"), torch.enable_grad():
        assert checks.answer("gradient_norms", context) is not None
    assert all(p.grad is None for p in context.module.parameters())
    assert not context.measured["depths own"].backward and context.measured["depths own"].weights
