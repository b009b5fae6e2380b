"""What `inspect` says about a file beyond its header: totals, the weights digest, what each tensor's values are.

Reads through `readers/`; the bytes of each tensor go by once, however large the file. No torch.
"""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from zero_convert.artifacts.receipt import architecture_from_metadata, recipe_from_metadata, recipe_json
from zero_convert.formats import dtypes
from zero_convert.formats.digests import leaf_hasher, weights_digest
from zero_convert.formats.identity import start_digest
from zero_convert.formats.naming import DIGEST_KEY, FOLDED_KEY

from ..errors import RefusedError
from ..readers import Contents, Limits, Tensor
from ..readers.tensor_bytes import check_crc, pieces, readable
from .coverage import Coverage, coverage
from .likely_architecture import likely

if TYPE_CHECKING:
    from .tensor_values import Values

AT_ONCE = 256 << 20  # bytes of tensors that are read without being asked
_REPEATS = 4  # times that the bytes of a file may be read as views of it


@dataclass(frozen=True, slots=True)
class Survey:
    """A file, and what was found in the bytes of its tensors.

    Attributes:
        digest: `zc1` of the model's own tensors in hex, if it was asked for and there is one.
        coverage: of which bytes it is, and which are left out.
        undigested: why there is none although it was asked for.
        values: name → what the values are, of the tensors that were read.
    """

    contents: Contents
    coverage: Coverage
    digest: str | None
    undigested: str
    values: Mapping[str, Values]


def survey(
    contents: Contents,
    *,
    digest: bool | None = None,
    values: bool | None = None,
    limits: Limits | None = None,
    progress: Callable[[str, str], None] = lambda _step, _detail: None,
) -> Survey:
    """Reads the tensors as far as asked; where nothing is said, of small files.

    Raises:
        MalformedError: bytes of a tensor are not what the file says of them.
        RefusedError: views of few bytes ask for many.
    """
    total = sum(tensor.nbytes or 0 for tensor in contents.tensors if not tensor.tie)
    small = total <= AT_ONCE
    digest, values = small if digest is None else digest, small if values is None else values
    if not digest and not values:
        return Survey(contents, coverage(contents), None, "", {})
    bound = _REPEATS * contents.size + (limits or Limits()).max_bytes
    if total > bound:
        raise RefusedError(
            "views repeat the bytes of the file too often to be read",
            where=contents.path,
            got=f"{total} bytes of tensors in a file of {contents.size}",
            expected=f"at most {bound}",
            fix="--no-digest --no-values shows the rest; --max-bytes raises the limit.",
        )
    covered = coverage(contents)
    undigested = _undigested(contents, covered) if digest else ""
    for storage in dict.fromkeys(tensor.storage for tensor in contents.tensors if tensor.storage is not None):
        progress("check", "the CRC of the storages" if storage.crc is not None else "")
        check_crc(storage)
    reading = _Reading(contents, digest and not undigested, values, progress)
    return Survey(contents, covered, reading.digest(), undigested, reading.values)


def _undigested(contents: Contents, covered: Coverage) -> str:
    own = [tensor for tensor in contents.tensors if tensor.name in contents.weights]
    for tensor in own:
        if why := readable(tensor) or (
            "" if dtypes.stored(tensor.dtype) else f"safetensors has no type {tensor.dtype}"
        ):
            return f"{tensor.name}: {why}"
    if contents.undigested or not own:
        return contents.undigested or "it holds no tensors"
    return str(covered) if covered.uncovered else ""


class _Reading:
    """One pass over all tensors."""

    def __init__(self, contents: Contents, digest: bool, values: bool, progress: Callable[[str, str], None]) -> None:
        self.values: dict[str, Values] = {}
        self._asked = digest
        self._leaves: dict[str, bytes] = {}
        own = own_names(contents) if digest else {}
        alike = collections.Counter((tensor.dtype, tensor.shape) for tensor in contents.tensors)
        seen: dict[bytes, str] = {}
        for tensor in contents.tensors:
            if readable(tensor):
                continue
            progress("read", tensor.name[:60])
            name = own.get(tensor.name)
            leaf = None if name is None else leaf_hasher(name, tensor.dtype, tensor.shape)
            want = values and not tensor.tie
            content = hashlib.sha256() if want and alike[tensor.dtype, tensor.shape] > 1 else None
            if leaf is None and not want:
                continue
            described = _read(tensor, [each for each in (leaf, content) if each is not None], want)
            if name is not None and leaf is not None:
                self._leaves[name] = leaf.digest()
            if described is not None:
                if content is not None and described.kind in ("other", "unknown", "hadamard", "signs"):
                    key = f"{tensor.dtype}{tensor.shape}".encode() + content.digest()
                    first = seen.setdefault(key, tensor.name)
                    described = described if first == tensor.name else replace(described, equal_to=first)
                self.values[tensor.name] = described

    def digest(self) -> str | None:
        return weights_digest(self._leaves) if self._asked else None


def _read(tensor: Tensor, hashers: list[Any], want: bool) -> Values | None:
    """Gives every byte of the tensor to the hashers; what the values are, if that is wanted."""
    if want:
        from .tensor_values import describe

        return describe(tensor.dtype, tensor.shape, _hashed(tensor, hashers))
    collections.deque(_hashed(tensor, hashers), maxlen=0)
    return None


def _hashed(tensor: Tensor, hashers: list[Any]) -> Iterator[memoryview]:
    for piece in pieces(tensor):
        for hasher in hashers:
            hasher.update(piece)
        yield piece


def own_names(contents: Contents) -> dict[str, str]:
    """Name in the file → name in the model of the model's own tensors, of tied ones the first in the model's order."""
    by_name = {tensor.name: tensor for tensor in contents.tensors}
    kept: dict[str, str] = {}
    seen: dict[tuple[Any, ...], None] = {}
    for name, own in sorted(contents.weights.items(), key=lambda pair: pair[1].encode("utf-8", "surrogatepass")):
        tensor = by_name[name]
        if tensor.storage is not None and tensor.nbytes:
            view = (tensor.storage, tensor.offset, tensor.dtype, tensor.shape, tensor.strides, tensor.flipped)
            if view in seen:
                continue
            seen[view] = None
        kept[name] = own
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# as JSON, `inspect.schema.json`


def facts(found: Survey) -> dict[str, Any]:
    """Everything as one JSON object."""
    contents = found.contents
    recipe = recipe_from_metadata(contents.metadata, contents.path)
    recorded = architecture_from_metadata(contents.metadata, contents.path)
    return {
        "file": contents.path,
        "format": contents.format,
        "producer": contents.producer,
        "size": contents.size,
        "files": list(contents.files),
        "totals": totals(contents),
        "weights": {
            "at": contents.weights_at,
            "prefix": contents.weights_prefix,
            "tensors": len(contents.weights),
            "values": sum(t.values for t in contents.tensors if t.name in contents.weights and not t.tie),
        },
        "sections": dict(contents.sections),
        "architecture": architecture(contents),
        "needs_trust": bool(contents.trust),
        "trust": list(contents.trust),
        "globals": list(contents.globals),
        "recipe": None if recipe is None else recipe_json(recipe),
        "start_digest": start_digest(recorded, found.digest or "") or None,
        "architecture_digest": recorded or None,
        "weights_digest": found.digest,
        "recorded_digest": contents.metadata.get(DIGEST_KEY),
        "folded_from": contents.metadata.get(FOLDED_KEY),
        "undigested": found.undigested,
        "coverage": asdict(found.coverage),
        "metadata": dict(contents.metadata),
        "notes": list(contents.notes),
        **contents.details,
        "tensors": [_tensor(tensor, contents, found.values.get(tensor.name)) for tensor in contents.tensors],
    }


def architecture(contents: Contents) -> dict[str, Any] | None:
    """The architecture that the model's own tensors likely belong to, by their names and shapes."""
    own = ((contents.weights.get(tensor.name), tensor.shape) for tensor in contents.tensors)
    found = likely({name: shape for name, shape in own if name is not None})
    return None if found is None else asdict(found)


def totals(contents: Contents) -> dict[str, Any]:
    """Tensors, values and bytes, those that share their storage once; of parameters and buffers if the file says."""
    once = [tensor for tensor in contents.tensors if not tensor.tie]
    known = any(tensor.kind for tensor in contents.tensors)
    by_kind = {kind: sum(t.values for t in once if t.kind == kind) for kind in ("parameter", "buffer")}
    return {
        "tensors": len(contents.tensors),
        "ties": len(contents.tensors) - len(once),
        "values": sum(tensor.values for tensor in once),
        "bytes": sum(stored(tensor) for tensor in once),
        "parameters": by_kind["parameter"] if known else None,
        "buffers": by_kind["buffer"] if known else None,
    }


def stored(tensor: Tensor) -> int:
    """The bytes of a tensor's values; of blocks of quantized ones as they are stored."""
    if tensor.nbytes is not None:
        return tensor.nbytes
    return 0 if tensor.storage is None else tensor.storage.end - tensor.storage.begin


def _beside(tensor: Tensor, contents: Contents) -> str | None:
    """The name of the other file that holds the tensor's data."""
    if tensor.storage is None or tensor.storage.path == contents.path:
        return None
    folders = [os.path.realpath(os.path.dirname(path) or ".") for path in (tensor.storage.path, contents.path)]
    return os.path.relpath(os.path.join(folders[0], os.path.basename(tensor.storage.path)), folders[1])


def _tensor(tensor: Tensor, contents: Contents, values: Values | None) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "strides": None if tensor.strides is None else list(tensor.strides),
        "bytes": stored(tensor),
        "file": _beside(tensor, contents),
        "kind": tensor.kind or None,
        "tie": tensor.tie or None,
        "shares": tensor.shares or None,
        "values": values,
    }
