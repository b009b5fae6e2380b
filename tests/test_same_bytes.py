"""The same bytes everywhere: golden digests, and one sha256 whatever surrounds the process."""

from __future__ import annotations

import json
import os
import platform
import site
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import goldens, probe
from tests.test_onnx_everywhere import SOMEBODY, interpreter, readable

ROOT = Path(__file__).parents[1]
DRAWN_OR_LINKED = ("resnet18:fixup", "resnet18:risotto", "resnet18:idinit", "resnet18:constnet")
OWN = ("own:zero-2021", "file:zero-2022", "table:zero-2021")  # see `probe.py`
JOBS = ("resnet50:zero-2021", "resnet50:zero-2022", *DRAWN_OR_LINKED, *OWN)
FEW = ("resnet18:risotto", *OWN)  # where one thing is varied at a time

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.kept = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x):
        return self.last(torch.sin(self.kept) * self.norm(self.first(x)).mean((2, 3)))

net = Net

def table():
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4))
"""

# -- golden digests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.key, marks=() if c.quick else pytest.mark.zoo) for c in goldens.CASES]
)
def test_digests_stay_what_they_were(case: goldens.Case) -> None:
    message = goldens.moved(case, goldens.digests(case))
    assert not message, message


def test_every_case_has_golden_digests_of_its_own() -> None:
    table = goldens.golden()
    assert list(table) == [case.key for case in goldens.CASES]
    assert len({row["sha256"] for row in table.values()}) == len(table) >= 14


def test_a_moved_golden_says_which_and_how_to_update() -> None:
    case = goldens.CASES[0]
    good = goldens.golden()[case.key]
    assert goldens.moved(case, good) == ""
    message = goldens.moved(case, {**good, "sha256": "0" * 64})
    assert case.key in message
    assert "same values, other file" in message
    assert "--update" in message
    assert "the values moved" in goldens.moved(case, {**good, "weights_digest": "0" * 64})


# -- surroundings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """What a process is started in."""

    threads: str = "2"
    hash_seed: str = "0"
    locale: str = "C.UTF-8"
    time_zone: str = "UTC"
    umask: int = 0o022
    folder: str = "here"
    name: str = "zero.safetensors"
    processor: str = ""
    flags: tuple[str, ...] = ()
    home: str = "home"
    noise: str = ""
    inputs: str = "in"
    weights: str = "weights.safetensors"
    input_type: str = "int64"
    order: str = "forwards"
    command: tuple[str, ...] = ()  # in front of the interpreter
    user: int | None = None
    changed: tuple[str, ...] = field(default=(), compare=False)


def installed_locale() -> str:
    """A locale that is neither C nor UTF-8 English, or else plain C."""
    known = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout.split()
    return next((name for name in known if name[0].islower()), "C")


PLAIN = Surroundings()
X86 = platform.machine() in ("x86_64", "AMD64")  # elsewhere torch has one level of vector instructions
ONE_BY_ONE = {
    "one thread": Surroundings(threads="1", changed=("threads",)),
    "three threads": Surroundings(threads="3", changed=("threads",)),
    "hash seed 1": Surroundings(hash_seed="1", changed=("hash seed",)),
    "hash seed 4294967295": Surroundings(hash_seed="4294967295", changed=("hash seed",)),
    "locale C": Surroundings(locale="C", changed=("locale",)),
    "an installed locale": Surroundings(locale=installed_locale(), changed=("locale",)),
    "Kathmandu": Surroundings(time_zone="Asia/Kathmandu", changed=("time zone",)),
    "umask 077": Surroundings(umask=0o077, changed=("umask",)),
    "another folder": Surroundings(folder="é è/there", changed=("folder",)),
    "another name": Surroundings(name="ünï cödé.safetensors", changed=("name",)),
    "-O": Surroundings(flags=("-O",), changed=("-O",)),
    "-OO": Surroundings(flags=("-OO",), changed=("-O",)),
    "-X dev": Surroundings(flags=("-X", "dev"), changed=("-X dev",)),
    "no vector instructions": Surroundings(processor="default", changed=("processor",) if X86 else ()),
    "AVX2": Surroundings(processor="avx2"),
    "AVX-512": Surroundings(processor="avx512"),
    "another home": Surroundings(home="elsewhere", changed=("home",)),
    "another environment": Surroundings(noise="ünï cödé=", changed=("environment",)),
    "input from another folder": Surroundings(inputs="ïn pùt/there", changed=("input folder",)),
    "another name of the input": Surroundings(weights="a b.safetensors", changed=("input name",)),
    "int32 inputs": Surroundings(input_type="int32", changed=("input type",)),
    "folders listed from their end": Surroundings(order="backwards", changed=("order of folders",)),
    "one processor": Surroundings(command=("taskset", "-c", "0"), changed=("processors",)),
    "no random addresses": Surroundings(command=("setarch", "-R"), changed=("addresses",)),
    "another user": Surroundings(user=SOMEBODY, changed=("user",)),
}
# Without -O, under which Python compiles all of torch anew: a quarter of a minute.
ALL_AT_ONCE = Surroundings(
    *("1", "7", "C", "Asia/Kathmandu", 0o077, "é è/there", "ünï cödé.safetensors", "default"),
    flags=("-X", "dev"),
    home="elsewhere",
    noise="1",
    inputs="ïn pùt/there",
    weights="a b.safetensors",
    input_type="int32",
    order="backwards",
    changed=tuple(
        name
        for name in probe.LEAKS
        if name not in ("-O", "processors", "addresses", "user") and (X86 or name != "processor")
    ),
)


def run(surroundings: Surroundings, jobs: Sequence[str] = JOBS) -> dict[str, Any]:
    """What `probe.py` prints there."""
    with tempfile.TemporaryDirectory() as top:
        folder, home, inputs = (
            Path(top, each) for each in (surroundings.folder, surroundings.home, surroundings.inputs)
        )
        for each in (folder, home, inputs):
            each.mkdir(parents=True)
        (inputs / "net.py").write_text(NETS)
        save_weights(inputs / surroundings.weights)
        who: dict[str, Any] = {}
        python, paths = sys.executable, [str(ROOT)]
        if surroundings.user is not None:
            python, paths = interpreter() or python, [*paths, *site.getsitepackages()]
            who = {"user": surroundings.user, "group": surroundings.user, "extra_groups": []}
            for path in (Path(top), *Path(top).rglob("*")):
                os.chown(path, surroundings.user, surroundings.user)
        chosen = {
            "OMP_NUM_THREADS": surroundings.threads,
            "PYTHONHASHSEED": surroundings.hash_seed,
            "LC_ALL": surroundings.locale,
            "TZ": surroundings.time_zone,
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join(paths),
            "NOISE": surroundings.noise,
        }
        dropped = ("MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONOPTIMIZE")
        environment = {name: value for name, value in os.environ.items() if name not in dropped} | chosen
        if surroundings.processor:
            environment["ATEN_CPU_CAPABILITY"] = surroundings.processor
        done = subprocess.run(
            [
                *surroundings.command,
                *(python, *surroundings.flags, "-B", str(ROOT / "tests" / "probe.py"), surroundings.name),
                *(str(inputs / surroundings.weights), surroundings.input_type, surroundings.order, *jobs),
            ],
            **who,
            cwd=folder,
            env=environment,
            umask=surroundings.umask,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return {**answer, "folder": top}


def save_weights(path: Path) -> None:
    """A file with the tensors of `Net`, always the same bytes."""
    names: dict[str, Any] = {}
    exec(NETS, names)
    save_file({name: torch.full_like(value, 2) for name, value in names["Net"]().state_dict().items()}, path)


@cache
def plain(jobs: tuple[str, ...] = JOBS) -> dict[str, Any]:
    return run(PLAIN, jobs)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names under which the two hold different digests: the comparison that all tests below go through."""
    return [name for name in one if one[name] != other[name]]


def check(surroundings: Surroundings, found: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    assert differing(usual["found"], found["found"]) == []
    caught = differing(usual["leaks"], found["leaks"])
    missed = [name for name in surroundings.changed if name not in caught]
    assert not missed, f"these were to change, and a writer that leaks them went unnoticed: {missed}"


def test_everything_around_the_process_at_once_leaves_the_bytes_alone() -> None:
    with ThreadPoolExecutor(2) as pool:
        pool.submit(plain)
        found = pool.submit(run, ALL_AT_ONCE)
    check(ALL_AT_ONCE, found.result(), plain())


def test_the_command_writes_the_golden_bytes() -> None:
    table = goldens.golden()
    for job, found in [pair for pair in plain()["found"].items() if pair[0] not in OWN]:
        golden = table[job.replace(":", " ")]
        assert (found["file"], found["weights"]) == (golden["sha256"], golden["weights_digest"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_one_thing_around_the_process_leaves_the_bytes_alone(name: str) -> None:
    around = ONE_BY_ONE[name]
    if around.command and subprocess.run([*around.command, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{around.command[0]} does not work here")
    if around.user is not None and not (hasattr(os, "getuid") and os.getuid() == 0 and every_user_can_run_this()):
        pytest.skip("only root can be somebody else, and others cannot read the interpreter")
    check(around, run(around, FEW), plain(FEW))


def every_user_can_run_this() -> bool:
    return interpreter() is not None and all(map(readable, (ROOT, *map(Path, site.getsitepackages()))))
