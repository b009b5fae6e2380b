"""Writes the index `architectures.tsv`: names and shapes of every architecture of the installed model libraries.

    python scripts/index_architectures.py --cache FOLDER [--origin timm]

Builds each one without values (no file is downloaded), a few thousand in about an hour, and notes in FOLDER what it
has, so that a run that was stopped goes on. One that cannot be built, or takes more than a minute, is left out, and
named at the end. `zero_convert/inspection/likely_architecture.py` says what the lines mean.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import signal
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zero_convert import sources
from zero_convert.inspection import likely_architecture as likely

SECONDS = 60
SAMPLE = 20  # hashes of an architecture
HEAD = 8  # tensors that a head may have
WORDS = 1 << 64
_VALUES = """
    uniform_ normal_ erfinv_ clamp_ mul_ add_ sub_ div_ zero_ fill_ exponential_ bernoulli_
"""


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Nothing is written into tensors: memory that is never touched costs nothing."""

    def same(tensor: torch.Tensor, *_args: Any, **_settings: Any) -> torch.Tensor:
        return tensor

    kept = {name: getattr(torch.Tensor, name) for name in _VALUES.split()}
    inits = {
        name: made for name, made in vars(nn.init).items() if isinstance(made, types.FunctionType) and name[-1] == "_"
    }
    for name in kept:
        setattr(torch.Tensor, name, same)
    for name in inits:
        setattr(nn.init, name, same)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(torch.Tensor, name, method)
        for name, made in inits.items():
            setattr(nn.init, name, made)


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def torchvision(name: str) -> tuple[dict[str, list[int]], list[str]]:
    origin = sources._origin("torchvision")
    with without_values():
        own = shapes(origin.build(name, {}))
        try:
            other = shapes(origin.build(name, {"num_classes": 7}))
        except (TypeError, ValueError):
            other = own
    return own, [key for key in own if other.get(key) != own[key]]


def timm(name: str) -> tuple[dict[str, list[int]], list[str]]:
    with without_values():
        module = sources._origin("timm").build(name, {})
    own = shapes(module)
    config = getattr(module, "pretrained_cfg", None) or {}
    layers = config.get("classifier") or ()
    layers = (layers,) if isinstance(layers, str) else layers
    return own, [key for key in own if any(key.startswith(f"{layer}.") for layer in layers)]


def transformers(name: str) -> tuple[dict[str, list[int]], list[str]]:
    from zero_convert.sources.transformers.configs import configured

    origin = sources._origin("transformers")
    with origin.offline(), torch.device("meta"):
        cls = origin._network(name)
        module = cls(configured(cls.config_class, {}, name))
    own = shapes(module)
    base = f"{module.base_model_prefix}." if getattr(module, "base_model_prefix", "") else ""
    inside = [key for key in own if base and key.startswith(base)]
    return own, [key for key in own if not key.startswith(base)] if inside else []


MAKERS = {"torchvision": torchvision, "timm": timm, "transformers": transformers}


def listed(origin: str) -> list[str]:
    library = sources._origin(origin)
    if origin != "transformers":
        return list(library.names())
    bases = {library._by_type()[kind] for kind in library.names()}
    return sorted(bases | set(library.more_names()))


def collect(origin: str, cache: Path) -> list[str]:
    """Builds what the cache does not hold yet; what could not be built."""
    file = cache / f"{origin}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {row["name"] for row in rows}
    with file.open("a") as out:
        for name in listed(origin):
            if name in known:
                continue
            try:
                with at_most(SECONDS), contextlib.redirect_stdout(sys.stderr):
                    own, head = MAKERS[origin](name)
                row = {"name": name, "tensors": own, "head": head}
            except Exception as error:
                row = {"name": name, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            out.write(json.dumps(row) + "\n")
            out.flush()
            rows.append(row)
    return [f"{origin}:{row['name']}: {row['error']}" for row in rows if "error" in row]


def rows(cache: Path) -> list[str]:
    """The lines of the index: one for each distinct architecture, in order of their first models."""
    made: dict[tuple[int, int], tuple[list[str], dict[str, list[int]], list[str]]] = {}
    for origin in MAKERS:
        for line in (cache / f"{origin}.jsonl").read_text().splitlines():
            row = json.loads(line)
            own = {name: shape for name, shape in row.get("tensors", {}).items() if not name.endswith(likely.COUNTER)}
            if not own:
                continue
            total = sum(likely.element(name, shape) for name, shape in own.items()) % WORDS
            models, _, head = made.setdefault((len(own), total), ([], own, []))
            models.append(f"{origin}:{row['name']}")
            if not head and len(row["head"]) <= HEAD:
                head += sorted(name for name in row["head"] if name in own)
    for models, _, _ in made.values():
        models.sort(key=lambda model: "quantized_" in model)  # not what people mean, where another one is the same
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in MAKERS)
    return [versions] + [_line(total, models, own, head) for (_, total), (models, own, head) in made.items()]


def _line(total: int, models: list[str], own: dict[str, list[int]], head: list[str]) -> str:
    hashes = {name: likely.element(name, shape) for name, shape in own.items()}
    body = (total - sum(hashes[name] for name in head)) % WORDS
    kinds, _ = likely.kinds_of(own)
    sample = "".join(map(likely.sample_of, sorted(hashes.values())[:SAMPLE]))
    return "\t".join([str(len(own)), f"{total:x}", f"{body:x}", " ".join(head), f"{kinds:x}", sample, " ".join(models)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--origin", choices=MAKERS, action="append")
    options = parser.parse_args()
    options.cache.mkdir(exist_ok=True)
    warnings.simplefilter("ignore")
    failed = [line for origin in options.origin or MAKERS for line in collect(origin, options.cache)]
    print("\n".join(failed), file=sys.stderr)
    lines = rows(options.cache)
    likely.INDEX.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{len(lines)} architectures in {likely.INDEX.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
