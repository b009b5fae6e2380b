"""A deterministic start for any PyTorch network.

    import zero_convert as zc

    result = zc.convert("resnet50", scheme="zero-2021", options={"mixing": "permute"})
    result.module            # the rewritten network, every parameter filled by a closed formula
    result.plan              # how it was captured, every edit and every tensor's rule
    result.checks            # measured answers
    result.weights_digest    # 64 hex digits that stand for the weights
    result.save("zero_r50.safetensors")
    zc.load("zero_r50.safetensors")      # the rewritten network again
    zc.validate("zero_r50.safetensors")  # the checks again, on the file's own tensors

    zc.fill_(network, result)            # a live network gets the values; of shards, each process its own
    zc.digest(network)                   # what it holds now

    zc.convert("transformers:bert", model_args={"num_hidden_layers": 4}, scheme="zero-2022")
    zc.convert("path/to/file.py:factory")
    zc.convert(module, example_inputs=(x,))      # any nn.Module; it is not changed
    zc.convert(module, {"input_ids": ids, "attention_mask": mask})
    zc.plan(module)                              # the plan alone; writes no value
    zc.inspect_model(module)                     # what is in it as given: layers, joins, how it was captured

Without `example_inputs` the conventions of the model's library are taken, or sizes that its forward accepts. A failure
is a `ZeroConvertError`. Importing this package does not import torch; the first use of a name above does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import ZeroConvertError as ZeroConvertError

if TYPE_CHECKING:
    from .live import Digests as Digests
    from .live import digest as digest
    from .live import fill_ as fill_
    from .pipeline import Inspection as Inspection
    from .pipeline import Result as Result
    from .pipeline import Saved as Saved
    from .pipeline import convert as convert
    from .pipeline import inspect_model as inspect_model
    from .pipeline import load as load
    from .pipeline import plan as plan
    from .pipeline import validate as validate

_PIPELINE = ("Inspection", "Result", "Saved", "convert", "inspect_model", "load", "plan", "validate")
_LIVE = ("Digests", "digest", "fill_")
__all__ = ["Digests", "Inspection", "Result", "Saved", "ZeroConvertError"]
__all__ += ["convert", "digest", "fill_", "inspect_model", "load", "plan", "validate"]


def __getattr__(name: str) -> Any:
    if name in _PIPELINE:
        return getattr(import_module(".pipeline", __name__), name)
    if name in _LIVE:
        return getattr(import_module(".live", __name__), name)
    if name == "__version__":
        metadata = import_module("importlib.metadata")
        try:
            return metadata.version("zero-convert")
        except metadata.PackageNotFoundError:
            return "0+checkout"  # imported from its source, without an installation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
