"""Do the tensors of a file fit an architecture? A comparison of names, shapes and types; no torch, no file.

What stands before all of the model's names in the file (`model.` of Lightning, `backbone.`) is found and left out, and
so are whole numbers that only the file has: tables that other versions of a library stored. Counters of batches and
names tied to one that is there may be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES

Kind = tuple[str, tuple[int, ...]]  # dtype as safetensors spells it, shape

COUNTER = "num_batches_tracked"  # files from before torch 0.4.1 have none
SHOWN = 4  # names of each kind of difference
_DEPTH = 3  # parts of names that may stand before all of them
_SORTS = {"bool": "bool", "int": "whole", "uint": "whole", "complex": "complex"}  # of an element type, by its kind


@dataclass(frozen=True, slots=True)
class Fit:
    """How a file's tensors and an architecture's correspond.

    Attributes:
        names: the architecture's name → the file's, of those that both have with one shape.
        prefix: what stands before the architecture's names in the file.
        missing: the architecture's names that the file lacks.
        unexpected: the file's names that the architecture lacks.
        shapes: name, the file's shape and the architecture's, where they differ.
        kinds: name, the file's type and the architecture's, where one is of whole numbers and the other is not.
        converted: "BF16 for F32" → number of tensors that are stored in another type of the same sort.
        besides: the file's names that do not count: not behind the prefix, or tables of whole numbers.
    """

    names: Mapping[str, str]
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    kinds: tuple[tuple[str, str, str], ...]
    converted: Mapping[str, int]
    besides: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether the file holds the architecture's tensors and no others."""
        return not (self.missing or self.unexpected or self.shapes or self.kinds)

    def __str__(self) -> str:
        """What differs: "1 of another shape: fc.weight is 10×512 and not 1000×512; 2 missing: …"."""
        shapes = [f"{name} is {_spelled(own)} and not {_spelled(wanted)}" for name, own, wanted in self.shapes]
        kinds = [f"{name} is {own} and not {wanted}" for name, own, wanted in self.kinds]
        parts = (
            ("of another shape", shapes),
            ("of another type", kinds),
            ("missing", _plain(self.missing)),
            ("unexpected", _plain(self.unexpected)),
        )
        spelled = [
            f"{len(items)} {what}: {', '.join(items[:SHOWN])}{' …' if len(items) > SHOWN else ''}"
            for what, items in parts
            if items
        ]
        return "; ".join([*spelled, f"{len(self.names)} tensors fit"])


def _plain(names: Iterable[str]) -> list[str]:
    """Names as they are, or spelled out where they hold characters that do not print."""
    return [name if name.isprintable() else brief(name) for name in names]


def fit(file: Mapping[str, Kind], model: Mapping[str, Kind], ties: Mapping[str, str]) -> Fit:
    """The correspondence with the prefix under which most tensors fit.

    Args:
        file: name → type and shape of the tensors of a file.
        model: the same of an architecture's state dict.
        ties: the architecture's names → the first name of the same tensor.
    """
    return max(
        (_with_prefix(prefix, file, model, ties) for prefix in _prefixes(file)),
        key=lambda found: (len(found.names), -len(found.prefix)),
    )


def _prefixes(file: Mapping[str, Kind]) -> list[str]:
    """ "" and what most names begin with, part by part."""
    found, names = [""], list(file)
    for _ in range(_DEPTH):
        firsts = Counter(name.partition(".")[0] for name in names if "." in name)
        common, count = max(firsts.items(), key=lambda pair: (pair[1], pair[0]), default=("", 0))
        if 2 * count < len(names) or not count:
            break
        found.append(f"{found[-1]}{common}.")
        names = [name.partition(".")[2] for name in names if name.startswith(f"{common}.")]
    return found


def _with_prefix(prefix: str, file: Mapping[str, Kind], model: Mapping[str, Kind], ties: Mapping[str, str]) -> Fit:
    own = {name.removeprefix(prefix): name for name in file if name.startswith(prefix)}
    fitting: dict[str, str] = {}
    shapes, kinds, converted = [], [], Counter[str]()
    for name, (dtype, shape) in model.items():
        if name not in own:
            continue
        has, size = file[own[name]]
        if size != shape:
            shapes.append((name, size, shape))
        elif _sort(has) != _sort(dtype):
            kinds.append((name, has, dtype))
        else:
            fitting[name] = own[name]
            if has != dtype:
                converted[f"{has} for {dtype}"] += 1
    tied = {ties.get(name, name) for name in own if name in model}
    missing = [
        name for name in model if name not in own and not name.endswith(COUNTER) and ties.get(name, name) not in tied
    ]
    strange = [name for name in own if name not in model]
    tables = dict.fromkeys(name for name in strange if _sort(file[own[name]][0]) in ("bool", "whole"))
    return Fit(
        names=fitting,
        prefix=prefix,
        missing=tuple(missing),
        unexpected=tuple(name for name in strange if name not in tables),
        shapes=tuple(shapes),
        kinds=tuple(kinds),
        converted=dict(converted),
        besides=(*tables, *(name for name in file if not name.startswith(prefix))),
    )


def _sort(dtype: str) -> str:
    return _SORTS.get(DTYPES[dtype].kind, "floating") if dtype in DTYPES else "floating"


def _spelled(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
