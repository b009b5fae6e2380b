"""Validate: read-only questions about a converted model, answered with numbers. One question a file.

Every file has one function `ask(bench) -> Check | None` (None where the question does not arise); its docstring is
the check's published meaning. `_bench.py` makes the copies and runs that they share, `_recorder.py` looks at a run,
`_inputs.py` is what they are fed, `_guard.py` keeps random states and torch's switches, `_rounding.py` those for
float32, `_device.py` finds the device. The model itself is never run and never written to.

    coverage       what share of the parameters is in captured graphs
    outputs        the same shapes and dtypes as the original's
    finite         no NaN, no infinity
    zero_branches  branches that must add exactly 0 do
    binary         every trainable value is 0 or 1, where the scheme says so
    logits         a head whose values are all 0 returns exactly 0
    gradients      which step first gives each parameter a gradient
    repeat         the same bits when run again
    channels       distinct, repeated and constant channels
    precision      how far float32 is from float64
    signal         signal, gradient and distinct channels by depth, original and converted
    gradient_norms the size of each parameter's first gradient, and how far float64's is
    caps           how many units of a layer can be different
    exact_parts    layers of 0 and ±1 return the same integers in every batch, thread and device
    skips          without the inserted skips the network is the original
    training       the loss falls on a batch that is seen again and again

Asked of ONNX files:

    parity         torch and ONNX Runtime, on the CPU and on the device, return the same

Asked only where the scheme promises something, in `Scheme.checks`:

    branch_bound   no branch adds more than a limit
    channel_spread all channels are identical
    symmetry       whether and when identical channels part in training
    norm_per_depth the length of the signal stays the same through the blocks
    jacobian       the singular values of the blocks are 0 or 1
    linearity      f(x + y) = f(x) + f(y)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from os import PathLike

from zero_convert.graph.traced import Subject
from zero_convert.runtime.eager import eager
from zero_convert.runtime.threads import one_thread

from ..errors import ZeroConvertError
from ..records import Check
from .harness.bench import Bench, OutOfMemory
from .harness.device import release
from .harness.device import resolve as resolve
from .harness.inputs import BATCH
from .harness.isolation import pinned, ran_out

Progress = Callable[[str, str], None]
SAMPLES = (BATCH, 2, 1)  # of a batch: fewer where the device's memory is too small
CHECKS = (
    "coverage",
    "outputs",
    "finite",
    "zero_branches",
    "binary",
    "logits",
    "gradients",
    "repeat",
    "channels",
    "precision",
    "signal",
    "gradient_norms",
    "caps",
    "exact_parts",
    "skips",
    "training",
)
LARGE = 5_000_000  # parameters
PROMISES = ("branch_bound", "channel_spread", "symmetry", "norm_per_depth", "jacobian", "linearity")


@eager()
def run(
    subject: Subject,
    *,
    level: str,
    device: str,
    train_steps: int | None = None,
    progress: Progress | None = None,
) -> tuple[Check, ...]:
    """The answers, in the order of `CHECKS` and `PROMISES`. The subject is left as it was, bit for bit.

    Args:
        level: "quick" (small images, a few seconds) or "full" (images as large as the example, gradients repeated)
        device: from `resolve`.
        train_steps: of the check `training`; None leaves them to the level.
        progress: called with ("validate", name of the check) when one begins.

    Where the device's memory is too small, all are asked again with a smaller batch, and a check "memory" says so.

    Raises:
        DeviceError: it is too small for one sample.
    """
    values = sum(p.numel() for p in subject.traced.root.parameters())
    # Many small operations: a second thread would be waited for each time. In large networks it halves the gradients.
    small = level == "quick" and device == "cpu" and values < LARGE
    with one_thread() if small else nullcontext(), pinned(device, subject.traced):
        for samples in SAMPLES:
            try:
                found = _answers(Bench(subject, level, device, train_steps, samples), progress)
            except OutOfMemory as error:
                if samples == SAMPLES[-1]:
                    raise
                told = error.got
            else:
                break
            release(device)
    if samples == SAMPLES[0]:
        return tuple(found)
    question = "Does a batch of the usual size fit into the device's memory?"
    summary = f"{told}: all checks were asked again with {samples}"
    return (*found, Check("memory", "warn", question, summary, {"samples": samples}, f"{SAMPLES[0]} samples"))


def _answers(bench: Bench, progress: Progress | None) -> list[Check]:
    found = []
    for name in (*CHECKS, *(name for name in PROMISES if bench.promised(name) is not None)):
        if progress is not None:
            progress("validate", f"{name} on {bench.device}")
        check = _answer(name, bench)
        if check is not None:
            found.append(check)
    return found


@eager()
def compare_export(subject: Subject, path: str | PathLike[str], *, device: str, dtype: str, strict: bool) -> Check:
    """The answer of `parity` for the ONNX file of the subject.

    Args:
        device: from `resolve`.
        dtype: of the file's tensors.
        strict: the device was named, so that nothing may fall back to the CPU.

    Raises:
        DeviceError: ONNX Runtime fell back to the CPU, or the device's memory is too small.
    """
    from . import parity

    bench = Bench(subject, "full", device)
    with pinned(device, subject.traced):
        answer = _answered(
            "parity", parity.QUESTION, bench, lambda: parity.ask_file(bench, path, dtype=dtype, strict=strict)
        )
    assert answer is not None, "parity always has an answer"
    return answer


def _answer(name: str, bench: Bench) -> Check | None:
    room = import_module(f".{name}", __name__)
    return _answered(name, room.QUESTION, bench, lambda: room.ask(bench))


def _answered(name: str, question: str, bench: Bench, ask: Callable[[], Check | None]) -> Check | None:
    """The check's answer. A question that ends in an error of the network is answered with "fail"."""
    try:
        return ask()
    except ZeroConvertError:
        raise
    except (Exception, SystemExit) as error:
        if ran_out(error):
            raise bench.out_of_memory() from error
        line = (str(error).strip().splitlines() or [""])[0]
        told = f"could not be answered: {type(error).__name__}: {line}"[:300]
        return Check(
            name, "fail", question, told, remedy="The network stops there. --input gives other example inputs."
        )
