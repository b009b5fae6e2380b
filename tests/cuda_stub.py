"""CUDA's libraries without a GPU, for ONNX Runtime's real CUDA provider: `cuda_stub.c`, compiled where a test asks.

The provider loads, registers its kernels, takes the nodes that it has kernels for, and writes its profile, as it does
on a GPU. Nothing is computed: what a session returns says nothing. So it shows where ONNX Runtime puts the nodes of a
file, and how it and the loader word what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnxruntime

SOURCE = Path(__file__).with_name("cuda_stub.c")
PROVIDER = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
CUDNN = "libcudnn.so.9"  # asked for while it runs, by the names in the provider
_HANDLE = re.compile(r"(?:cublas|cublasLt|cudnn)(?!Backend)Create\w*")


def build(folder: Path) -> dict[str, Path]:
    """Name → path of the stub libraries for the provider that is installed here.

    Raises:
        OSError: something is missing here, or the provider is for another CUDA.
    """
    if sys.platform != "linux" or not PROVIDER.is_file() or not (shutil.which("gcc") and shutil.which("nm")):
        raise OSError("needs Linux, onnxruntime-gpu, gcc and nm")
    libraries: dict[str, list[str]] = {}
    listed = subprocess.run(["nm", "-D", "--undefined-only", PROVIDER], check=True, capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        name, _, library = line.split()[-1].partition("@")
        if library.startswith("libcu") or re.fullmatch(r"cu[A-Z]\w+", name):
            libraries.setdefault(library or "libcuda.so.1", []).append(name)
    runtime = next(library for library in libraries if library.startswith("libcudart"))
    if runtime != "libcudart.so.13":
        raise OSError(f"cuda_stub.c has the layouts of CUDA 13, and the provider asks for {runtime}")
    libraries.setdefault("libcurand.so.10", [])
    named = re.findall(rb"(?<=\0)cudnn[A-Z]\w+(?=\0)", PROVIDER.read_bytes())
    libraries[CUDNN] = sorted({name.decode() for name in named})
    return {library: _compiled(folder, library, names) for library, names in libraries.items()}


def _compiled(folder: Path, library: str, names: Iterable[str]) -> Path:
    own = SOURCE.read_text("utf-8") if library.startswith("libcudart") else "#include <stdlib.h>\n"
    written = set(re.findall(r"^(?:int|unsigned|void \*\*|const char \*)\s*(\w+)\(", own, re.MULTILINE))
    rest = ["#include <stdlib.h>", "#include <string.h>", *(_function(name) for name in names if name not in written)]
    (folder / "own.c").write_text(own, "utf-8")
    (folder / "rest.c").write_text("\n".join(rest) + "\n", "utf-8")
    (folder / "versions").write_text(
        f"{library} {{ global: *; }};\n" if library != "libcuda.so.1" else "{ global: *; };"
    )
    command = ["gcc", "-w", "-shared", "-fPIC", "-o", library, "own.c", "rest.c", f"-Wl,-soname,{library}"]
    subprocess.run([*command, "-Wl,--version-script=versions"], cwd=folder, check=True)
    return folder / library


def _function(name: str) -> str:
    if _HANDLE.fullmatch(name):
        return f"int {name}(void **handle) {{ *handle = calloc(1, 4096); return 0; }}"
    if name == "cudnnBackendCreateDescriptor":
        return f"int {name}(int kind, void **handle) {{ *handle = calloc(1, 4096); return 0; }}"
    if name == "cudnnBackendGetAttribute":  # one of everything that cuDNN is asked to list, numbered 0
        arguments = "void *d, int name, int type, long asked, long *count, void *value"
        listed = "if (count) *count = 1; if (value && asked > 0 && type != 15) memset(value, 0, 8);"  # 15: a descriptor
        return f"int {name}({arguments}) {{ {listed} return 0; }}"
    if name == "cublasLtMatmulAlgoGetHeuristic":
        arguments = "void *h, void *m, void *a, void *b, void *c, void *d, void *p, int n, void *found, int *k"
        return f"int {name}({arguments}) {{ memset(found, 0, 96); *k = 1; return 0; }}"
    if name == "cudnnGetVersion":
        return f"size_t {name}(void) {{ return 91900; }}"
    if "String" in name or "StatusName" in name:
        return f'const char *{name}(int error) {{ return "an error"; }}'
    return f"int {name}(void) {{ return 0; }}"


def environment(libraries: Mapping[str, Path], *without: str) -> dict[str, str]:
    """The environment of a process that finds these libraries before all others, but for some."""
    there = [str(path) for name, path in libraries.items() if name not in without]
    return {**os.environ, "LD_PRELOAD": ":".join(there)}
