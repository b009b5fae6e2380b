"""Step 8, seal: `FILE.receipt.json`, what an artifact is and how it was made; and the recipe inside the artifact.

    identity   recipe, source fingerprint, edits, tensors (dtype, shape, digest), weights digest, architecture digest,
               file (format, sha256, size; of an ONNX file also `data`, the file beside it, and `folded_from`)
    run        versions, device, measured checks: informative, covered by no digest

The identity holds no version, time, host or path, so it is the same wherever the artifact is. A receipt or recipe
that is read may come from anybody: everything in it is checked before it is believed. No torch here.

`folded_from` is the weights digest of the conversion that a file was folded from for inference. The edits then say what
was folded, the tensors are those of the file, and the weights digest is theirs and not the conversion's; there is no
architecture digest. Nor has a receipt of an earlier version one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from zero_convert import records
from zero_convert.errors import MalformedError, UsageError
from zero_convert.formats import dtypes
from zero_convert.formats.digests import FileDigest, Leaf, Written, brief, canonical_json, parse_json, weights_digest
from zero_convert.formats.identity import start_digest
from zero_convert.formats.naming import ARCHITECTURE_KEY, EXTRA_KEY, RECIPE_KEY, ROLES
from zero_convert.formats.strict_json import (
    Fields,
    files_json,
    is_digest,
    is_option,
    is_text,
    is_texts,
    is_value,
    read_files,
    read_leaf,
    read_limited,
)
from zero_convert.options import flags, keys

DTYPES = sorted(
    str(row.torch) for row in dtypes.DTYPES.values() if row.kind == "float" and row.written and row.bits > 8
)

IDENTITY_OPTIONAL = ("architecture_digest",)
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
        architecture_digest: `za1` of the network, hex; "" of a folded file, and where it was not recorded.
    """

    recipe: records.Recipe
    fingerprint: str
    edits: tuple[records.Edit, ...]
    tensors: Mapping[str, Leaf]
    weights_digest: str
    architecture_digest: str = ""

    @property
    def start_digest(self) -> str:
        """`zs1`, hex; "" where no architecture digest is known."""
        return start_digest(self.architecture_digest, self.weights_digest)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one artifact is, and how it was made.

    Attributes:
        identity: of its conversion.
        files: the artifact itself, then the files beside it that hold its tensors.
        file_format: name of a format, "safetensors".
        run: versions, device and checks; what JSON cannot hold is spelled as a string.
        folded_from: weights digest of the conversion, where the file was folded; else "".
    """

    identity: Identity
    files: tuple[FileDigest, ...]
    file_format: str
    run: Mapping[str, Any]
    folded_from: str = ""

    @property
    def written(self) -> Written:
        """Files, tensors and weights digest."""
        return Written(self.files, self.identity.tensors, self.identity.weights_digest)


def receipt_json(receipt: Receipt) -> dict[str, Any]:
    """The receipt as a JSON object.

    Raises:
        UsageError: the recipe holds something else than plain values.
    """
    file = {"format": receipt.file_format, **files_json(receipt.files)}
    file |= {"folded_from": receipt.folded_from} if receipt.folded_from else {}
    return {"identity": {**identity_json(receipt.identity), "file": file}, "run": _informative(receipt.run)}


def spell_receipt(receipt: Receipt) -> bytes:
    """The bytes of a receipt's file. Errors as `receipt_json`."""
    return (json.dumps(receipt_json(receipt), indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def read_receipt(path: str | PathLike[str]) -> Receipt:
    """The receipt in the file at `path`.

    Raises:
        MalformedError: it is no receipt, or contradicts itself.
        StorageError: it cannot be read.
    """
    return receipt_from_json(parse_json(read_limited(path, _LIMIT, "receipt"), str(path)), str(path))


def receipt_from_json(obj: object, where: str = "receipt") -> Receipt:
    """The receipt that a JSON object spells; the inverse of `receipt_json`.

    Raises:
        MalformedError: it spells none, or its weights digest is not that of its tensors.
    """
    top = Fields.of(obj, where, ("identity", "run"))
    inside = f"{where}, identity"
    fields = Fields.of(top.raw["identity"], inside, (*IDENTITY_FIELDS, "file"), IDENTITY_OPTIONAL)
    identity = identity_from_json({name: value for name, value in fields.raw.items() if name != "file"}, inside)
    file = Fields.of(fields.raw["file"], f"{inside}.file", ("format", "sha256", "size"), (*ROLES, "folded_from"))
    run = top.take("run", lambda value: isinstance(value, dict), "an object")
    folded_from = file.digest("folded_from") if "folded_from" in file.raw else ""
    return Receipt(identity, read_files(file), file.text("format"), run, folded_from)


# --------------------------------------------------------------------------------------------- identity


def identity_json(identity: Identity) -> dict[str, Any]:
    """The identity as a JSON object with the keys `IDENTITY_FIELDS`, and `IDENTITY_OPTIONAL` where they are known.

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
        **({"architecture_digest": identity.architecture_digest} if identity.architecture_digest else {}),
    }


def read_edit(obj: object, where: str) -> records.Edit:
    """The edit that a JSON object spells; raises MalformedError. One without `source` is of an earlier version."""
    names = {spec.name for spec in dataclasses.fields(records.Edit)} - {"source"}
    fields = Fields.of(obj, where, names, ("source",))
    return records.Edit(
        rewrite=fields.text("rewrite"),
        target=fields.text("target"),
        action=fields.text("action"),
        applied=fields.take("applied", lambda value: isinstance(value, bool), "true or false"),
        reason=fields.text("reason"),
        source=read_source(fields) if "source" in fields.raw else None,
    )


def read_source(fields: Fields) -> tuple[str, ...] | None:
    """What an edit is made from; raises MalformedError."""
    found = fields.take("source", lambda value: value is None or is_texts(value), "a list of texts, or null")
    return None if found is None else tuple(found)


def identity_from_json(obj: object, where: str, read: Callable[[object, str], records.Edit] = read_edit) -> Identity:
    """The identity that a JSON object spells; the inverse of `identity_json`.

    Args:
        read: reads one edit; locks spell them in their own way.
    Raises:
        MalformedError: it spells none, or its weights digest is not that of its tensors.
    """
    fields = Fields.of(obj, where, IDENTITY_FIELDS, IDENTITY_OPTIONAL)
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
        architecture_digest=fields.digest("architecture_digest") if "architecture_digest" in fields.raw else "",
    )


# ----------------------------------------------------------------------------------------------- recipe


def metadata(
    recipe: records.Recipe, extra_state: Mapping[str, str] | None = None, architecture: str = ""
) -> dict[str, str]:
    """The `__metadata__` of a safetensors file; other libraries ask for `format`.

    Args:
        extra_state: name → text of what modules keep in the state dict besides tensors.
        architecture: digest of the network, hex.
    """
    extra = {EXTRA_KEY: canonical_json(dict(extra_state))} if extra_state else {}
    return {"format": "pt", **recipe_metadata(recipe, architecture), **extra}


def extra_state_from_metadata(metadata: Mapping[str, str], recipe: records.Recipe, where: str) -> dict[str, str]:
    """Name → text of the extra state in an artifact; those that the artifact holds and the recipe names.

    Raises:
        MalformedError: a text is not the one that the recipe names.
    """
    text = metadata.get(EXTRA_KEY)
    given = parse_json(text.encode("utf-8", "surrogatepass"), where) if text else {}
    fields = Fields.of({EXTRA_KEY: given}, where, (EXTRA_KEY,))
    found: dict[str, str] = dict(fields.mapping(EXTRA_KEY, is_text, "the text of an extra state"))
    for name, value in found.items():
        own = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        if recipe.extra_state.get(name) != own:
            raise MalformedError(
                "an extra state is not the one that the recipe names",
                where=f"{where}, {brief(name)}",
                got=own,
                expected=recipe.extra_state.get(name, "no such name"),
                fix="The file was changed after it was written; convert again.",
            )
    return found


def recipe_metadata(recipe: records.Recipe, architecture: str = "") -> dict[str, str]:
    """The recipe as any artifact carries it, and the architecture digest where there is one."""
    digest = {ARCHITECTURE_KEY: f"za1:{architecture}"} if architecture else {}
    return {RECIPE_KEY: canonical_json(recipe_json(recipe)), **digest}


def architecture_from_metadata(metadata: Mapping[str, str], where: str) -> str:
    """The architecture digest that an artifact carries, hex; "" if it carries none.

    Raises:
        MalformedError: what it carries is no such digest.
    """
    text = metadata.get(ARCHITECTURE_KEY, "")
    digest = text.removeprefix("za1:")
    if text and (digest == text or not is_digest(digest)):
        raise MalformedError(
            "the architecture digest is malformed", where=where, got=brief(text), expected="za1: and 64 hex digits"
        )
    return digest


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
    fields = (f for f in dataclasses.fields(record) if f.name not in _ALWAYS)
    return {
        names[f.name]: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in fields
    }


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
    "extra_state": lambda fields: fields.mapping("extra_state", is_text, "a digest"),
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
