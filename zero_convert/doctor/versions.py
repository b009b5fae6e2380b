"""What pip's metadata say of the packages that have to work together. Imports none of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

OURS = "zero-convert"
# Builds of ONNX Runtime: all of them are `import onnxruntime`, so one overwrites the files of another.
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-qnn",
    "ort-nightly",
    "ort-nightly-gpu",
)


@dataclass(frozen=True, slots=True)
class Needed:
    """A package that another one asks for.

    Attributes:
        by: who asks for it.
        extra: the extra of `by` that asks for it, "" for everybody.
        name: pip's name.
        wanted: the versions that will do, ">=2.11"; "" for any.
        installed: the version here; "" if it is not installed.
        fits: it is installed in a version that will do.
    """

    by: str
    extra: str
    name: str
    wanted: str
    installed: str
    fits: bool


def installed() -> dict[str, str]:
    """Name, as pip normalizes it → version, of all packages; the first of a name on the path is the one imported."""
    found: dict[str, str] = {}
    for one in metadata.distributions():
        name = one.metadata["Name"]
        if name:
            found.setdefault(_normal(name), one.version)
    return dict(sorted(found.items()))


def requirements(package: str, here: Mapping[str, str]) -> tuple[Needed, ...]:
    """What a package asks for on this machine, its extras after what everybody needs; empty if it is not installed."""
    try:
        about = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return ()
    extras = about.metadata.get_all("Provides-Extra") or []
    return tuple(read_requirements(package, about.requires or [], extras, here))


def read_requirements(package: str, texts: list[str], extras: list[str], here: Mapping[str, str]) -> Iterator[Needed]:
    """The requirements that are spelled in the texts and hold here, each under the first extra that asks for it."""
    seen: set[str] = set()
    for extra in ("", *extras):
        for text in texts:
            try:
                one = Requirement(text)
            except InvalidRequirement:
                continue
            if text in seen or (one.marker is not None and not one.marker.evaluate({"extra": extra})):
                continue
            seen.add(text)
            version = here.get(_normal(one.name), "")
            fits = bool(version) and one.specifier.contains(version, prereleases=True)
            yield Needed(package, extra, _normal(one.name), str(one.specifier), version, fits)


def runtimes(here: Mapping[str, str]) -> tuple[str, ...]:
    """The builds of ONNX Runtime that are installed."""
    return tuple(name for name in RUNTIMES if name in here)


def cuda_major(version: object) -> int | None:
    """13 of "13.2" (torch), of 13020 (torchvision), of "cu132" and "+cu132"; None for a build without CUDA."""
    if version is None or version == "":
        return None
    if isinstance(version, int):
        return version // 1000
    number = re.search(r"(?:cu)?(\d+)", str(version))
    if number is None:
        return None
    return int(number[1][:2]) if "cu" in str(version) else int(number[1])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
