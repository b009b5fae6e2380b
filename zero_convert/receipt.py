"""Step 8, seal: `FILE.receipt.json`, what an artifact is and how it was made; and the recipe inside the artifact.

    identity   recipe, source fingerprint, edits, tensors (dtype, shape, digest), weights digest,
               file (format, sha256, size)
    run        versions, device, measured checks: informative, covered by no digest

The identity holds no version, time, host or path, so it is the same wherever the artifact is. A receipt or recipe
that is read may come from anybody: everything in it is checked before it is believed. No torch here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from . import records
from .atomic import atomic_write
from .digests import Leaf, Written, brief, canonical_json, is_plain_text, parse_json, weights_digest
from .errors import MalformedError, StorageError, UsageError

RECIPE_KEY = "zero_convert"  # in the metadata of an artifact
DIGEST_KEY = "zero_convert.weights_digest"  # likewise, where the format lets it follow the weights
RECEIPT_SUFFIX = ".receipt.json"
DTYPES = ("bfloat16", "float16", "float32", "float64")

LEFTOVERS = ("error", "zeros", "keep")

_FORMAT = 1
_OPTIONAL: Mapping[str, Any] = {"leftovers": "error", "inputs": ()}  # fields that are left out at these values
_LIMIT = 256 << 20  # bytes; a receipt of a million tensors has about 150 MB


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt that was read and holds together.

    Attributes:
        recipe: what makes the bytes.
        fingerprint: of the model's source.
        edits: the changes of the architecture, in order.
        file_format: name of a format, "safetensors".
        written: sha256, size, tensors and weights digest.
        run: how it was made, as the file says.
    """

    recipe: records.Recipe
    fingerprint: str
    edits: tuple[records.Edit, ...]
    file_format: str
    written: Written
    run: Mapping[str, Any]


def receipt_path(artifact: str | PathLike[str]) -> Path:
    """Where the receipt of `artifact` lies: beside it, `FILE.receipt.json`."""
    return Path(f"{os.fspath(artifact)}{RECEIPT_SUFFIX}")


def make_receipt(
    recipe: records.Recipe,
    fingerprint: str,
    edits: Sequence[records.Edit],
    written: Written,
    run: Mapping[str, Any],
    *,
    file_format: str = "safetensors",
) -> dict[str, Any]:
    """The receipt of an artifact as a JSON object.

    Args:
        recipe: what makes the bytes.
        fingerprint: of the model's source.
        edits: applied and declined, in order.
        written: what the exporter measured.
        run: versions, device and checks; what JSON cannot hold is spelled as a string.
        file_format: the exporter's name.
    Raises:
        UsageError: the recipe holds something else than plain values.
    """
    return {
        "identity": {
            "edits": [dataclasses.asdict(edit) for edit in edits],
            "file": {"format": file_format, "sha256": written.sha256, "size": written.size},
            "fingerprint": fingerprint,
            "recipe": recipe_json(recipe),
            "tensors": {
                name: {"dtype": leaf.dtype, "shape": list(leaf.shape), "digest": leaf.digest}
                for name, leaf in written.tensors.items()
            },
            "weights_digest": written.weights_digest,
        },
        "run": _informative(run),
    }


def write_receipt(artifact: str | PathLike[str], receipt: Mapping[str, Any], force: bool = False) -> Path:
    """The path of the receipt that was written, whole or not at all, beside `artifact`.

    Raises:
        UsageError: a receipt is there and `force` is not given.
        StorageError: the file system said no.
    """
    path = receipt_path(artifact)
    text = json.dumps(receipt, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with atomic_write(path, force) as stream:
        stream.write(text.encode("ascii"))
    return path


def read_receipt(path: str | PathLike[str]) -> Receipt:
    """The receipt in the file at `path`.

    Raises:
        MalformedError: it is no receipt, or contradicts itself.
        StorageError: it cannot be read.
    """
    where = str(path)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _LIMIT:
                raise MalformedError("too large for a receipt", where=where, expected=f"at most {_LIMIT} bytes")
            data = file.read(_LIMIT)
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise StorageError("cannot read the receipt", where=where, got=got) from error
    return receipt_from_json(parse_json(data, where), where)


def receipt_from_json(obj: object, where: str = "receipt") -> Receipt:
    """The receipt that a JSON object spells; the inverse of `make_receipt`.

    Raises:
        MalformedError: it spells none, or its weights digest is not that of its tensors.
    """
    top = _Fields.of(obj, where, ("identity", "run"))
    identity = _Fields.of(
        top.raw["identity"],
        f"{where}, identity",
        ("edits", "file", "fingerprint", "recipe", "tensors", "weights_digest"),
    )
    file = _Fields.of(identity.raw["file"], f"{where}, identity.file", ("format", "sha256", "size"))
    tensors = {
        name: _leaf(leaf, f"{where}, tensor {brief(name)}")
        for name, leaf in identity.mapping("tensors", lambda leaf: isinstance(leaf, dict), "an object").items()
    }
    claimed = identity.digest("weights_digest")
    own = weights_digest({name: bytes.fromhex(leaf.digest) for name, leaf in tensors.items()})
    if own != claimed:
        raise MalformedError(
            "the receipt contradicts itself: its weights digest is not that of its tensors",
            where=where,
            got=claimed,
            expected=own,
            fix="It was changed after it was made; make artifact and receipt again.",
        )
    edits = identity.take("edits", lambda value: isinstance(value, list), "a list")
    return Receipt(
        recipe=recipe_from_json(identity.raw["recipe"], f"{where}, identity.recipe"),
        fingerprint=identity.text("fingerprint"),
        edits=tuple(_edit(edit, f"{where}, edit {index}") for index, edit in enumerate(edits)),
        file_format=file.text("format"),
        written=Written(file.digest("sha256"), file.size("size"), tensors, claimed),
        run=top.take("run", lambda value: isinstance(value, dict), "an object"),
    )


# ----------------------------------------------------------------------------------------------- recipe


def metadata(recipe: records.Recipe) -> dict[str, str]:
    """The `__metadata__` of a safetensors file; other libraries ask for `format`."""
    return {"format": "pt", **recipe_metadata(recipe)}


def recipe_metadata(recipe: records.Recipe) -> dict[str, str]:
    """The recipe as any artifact carries it."""
    return {RECIPE_KEY: canonical_json(recipe_json(recipe))}


def recipe_from_metadata(metadata: Mapping[str, str], where: str) -> records.Recipe | None:
    """The recipe that an artifact carries, or None if it carries none.

    Raises:
        MalformedError: what it carries is no recipe.
    """
    text = metadata.get(RECIPE_KEY)
    if text is None:
        return None
    where = f"{where}, recipe"
    return recipe_from_json(parse_json(text.encode("utf-8", "surrogatepass"), where), where)


def recipe_json(recipe: records.Recipe) -> dict[str, Any]:
    """The recipe as a JSON object.

    Raises:
        UsageError: a factory argument or an option is not a plain value, so that nobody could repeat the recipe.
    """
    obj = {spec.name: getattr(recipe, spec.name) for spec in dataclasses.fields(recipe)}
    obj = {name: value for name, value in obj.items() if name not in _OPTIONAL or value != _OPTIONAL[name]}
    try:
        plain: dict[str, Any] = parse_json(canonical_json(_plain(obj)).encode("ascii"), "recipe")
        recipe_from_json(plain, "recipe")
    except (MalformedError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            "the recipe of this conversion cannot be written down",
            where=recipe.model or recipe.source,
            got=str(error).removesuffix("."),
            expected="numbers, strings, booleans, None and lists or objects of them",
            fix="Pass plain values, or a factory that makes the others itself.",
        ) from error
    return plain


def recipe_from_json(obj: object, where: str = "recipe") -> records.Recipe:
    """The recipe that a JSON object from anywhere spells; the inverse of `recipe_json`.

    Raises:
        MalformedError: it spells none, or one of a format that this version does not know.
    """
    complete = {**_OPTIONAL, **obj} if isinstance(obj, dict) else obj
    fields = _Fields.of(complete, where, (spec.name for spec in dataclasses.fields(records.Recipe)))
    version = fields.raw["format"]
    if type(version) is not int or version != _FORMAT:
        raise MalformedError(
            "the recipe has a format this version does not know",
            where=where,
            got=brief(version),
            expected=str(_FORMAT),
            fix="Use the version of zero-convert that wrote it.",
        )
    return records.Recipe(
        model=fields.text("model"),
        model_args=fields.mapping("model_args", _is_value, "plain values"),
        scheme=fields.text("scheme"),
        options=fields.mapping("options", _is_option, "a string, a number, true or false"),
        dtype=fields.take("dtype", lambda value: value in DTYPES, "one of " + ", ".join(DTYPES)),
        ties=fields.mapping("ties", _is_text, "a tensor's name"),
        source=fields.text("source"),
        leftovers=fields.take("leftovers", lambda value: value in LEFTOVERS, "one of " + ", ".join(LEFTOVERS)),
        inputs=tuple(fields.take("inputs", _is_texts, "a list of shapes")),
        format=_FORMAT,
    )


def _plain(value: object) -> object:
    """Mappings and tuples as the dicts and lists that they become in JSON; keys must be strings."""
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"the key {strange[0]!r}")
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _informative(value: object) -> object:
    """Something JSON can hold in any case: a check's number may be NaN, or of a library's own type."""
    if isinstance(value, Mapping):
        return {str(key): _informative(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_informative(item) for item in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


# ------------------------------------------------------------------------------- reading what others wrote


@dataclass(frozen=True, slots=True)
class _Fields:
    """A JSON object with exactly the expected keys; every value is checked as it is taken."""

    raw: dict[str, Any]
    where: str

    @classmethod
    def of(cls, obj: object, where: str, names: Iterable[str]) -> _Fields:
        names = sorted(names)
        if not isinstance(obj, dict):
            raise _wrong(where, "not an object", obj, "an object with " + ", ".join(names))
        if missing := [name for name in names if name not in obj]:
            raise _wrong(where, "a field is missing", obj, missing[0])
        if unknown := [name for name in obj if name not in names]:
            raise _wrong(where, "a field is unknown", unknown[0], ", ".join(names))
        return cls(obj, where)

    def take(self, name: str, check: Callable[[object], bool], expected: str) -> Any:
        value = self.raw[name]
        if not check(value):
            raise _wrong(self.where, f"the field {name!r} is malformed", value, expected)
        return value

    def text(self, name: str) -> str:
        value: str = self.take(name, _is_text, "text without control characters")
        return value

    def digest(self, name: str) -> str:
        value: str = self.take(name, _is_digest, "64 hexadecimal digits")
        return value

    def size(self, name: str) -> int:
        value: int = self.take(name, _is_size, "an integer from 0 to 2**63 - 1")
        return value

    def mapping(self, name: str, check: Callable[[object], bool], expected: str) -> dict[str, Any]:
        value = self.raw[name]
        if not isinstance(value, dict):
            raise _wrong(self.where, f"the field {name!r} is malformed", value, "an object")
        for key, item in value.items():
            if not _is_text(key) or not check(item):
                raise _wrong(self.where, f"the field {name!r} is malformed at {brief(key)}", item, expected)
        return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_plain_text(value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_size, value))


def _is_option(value: object) -> bool:
    return isinstance(value, int | float) or _is_text(value)


def _is_value(value: object, levels: int = 16) -> bool:
    """A plain value, nested no deeper than `levels`."""
    if isinstance(value, dict):
        return all(map(_is_text, value)) and _is_value(list(value.values()), levels)
    if isinstance(value, list):
        return levels > 0 and all(_is_value(item, levels - 1) for item in value)
    return value is None or _is_option(value)


def _leaf(obj: object, where: str) -> Leaf:
    fields = _Fields.of(obj, where, ("dtype", "shape", "digest"))
    shape = fields.take("shape", _is_shape, "a list of sizes")
    return Leaf(fields.text("dtype"), tuple(shape), fields.digest("digest"))


def _edit(obj: object, where: str) -> records.Edit:
    fields = _Fields.of(obj, where, (spec.name for spec in dataclasses.fields(records.Edit)))
    return records.Edit(
        rewrite=fields.text("rewrite"),
        target=fields.text("target"),
        action=fields.text("action"),
        applied=fields.take("applied", lambda value: isinstance(value, bool), "true or false"),
        reason=fields.text("reason"),
    )


def _wrong(where: str, what: str, got: object, expected: str) -> MalformedError:
    return MalformedError(what, where=where, got=brief(got), expected=expected)
