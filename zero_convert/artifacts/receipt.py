"""Step 8, seal: `FILE.receipt.json`, what an artifact is and how it was made; and the recipe inside the artifact.

    identity   recipe, source fingerprint, edits, tensors (dtype, shape, digest), weights digest,
               file (format, sha256, size; of an ONNX file also `data`, the file beside it, and `folded_from`)
    run        versions, device, measured checks: informative, covered by no digest

The identity holds no version, time, host or path, so it is the same wherever the artifact is. A receipt or recipe
that is read may come from anybody: everything in it is checked before it is believed. No torch here.

`folded_from` is the weights digest of the conversion that a file was folded from for inference. The edits then say what
was folded, the tensors are those of the file, and the weights digest is theirs and not the conversion's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from zero_convert import records
from zero_convert.errors import MalformedError, UsageError
from zero_convert.formats.atomic import write_bytes
from zero_convert.formats.digests import Leaf, Written, brief, canonical_json, parse_json, weights_digest
from zero_convert.formats.strict_json import (
    Fields,
    is_option,
    is_text,
    is_texts,
    is_value,
    read_blob,
    read_edit,
    read_leaf,
    read_limited,
)
from zero_convert.options import flags, keys

RECIPE_KEY = "zero_convert"  # in the metadata of an artifact
DIGEST_KEY = "zero_convert.weights_digest"  # likewise, where the format lets it follow the weights
FOLDED_KEY = "zero_convert.folded_from"  # instead of it, where the tensors were folded for inference
RECEIPT_SUFFIX = ".receipt.json"
DATA_SUFFIX = ".data"  # of the file beside an ONNX file that holds its tensors
BESIDE = (RECEIPT_SUFFIX, DATA_SUFFIX)  # added to the name of an artifact: what may lie beside it
DTYPES = ("bfloat16", "float16", "float32", "float64")

IDENTITY_FIELDS = ("edits", "fingerprint", "recipe", "tensors", "weights_digest")

_FORMAT = 1
# Fields of a recipe that are always written; the others only where they are not at their default.
_ALWAYS = ("model", "model_args", "scheme", "options", "dtype", "ties", "source", "format")
_LIMIT = 256 << 20  # bytes; a receipt of a million tensors has about 150 MB


@dataclass(frozen=True, slots=True)
class Identity:
    """What a conversion is, apart from the files it became; receipts and locks hold it in the same words.

    Attributes:
        recipe: what makes the bytes.
        fingerprint: of the model's source.
        edits: the changes of the architecture, in order.
        tensors: name → dtype, shape and leaf digest.
        weights_digest: `zc1` over all tensors, hex.
    """

    recipe: records.Recipe
    fingerprint: str
    edits: tuple[records.Edit, ...]
    tensors: Mapping[str, Leaf]
    weights_digest: str


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
        folded_from: weights digest of the conversion, where the file was folded; else "".
    """

    recipe: records.Recipe
    fingerprint: str
    edits: tuple[records.Edit, ...]
    file_format: str
    written: Written
    run: Mapping[str, Any]
    folded_from: str = ""

    @property
    def identity(self) -> Identity:
        """All of it but the file and the run."""
        tensors, digest = self.written.tensors, self.written.weights_digest
        return Identity(self.recipe, self.fingerprint, self.edits, tensors, digest)


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
    folded_from: str = "",
) -> dict[str, Any]:
    """The receipt of an artifact as a JSON object.

    Args:
        recipe: what makes the bytes.
        fingerprint: of the model's source.
        edits: applied and declined, in order.
        written: what the exporter measured.
        run: versions, device and checks; what JSON cannot hold is spelled as a string.
        file_format: the exporter's name.
        folded_from: weights digest of the conversion, where the file was folded.
    Raises:
        UsageError: the recipe holds something else than plain values.
    """
    identity = Identity(recipe, fingerprint, tuple(edits), written.tensors, written.weights_digest)
    file: dict[str, Any] = {"format": file_format, "sha256": written.sha256, "size": written.size}
    file |= {"data": dataclasses.asdict(written.data)} if written.data else {}
    file |= {"folded_from": folded_from} if folded_from else {}
    return {"identity": {**identity_json(identity), "file": file}, "run": _informative(run)}


def write_receipt(artifact: str | PathLike[str], receipt: Mapping[str, Any], force: bool = False) -> Path:
    """The path of the receipt that was written, whole or not at all, beside `artifact`.

    Raises:
        UsageError: a receipt is there and `force` is not given.
        StorageError: the file system said no.
    """
    path = receipt_path(artifact)
    write_bytes(path, spell_receipt(receipt), force)
    return path


def spell_receipt(receipt: Mapping[str, Any]) -> bytes:
    """The bytes of a receipt's file."""
    return (json.dumps(receipt, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def read_receipt(path: str | PathLike[str]) -> Receipt:
    """The receipt in the file at `path`.

    Raises:
        MalformedError: it is no receipt, or contradicts itself.
        StorageError: it cannot be read.
    """
    return receipt_from_json(parse_json(read_limited(path, _LIMIT, "receipt"), str(path)), str(path))


def receipt_from_json(obj: object, where: str = "receipt") -> Receipt:
    """The receipt that a JSON object spells; the inverse of `make_receipt`.

    Raises:
        MalformedError: it spells none, or its weights digest is not that of its tensors.
    """
    top = Fields.of(obj, where, ("identity", "run"))
    inside = f"{where}, identity"
    fields = Fields.of(top.raw["identity"], inside, (*IDENTITY_FIELDS, "file"))
    identity = identity_from_json({name: fields.raw[name] for name in IDENTITY_FIELDS}, inside)
    file = Fields.of(fields.raw["file"], f"{inside}.file", ("format", "sha256", "size"), ("data", "folded_from"))
    tensors, digest = identity.tensors, identity.weights_digest
    return Receipt(
        recipe=identity.recipe,
        fingerprint=identity.fingerprint,
        edits=identity.edits,
        file_format=file.text("format"),
        written=Written(file.digest("sha256"), file.size("size"), tensors, digest, read_blob(file, "data")),
        run=top.take("run", lambda value: isinstance(value, dict), "an object"),
        folded_from=file.digest("folded_from") if "folded_from" in file.raw else "",
    )


# --------------------------------------------------------------------------------------------- identity


def identity_json(identity: Identity) -> dict[str, Any]:
    """The identity as a JSON object with the keys `IDENTITY_FIELDS`.

    Raises:
        UsageError: the recipe holds something else than plain values.
    """
    return {
        "edits": [dataclasses.asdict(edit) for edit in identity.edits],
        "fingerprint": identity.fingerprint,
        "recipe": recipe_json(identity.recipe),
        "tensors": {
            name: {"dtype": leaf.dtype, "shape": list(leaf.shape), "digest": leaf.digest}
            for name, leaf in identity.tensors.items()
        },
        "weights_digest": identity.weights_digest,
    }


def identity_from_json(obj: object, where: str, read: Callable[[object, str], records.Edit] = read_edit) -> Identity:
    """The identity that a JSON object spells; the inverse of `identity_json`.

    Args:
        read: reads one edit; locks spell them in their own way.
    Raises:
        MalformedError: it spells none, or its weights digest is not that of its tensors.
    """
    fields = Fields.of(obj, where, IDENTITY_FIELDS)
    tensors = {
        name: read_leaf(leaf, f"{where}, tensor {brief(name)}")
        for name, leaf in fields.mapping("tensors", lambda leaf: isinstance(leaf, dict), "an object").items()
    }
    claimed = fields.digest("weights_digest")
    own = weights_digest({name: bytes.fromhex(leaf.digest) for name, leaf in tensors.items()})
    if own != claimed:
        raise MalformedError(
            "it contradicts itself: its weights digest is not that of its tensors",
            where=where,
            got=claimed,
            expected=own,
            fix="It was changed after it was written; convert again.",
        )
    edits = fields.take("edits", lambda value: isinstance(value, list), "a list")
    return Identity(
        recipe=recipe_from_json(fields.raw["recipe"], f"{where}.recipe"),
        fingerprint=fields.text("fingerprint"),
        edits=tuple(read(edit, f"{where}, edit {index}") for index, edit in enumerate(edits)),
        tensors=tensors,
        weights_digest=claimed,
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
    obj = {key: getattr(recipe, name) for name, key in keys(type(recipe)).items()}
    usual = _defaults(type(recipe))
    obj = {key: value for key, value in obj.items() if key not in usual or value != usual[key]}
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
    names, usual = keys(records.Recipe), _defaults(records.Recipe)
    complete = {**usual, **obj} if isinstance(obj, dict) else obj
    fields = Fields.of(complete, where, names.values())
    version = fields.raw["format"]
    if type(version) is not int or version != _FORMAT:
        raise MalformedError(
            "the recipe has a format this version does not know",
            where=where,
            got=brief(version),
            expected=str(_FORMAT),
            fix="Use the version of zero-convert that wrote it.",
        )
    return records.Recipe(**{name: _field(fields, name, key, usual.get(key)) for name, key in names.items()})


def _defaults(record: type[records.Recipe]) -> dict[str, Any]:
    """Key in JSON → value at which a field is left out."""
    names = keys(record)
    return {names[f.name]: f.default for f in dataclasses.fields(record) if f.name not in _ALWAYS}


def _field(fields: Fields, name: str, key: str, usual: Any) -> Any:
    """One field of a recipe, checked. Raises MalformedError."""
    flag = flags(records.Recipe).get(name)
    if name in _READERS:
        return _READERS[name](fields)
    if flag is not None and flag.choices:
        return fields.take(key, lambda value: value in flag.choices, "one of " + ", ".join(flag.choices))
    if isinstance(usual, bool | int | float):
        return fields.take(key, lambda value: type(value) is type(usual), f"a value like {usual!r}")
    return fields.text(key)


_READERS: Mapping[str, Callable[[Fields], Any]] = {
    "model_args": lambda fields: fields.mapping("model_args", is_value, "plain values"),
    "options": lambda fields: fields.mapping("options", is_option, "a string, a number, true or false"),
    "dtype": lambda fields: fields.take("dtype", lambda value: value in DTYPES, "one of " + ", ".join(DTYPES)),
    "ties": lambda fields: fields.mapping("ties", is_text, "a tensor's name"),
    "inputs": lambda fields: tuple(fields.take("inputs", is_texts, "a list of shapes")),
    "files": lambda fields: tuple(fields.take("files", is_texts, "a list of digests")),
    "format": lambda fields: fields.raw["format"],
}


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
