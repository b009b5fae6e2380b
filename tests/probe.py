"""Conversions in a process of its own, whose surroundings a test chooses: did they reach the bytes?

    python tests/probe.py OUT WEIGHTS DTYPE ORDER MODEL:SCHEME…

Runs the real command into OUT once for each MODEL:SCHEME, takes digests of what then lies on the disk, and prints
them as one JSON object. WEIGHTS is a file with `net.py` beside it; the MODEL `own` is a network of that, also in ONNX,
`file` is WEIGHTS with `--arch`, and `table` a network that reads whole numbers of the type DTYPE. With "backwards" as
ORDER all folders are listed from their end. In the same process it also runs `LEAKS`: writers with a defect, each of
which lets one thing of its surroundings into the bytes. A comparison that does not catch them would not catch us
either.
"""

from __future__ import annotations

import hashlib
import io
import json
import locale
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zero_convert import cli
from zero_convert.exporters import safetensors

NAMES = [f"layer{i}.weight" for i in range(64)]


def leak_threads() -> str:
    import torch

    return f"{torch.get_num_threads()} of {os.environ.get('OMP_NUM_THREADS')}"


def leak_processor() -> str:
    import torch

    return torch.backends.cpu.get_cpu_capability()


def leak_umask() -> str:
    mask = os.umask(0)
    os.umask(mask)
    return oct(mask)


LEAKS: dict[str, Callable[[], str]] = {
    "threads": leak_threads,
    "processor": leak_processor,
    "hash seed": lambda: ",".join(set(NAMES)),
    "locale": lambda: locale.setlocale(locale.LC_ALL, ""),
    "time zone": lambda: time.strftime("%H:%M %z", time.localtime(0)),
    "umask": leak_umask,
    "folder": os.getcwd,
    "name": lambda: Path(sys.argv[1]).name,
    "-O": lambda: str(__debug__),
    "-X dev": lambda: str(sys.flags.dev_mode),
    "home": lambda: str(Path.home()),
    "environment": lambda: os.environ.get("NOISE", ""),
    "input folder": lambda: os.path.dirname(sys.argv[2]),
    "input name": lambda: os.path.basename(sys.argv[2]),
    "input type": lambda: sys.argv[3],
    "order of folders": lambda: ",".join(os.listdir(os.path.dirname(sys.argv[2]))),
    "processors": lambda: str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    "addresses": lambda: hex(id(NAMES)),
    "user": lambda: str(os.getuid() if hasattr(os, "getuid") else ""),
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Backwards:
    """`os.scandir` from the end."""

    def __init__(self, *arguments: Any) -> None:
        with _SCANDIR(*arguments) as found:
            self._entries = list(found)[::-1]

    def __enter__(self) -> _Backwards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self

    def __next__(self) -> os.DirEntry[str]:
        if not self._entries:
            raise StopIteration
        return self._entries.pop(0)

    def close(self) -> None:
        self._entries = []


_LISTDIR, _SCANDIR = os.listdir, os.scandir


def list_backwards() -> None:
    os.listdir = lambda *arguments: _LISTDIR(*arguments)[::-1]  # type: ignore[assignment]
    os.scandir = _Backwards  # type: ignore[assignment]


def arguments(model: str) -> list[str]:
    """The words of the command that say what is converted."""
    net = os.path.join(os.path.dirname(sys.argv[2]), "net.py")
    small = ["--input", "1x3x8x8"]
    own = {
        "own": [f"{net}:net", *small],
        "file": [sys.argv[2], "--arch", f"{net}:net", "--uncovered", "keep", *small],
        "table": [f"{net}:table", "--input", f"1x5:{sys.argv[3]}"],
    }
    return own.get(model, [model])


def converted(model: str, scheme: str, out: Path) -> dict[str, str]:
    """Digests of the file and of its receipt's identity, as they lie on the disk after the command."""
    outs = [out, *([out.with_suffix(".onnx")] if model == "own" else [])]
    command = [*arguments(model), "--scheme", scheme, "--validate", "none", "--force", "--quiet"]
    code = cli.main([*command, *(word for each in outs for word in ("--out", str(each)))])
    if code:
        raise SystemExit(code)
    identities = [json.loads(Path(f"{each}.receipt.json").read_text(encoding="utf-8"))["identity"] for each in outs]
    return {
        "file": sha256(out.read_bytes()),
        "weights": identities[0]["weights_digest"],
        "identity": sha256(json.dumps(identities).encode()),
        **({"onnx": sha256(outs[1].read_bytes())} if len(outs) > 1 else {}),
    }


def leaked(text: str) -> str:
    """SHA-256 of a small file whose writer put `text` into its metadata."""
    stream = io.BytesIO()
    safetensors.write(stream, [safetensors.Entry("one", "F32", (1,), lambda: b"\0\0\x80?")], {"format": text})
    return sha256(stream.getvalue())


def main() -> int:
    printed, sys.stdout = sys.stdout, sys.stderr
    out = Path(sys.argv[1])
    if sys.argv[4] == "backwards":
        list_backwards()
    found = {job: converted(*job.split(":"), out) for job in sys.argv[5:]}
    answer = {"found": found, "leaks": {name: leaked(leak()) for name, leak in LEAKS.items()}}
    print(json.dumps(answer), file=printed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
