"""The options of a conversion, each declared once. No torch.

A field of a record below is an option of the Python functions; with a `Flag` one of the command line as well. Fields
of `RecipeOptions` are in the recipe; the others leave no trace in the bytes. Command lines, keywords, recipes, locks
and the command that repeats a conversion are made from these fields, so that a new option is one field here and the
place that reads it.

The flags stand in annotations, which every start of the command line reads: they are objects here, not texts.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from .errors import UsageError
from .formats.dtypes import choices

Option = str | int | float | bool  # the value of an option of a scheme
Inputs = Sequence[Any] | Mapping[str, Any]  # arguments of a forward: by position, or by name
T = TypeVar("T")

OUTPUT, MODEL, RUN = "Output", "Model and scheme", "Checks"  # panels of the help


@dataclass(frozen=True)
class Flag:
    """How a command line offers a field: stands in its `Annotated` type.

    Attributes:
        names: "--out -o".
        panel: heading of the help under which it stands.
        help: one line.
        metavar: what the help calls its value.
        choices: the values it may have.
        before: the field of the record that it precedes in the help; by default it stands where it is declared.
        former: a name that is still understood, and not shown.
        key: its name in JSON, where that is another than the field's.
        least: the smallest number it may be.
        count: how often it stands there is its value.
    """

    names: str
    panel: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    before: str = ""
    former: str = ""
    key: str = ""
    least: int | None = None
    count: bool = False

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names.partition(" ")[0]


ShapeTexts = Annotated[
    tuple[str, ...],
    Flag("--input", MODEL, "Example input, 1x3x224x224:float32; repeatable.", "[NAME=]SHAPE[:DTYPE]"),
]
ModelArgs = Annotated[
    Mapping[str, Any], Flag("--model-arg", MODEL, "Argument of the model's factory; repeatable.", "KEY=VALUE")
]
Device = Annotated[str, Flag("--device", RUN, "Where the checks run.", "auto|cpu|cuda|cuda:N|mps|webgpu")]
TrainSteps = Annotated[
    int | None, Flag("--train-steps", RUN, "Train N steps on made-up data; 10 with full.", "N", least=0)
]
Force = Annotated[bool, Flag("--force", OUTPUT, "Replace existing files.")]


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What is asked of a conversion and decides its bytes.

    Attributes:
        scheme: a name from `zero-convert schemes`, or the path of a file of Python that holds one.
        options: the scheme's options, {"mixing": "permute"}; the rest at their defaults.
        model_args: keyword arguments for the factory behind a MODEL string.
        inputs: example inputs as texts, "1x3x224x224:float32" or "name=1x16:int64", instead of `example_inputs`.
        dtype: of all floating tensors: "float32", "float16" or "bfloat16".
        uncovered: what a trainable tensor without a rule gets: "error", "zeros" or "keep".
    """

    scheme: Annotated[str, Flag("--scheme", MODEL, "`zero-convert schemes` lists them.", "NAME")] = "zero-2021"
    options: Annotated[Mapping[str, Option], Flag("--set", MODEL, "Option of the scheme; repeatable.", "KEY=VALUE")] = (
        field(default_factory=dict)
    )
    model_args: ModelArgs = field(default_factory=dict)
    inputs: ShapeTexts = ()
    dtype: Annotated[str, Flag("--dtype", MODEL, "Type of the written values.", choices=choices())] = "float32"
    uncovered: Annotated[
        str,
        Flag("--uncovered", MODEL, "What becomes of a tensor that no rule covers.", choices=("error", "zeros", "keep"),
             former="--leftovers", key="leftovers"),
    ] = "error"  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions):
    """What is asked of a conversion.

    Attributes:
        example_inputs: positional arguments of `forward`, or a dict of its arguments by name; None takes the source's
            convention.
        arch: with a file as `model`: the MODEL string that its structure comes from. Its values then serve only for
            what the scheme leaves, and only with uncovered="keep".
        trust: a file without `arch` is loaded by torch, which runs code from it.
        validate: "quick", "full" or "none".
        device: where the checks run: "auto", "cpu", "cuda", "cuda:N", "mps" or "webgpu".
        train_steps: of the check `training`; by default 10 with "full", none with "quick".
        formats: that it will be saved in; with "full", "onnx" has ONNX Runtime compute the export too.
        progress: called with (step, detail) when a step begins.

    Raises:
        UsageError: a value is none of an option's choices.
    """

    example_inputs: Inputs | None = field(default=None, kw_only=False)
    arch: Annotated[
        str | None,
        Flag("--arch", MODEL, "With a FILE as MODEL: the architecture of its tensors.", "MODEL", before="inputs"),
    ] = None
    trust: Annotated[
        bool, Flag("--trust", MODEL, "With a FILE: let torch run the code in it to load it.", before="inputs")
    ] = False
    validate: Annotated[
        str, Flag("--validate", RUN, "How much to check before writing.", choices=("quick", "full", "none"))
    ] = "quick"
    device: Device = "auto"
    train_steps: TrainSteps = None
    formats: Sequence[str] = ()
    progress: Callable[[str, str], None] | None = None

    def __post_init__(self) -> None:
        for name, flag in flags(type(self)).items():
            if flag.choices:
                one_of(name, getattr(self, name), flag.choices)


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How a converted model is written: see `Result.save`."""

    format: Annotated[
        str | None, Flag("--format", OUTPUT, "Output format, where the suffix does not say it.", "NAME")
    ] = None
    force: Force = False
    opset: Annotated[
        int | None, Flag("--opset", OUTPUT, "ONNX: version of the operators; 20, or more if types need it.", "N")
    ] = None
    external_data: Annotated[bool, Flag("--external-data", OUTPUT, "ONNX: tensors in FILE.data, as beyond 1.8 GB.")] = (
        False
    )
    fold: Annotated[bool, Flag("--fold", OUTPUT, "ONNX: norms and transforms become part of layers.")] = False


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises UsageError for a value that is none of the choices."""
    if value not in choices:
        raise UsageError(f"{name} has no such value", got=repr(value), expected="one of " + ", ".join(choices))


def flags(record: type) -> Mapping[str, Flag]:
    """Field → its flag, of those that a command line offers, in the order of its help."""
    return _flags(record)


@functools.cache
def _flags(record: type) -> Mapping[str, Flag]:
    hints = get_type_hints(record, include_extras=True)
    found = {spec.name: flag for spec in fields(record) if (flag := flag_of(hints[spec.name])) is not None}
    order = list(found)
    for name, flag in found.items():
        if flag.before:
            order.remove(name)
            order.insert(order.index(flag.before), name)
    return {name: found[name] for name in order}


def flag_of(hint: Any) -> Flag | None:
    """The flag in an `Annotated` type."""
    return next((each for each in get_args(hint)[1:] if isinstance(each, Flag)), None)


def keys(record: type) -> dict[str, str]:
    """Field → its name in JSON, in the order of the fields."""
    renamed = {name: flag.key for name, flag in flags(record).items() if flag.key}
    return {spec.name: renamed.get(spec.name, spec.name) for spec in fields(record)}


def carried(kind: type[T], record: Any, **others: Any) -> T:
    """A record of a kind, with the fields that it shares with another record, and others.

    >>> carried(Options, recipe, validate="full")  # what makes a recipe's conversion again
    """
    shared = {spec.name: getattr(record, spec.name) for spec in fields(kind) if hasattr(record, spec.name)}  # type: ignore[arg-type]
    return kind(**(shared | others))
