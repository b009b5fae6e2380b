"""What works on this machine: torch on each device, ONNX Runtime with each provider, versions, extras, fonts.

Every library is asked in a process of its own with a time limit (`doctor/ask.py`), so that one that crashes or hangs
is a finding. Nothing is repaired, and nothing heavy is imported here.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from zero_convert.model_ref import LIBRARIES

from . import libraries, webgpu
from .ask import SLOW, Answer, ask
from .libraries import DRIVER, OURS, RUNTIMES, Missing, Needed, cuda_major, missing, mixed

Ask = Callable[..., Answer]
LIMIT = 120.0  # seconds for one question: torch and its libraries may have to come from a slow disk
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Provider → kind of torch's device on the same hardware; of the others ONNX Runtime alone can tell.
_HARDWARE = {CPU: "cpu", CUDA: "cuda", "TensorrtExecutionProvider": "cuda", "CoreMLExecutionProvider": "mps"}
_USED = (CPU, CUDA)  # the providers that a conversion may ask for
# Extra → what it brings; of the model libraries torchvision alone is no extra.
_EXTRAS = {
    **{library: (library,) for library in LIBRARIES if library != "torchvision"},
    "report": ("jinja2", "matplotlib"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: "packages", "torch", "onnxruntime", "webgpu", "extras" or "reports".
        name: what was looked at: a package, a device, a provider, an extra.
        status: "ok"; "absent": not there, and nothing is broken; "warn": works, or is not needed here, but look;
            "fail": installed, and does not work.
        summary: one line.
        fix: the exact command, or what to do instead.
        missing: libraries that the loader did not find.
    """

    group: str
    name: str
    status: str
    summary: str
    fix: str = ""
    missing: tuple[Missing, ...] = ()


def examine(
    *,
    limit: float = LIMIT,
    ask: Ask = ask,
    here: Mapping[str, str] | None = None,
    needs: Sequence[Needed] | None = None,
) -> tuple[Finding, ...]:
    """Everything that was found, in a fixed order. It takes some seconds.

    Args:
        limit: seconds for each question.
        ask: how questions are asked.
        here: name → version of the installed packages; by default pip's metadata.
        needs: what zero-convert asks for; by default its metadata.
    """
    here = libraries.installed() if here is None else here
    needs = libraries.requirements(OURS, here) if needs is None else needs
    questions = [("torch", ""), ("providers", ""), ("torchvision", ""), ("kernel", "cpu")]
    questions += [("import", module) for modules in _EXTRAS.values() for module in modules if module in here]
    questions += [("fonts", "")] if "matplotlib" in here else []
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:

        def asked(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Answer]:
            return dict(zip(pairs, pool.map(lambda pair: ask(*pair, limit=limit), pairs), strict=True))

        answers = asked(questions)
        devices = answers["torch", ""].facts.get("devices", [])
        names = answers["providers", ""].facts.get("providers", [])
        there = ask("adapters", "", limit=limit, program=webgpu.PROGRAM) if webgpu.PACKAGE in here else None
        answers |= asked([("kernel", one["name"]) for one in devices] + [("session", name) for name in sorted(names)])
    return (
        *_packages(here, needs),
        *_torch(answers, here),
        *_runtime(answers, here),
        *_webgpu(there),
        *_extras(answers, here, needs),
        *_reports(answers, here),
    )


def usable(found: Sequence[Finding], device: str) -> tuple[Finding, ...]:
    """What stands against computing on the device: the findings about it that are not "ok"; () if nothing does.

    For "cuda" both libraries have to work there, for "webgpu" ONNX Runtime; for the others torch.
    """
    kind, _, index = device.partition(":")
    if kind == "webgpu":
        return tuple(one for one in found if one.group == one.name == kind and one.status != "ok")
    wanted = [("torch", f"{kind}:{index or 0}" if kind == "cuda" else kind)]
    wanted += [("onnxruntime", CUDA)] if kind == "cuda" else [("onnxruntime", CPU)] if kind == "cpu" else []
    by_name = {(one.group, one.name): one for one in found}
    bad = []
    for group, name in wanted:
        one = by_name.get((group, name))
        if one is None:
            general = by_name.get((group, kind))
            one = general or Finding(group, name, "absent", "no such device or provider here")
        if one.status != "ok":
            bad.append(one)
    return tuple(bad)


# ---------------------------------------------------------------------------------------------------------------------


def _packages(here: Mapping[str, str], needs: Sequence[Needed]) -> list[Finding]:
    found = [Finding("packages", "python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")]
    own = here.get(OURS)
    known = f"{OURS} {own}" if own else "run from a checkout: what it asks for is not in pip's metadata"
    found.append(Finding("packages", OURS, "ok" if own else "warn", known, "" if own else "pip install ."))
    wrong = [one for one in needs if not one.fits and not one.extra]
    for one in wrong:
        got = f"{one.installed} is installed" if one.installed else "not installed"
        fix = f"pip install '{one.name}{one.wanted}'"
        found.append(Finding("packages", one.name, "fail", f"{got}, needed: {one.wanted or 'any version'}", fix))
    for package in (*LIBRARIES, "onnxscript"):
        for one in libraries.requirements(package, here):
            if one.installed and not one.fits and not one.extra:
                summary = f"{package} {here.get(package, '')} asks for {one.name}{one.wanted}, {one.installed} is here"
                found.append(Finding("packages", package, "warn", summary, f"pip install '{one.name}{one.wanted}'"))
    both = _runtimes(here)
    if len(both) > 1:
        summary = f"{' and '.join(both)} are installed; both are `import onnxruntime` and overwrite each other's files"
        keep = "onnxruntime" if sys.platform == "darwin" else "onnxruntime-gpu"
        fix = f"pip uninstall -y {' '.join(both)} && pip install --no-cache-dir {keep}"
        found.append(Finding("packages", "onnxruntime", "fail", summary, fix))
    return found


def _runtimes(here: Mapping[str, str]) -> list[str]:
    """The builds of ONNX Runtime that are installed."""
    return [name for name in RUNTIMES if name in here]


def _torch(answers: Mapping[tuple[str, str], Answer], here: Mapping[str, str]) -> list[Finding]:
    about = answers["torch", ""]
    facts = about.facts
    if about.problem:
        return [_broken("torch", "torch", about, "pip install --force-reinstall torch")]
    built = f"built for CUDA {facts['cuda']}" if facts.get("cuda") else "built without CUDA"
    found = [Finding("torch", "torch", "ok", f"{facts['version']}, {built}")]
    found.append(_kernel("cpu", platform.machine(), answers["kernel", "cpu"]))
    devices = facts.get("devices", [])
    found += [_kernel(one["name"], one["title"], answers["kernel", one["name"]]) for one in devices]
    if not any(one["name"].startswith("cuda") for one in devices):
        why = facts.get("no_cuda") or "torch sees none"
        lost = missing(why, facts.get("cuda"))
        broken = any(one.package for one in lost)
        fix = " && ".join(dict.fromkeys(one.fix for one in lost if one.package))
        found.append(Finding("torch", "cuda", "fail" if broken else "absent", f"no CUDA device: {why}", fix, lost))
    return [*found, _torchvision(answers["torchvision", ""], facts, here)]


def _kernel(device: str, title: str, answer: Answer) -> Finding:
    if answer.problem:
        return _broken("torch", device, answer, "Run with --device cpu meanwhile." if device != "cpu" else "")
    return Finding("torch", device, "ok", f"{title}: a product and a convolution are exact on {answer.facts['ran_on']}")


def _torchvision(answer: Answer, torch: Mapping[str, Any], here: Mapping[str, str]) -> Finding:
    """The pair has to be built for the same torch and the same CUDA."""
    version = here.get("torchvision", "")
    fix = "pip install --force-reinstall torch torchvision"
    if not version:
        return Finding("torch", "torchvision", "fail", "not installed", "pip install torchvision")
    if answer.problem:
        local = f"torch {torch['version']} with torchvision {version}"
        return _broken("torch", "torchvision", answer, fix, before=f"{local} do not import together: ")
    own, other = cuda_major(answer.facts.get("cuda")), cuda_major(torch.get("cuda"))
    if own != other and own is not None:
        summary = f"{answer.facts['version']} is built for CUDA {own}, torch for {f'CUDA {other}' if other else 'CPU'}"
        return Finding("torch", "torchvision", "fail" if other else "warn", summary, fix)
    return Finding("torch", "torchvision", "ok", f"{answer.facts['version']} imports beside torch {torch['version']}")


def _runtime(answers: Mapping[tuple[str, str], Answer], here: Mapping[str, str]) -> list[Finding]:
    about = answers["providers", ""]
    builds = _runtimes(here)
    if about.problem:
        return [_broken("onnxruntime", "onnxruntime", about, "pip install --force-reinstall onnxruntime-gpu")]
    build = " and ".join(builds) or "onnxruntime"
    found = [Finding("onnxruntime", "onnxruntime", "ok", f"{build} {about.facts['version']}")]
    seen = {one["name"].partition(":")[0] for one in answers["torch", ""].facts.get("devices", [])} | {"cpu"}
    for name in sorted(about.facts["providers"], key=lambda name: (name not in _USED, name)):
        found.append(_provider(name, answers["session", name], seen))
    if CUDA not in about.facts["providers"] and "cuda" in seen:
        # Without pip's metadata another program has put it there, and pip cannot take it away.
        remove = f"pip uninstall -y {' '.join(builds)} && " if builds else ""
        fix = f"{remove}pip install --no-cache-dir onnxruntime-gpu"
        found.append(Finding("onnxruntime", CUDA, "fail", f"{build} has no CUDA provider, and a GPU is here", fix))
    return found


def _provider(name: str, answer: Answer, seen: set[str]) -> Finding:
    """A provider is there if a session says that it runs on it, not if the library lists it."""
    ran = answer.facts.get("providers") or []
    if not answer.problem and ran[:1] == [name]:
        return Finding("onnxruntime", name, "ok", "a session with one convolution ran on it")
    cuda = answer.facts.get("cuda")
    complaints = "\n".join((answer.facts.get("needed") or {}).values())
    own = re.sub(r"(?m)^Failed to load .*$", "", answer.text)  # preloading speaks of what other providers need, too
    lost = missing(f"{complaints}\n{own}", cuda)
    fixes = [one.fix for one in (*lost, *mixed(answer.text, cuda)) if one.package]
    without = [one.library for one in lost if one.package]
    hardware = _HARDWARE.get(name)
    driver = any(one.library.removeprefix("lib").split(".")[0] in DRIVER for one in lost)
    if answer.problem.startswith(("the library", SLOW)):
        return _broken("onnxruntime", name, answer, "")
    if without and name in _USED:
        summary = f"the loader does not find {', '.join(without)}" + ("; no GPU driver either" if driver else "")
        status = "fail" if hardware in seen else "warn"
    elif without:
        summary, status = f"not installed, and not needed ({', '.join(without)} missing)", "absent"
    elif hardware is not None and hardware not in seen:
        summary, status = "no such device here" + (": the driver is missing" if driver else ""), "absent"
    elif name in _USED:
        summary, status = f"the session does not run on it: {answer.problem or ', '.join(ran)}", "fail"
    else:
        summary, status = f"does not run here, and is not needed: {answer.problem or ', '.join(ran)}", "absent"
    return Finding("onnxruntime", name, status, summary, " && ".join(dict.fromkeys(fixes)), lost)


def _webgpu(answer: Answer | None) -> list[Finding]:
    """The adapters with their drivers and limits, and whether a session ran there; None without the package."""
    group = "webgpu"
    if answer is None:
        return [Finding(group, group, "absent", f"{webgpu.PACKAGE} is not installed", webgpu.INSTALL)]
    found = []
    for one in answer.facts.get("vulkan") or ():
        limits = f"buffers up to {_mib(one['largest_buffer'])}, memory {_mib(one['memory'])}"
        about = f"{one['type']}, Vulkan {one['vulkan']}, driver {one['driver']}; {limits}"
        found.append(Finding(group, one["name"], "ok", about))
    against = webgpu.refusal(answer)
    if against is not None:
        broken = answer.problem.startswith(("the library", "computed", SLOW))
        found.append(Finding(group, group, "fail" if broken else "absent", against.got, against.fix))
    else:
        text = f"a session with one convolution ran on the {webgpu.adapter(answer)}"
        found.append(Finding(group, group, "ok", text))
    return found


def _mib(size: int) -> str:
    return f"{size >> 20:,} MiB"


def _extras(
    answers: Mapping[tuple[str, str], Answer], here: Mapping[str, str], needs: Sequence[Needed]
) -> list[Finding]:
    found = []
    for extra, modules in _EXTRAS.items():
        install = f"pip install 'zero-convert[{extra}]'"
        lacking = [module for module in modules if module not in here]
        old = [one for one in needs if one.extra == extra and one.installed and not one.fits]
        bad = next((answers["import", m] for m in modules if m in here and answers["import", m].problem), None)
        if lacking:
            found.append(Finding("extras", extra, "absent", f"{' and '.join(lacking)} not installed", install))
        elif bad is not None:
            found.append(_broken("extras", extra, bad, f"{install} --upgrade --force-reinstall"))
        elif old:
            summary = ", ".join(f"{one.name} {one.installed} is here, needed: {one.wanted}" for one in old)
            found.append(Finding("extras", extra, "fail", summary, f"{install} --upgrade"))
        else:
            found.append(Finding("extras", extra, "ok", ", ".join(f"{module} {here[module]}" for module in modules)))
    return found


def _reports(answers: Mapping[tuple[str, str], Answer], here: Mapping[str, str]) -> list[Finding]:
    if "matplotlib" not in here:
        summary = "no charts without matplotlib, which brings its font"
        return [Finding("reports", "fonts", "absent", summary, "pip install 'zero-convert[report]'")]
    answer = answers["fonts", ""]
    if answer.problem:
        fix = "pip install --force-reinstall matplotlib"
        return [_broken("reports", "fonts", answer, fix, before="the font of the charts: ")]
    return [Finding("reports", "fonts", "ok", f"{answer.facts['font']}, drawn as outlines: a reader needs no font")]


def _broken(group: str, name: str, answer: Answer, fix: str, before: str = "") -> Finding:
    """Something that is installed and does not work; with the packages that supply what the loader did not find."""
    if answer.problem.startswith(SLOW):
        before, fix = "", "Look at what else runs here, or give it longer: --timeout SECONDS."
    cuda = answer.facts.get("cuda")
    lost = (*missing(answer.text, cuda), *mixed(answer.text, cuda))
    fixes = list(dict.fromkeys(one.fix for one in lost if one.package))
    return Finding(group, name, "fail", before + answer.problem, " && ".join(fixes) or fix, lost)
