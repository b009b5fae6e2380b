"""Receipts of artifacts that tests write without a conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zero_convert.artifacts.receipt import Identity, Receipt, spell_receipt
from zero_convert.formats.atomic import write_bytes
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
