"""What the commands share: options they spell alike, clean streams, JSON. No command is here, and nothing heavy."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Annotated, Any, Literal

import typer

from ..errors import ZeroConvertError

OUTPUT, MODEL, RUN, MESSAGES = "Output", "Model and scheme", "Checks", "Messages"


def option(*names: str, panel: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="resnet50, torchvision:NAME, package.module:factory or path/file.py:factory."),
]
Out = Annotated[
    list[str] | None,
    option("--out", "-o", panel=OUTPUT, metavar="FILE", help="File to write; repeatable; - is stdout."),
]
Format = Annotated[
    str | None,
    option("--format", panel=OUTPUT, metavar="NAME", help="Output format, where the suffix does not say it."),
]
Opset = Annotated[
    int | None, option("--opset", panel=OUTPUT, metavar="N", help="ONNX: version of the operators; 20 by default.")
]
ExternalData = Annotated[
    bool, option("--external-data", panel=OUTPUT, help="ONNX: tensors in FILE.data, as beyond 1.8 GB.", metavar="")
]
Force = Annotated[bool, option("--force", panel=OUTPUT, help="Replace existing files.", metavar="")]
Report = Annotated[
    str | None, option("--report", panel=OUTPUT, metavar="FILE.html", help="A page on the conversion, with figures.")
]
Plots = Annotated[str | None, option("--plots", panel=OUTPUT, metavar="DIR", help="The figures of the page, as PNG.")]
SchemeName = Annotated[str, option("--scheme", panel=MODEL, metavar="NAME", help="`zero-convert schemes` lists them.")]
Settings = Annotated[
    list[str] | None,
    option("--set", panel=MODEL, metavar="KEY=VALUE", help="Option of the scheme; repeatable."),
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"], option("--dtype", panel=MODEL, help="Type of the written values.")
]
Leftovers = Annotated[
    Literal["error", "zeros", "keep"],
    option("--leftovers", panel=MODEL, help="What becomes of a tensor that no rule covers."),
]
Validate = Annotated[
    Literal["quick", "full", "none"], option("--validate", panel=RUN, help="How much to check before writing.")
]
TrainSteps = Annotated[
    int | None,
    option("--train-steps", panel=RUN, metavar="N", help="Train N steps on made-up data; 10 with full.", min=0),
]
Device = Annotated[str, option("--device", panel=RUN, metavar="auto|cpu|cuda|cuda:N|mps", help="Where the checks run.")]
ModelArgs = Annotated[
    list[str] | None,
    option("--model-arg", panel=MODEL, metavar="KEY=VALUE", help="Argument of the model's factory; repeatable."),
]
Arch = Annotated[
    str | None,
    option("--arch", panel=MODEL, metavar="MODEL", help="With a FILE as MODEL: the architecture of its tensors."),
]
TrustFile = Annotated[
    bool, option("--trust", panel=MODEL, help="With a FILE: let torch run the code in it to load it.", metavar="")
]
Fold = Annotated[
    bool, option("--fold", panel=OUTPUT, help="ONNX: norms and transforms become part of layers.", metavar="")
]
Inputs = Annotated[
    list[str] | None,
    option(
        "--input",
        panel=MODEL,
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="Example input, 1x3x224x224:float32; repeatable.",
    ),
]
Json = Annotated[
    bool, option("--json", panel=MESSAGES, help="One JSON object on stdout and nothing else there.", metavar="")
]
Quiet = Annotated[bool, option("--quiet", "-q", panel=MESSAGES, help="Say nothing but errors.", metavar="")]
Verbose = Annotated[
    int,
    option(
        "--verbose",
        "-v",
        panel=MESSAGES,
        help="Say more; -vv shows tracebacks.",
        count=True,
        show_default=False,
        metavar="",
    ),
]


# ---------------------------------------------------------------------------------------------------------------------
# arguments


def examples(inputs: Sequence[str] | None) -> Any:
    if not inputs:
        return None
    from ..sources.inputs import parse_inputs

    return parse_inputs(inputs)


def model_args_of(pairs: Sequence[str] | None) -> dict[str, Any]:
    from .. import sources

    return sources.parse_model_args(list(pairs or []))


# ---------------------------------------------------------------------------------------------------------------------
# streams


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """What a model's own code or a library prints goes to stderr, so that stdout holds results and nothing else."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # the process was started without stdout
        yield
        return
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def third_party_warnings(verbose: int) -> Iterator[None]:
    """Python warnings of the libraries underneath are shown with -v, or as the user asked Python to."""
    with warnings.catch_warnings():
        if not verbose and not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Records, mappings and sequences as JSON has them; a number that JSON cannot hold is spelled as a string."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = [field.name for field in fields(value) if field.metadata.get("json", True)]
        return {name: plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else repr(value)
    return str(value)


def error_facts(error: ZeroConvertError) -> dict[str, Any]:
    parts = {name: getattr(error, name) for name in ("what", "where", "got", "expected", "fix")}
    return {
        "error": {"type": type(error).__name__.lstrip("_"), "message": str(error), **parts},
        "exit_code": error.exit_code,
    }
