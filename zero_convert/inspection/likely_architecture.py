"""Which architecture a file's tensors likely belong to, by their names and shapes. No torch: the index is shipped.

`architectures.tsv`, written by `scripts/index_architectures.py`, has a line for each distinct architecture of
torchvision, timm and transformers, behind one with their versions:

    tensors   number of tensors, without counters of batches
    all       sum of the hashes of all (name, shape)
    body      the same without the head
    head      the names of the tensors that another number of classes changes, or that a network without a head lacks
    kinds     sum of the hashes of all names with their numbers left out, "layers.#.weight", each once
    sample    the first 24 bits of the smallest hashes of (name, shape)
    models    the MODEL strings that make it

A sum of hashes does not depend on the order, and that of a part is a difference. Of a sample, the share that a file
holds estimates the share of the architecture that it holds (min-wise sampling, Broder 1997).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zero_convert.model_ref import ModelRef

Shapes = Mapping[str, tuple[int, ...]]

INDEX = Path(__file__).with_name("architectures.tsv")
COUNTER = "num_batches_tracked"  # files from before torch 0.4.1 have none
_DEPTH = 3  # parts of names that may stand before all of the model's own
_PART, _MOST = 0.5, 0.8  # shares of all tensors by which an architecture is likely, and likelier than a family
_EXACT = 0  # the grade where nothing is missing
_WHOLE = 2  # the last grade of those where all names and shapes fit, but for a head
_LARGEST = 20_000  # tensors; no architecture has a fifth of them
_KNOWN = 6  # of a sample, at least
_KINDS = 8  # names without their numbers, at least, by which a family can be told
_GRADES = ("exact", "classes", "headless", "part", "family", "part")
_WORDS = 1 << 64
_DIGITS = 6  # hexadecimal ones of a hash in a sample
# What files of transformers leave out: matrices that are tied to another one, and stored under its name only. Names
# from the classes' `_tied_weights_keys` (transformers 5.23).
_OUTPUTS = (
    "lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight", "predictions.decoder.weight",
    "generator_lm_head.weight", "proj_out.weight", "embed_out.weight", "decoder.weight", "head.weight",
    "head.decoder.weight", "output_projection.weight", "decoder.output_projection.weight", "vocab_projector.weight",
    "output.weight", "lm_head.out_proj.weight", "pred_layer.proj.weight", "lm_loss.weight", "mlm_score.decoder.weight",
    "text_decoder.cls.predictions.decoder.weight", "text_decoder_postnet.lm_head.weight", "text_model.lm_head.weight",
)  # fmt: skip
_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|emb|wte|w|shared)\.weight$")
_SHARED = "shared.weight"
_SIDES = (("encoder", "decoder"), ("encoder",), ("decoder",), ("text_encoder", "text_decoder"), ("text_decoder",))


@dataclass(frozen=True, slots=True)
class Likely:
    """An architecture that the tensors fit.

    Attributes:
        match: "exact": all names and shapes; "classes": all but those of the head; "headless": all, and no head;
            "part": the `share` of them; "family": the names without their numbers: another depth or width.
        models: the MODEL strings that make it, those of installed libraries first, the closest first in a family.
        share: of the tensors of the file and the architecture together, those in both; of a part an estimate, of a
            family 0.
        prefix: what stands before the model's names in the file.
        installed: whether the library of the first model is.
        classes: of the file, where the head is there and its tensors agree about their number; else None.
    """

    match: str
    models: tuple[str, ...]
    share: float
    prefix: str
    installed: bool
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the index."""

    tensors: int
    total: int
    body: int
    head: tuple[str, ...]
    kinds: int
    sample: str
    models: tuple[str, ...]


def likely(shapes: Shapes) -> Likely | None:
    """The architecture that makes tensors of these names and shapes, or None where none is likely."""
    counted = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}
    if len(counted) > _LARGEST:
        return None
    found: list[tuple[int, float, list[Row], str]] = []
    for prefix, own in _variants(counted):
        fitting = _fitting(own, len(counted))
        if fitting is None or fitting[0] > _EXACT:
            found += [(*each, prefix) for each in _with_tied(own, len(counted))]
        if fitting is not None:
            found.append((*fitting, prefix))
        if any(each[0] <= _WHOLE for each in found):
            break
    if not found:
        return None
    grade, share, rows, prefix = min(found, key=lambda each: (each[0], -each[1], len(each[3])))
    alike = [row for each in found if (each[0], each[3]) == (grade, prefix) and each[2] is not rows for row in each[2]]
    every = dict.fromkeys(model for row in (*rows, *alike) for model in row.models)
    models = sorted(every, key=lambda model: not _installed(model))
    sizes = {counted[prefix + name][:1] for name in rows[0].head if counted.get(prefix + name)}
    classes = next(iter(sizes))[0] if grade == 1 and len(sizes) == 1 else None
    return Likely(_GRADES[grade], tuple(models), round(share, 3), prefix, _installed(models[0]), classes)


def _variants(shapes: Shapes) -> Iterator[tuple[str, Shapes]]:
    """The tensors as they are named, and those behind what most names begin with."""
    prefix, own = "", shapes
    for _ in range(_DEPTH + 1):
        if own:
            yield prefix, own
        firsts = Counter(name.partition(".")[0] for name in own if "." in name)
        common, count = max(firsts.items(), key=lambda pair: (pair[1], pair[0]), default=("", 0))
        if not count or 2 * count < len(own):
            return
        prefix += f"{common}."
        own = {name[len(common) + 1 :]: shape for name, shape in own.items() if name.startswith(f"{common}.")}


def _fitting(own: Shapes, count: int) -> tuple[int, float, list[Row]] | None:
    """(grade, share, rows) of what fits these tensors best, of `count` in the file."""
    hashes = {name: element(name, shape) for name, shape in own.items()}
    total = sum(hashes.values()) % _WORDS
    if (exact := _exact(len(own), total)) is not None:
        return 0, len(own) / count, [exact]
    if len(own) < _KNOWN:
        return None
    rows = _rows()
    bodies = {head: (total - sum(hashes.get(name, 0) for name in head)) % _WORDS for head in {r.head for r in rows}}
    if body := [row for row in rows if row.head and bodies[row.head] == row.body]:
        there = any(name in own for name in body[0].head)
        same = body[0].tensors - len(body[0].head)
        return (1 if there else 2), same / max(count, body[0].tensors), body[:1]
    known = {sample_of(value) for value in hashes.values()}
    near = [row for row in rows if _PART * count <= row.tensors and _PART * row.tensors <= len(own)]
    share, best = max(((_share(row, known, len(own), count), row) for row in near), default=(0.0, None), key=_first)
    if best is not None and share >= _MOST:
        return 3, share, [best]
    kinds, number = kinds_of(own)
    if number >= _KINDS and (family := [row for row in rows if row.kinds == kinds]):
        return (
            4,
            0.0,
            sorted(family, key=lambda row: (-_share(row, known, len(own), count), abs(row.tensors - len(own)))),
        )
    return (5, share, [best]) if best is not None and share >= _PART else None


def _with_tied(own: Shapes, count: int) -> Iterator[tuple[int, float, list[Row]]]:
    """What fits the tensors together with tied ones that a file may have left out: architectures as they are, families.

    The sums of the hashes tell it, so that few of the many ways to complete a file are looked at.
    """
    total = sum(element(name, shape) for name, shape in own.items())
    kinds = {_kind(name) for name in own}
    known = sum(map(_hash, kinds))
    for added in _completions(own):
        sums = (total + sum(element(name, shape) for name, shape in added.items())) % _WORDS
        if _exact(len(own) + len(added), sums) is None:
            more = (known + sum(map(_hash, {_kind(name) for name in added} - kinds))) % _WORDS
            if len(kinds) < _KINDS or more not in _families():
                continue
        fitting = _fitting({**own, **added}, count + len(added))
        if fitting is not None and _GRADES[fitting[0]] in ("exact", "family"):
            yield fitting


def _completions(shapes: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors that may be missing, name → shape, one dict for each way.

    A language model's output is often its embedding, and an encoder and a decoder share theirs.
    """
    tables = [shape for name, shape in shapes.items() if len(shape) == 2 and _EMBEDDING.search(name)]
    if not tables:
        return
    table = max(tables)
    heads: list[dict[str, tuple[int, ...]]] = []
    for name in _OUTPUTS:
        if name not in shapes:
            outer, _, _ = name.rpartition(".decoder.")
            bias = shapes.get(f"{outer}.bias") if outer else None
            heads.append({name: table, **({f"{outer}.decoder.bias": bias} if bias is not None else {})})
    for sides in _sides(shapes):
        for head in (*heads, {}):  # a network with an output is what files mostly hold
            if added := {**sides, **head}:
                yield added


def _sides(shapes: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """What an encoder and a decoder have of the embedding that they share."""
    yield {}
    for name in (name for name in shapes if name == _SHARED or name.endswith(f".{_SHARED}")):
        before = name.removesuffix(_SHARED)
        for sides in _SIDES:
            names = [f"{before}{side}.embed_tokens.weight" for side in sides]
            if not any(each in shapes for each in names):
                yield dict.fromkeys(names, shapes[name])


def _first(pair: tuple[float, Row | None]) -> float:
    return pair[0]


def _share(row: Row, known: set[str], own: int, count: int) -> float:
    """The estimated share of the tensors of a file and an architecture that are in both."""
    sample = [row.sample[start : start + _DIGITS] for start in range(0, len(row.sample), _DIGITS)]
    hits = sum(value in known for value in sample)
    if hits < _KNOWN:
        return 0.0
    both = min(hits / len(sample) * row.tensors, own)
    return both / (row.tensors + count - both)


def kinds_of(names: Iterable[str]) -> tuple[int, int]:
    """The sum of the hashes of names without their numbers, and how many there are."""
    kinds = {_kind(name) for name in names}
    return sum(map(_hash, kinds)) % _WORDS, len(kinds)


def _kind(name: str) -> str:
    return re.sub("[0-9]+", "#", name)


def element(name: str, shape: Sequence[int]) -> int:
    """The hash of a tensor's name and shape."""
    return _hash(f"{name} {'×'.join(map(str, shape))}")


def sample_of(value: int) -> str:
    """What a sample keeps of a hash."""
    return f"{value:016x}"[:_DIGITS]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


@functools.cache
def _lines() -> str:
    return INDEX.read_text("utf-8")


def _exact(tensors: int, total: int) -> Row | None:
    """The row with these tensors, found without reading the others."""
    at = _lines().find(f"\n{tensors}\t{total:x}\t")
    return None if at < 0 else _row(_lines()[at + 1 : _lines().index("\n", at + 1)])


@functools.cache
def _rows() -> tuple[Row, ...]:
    return tuple(map(_row, _lines().split("\n")[1:-1]))


@functools.cache
def _families() -> frozenset[int]:
    return frozenset(row.kinds for row in _rows())


def _row(line: str) -> Row:
    tensors, total, body, head, kinds, sample, models = line.split("\t")
    heads = tuple(head.split())
    return Row(int(tensors), int(total, 16), int(body, 16), heads, int(kinds, 16), sample, tuple(models.split()))


@functools.cache
def _found(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _installed(model: str) -> bool:
    return _found(ModelRef.named(model).library)
