"""One runtime on one ONNX file: `python child.py RUNTIME MODEL OUT.npz INPUTS.npz …`. Prints its version as JSON.

Stands alone, so that it runs in an environment that has the runtime and nothing of the project. Ends with 2 where the
runtime is not installed. Each set of inputs is answered in the arrays `0:NAME`, `1:NAME`, … of the output file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]
Answer = Callable[[Arrays], Arrays]


class NotInstalledError(Exception):
    """The runtime is not there."""


def onnxruntime_all(model: Path) -> tuple[str, Answer]:
    import onnxruntime as runtime

    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return runtime.__version__, lambda arrays: dict(zip(names, session.run(None, arrays), strict=True))


def openvino(model: Path) -> tuple[str, Answer]:
    import openvino as runtime

    settings = {"INFERENCE_PRECISION_HINT": "f32"}  # otherwise bfloat16 where the processor has it
    compiled = runtime.Core().compile_model(model, "CPU", settings)
    return _version("openvino"), lambda arrays: _named(model, list(compiled(arrays).values()))


def tract(model: Path) -> tuple[str, Answer]:
    import tract as runtime

    loaded = runtime.onnx().load(str(model))
    order = [loaded.input_name(index) for index in range(loaded.input_count())]

    def answer(arrays: Arrays) -> Arrays:
        own = runtime.onnx().load(str(model))
        for index, name in enumerate(order):
            sizes = ",".join(map(str, arrays[name].shape))
            own.set_input_fact(index, f"{sizes},{'f32' if arrays[name].dtype == np.float32 else 'i64'}")
        runnable = own.into_model().into_runnable()
        return _named(model, [value.to_numpy() for value in runnable.run([arrays[name] for name in order])])

    return _version("tract"), answer


def iree(model: Path) -> tuple[str, Answer]:
    import iree.compiler as compiler
    import iree.runtime as runtime
    import onnx

    folder = model.parent / "iree"
    folder.mkdir(exist_ok=True)
    text = folder / "model.mlir"
    subprocess.run([sys.executable, "-m", "iree.compiler.tools.import_onnx", str(model), "-o", str(text)], check=True)
    binary = compiler.compile_file(
        str(text), target_backends=["llvm-cpu"], input_type="onnx", extra_args=["--iree-llvmcpu-target-cpu=host"]
    )
    loaded = runtime.load_vm_flatbuffer(binary, driver="local-task")
    graph = onnx.load(model, load_external_data=False).graph
    name = next(name for name in loaded.vm_module.function_names if "$" not in name and not name.startswith("__"))

    def answer(arrays: Arrays) -> Arrays:
        found = getattr(loaded, name)(*(arrays[each.name] for each in graph.input))
        found = found if isinstance(found, list | tuple) else [found]
        return _named(model, [value.to_host() for value in found])

    return _version("iree-base-compiler"), answer


def onnx_reference(model: Path) -> tuple[str, Answer]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(model))
    return onnx.__version__, lambda arrays: dict(zip(evaluator.output_names, evaluator.run(None, arrays), strict=True))


def tinygrad(model: Path) -> tuple[str, Answer]:
    os.environ.setdefault("DEV", "CPU")
    if shutil.which(os.environ.get("CC", "clang")) is None:
        raise NotInstalledError("clang, which it compiles with")
    from tinygrad import Tensor
    from tinygrad.nn.onnx import OnnxRunner

    runner = OnnxRunner(str(model))
    return _version("tinygrad"), lambda arrays: {
        name: value.numpy() for name, value in runner({key: Tensor(each) for key, each in arrays.items()}).items()
    }


def onnxruntime_web(model: Path) -> tuple[str, Answer]:
    modules, node = os.environ.get("NODE_MODULES", ""), shutil.which("node")
    if node is None or not Path(modules, "onnxruntime-web").is_dir():
        raise NotInstalledError("node, or onnxruntime-web (--node-modules)")
    package = json.loads(Path(modules, "onnxruntime-web", "package.json").read_text("utf-8"))
    script = Path(__file__).with_name("onnx_web.mjs")

    def answer(arrays: Arrays) -> Arrays:
        with tempfile.TemporaryDirectory() as place:
            feeds = {}
            for index, (name, value) in enumerate(arrays.items()):
                Path(place, f"in{index}").write_bytes(value.tobytes())
                feeds[name] = {"file": f"in{index}", "type": value.dtype.name, "dims": value.shape}
            Path(place, "feeds.json").write_text(json.dumps(feeds), "utf-8")
            subprocess.run([node, str(script), modules, str(model), place], check=True)
            found = json.loads(Path(place, "results.json").read_text("utf-8"))
            return {
                name: np.frombuffer(Path(place, each["file"]).read_bytes(), each["type"]).reshape(each["dims"])
                for name, each in found.items()
            }

    return package["version"], answer


RUNTIMES: dict[str, Callable[[Path], tuple[str, Answer]]] = {
    "onnxruntime": onnxruntime_all,
    "onnxruntime-web": onnxruntime_web,
    "openvino": openvino,
    "tract": tract,
    "iree": iree,
    "onnx.reference": onnx_reference,
    "tinygrad": tinygrad,
}


def _named(model: Path, values: list[Any]) -> Arrays:
    """The values by the names of the model's outputs, in their order."""
    import onnx

    outputs = onnx.load(model, load_external_data=False).graph.output
    return {each.name: value.copy() for each, value in zip(outputs, values, strict=True)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _limit_memory() -> None:
    """What the process may write to; a shortage ends it and not the machine."""
    try:
        import resource
    except ImportError:
        return  # Windows
    limit = int(os.environ.get("MEMORY_LIMIT", "0"))
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answers(answer: Answer, paths: list[str]) -> Iterator[tuple[str, Any]]:
    for index, path in enumerate(paths):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        for name, value in answer(arrays).items():
            yield f"{index}:{name}", np.asarray(value)


def main(name: str, model: str, out: str, *inputs: str) -> int:
    _limit_memory()
    try:
        found, answer = RUNTIMES[name](Path(model))
    except (NotInstalledError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({"version": found}), flush=True)
    np.savez(out, **dict(_answers(answer, list(inputs))))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
