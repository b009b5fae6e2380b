"""Packages that have to work together, by pip's metadata, and those that supply a shared library. Imports none of them.

The names of libraries come out of the loader's own complaint.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

OURS = "zero-convert"
_BUILDS = ("", "-gpu", "-directml", "-openvino", "-rocm", "-migraphx", "-qnn")
# Builds of ONNX Runtime: all of them are `import onnxruntime`, so one overwrites the files of another.
RUNTIMES = (*(f"onnxruntime{build}" for build in _BUILDS), "ort-nightly", "ort-nightly-gpu")
DRIVER = ("cuda", "nvcuda", "nvidia-ml")  # come with the GPU's driver

# Name of the library → package for CUDA 12, for CUDA 13. The major version of each package is that of its library.
# Source: the packages' own lists of files.
_PACKAGES = {
    "cudart": ("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"),
    "cublas": ("nvidia-cublas-cu12", "nvidia-cublas"),
    "cublasLt": ("nvidia-cublas-cu12", "nvidia-cublas"),
    "cudnn": ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    "cufft": ("nvidia-cufft-cu12", "nvidia-cufft"),
    "cufile": ("nvidia-cufile-cu12", "nvidia-cufile"),
    "cupti": ("nvidia-cuda-cupti-cu12", "nvidia-cuda-cupti"),
    "curand": ("nvidia-curand-cu12", "nvidia-curand"),
    "cusolver": ("nvidia-cusolver-cu12", "nvidia-cusolver"),
    "cusparse": ("nvidia-cusparse-cu12", "nvidia-cusparse"),
    "cusparseLt": ("nvidia-cusparselt-cu12", "nvidia-cusparselt-cu13"),
    "nccl": ("nvidia-nccl-cu12", "nvidia-nccl-cu13"),
    "nvJitLink": ("nvidia-nvjitlink-cu12", "nvidia-nvjitlink"),
    "nvrtc": ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc"),
    "nvshmem_host": ("nvidia-nvshmem-cu12", "nvidia-nvshmem-cu13"),
    "nvToolsExt": ("nvidia-nvtx-cu12", "nvidia-nvtx"),
    "nvinfer": ("tensorrt-cu12", "tensorrt-cu13"),
    "nvinfer_plugin": ("tensorrt-cu12", "tensorrt-cu13"),
    "nvonnxparser": ("tensorrt-cu12", "tensorrt-cu13"),
}
_OF_CUDA = ("cudart", "cublas", "cublasLt", "nvrtc", "nvJitLink", "cupti")  # their major version is CUDA's
_UNVERSIONED = ("cufile", "cusparseLt")  # number 0: says nothing about the package's version
_NEWEST = 13
_SPLIT = re.compile(r"_(?:graph|ops|cnn|adv|engines_\w+|heuristic)$")  # cuDNN comes in parts

_MISSING = (
    re.compile(r"([\w.+-]+\.so[\w.]*): cannot open shared object file"),  # glibc; musl: "Error loading …"
    re.compile(r"Error loading shared library ([\w.+-]+)"),
    re.compile(r"Could not load library ([\w.+-]+?)\.?(?:\s|$)"),  # cuDNN's own loader
    re.compile(r"Unable to load any of \{([\w.+-]+)"),
    re.compile(r"Library not loaded: (?:\S*/)?([\w.+-]+\.dylib)"),  # macOS
    re.compile(r'depends on "([\w.+-]+\.dll)" which is missing', re.IGNORECASE),  # ONNX Runtime on Windows
    re.compile(r"""(?:Could not find module|Error loading) ['"](?:[^'"]*[\\/])?([\w.+-]+\.dll)['"]""", re.IGNORECASE),
)
_MIXED = re.compile(r"([\w.+-]+\.so[\w.]*): (?:undefined symbol|symbol)[: ].*?version ([\w.+-]+\.so[\w.]*)")


@dataclass(frozen=True, slots=True)
class Missing:
    """A library that could not be loaded.

    Attributes:
        library: as the loader spells it, "libcurand.so.10".
        package: pip's name of what supplies it; "" where no package of pip does.
        installed: the package's version here, "" if it is not installed.
        fix: the exact command, or what to do instead.
    """

    library: str
    package: str
    installed: str
    fix: str


@dataclass(frozen=True, slots=True)
class Needed:
    """A package that another one asks for.

    Attributes:
        extra: the extra that asks for it, "" for everybody.
        name: pip's name.
        wanted: the versions that will do, ">=2.11"; "" for any.
        installed: the version here; "" if it is not installed.
        fits: it is installed in a version that will do.
    """

    extra: str
    name: str
    wanted: str
    installed: str
    fits: bool


def installed() -> dict[str, str]:
    """Name, as pip normalizes it → version, of all packages; the first of a name on the path is the one imported."""
    found: dict[str, str] = {}
    for package in metadata.distributions():
        if name := package.metadata["Name"]:
            found.setdefault(canonicalize_name(name), package.version)
    return found


def requirements(package: str, here: Mapping[str, str]) -> tuple[Needed, ...]:
    """What a package asks for on this machine, its extras after what everybody needs; empty if it is not installed."""
    try:
        about = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return ()
    return tuple(read_requirements(about.requires or [], about.metadata.get_all("Provides-Extra") or [], here))


def read_requirements(texts: Iterable[str], extras: Iterable[str], here: Mapping[str, str]) -> Iterator[Needed]:
    """The requirements that are spelled in the texts and hold here, each under the first extra that asks for it."""
    open_: dict[str, Requirement] = {}
    for text in texts:
        with contextlib.suppress(InvalidRequirement):
            open_[text] = Requirement(text)
    for extra in ("", *extras):
        for text, wanted in list(open_.items()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                name = canonicalize_name(open_.pop(text).name)
                version = here.get(name, "")
                fits = bool(version) and wanted.specifier.contains(version, prereleases=True)
                yield Needed(extra, name, str(wanted.specifier), version, fits)


def cuda_major(version: str | int | None) -> int | None:
    """13 of "13.2" (torch), of 13020 (torchvision), of "cu132"; None for a build without CUDA."""
    number = re.search(r"\d+", str(version or ""))
    if number is None:
        return None
    digits = number[0]
    return int(digits) // 1000 if isinstance(version, int) else int(digits[:2] if "cu" in str(version) else digits)


def missing(text: str, cuda: str | int | None = None) -> tuple[Missing, ...]:
    """What a loader's message, or all that a process wrote, says is missing; each once, in order.

    Args:
        text: the message.
        cuda: the CUDA version that the complaining program was built for, "13.0"; decides where the name does not.
    """
    names = dict.fromkeys(_names(text))
    return tuple(_missing(name, cuda_major(cuda) or _NEWEST) for name in names)


def mixed(text: str, cuda: str | int | None = None) -> tuple[Missing, ...]:
    """Libraries that are there in a version that another one cannot use ("undefined symbol …, version …")."""
    found = dict.fromkeys(match[2] for match in _MIXED.finditer(text))
    return tuple(_missing(name, cuda_major(cuda) or _NEWEST, fresh=True) for name in found)


def package_of(library: str, cuda: int = _NEWEST) -> tuple[str, str]:
    """pip's package and its version for a library: ("nvidia-curand", "==10.*"); ("", "") for none of the table."""
    stem, number = _parts(library)
    stem = stem if stem in _PACKAGES else _SPLIT.sub("", stem)
    key = next((name for name in _PACKAGES if name.lower() == stem.lower()), "")
    if not key:
        return "", ""
    major = int(number) if key in _OF_CUDA and number else cuda
    package = _PACKAGES[key][0 if major <= 12 else 1]
    return package, f"=={number}.*" if number and key not in _UNVERSIONED else ""


def _missing(library: str, cuda: int, fresh: bool = False) -> Missing:
    package, version = package_of(library, cuda)
    if not package:
        driver = _parts(library)[0].lower() in DRIVER
        fix = "It comes with the driver of an NVIDIA GPU." if driver else "Install it with the system's own tools."
        return Missing(library, "", "", fix)
    try:
        version_here = metadata.version(package)
    except metadata.PackageNotFoundError:
        version_here = ""
    anew = "--force-reinstall " if fresh or _holds(package, library) else ""
    return Missing(library, package, version_here, f"pip install {anew}'{package}{version}'")


def _holds(package: str, library: str) -> bool:
    """Whether the installed package lists the library among its files, so that the file itself is damaged or gone."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return False
    return any(file.name == library for file in files)


def _names(text: str) -> Iterator[str]:
    hits: Iterable[re.Match[str]] = (match for pattern in _MISSING for match in pattern.finditer(text))
    for match in sorted(hits, key=lambda match: match.start()):
        yield match[1]


def _parts(library: str) -> tuple[str, str]:
    """("cublas", "13") of "libcublas.so.13", "cublas64_13.dll" or "libcublas.13.dylib"."""
    posix = re.fullmatch(r"lib(.+?)\.(?:so(?:\.(\d+))?|(\d+)).*", library)
    if posix:
        return posix[1], posix[2] or posix[3] or ""
    windows = re.fullmatch(r"(?:lib)?(.+?)(?:64)?(?:_(\d+?)(?:0?_\d+)*)?\.(?:dll|dylib)", library, re.IGNORECASE)
    return (windows[1], windows[2] or "") if windows else (library, "")
