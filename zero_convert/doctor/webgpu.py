"""WebGPU: why nothing can be computed there, or what computes; and sessions in a process of their own.

The process is `webgpu_child.py`. It goes on from job to job, because shaders are compiled once in each, and it ends
with `close`, or with this process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zero_convert.errors import DeviceError
from zero_convert.runtime.native_errors import gist
from zero_convert.runtime.signals import undone_by

from .ask import Answer, ask

if TYPE_CHECKING:
    import numpy.typing as npt

    Arrays = Sequence[npt.NDArray[Any]]

PACKAGE = "onnxruntime-ep-webgpu"
PROVIDER = "WebGpuExecutionProvider"
SOFTWARE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
PROGRAM = Path(__file__).with_name("webgpu_child.py")
LIMIT = 120.0  # seconds for the first convolution: a driver may have to compile
OPTIONS: Mapping[str, str] = {}  # of the provider
INSTALL = "pip install 'zero-convert[webgpu]'"
# Debian's package of the one driver that the provider takes without a GPU, and where it lies there.
DRIVER = "apt-get install chromium-common"
ICD = "/usr/lib/chromium/vk_swiftshader_icd.json"
ON_SOFTWARE = f"To compute without a GPU: {DRIVER}; VK_DRIVER_FILES={ICD} {SOFTWARE}=1 in the environment."


@dataclass(frozen=True)
class Adapter:
    """What WebGPU computes on.

    Attributes:
        name: of the adapter, as its driver spells it; of the hardware, as ONNX Runtime does, where no driver tells.
        software: it is a program on the CPU.
        about: its driver and the versions.
    """

    name: str
    software: bool
    about: str

    def __str__(self) -> str:
        return f"{'software adapter ' if self.software else ''}{self.name}, {self.about}"


@dataclass(frozen=True)
class Refusal:
    """Why nothing can be computed there: what was found, the libraries' words in it, and what to do."""

    got: str
    fix: str


@dataclass(frozen=True)
class Job:
    """What a session did: its first provider, the events of its profile, and name → output of each of its runs."""

    provider: str
    events: list[Mapping[str, Any]]
    runs: list[dict[str, Any]]


def asked(limit: float = LIMIT) -> Answer:
    """What the machine has, asked in a process of its own."""
    return ask("adapters", limit=limit, program=PROGRAM)


def adapter(answer: Answer) -> Adapter:
    """What the answer says of the adapter."""
    facts, known = answer.facts, answer.facts.get("vulkan") or []
    versions = f"{PACKAGE} {facts.get('plugin', '')}, onnxruntime {facts.get('version', '')}"
    if not known:
        return Adapter(", ".join(facts.get("listed", [])), bool(facts.get("software")), versions)
    first = known[0]
    alike = [one["name"] for one in known if one["type"] == first["type"]]
    about = f"Vulkan {first['vulkan']}, driver {first['driver']}, {versions}"
    return Adapter(" or ".join(alike), bool(facts.get("software")), about)


def refusal(answer: Answer) -> Refusal | None:
    """Why nothing can be computed there; None if something was, and was right."""
    facts, text = answer.facts, answer.text
    if not facts.get("package", True):
        return Refusal(f"the package {PACKAGE} is not installed", INSTALL)
    if answer.problem and not facts.get("listed"):
        return Refusal(answer.problem, f"pip install --force-reinstall {PACKAGE}")
    if not facts.get("listed"):
        return Refusal("ONNX Runtime lists no GPU", f"Install the driver of the GPU. {ON_SOFTWARE}")
    lost = re.search(r"Couldn't load Vulkan: ([^\n]*)", text)
    if lost:
        return Refusal(f"no Vulkan loader: {lost[1]}", f"Install it: apt-get install libvulkan1. {ON_SOFTWARE}")
    lacking = re.search(r"Warning: ([^\n]* required[^\n]*)\n[^\n]*initializing adapter", text)
    if lacking:
        names = ", ".join(one["name"] for one in facts.get("vulkan", ())) or "the adapter"
        return Refusal(f"{names} lacks a feature: {lacking[1]}", f"Install a newer driver. {ON_SOFTWARE}")
    if "No supported adapters" in text or "Failed to get a WebGPU adapter" in text:
        if "Found no drivers" in text:
            return Refusal("no Vulkan driver", f"Install the driver of the GPU. {ON_SOFTWARE}")
        loader = re.search(r"Loader Message: ([^\n]*)", text)
        got = f"a Vulkan driver that finds no adapter{f': {loader[1].strip()}' if loader else ''}"
        return Refusal(got, f"Install the driver that fits the GPU. {ON_SOFTWARE}")
    if answer.problem:
        return Refusal(answer.problem, "Look at the driver; --device cpu meanwhile.")
    if facts.get("software") and not facts.get("asked"):
        name = adapter(answer).name
        return Refusal(f"a software adapter only: {name}", f"If that is meant: {SOFTWARE}=1 in the environment.")
    return None


def found() -> Adapter:
    """The adapter that computes.

    Raises:
        DeviceError: there is none.
    """
    answer = asked()
    against = refusal(answer)
    if against is not None:
        raise DeviceError(
            "the device webgpu cannot be used",
            where="--device webgpu",
            got=against.got,
            expected="a device that computes",
            fix=against.fix,
        )
    return adapter(answer)


# ---------------------------------------------------------------------------------------------------------------------
# sessions


class Crash(RuntimeError):
    """The process ended, or said nothing that is an answer."""


class Server:
    """A process that runs sessions on WebGPU."""

    def __init__(self, program: Path = PROGRAM) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        command = [sys.executable, "-P", str(program), "serve"]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed, text=True
        )

    def run(self, model: str | PathLike[str] | bytes, batches: Sequence[Arrays]) -> Job:
        """A session of the model, run once for each batch, a list of arrays in the order of its inputs.

        Raises:
            RuntimeError: with the libraries' own words, those that they printed included.
        """
        folder = tempfile.mkdtemp()
        with undone_by(self.close), undone_by(lambda: shutil.rmtree(folder, ignore_errors=True)):
            try:
                return self._run(Path(folder), model, batches)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, folder: Path, model: str | PathLike[str] | bytes, batches: Sequence[Arrays]) -> Job:
        import numpy as np

        path = folder / "model.onnx"
        if isinstance(model, bytes):
            path.write_bytes(model)
        source = str(path) if isinstance(model, bytes) else os.path.abspath(os.fspath(model))
        runs = [(str(folder / f"in{number}.npz"), str(folder / f"out{number}.npz")) for number in range(len(batches))]
        for (place, _), values in zip(runs, batches, strict=True):
            np.savez(place, **{str(index): value for index, value in enumerate(values)})  # type: ignore[arg-type]
        job = {"model": source, "runs": runs, "options": dict(OPTIONS), "profile": str(folder / "profile")}
        begin = self._printed.seek(0, os.SEEK_END)
        facts = self._asked(job)
        self._printed.seek(begin)
        printed = self._printed.read().decode("utf-8", "replace").strip()
        if "error" in facts:
            raise (Crash if facts.get("over") else RuntimeError)("\n".join(filter(None, (facts["error"], printed))))
        names = facts["outputs"]
        made = [_read(target, names) for _, target in runs]
        return Job(facts["provider"], json.loads(Path(facts["profile"]).read_text("utf-8")), made)

    def _asked(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        with suppress(BrokenPipeError):
            self._child.stdin.write(f"{json.dumps(job)}\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if line:
            facts: Mapping[str, Any] = json.loads(line)
            return facts
        code = self._child.wait()
        return {"error": f"the driver ended its process (code {code})", "over": True}

    def close(self) -> None:
        """Ends the process."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._printed):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]


def _read(target: str, names: Sequence[str]) -> dict[str, Any]:
    """Name → output; a list where it was a sequence."""
    import numpy as np

    values: dict[str, Any] = {}
    with np.load(target) as arrays:
        for key in arrays.files:
            index, _, position = key.partition(".")
            name = names[int(index)]
            if position:
                values.setdefault(name, []).append(arrays[key])
            else:
                values[name] = arrays[key]
    return {name: values.get(name, []) for name in names}


_servers: list[Server] = []
_starting = threading.Lock()


def run(model: str | PathLike[str] | bytes, batches: Sequence[Arrays]) -> Job:
    """As `Server.run`, in the process that is there, or in a new one.

    Raises:
        DeviceError: the process ended.
        RuntimeError: the session or a run of it failed.
    """
    with _starting:
        if not _servers:
            _servers.append(Server())
        try:
            return _servers[0].run(model, batches)
        except Crash as error:
            _servers.pop().close()
            raise DeviceError(
                "WebGPU ended with its process",
                where="--device webgpu",
                got=gist(str(error)),
                expected="a session that answers",
                fix="`zero-convert doctor` tries the adapter; --device cpu meanwhile.",
            ) from error


def close() -> None:
    """Ends the process, if there is one."""
    with _starting:
        while _servers:
            _servers.pop().close()
