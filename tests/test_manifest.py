"""The manifest is that of OpenSSF model signing: the root digests are typed in from what model_signing 1.1.1 says."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_corruption import large, locked
from tests.test_onnx_reading import save as save_model
from zero_convert import cli
from zero_convert.artifacts.lock import write_lock
from zero_convert.artifacts.model_signing import (
    compare_manifests,
    make_manifest,
    read_manifest,
    statement,
    write_statement,
)
from zero_convert.errors import MalformedError, RefusedError

FILES = {
    "b.safetensors": b"bbb",
    "a/b.txt": b"ab",
    "a.b": b"a.b",
    "a-c": b"x",
    "empty": b"",
    ".gitignore": b"g",
    ".git/x": b"1",
    ".hidden": b"h",
    "ü.bin": b"u",
    "A": b"A",
}
ROOT = "79379d5e2f967b086ddc05a01f7ba150b0f816a7987c94959c62ff05f62841ad"
ROOT_OF_FILE = "c015c790ab721ffb397497540bb83e0cb0119f0f6ab45945b0baf90f37dfca75"
DIGEST_OF_FILE = "3e744b9dc39389baf0c5a0660589b8402f3dbb49b89b3e75f2c9355852a3c677"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_has_the_digest_and_the_order_of_model_signing(model: Path) -> None:
    made = make_manifest(model)
    assert [name for name, _ in made.resources] == [
        ".hidden",
        "A",
        "a/b.txt",
        "a-c",
        "a.b",
        "b.safetensors",
        "empty",
        "ü.bin",
    ]
    assert (made.name, made.root) == ("model", ROOT)


def test_a_file_has_the_digest_of_model_signing(model: Path) -> None:
    assert statement(make_manifest(model / "b.safetensors")) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "b.safetensors", "digest": {"sha256": ROOT_OF_FILE}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "resources": [{"algorithm": "sha256", "digest": DIGEST_OF_FILE, "name": "."}],
            "serialization": {
                "allow_symlinks": False,
                "hash_type": "sha256",
                "ignore_paths": [".git", ".gitattributes", ".github", ".gitignore"],
                "method": "files",
            },
        },
    }


def test_the_statement_is_no_part_of_itself(model: Path) -> None:
    for _ in range(2):
        made = make_manifest(model, (model / "model.sig",))
        assert made.root == ROOT
        assert "model.sig" in made.ignored
        write_statement(model / "model.sig", made, force=True)
    assert compare_manifests(make_manifest(model, ignored=read_manifest(model / "model.sig").ignored), made) == []


def test_links_are_refused(model: Path) -> None:
    (model / "link").symlink_to("A")
    with pytest.raises(RefusedError, match="symbolic link"):
        make_manifest(model)


def test_files_that_move_come_or_go_are_named(model: Path) -> None:
    old = make_manifest(model)
    (model / "A").write_bytes(b"B")
    (model / "a/b.txt").unlink()
    (model / "a/new").write_bytes(b"")
    found = compare_manifests(make_manifest(model), old)
    assert [(each.name, each.what) for each in found] == [("A", "sha256"), ("a/b.txt", "missing"), ("a/new", "extra")]


@pytest.mark.parametrize("form", ["statement", "envelope", "bundle"])
def test_statements_are_read_bare_in_envelopes_and_in_bundles(model: Path, tmp_path: Path, form: str) -> None:
    made = make_manifest(model)
    payload = base64.b64encode(json.dumps(statement(made)).encode()).decode()
    envelope = {"payload": payload, "payloadType": "application/vnd.in-toto+json", "signatures": []}
    whole = {"statement": statement(made), "envelope": envelope, "bundle": {"dsseEnvelope": envelope, "mediaType": "x"}}
    (tmp_path / "s.json").write_text(json.dumps(whole[form]))
    assert read_manifest(tmp_path / "s.json") == made


def changed(made: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    inner: Any = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return made


@pytest.mark.parametrize(
    ("path", "to", "says"),
    [
        (("_type",), "x", "_type"),
        (("predicateType",), "https://slsa.dev/provenance/v1", "predicateType"),
        (("subject",), [], "subject"),
        (("subject", 0, "digest", "sha256"), "0" * 64, "contradicts itself"),
        (("predicate", "serialization", "method"), "shards", "kind"),
        (("predicate", "resources", 0, "digest"), "0", "digest"),
        (("predicate", "resources", 0, "algorithm"), "md5", "sha256"),
        (("payload",), "!", "base64"),
    ],
)
def test_what_is_no_statement_is_refused(model: Path, tmp_path: Path, path: Any, to: Any, says: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(changed(statement(make_manifest(model)), *path, to=to)))
    with pytest.raises(MalformedError, match=says):
        read_manifest(tmp_path / "s.json")


# ---------------------------------------------------------------------------------------------------------------------
# the command


def test_verify_writes_a_statement_of_what_is_sound_and_checks_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    path, note = large(folder, 2, 4), folder / "statement.json"
    assert cli.main(["verify", str(folder), "--statement", str(note)]) == 0
    assert capsys.readouterr().out == f"{path}: OK\n"
    assert [row["name"] for row in json.loads(note.read_text())["predicate"]["resources"]] == [
        "large.safetensors",
        "large.safetensors.receipt.json",
    ]
    assert cli.main(["verify", str(folder), "--oms", str(note)]) == 0
    assert cli.main(["verify", str(folder), "--statement", str(note)]) == 2
    assert cli.main(["verify", str(folder), "--statement", str(note), "--force"]) == 0
    path.write_bytes(path.read_bytes() + b"\0")
    capsys.readouterr()
    assert cli.main(["verify", str(folder), "--oms", str(note)]) == 1
    out, err = capsys.readouterr()
    assert out == f"{folder}: DIFFERS\n"
    assert "file 'large.safetensors': sha256" in err
    assert "signature was not checked" in err
    assert cli.main(["verify", str(folder), "--oms", str(note), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["name"] == "large.safetensors"
    note.unlink()
    assert cli.main(["verify", str(folder), "--statement", str(note)]) == 1
    assert not note.exists()


def test_the_file_of_a_models_tensors_is_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, note = tmp_path / "out", tmp_path / "statement.json"
    folder.mkdir()
    path = save_model(folder / "a.onnx", external_data=True)
    assert cli.main(["verify", str(path), "--statement", str(note)]) == 2
    assert "would not cover the file of its tensors" in capsys.readouterr().err
    assert not note.exists()
    assert cli.main(["verify", str(folder), "--statement", str(note)]) == 0
    names = [row["name"] for row in json.loads(note.read_text())["predicate"]["resources"]]
    assert names == ["a.onnx", "a.onnx.data", "a.onnx.receipt.json"]
    data = folder / "a.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x07")
    assert cli.main(["verify", str(folder), "--oms", str(note)]) == 1
    assert "file 'a.onnx.data': sha256" in capsys.readouterr().err


def test_verify_asks_a_lock_instead_of_receipts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, lock = large(tmp_path, 2, 4), tmp_path / "zero.lock"
    write_lock(lock, locked(path))
    path.with_name(f"{path.name}.receipt.json").unlink()
    for where in ([], [str(path)], [str(tmp_path)]):
        assert cli.main(["verify", *where, "--lock", str(lock)]) == 0
        assert capsys.readouterr().out == f"{path}: OK\n"
    (tmp_path / "download").mkdir()
    moved = path.rename(tmp_path / "download" / path.name)
    assert cli.main(["verify", str(moved), "--lock", str(lock)]) == 0
    assert cli.main(["verify", "--lock", str(lock)]) == 74
    moved.write_bytes(moved.read_bytes()[:-1] + b"\x01")
    assert cli.main(["verify", str(moved), "--lock", str(lock)]) == 1
    assert "tensor 'layer1.weight': values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, ()),
        (2, ("a", "b", "--statement", "s.json")),
        (2, ("a", "--oms", "s.json", "--lock", "zero.lock")),
        (74, ("a", "--lock", "missing.lock")),
        (74, ("a", "--oms", "missing.json")),
        (74, ("a", "--statement", "missing/s.json")),
    ],
)
def test_what_cannot_be_asked_is_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["verify", *arguments]) == code
    assert capsys.readouterr().err.count("error: ") == 1
