"""Validate: read-only questions about a converted model, answered with numbers. One question a file.

Every public file but `subject.py` is a check, whatever the file is called. Its docstring is the check's published
meaning, and it declares

    NAME        the published name
    QUESTION    the published question
    AFTER       the name of the check that it follows; "" for the first
    LEVELS      the levels at which it is asked, of "quick" and "full"
    NEEDS       what has to be there. Without "scheme" (a limit in `Scheme.checks`), "steps" (of training, asked for) or
                "onnx" (a file) it is not asked; without "train" (the network runs in training mode) it is skipped
    LEAST       the smallest subject that it must have seen to pass: what -> how much. With less it is skipped
    SESSION     True where it can be asked of a session of ONNX Runtime as well (`harness/session.py`)
    ask(context) -> Answer | None       None where the question does not arise

No check imports another: what they share is in `harness/`. The model itself is never run and never written to.
"""

from __future__ import annotations

import pkgutil
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from os import PathLike
from types import ModuleType

from zero_convert.runtime.eager import eager
from zero_convert.runtime.progress import Progress, tell
from zero_convert.runtime.threads import one_thread

from ..errors import DeviceError, ModelError, ZeroConvertError
from ..records import Check
from .harness.bench import Answer, CheckContext, OnnxFile, OutOfMemory
from .harness.device import held as held
from .harness.device import is_strict as is_strict
from .harness.device import release, torch_device
from .harness.device import resolve as resolve
from .harness.inputs import BATCH
from .harness.isolation import pinned, ran_out
from .harness.onnxruntime import told
from .harness.session import SessionContext
from .subject import Subject

SAMPLES = (BATCH, 2, 1)  # of a batch: fewer where the device's memory is too small
LARGE = 5_000_000  # parameters


def _files() -> dict[str, ModuleType]:
    """Name → file of the check, in the order in which they are asked: each after its `AFTER`, else by name."""
    public = (info.name for info in pkgutil.iter_modules(__path__) if not info.ispkg and info.name != "subject")
    files = {file.NAME: file for file in (import_module(f".{name}", __name__) for name in public)}

    def position(name: str) -> int:
        return 1 + position(files[name].AFTER) if files[name].AFTER else 0

    return {name: files[name] for name in sorted(files, key=lambda name: (position(name), name))}


FILES = _files()
SCHEME_CHECKS = tuple(name for name, file in FILES.items() if "scheme" in file.NEEDS)


@eager()
def run(
    subject: Subject,
    *,
    level: str,
    device: str,
    strict: bool = True,
    train_steps: int | None = None,
    progress: Progress | None = None,
) -> tuple[Check, ...]:
    """The answers, in the order of `FILES`. The subject is left as it was, bit for bit.

    Args:
        level: "quick" (small images, a few seconds) or "full" (images as large as the example, gradients repeated)
        device: from `resolve`. On "webgpu" torch computes on the CPU, and what can be asked of ONNX Runtime there is.
        strict: the device was named, so that what ONNX Runtime cannot compute there is an error.
        train_steps: of the check `training`; None leaves them to the level.
        progress: called with ("validate", name of the check) when one begins.

    Where the device's memory is too small, all are asked again with a smaller batch, and a check "memory" says so.

    Raises:
        DeviceError: it is too small for one sample.
    """
    values = sum(p.numel() for p in subject.traced.root.parameters())
    # Many small operations: a second thread would be waited for each time. In large networks it halves the gradients.
    own = torch_device(device)
    small = level == "quick" and own == "cpu" and values < LARGE
    with one_thread() if small else nullcontext(), pinned(own, subject.traced):
        for samples in SAMPLES:
            try:
                context = CheckContext(subject, level, own, train_steps, samples)
                answered = answers(context, progress)
                answered = answered if own == device else _with_session(context, device, strict, answered, progress)
            except OutOfMemory as error:
                if samples == SAMPLES[-1]:
                    raise
                reason = error.got
            else:
                break
            release(own)
    if samples == SAMPLES[0]:
        return tuple(answered)
    question = "Does a batch of the usual size fit into the device's memory?"
    summary = f"{reason}: all checks were asked again with {samples}"
    return (*answered, Check("memory", "warn", question, summary, {"samples": samples}, f"{SAMPLES[0]} samples"))


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
    own = torch_device(device)
    context = CheckContext(subject, "full", own, onnx=OnnxFile(path, dtype, device, strict))
    with pinned(own, subject.traced):
        parity = answer("parity", context)
    assert parity is not None, "parity always has an answer"
    return parity


def _with_session(
    context: CheckContext, device: str, strict: bool, answered: list[Check], progress: Progress | None
) -> list[Check]:
    """The answers, with those of ONNX Runtime on the device to the questions that can be asked of it.

    Raises:
        DeviceError: with `strict`, it does not compute there, or a part of it on the CPU.
    """
    question = "Does ONNX Runtime compute the network on the device?"
    if not context.subject.traced.whole or context.refusal():
        why = context.refusal() or "its graph is a recording, which does not stand for the forward"
        return [*answered, Check(device, "skip", question, f"only parity is asked there: {why}", device=device)]
    try:
        session = SessionContext(context, device, strict)
        names = [name for name, file in FILES.items() if getattr(file, "SESSION", False)]
        others = {name: check for name in names if (check := answer(name, session, progress)) is not None}
    except (DeviceError, ModelError) as error:
        if strict and isinstance(error, DeviceError):
            raise
        return [*answered, Check(device, "warn", question, f"it does not: {error.got or error.what}", device=device)]
    if session.fallen:
        return [*answered, Check(device, "warn", question, told(session.fallen), device=device)]
    return [_merged(check, others[check.name], device) if check.name in others else check for check in answered]


def _merged(check: Check, other: Check, device: str) -> Check:
    """One answer of two devices: the worse status, both summaries, the numbers of the second under its name."""
    worse = min((check, other), key=lambda one: ("fail", "warn", "pass", "skip").index(one.status))
    return replace(
        check,
        status=worse.status,
        summary=f"{check.summary}; on {device}: {other.summary}",
        numbers={**check.numbers, device: dict(other.numbers)},
        threshold=worse.threshold,
        remedy=worse.remedy,
        device=f"{check.device}, {device}",
    )


def answers(context: CheckContext, progress: Progress | None = None) -> list[Check]:
    """The answers of all checks that are asked."""
    return [check for name in FILES if (check := answer(name, context, progress)) is not None]


def answer(name: str, context: CheckContext, progress: Progress | None = None) -> Check | None:
    """The check's answer; None where it is not asked. An error of the network is answered with "fail"."""
    file = FILES[name]
    met = {"scheme": name in context.limits, "steps": context.train_steps > 0, "onnx": context.onnx is not None}
    if context.level not in file.LEVELS or not all(met.get(need, True) for need in file.NEEDS):
        return None
    tell(progress, "validate", f"{name} on {context.session or context.device}")
    try:
        if "train" in file.NEEDS and context.mode not in context.modes:
            answered: Answer | None = Answer("skip", f"does not run in training mode: {context.refused['train']}")
        else:
            answered = file.ask(context)
    except ZeroConvertError:
        raise
    except (Exception, SystemExit) as error:
        if ran_out(error):
            raise context.out_of_memory() from error
        line = (str(error).strip().splitlines() or [""])[0]
        summary = f"could not be answered: {type(error).__name__}: {line}"[:300]
        answered = Answer("fail", summary, remedy="The network stops there. --input gives other example inputs.")
    return None if answered is None else _judged(name, file, answered, context)


def _judged(name: str, file: ModuleType, answered: Answer, context: CheckContext) -> Check:
    """The answer as a record; one that passed on less than the file's `LEAST` is skipped, and says what it saw."""
    less = [what for what, least in file.LEAST.items() if answered.seen.get(what, 0) < least]
    status, summary = answered.status, answered.summary
    if status == "pass" and less:
        saw = ", ".join(f"{answered.seen.get(what, 0)} {what}" for what in less)
        needs = ", ".join(f"{file.LEAST[what]}" for what in less)
        status, summary = "skip", f"saw {saw}, and needs at least {needs}: {summary}"
    second = context.onnx.device if context.onnx is not None else context.session
    device = ", ".join(dict.fromkeys(each for each in ("" if context.session else context.device, second) if each))
    own = {"name": name, "question": file.QUESTION, "status": status, "summary": summary, "device": device}
    return Check(**{**vars(answered), **own})
