"""Files and receipts that tests write without a conversion."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from zero_convert.artifacts.receipt import Identity, Receipt, spell_receipt
from zero_convert.formats.atomic import Output, staged, write_bytes
from zero_convert.formats.digests import Written
from zero_convert.formats.naming import receipt_path
from zero_convert.records import Edit, Recipe


def receipt_of(
    written: Written,
    recipe: Recipe,
    edits: Sequence[Edit] = (),
    fingerprint: str = "none",
    file_format: str = "safetensors",
    run: Mapping[str, Any] | None = None,
) -> Receipt:
    identity = Identity(recipe, fingerprint, tuple(edits), written.tensors, written.weights_digest)
    return Receipt(identity, written.files, file_format, run or {})


def write_receipt(artifact: Path, receipt: Receipt, force: bool = False) -> Path:
    path = receipt_path(artifact)
    write_bytes(path, spell_receipt(receipt), force)
    return path


@contextlib.contextmanager
def atomic_write(path: str | PathLike[str], force: bool = False) -> Iterator[Output]:
    """A binary stream whose bytes become the file `path` when the block ends well. Errors as `atomic.staged`."""
    with staged(path, force) as output:
        yield output
        output.flush_and_verify()
        output.commit()
