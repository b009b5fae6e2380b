"""Conversions in a process of its own, whose surroundings a test chooses: did they reach the bytes?

    python tests/probe.py OUT MODEL:SCHEME…

Runs the real command into OUT once for each MODEL:SCHEME, takes digests of what then lies on the disk, and prints
them as one JSON object. In the same process it also runs `LEAKS`: writers with a defect, each of which lets one thing
of its surroundings into the bytes. A comparison that does not catch them would not catch us either.
"""

from __future__ import annotations

import hashlib
import io
import json
import locale
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

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
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def converted(model: str, scheme: str, out: Path) -> dict[str, str]:
    """Digests of the file and of its receipt's identity, as they lie on the disk after the command."""
    code = cli.main([model, "--scheme", scheme, "--validate", "none", "--force", "--quiet", "--out", str(out)])
    if code:
        raise SystemExit(code)
    identity = json.loads(Path(f"{out}.receipt.json").read_text(encoding="utf-8"))["identity"]
    return {
        "file": sha256(out.read_bytes()),
        "weights": identity["weights_digest"],
        "identity": sha256(json.dumps(identity).encode()),
    }


def leaked(text: str) -> str:
    """SHA-256 of a small file whose writer put `text` into its metadata."""
    stream = io.BytesIO()
    safetensors.write(stream, [safetensors.Entry("one", "F32", (1,), lambda: b"\0\0\x80?")], {"format": text})
    return sha256(stream.getvalue())


def main() -> int:
    printed, sys.stdout = sys.stdout, sys.stderr
    out = Path(sys.argv[1])
    found = {job: converted(*job.split(":"), out) for job in sys.argv[2:]}
    answer = {"found": found, "leaks": {name: leaked(leak()) for name, leak in LEAKS.items()}}
    print(json.dumps(answer), file=printed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
