"""A receipt says what an artifact is, the same everywhere; what is read is believed only as far as it is checked."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zero_convert.artifacts.receipt import (
    metadata,
    read_receipt,
    receipt_from_json,
    receipt_json,
    recipe_from_json,
    recipe_from_metadata,
    recipe_json,
)
from zero_convert.errors import MalformedError, StorageError, UsageError
from zero_convert.exporters.safetensors import Entry, write
from zero_convert.formats.digests import FileDigest, Written
from zero_convert.formats.naming import receipt_path
from zero_convert.records import Edit, Recipe

from .sealed import receipt_of, write_receipt

RECIPE = Recipe(
    model="resnet18",
    model_args={"num_classes": 10, "sizes": [1, 2.5, None], "deep": {"norm": "Ünï"}},
    scheme="zero-2021",
    options={"mixing": "permute", "c": 1.0, "keep": True, "n": 3},
    dtype="float32",
    ties={"head.weight": "embedding.weight"},
    source="torchvision.models.resnet.ResNet",
)
EDITS = (
    Edit("preactivation", "layer1.0", "moved the norm before the convolution"),
    Edit("hadamard", "layer2.0", "insert a transform", applied=False, reason="one channel"),
)
RUN = {"versions": {"torch": "2.15"}, "checks": [{"name": "finite", "numbers": {"worst": 0.0}}], "device": "cpu"}


def written() -> Written:
    return write(
        io.BytesIO(),
        [Entry("fc.bias", "F32", (2,), lambda: b"12345678"), Entry("n", "I64", (), lambda: b"12345678")],
        metadata(RECIPE),
    )


RECEIPT = receipt_of(written(), RECIPE, EDITS, "sha256:abc", run=RUN)


@pytest.fixture
def receipt() -> dict[str, Any]:
    return receipt_json(RECEIPT)


def test_a_receipt_comes_back_as_it_was_made(tmp_path: Path) -> None:
    path = write_receipt(tmp_path / "model.safetensors", RECEIPT)
    assert path == receipt_path(tmp_path / "model.safetensors") == tmp_path / "model.safetensors.receipt.json"
    found = read_receipt(path)
    assert found == RECEIPT
    assert found.identity.recipe == RECIPE
    assert found.identity.edits == EDITS
    assert found.written == written()
    assert (found.identity.fingerprint, found.file_format, found.run) == ("sha256:abc", "safetensors", RUN)


def test_files_beside_an_artifact_stand_under_their_role_and_come_back(receipt: dict[str, Any]) -> None:
    data = FileDigest("d" * 64, 7, "data")
    made = receipt_json(dataclasses.replace(RECEIPT, files=(*RECEIPT.files, data)))
    assert made["identity"]["file"] == receipt["identity"]["file"] | {"data": {"sha256": "d" * 64, "size": 7}}
    assert receipt_from_json(made).files == (*RECEIPT.files, data)
    assert [file.path("a/x.onnx") for file in receipt_from_json(made).files] == ["a/x.onnx", "a/x.onnx.data"]
    assert FileDigest("d" * 64, 7, "data", "part-1").path("a/x.onnx") == os.path.join("a", "part-1")
    made["identity"]["file"]["data"]["size"] = -1
    with pytest.raises(MalformedError, match=r"size.*identity\.file, data"):
        receipt_from_json(made)


def test_a_receipt_is_the_text_that_the_design_spells(tmp_path: Path) -> None:
    text = write_receipt(tmp_path / "x", RECEIPT).read_text()
    assert text.startswith('{\n "identity": {\n  "edits": [\n')
    assert text.endswith("\n}\n")
    obj = json.loads(text)
    assert list(obj) == ["identity", "run"]
    assert list(obj["identity"]) == ["edits", "file", "fingerprint", "recipe", "tensors", "weights_digest"]
    assert list(obj["identity"]["tensors"]) == ["fc.bias", "n"]  # in the file it is the other way round
    assert obj["identity"]["tensors"]["fc.bias"] == {
        "digest": written().tensors["fc.bias"].digest,
        "dtype": "F32",
        "shape": [2],
    }


def test_the_identity_holds_nothing_of_the_run(receipt: dict[str, Any]) -> None:
    other = receipt_json(dataclasses.replace(RECEIPT, run={"host": "elsewhere"}))
    assert other["identity"] == receipt["identity"]
    assert other["run"] != receipt["run"]


def test_a_run_may_hold_any_number(tmp_path: Path) -> None:
    run = {"nan": float("nan"), "inf": [float("-inf")], "path": Path("x"), "fine": (1, 2.5, None, True)}
    path = write_receipt(tmp_path / "x", dataclasses.replace(RECEIPT, run=run))
    assert read_receipt(path).run == {"nan": "nan", "inf": ["-inf"], "path": "x", "fine": [1, 2.5, None, True]}


def test_an_old_receipt_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = receipt_path(tmp_path / "x")
    path.write_text("old")
    with pytest.raises(UsageError):
        write_receipt(tmp_path / "x", RECEIPT)
    assert path.read_text() == "old"
    write_receipt(tmp_path / "x", RECEIPT, force=True)
    assert read_receipt(path).identity.recipe == RECIPE
    assert os.listdir(tmp_path) == [path.name]


def test_the_recipe_travels_in_the_artifact() -> None:
    carried = metadata(RECIPE)
    assert carried["format"] == "pt"
    assert carried["zero_convert"].isascii()
    assert " " not in carried["zero_convert"].replace("resnet18", "")
    assert recipe_from_metadata(carried, "x") == RECIPE
    assert recipe_from_metadata({"format": "pt"}, "x") is None
    with pytest.raises(MalformedError, match=r"x\.file, recipe"):
        recipe_from_metadata({"zero_convert": "{"}, "x.file")


def test_the_order_of_a_recipe_is_not_part_of_it() -> None:
    turned = dataclasses.replace(RECIPE, options=dict(reversed(RECIPE.options.items())))
    assert metadata(turned) == metadata(RECIPE)


def test_tuples_become_lists() -> None:
    assert recipe_json(dataclasses.replace(RECIPE, model_args={"size": (1, (2,))}))["model_args"] == {"size": [1, [2]]}


def test_a_recipe_that_nobody_could_repeat_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    strange: list[dict[Any, Any]] = [
        {"layer": object()},
        {"x": float("nan")},
        {"x": {1: 2}},
        {"x": endless},
        {"x": 10**5000},
        {"x\n": 1},
    ]
    for arguments in strange:
        with pytest.raises(UsageError, match="resnet18"):
            recipe_json(dataclasses.replace(RECIPE, model_args=arguments))
    with pytest.raises(UsageError, match="dtype"):
        recipe_json(dataclasses.replace(RECIPE, dtype="float"))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("format", True),
        ("format", "1"),
        ("model", None),
        ("model", "\x1b]0;evil\x07"),
        ("model", "half\ud800"),
        ("model_args", []),
        ("model_args", {"a\0": 1}),
        ("model_args", {"a": ["\n"]}),
        ("model_args", {"a": nested(17)}),
        ("model_args", {"a": nested(5000)}),
        ("scheme", 1),
        ("options", {"a": None}),
        ("options", {"a": [1]}),
        ("dtype", "float8"),
        ("dtype", ["float32"]),
        ("ties", {"a": 1}),
        ("ties", {"a": "b\r"}),
        ("source", {}),
        ("extra", 1),
    ],
)
def test_a_hostile_recipe_is_refused_by_the_field(field: str, value: object) -> None:
    with pytest.raises(MalformedError, match=field.replace("extra", "unknown.*extra")) as caught:
        recipe_from_json(recipe_json(RECIPE) | {field: value}, "here")
    assert str(caught.value).isprintable()


def test_a_recipe_without_a_field_is_refused() -> None:
    for field in recipe_json(RECIPE):
        with pytest.raises(MalformedError, match=f"missing.*{field}"):
            recipe_from_json({key: value for key, value in recipe_json(RECIPE).items() if key != field})
    for obj in (None, [], "x", 1):
        with pytest.raises(MalformedError, match="not an object"):
            recipe_from_json(obj)


def change(*keys: str | int, to: object) -> Callable[[Any], None]:
    def apply(obj: Any) -> None:
        for key in keys[:-1]:
            obj = obj[key]
        obj[keys[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (change("identity", to=[]), "identity"),
        (change("run", to=1), "run"),
        (change("more", to=1), "more"),
        (change("identity", "time", to="now"), "time"),
        (change("identity", "file", "sha256", to="0" * 63), "sha256"),
        (change("identity", "file", "sha256", to="A" * 64), "sha256"),
        (change("identity", "file", "size", to=-1), "size"),
        (change("identity", "file", "size", to=1.0), "size"),
        (change("identity", "file", "format", to="../x\n"), "format"),
        (change("identity", "weights_digest", to="0" * 64), "contradicts itself"),
        (change("identity", "tensors", "fc.bias", "digest", to="0" * 64), "contradicts itself"),
        (change("identity", "tensors", "fc.bias", "digest", to=None), "fc.bias"),
        (change("identity", "tensors", "fc.bias", "shape", to=[True]), "fc.bias"),
        (change("identity", "tensors", "fc.bias", to=[]), "fc.bias"),
        (change("identity", "tensors", to=[]), "tensors"),
        (change("identity", "edits", to={}), "edits"),
        (change("identity", "edits", 1, "applied", to=1), "edit 1"),
        (change("identity", "edits", 0, to="x"), "edit 0"),
        (change("identity", "recipe", "scheme", to=None), "scheme"),
        (change("identity", "fingerprint", to=1), "fingerprint"),
    ],
)
def test_a_hostile_receipt_is_refused_by_the_field(
    receipt: dict[str, Any], edit: Callable[[Any], None], named: str
) -> None:
    changed = copy.deepcopy(receipt)
    edit(changed)
    with pytest.raises(MalformedError, match=named):
        receipt_from_json(changed)
    assert receipt_from_json(receipt).identity.recipe == RECIPE


def test_a_receipt_that_is_not_there_or_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        read_receipt(tmp_path / "missing")
    with pytest.raises(StorageError):
        read_receipt(tmp_path)
    for content in (b"", b"\xff", b"[]", b'{"identity":{},"identity":{}}', b"[" * 100_000):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(MalformedError, match="bad"):
            read_receipt(tmp_path / "bad")
    os.truncate(tmp_path / "bad", 1 << 30)
    with pytest.raises(MalformedError, match="too large"):
        read_receipt(tmp_path / "bad")


def test_a_receipt_that_appears_during_the_work_is_not_replaced(tmp_path: Path) -> None:
    import torch

    from zero_convert.pipeline import convert

    result = convert(torch.nn.Linear(4, 3), (torch.zeros(1, 4),), validate="none")
    path = tmp_path / "a.safetensors"

    def meanwhile(step: str, detail: str) -> None:
        if step == "seal":
            receipt_path(path).write_text("somebody's work")

    with pytest.raises(UsageError, match="--force"):
        result.save(path, progress=meanwhile)
    assert receipt_path(path).read_text() == "somebody's work"
    result.save(path, force=True, progress=meanwhile)
    assert read_receipt(receipt_path(path)).written.size == path.stat().st_size
