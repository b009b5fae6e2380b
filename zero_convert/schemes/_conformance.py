"""What every scheme is held to, asked of one scheme without a network: `zero-convert schemes --test NAME`.

    text        the docstring says source, mathematics, where it applies, what it needs, and what is exact
    options     defaults are values, every value is read back as itself, the rewrites exist
    facts       its file imports nothing that draws, multiplies matrices or holds a network
    covered     it has a rule for every trainable tensor of every specimen, or for none of the layer's
    shapes      every formula has its tensor's shape and writes every value, all of them finite
    windows     any block of a formula has the bits of the whole, in every float type and layout
    pure        asked again, the same formulas; nothing that it was given is changed
    repeatable  two fresh processes with other hash seeds make the same bytes

The specimens are in `_specimens.py`. No torch here.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from zero_convert.errors import ZeroConvertError
from zero_convert.formulas import Floats, Formula
from zero_convert.initialization.scheme import AsConstructed, Decline, Scheme
from zero_convert.records import Check, Layer, Option, Structure

from . import _specimens
from ._user_schemes import known_rewrites

PARTS = ("Source:", "Mathematics.", "Applies to:", "Needs:", "Paper against code.", "Exact:")
STRANGERS = frozenset({"torch", "random", "secrets", "scipy", "time", "datetime", "uuid", "socket", "subprocess"})
LIBRARY = frozenset({"random", "linalg", "dot", "matmul", "einsum", "tensordot", "vdot", "inner"})  # of numpy
SHOWN = 3  # findings named in a line

Answer = tuple[list[str], str]  # what is wrong, and what was looked at


def examine(scheme: Scheme, name: str, only: Collection[str] = ()) -> tuple[Check, ...]:
    """The answers for the scheme that has this name or path; see `schemes.examine`."""
    return tuple(
        _asked(title, question, partial(answer, scheme, name))
        for title, (question, answer) in QUESTIONS.items()
        if not only or title in only
    )


def _asked(name: str, question: str, ask: Callable[[], Answer]) -> Check:
    try:
        wrong, looked = ask()
    except ZeroConvertError as error:  # the scheme itself failed
        wrong, looked = [str(error)], ""
    found = "; ".join(wrong[:SHOWN]) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
    return Check(name, "fail" if wrong else "pass", question, found or looked, {"findings": wrong})


# ---------------------------------------------------------------------------------------------------------------------


def _text(scheme: Scheme, name: str) -> Answer:
    wrong = [f"no {part!r}" for part in PARTS if part not in scheme.doc]
    wrong += [f"its {field} is empty" for field in ("name", "title") if not getattr(scheme, field).strip()]
    if not scheme.name.isascii() or any(not (c.isalnum() or c in "-_.") for c in scheme.name):
        wrong.append(f"its name {scheme.name!r} cannot be typed everywhere")
    return wrong, f"{len(scheme.doc.splitlines())} lines"


def _options(scheme: Scheme, name: str) -> Answer:
    wrong = []
    for spec in scheme.options:
        for value in (*spec.choices, spec.default):
            if spec.read(value) != value or spec.read(str(value)) != value:
                wrong.append(f"{spec.name}={value} is read as {spec.read(str(value))!r}")
        if spec.read("\0") is not None or not spec.help:
            wrong.append(f"{spec.name} takes anything" if spec.help else f"{spec.name} has no help")
    named = {rewrite: None for options in option_sets(scheme) for rewrite in scheme.rewrites(options)}
    wrong += [f"no rewrite {rewrite}" for rewrite in named if rewrite not in known_rewrites()]
    return wrong, f"{len(scheme.options)} options, {len(named)} rewrites"


def _facts(scheme: Scheme, name: str) -> Answer:
    code = getattr(
        inspect.unwrap(scheme.fill), "__code__", None
    )  # a scheme from outside is guarded by a function of ours
    if code is None or not Path(code.co_filename).is_file():
        return ["its fill is no function in a file"], ""
    file = Path(code.co_filename)
    return strangers(file.read_text("utf-8")), file.name


def strangers(source: str) -> list[str]:
    """What a file of Python takes from outside of the facts: modules, and functions of numpy."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            wrong += [f"imports {a.name}" for a in node.names if a.name.partition(".")[0] in STRANGERS]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            top, *rest = (node.module or "").split(".")
            named = {*rest, *(a.name for a in node.names)} if top == "numpy" else set()
            wrong += [f"imports {node.module}"] if top in STRANGERS or named & LIBRARY else []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("np", "numpy") and node.attr in LIBRARY:
                wrong.append(f"uses numpy's {node.attr} in line {node.lineno}")
        elif isinstance(node, ast.MatMult):
            wrong.append("multiplies matrices with @")
    return wrong


def _covered(scheme: Scheme, name: str) -> Answer:
    wrong, without = [], []
    for what, layer, _, given in _given(scheme):
        trainable = {t.local for t in layer.tensors if not t.buffer}
        if unknown := sorted(given.keys() - {t.local for t in layer.tensors}):
            wrong.append(f"{what}: gives {', '.join(unknown)}, which the layer does not have")
        if given.keys() & trainable and (missing := sorted(trainable - given.keys())):
            wrong.append(f"{what}: no rule for {', '.join(missing)}")
        if trainable and not given.keys() & trainable:
            without.append(what.partition(", ")[0])
    return wrong, "all kinds" if not without else f"no rule for: {', '.join(dict.fromkeys(without))}"


def _shapes(scheme: Scheme, name: str) -> Answer:
    wrong, count = [], 0
    for what, layer, _, given in _given(scheme):
        for t in layer.tensors:
            if (rule := given.get(t.local)) is None or isinstance(rule, AsConstructed):
                continue
            count += 1
            if rule.shape != t.shape:
                wrong.append(f"{what}: {t.local} has the shape {rule.shape}, expected {t.shape}")
            elif not np.isfinite(_whole(rule, np.float64)).all():
                wrong.append(f"{what}: {t.local} has values that are not written, or not finite")
            if not rule.rule.strip():
                wrong.append(f"{what}: the rule of {t.local} has no words for the plan")
    return wrong, f"{count:,} formulas"


def _windows(scheme: Scheme, name: str) -> Answer:
    wrong, count = [], 0
    for what, _, _, given in _given(scheme):
        for local, rule in given.items():
            if isinstance(rule, AsConstructed):
                continue
            for dtype in (np.float16, np.float32, np.float64):
                whole = _whole(rule, dtype)
                same = all(
                    np.array_equal(rule.block(ranges, dtype), whole[tuple(slice(*pair) for pair in ranges)])
                    for ranges in _blocks(rule.shape)
                )
                wide = np.full((*rule.shape, 2), np.nan, dtype)[..., 0]
                rule.fill(wide)
                count += 1
                if not same or not np.array_equal(wide, whole):
                    wrong.append(f"{what}: blocks of {local} differ from the whole in {np.dtype(dtype)}")
                    break
    return wrong, f"{count:,} tensors, in three float types"


def _blocks(shape: tuple[int, ...]) -> Iterator[list[tuple[int, int]]]:
    """Some rows, some of each other axis, and a block that is inside on every axis."""
    n = shape[0] if shape else 0
    yield from ([(a, b)] for a, b in ((0, n), (0, min(1, n)), (max(0, n - 1), n), (n // 3, n - n // 3)) if shape)
    yield from ([*((0, size) for size in shape[:axis]), (size // 2, size)] for axis, size in enumerate(shape) if axis)
    yield [(size // 3, max(size // 3, size - size // 3)) for size in shape]


def _pure(scheme: Scheme, name: str) -> Answer:
    wrong = []
    for (what, layer, structure, one), (_, _, _, other) in zip(_given(scheme), _given(scheme), strict=True):
        if one.keys() != other.keys() or any(not _equal(one[name], other[name]) for name in one):
            wrong.append(f"{what}: other formulas when asked again")
        for join in structure.joins:
            if scheme.zero_branch(join, structure) is not scheme.zero_branch(join, structure):
                wrong.append(f"{what}: zero_branch changes its mind")
        for options in option_sets(scheme):
            decline = scheme.declines(structure, options)
            if decline is not None and not (isinstance(decline, Decline) and decline.reason and decline.fix):
                wrong.append(f"{what}: declined without a reason or a way out")
        del layer
    return wrong, "asked twice"


def _repeatable(scheme: Scheme, name: str) -> Answer:
    found = set()
    for seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import print_digest; print_digest()", name],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return [f"a fresh process fails: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"], ""
        found.add(done.stdout.split()[-1])
    return ([] if len(found) == 1 else ["two processes make different bytes"]), f"SHA-256 {min(found)[:16]}…"


QUESTIONS: Mapping[str, tuple[str, Callable[[Scheme, str], Answer]]] = {
    "text": ("Does the docstring have its fixed parts?", _text),
    "options": ("Are options and rewrites what they say?", _options),
    "facts": ("Is it a function of facts?", _facts),
    "covered": ("Has every tensor of a layer a rule, or none?", _covered),
    "shapes": ("Does every formula write its tensor?", _shapes),
    "windows": ("Have blocks the bits of the whole?", _windows),
    "pure": ("Does it give the same again?", _pure),
    "repeatable": ("Do fresh processes make the same bytes?", _repeatable),
}


def print_digest() -> None:
    """Print the SHA-256 of everything that the scheme named as the program's argument gives."""
    from . import find

    with contextlib.redirect_stdout(sys.stderr):
        answer = digest(find(sys.argv[1]).scheme)
    print(answer)


def digest(scheme: Scheme) -> str:
    """SHA-256 (hex) of all values that the scheme gives to the specimens."""
    made = hashlib.sha256()
    for what, _, _, given in _given(scheme):
        for local in sorted(given):
            values = b"" if isinstance(given[local], AsConstructed) else _whole(given[local], np.float32).tobytes()
            made.update(f"{what} {local} {given[local].rule}\0".encode() + values)
    return made.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------


def option_sets(scheme: Scheme) -> list[Mapping[str, Option]]:
    """The options' defaults, and each other word of an option with the defaults of the rest; read-only."""
    usual = {spec.name: spec.default for spec in scheme.options}
    others = [{**usual, spec.name: word} for spec in scheme.options for word in spec.choices if word != spec.default]
    return [MappingProxyType(options) for options in (usual, *others)]


def _given(scheme: Scheme) -> Iterator[tuple[str, Layer, Structure, Mapping[str, Formula]]]:
    """What the scheme gives to every specimen, for every set of options."""
    for options in option_sets(scheme):
        for what, layer, structure in _specimens.situations():
            yield what, layer, structure, dict(scheme.fill(layer, structure, options) or {})


def _whole(rule: Formula, dtype: npt.DTypeLike) -> Floats:
    values: Floats = np.full(rule.shape, np.nan, dtype)
    rule.fill(values)
    return values


def _equal(one: Formula, other: Formula) -> bool:
    if isinstance(one, AsConstructed) or isinstance(other, AsConstructed):
        return one == other
    same = one.shape == other.shape and one.rule == other.rule
    return same and np.array_equal(_whole(one, np.float64), _whole(other, np.float64), equal_nan=True)
