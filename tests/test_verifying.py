"""Whatever happened to an artifact, verify finds it and names the tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.sealed import atomic_write, receipt_of, write_receipt
from zero_convert.artifacts.receipt import metadata, recipe_json
from zero_convert.artifacts.verify import Finding, Verification, artifacts, verify, verify_all
from zero_convert.errors import MalformedError, MismatchError, StorageError
from zero_convert.exporters.safetensors import Entry, write
from zero_convert.formats.digests import canonical_json
from zero_convert.formats.naming import receipt_path
from zero_convert.formats.safetensors import read_header
from zero_convert.records import Recipe

RECIPE = Recipe(model="tiny", scheme="zero-2021", options={"c": 1}, ties={}, source="tests.Tiny")
CONTENTS = {"a.weight": b"abcdefgh", "b.weight": b"ABCDEFGH", "empty": b"", "z.bias": b"1234"}


def entries(contents: dict[str, bytes]) -> list[Entry]:
    return [Entry(name, "F32", (len(data) // 4,), lambda data=data: data) for name, data in contents.items()]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    with atomic_write(path) as stream:
        written = write(stream, entries(CONTENTS), metadata(RECIPE))
    write_receipt(path, receipt_of(written, RECIPE))
    return path


def rewrite(path: Path, contents: dict[str, bytes], recipe: Recipe = RECIPE) -> None:
    """Replace the artifact, keep the receipt."""
    with atomic_write(path, force=True) as stream:
        write(stream, entries(contents), metadata(recipe))


def kinds(path: Path) -> list[tuple[str, str]]:
    return [(finding.what, finding.tensor) for finding in verify(path).findings]


def test_a_sound_artifact_has_no_findings(artifact: Path) -> None:
    found = verify(artifact)
    assert found.findings == ()
    assert list(found.receipt.written.tensors) == list(CONTENTS)
    found.raise_findings()
    assert len(os.listdir(artifact.parent)) == 2


def test_a_receipt_elsewhere_can_be_named(artifact: Path) -> None:
    receipt_path(artifact).rename(artifact.parent / "elsewhere.json")
    assert verify(artifact, artifact.parent / "elsewhere.json").findings == ()


def test_every_flipped_byte_is_found_and_in_the_data_its_tensor_is_named(artifact: Path) -> None:
    content = artifact.read_bytes()
    header = read_header(artifact)
    owner = {header.data_start + offset: info.name for info in header.tensors for offset in range(info.begin, info.end)}
    assert len(owner) == 20
    for position in range(len(content)):
        artifact.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        found = kinds(artifact)
        assert ("sha256", "") in found, position
        if position in owner:
            assert found == [("sha256", ""), ("values", owner[position]), ("weights digest", "")]
        else:
            assert all(what != "values" or position >= header.data_start for what, _ in found)


def test_a_flipped_byte_in_a_name_or_a_shape_names_the_tensor(artifact: Path) -> None:
    content = artifact.read_bytes()
    artifact.write_bytes(content.replace(b'"z.bias"', b'"y.bias"'))
    assert ("missing", "z.bias") in kinds(artifact)
    assert ("extra", "y.bias") in kinds(artifact)
    artifact.write_bytes(content.replace(b'"b.weight":{"dtype":"F32"', b'"b.weight":{"dtype":"I32"'))
    assert ("dtype", "b.weight") in kinds(artifact)
    artifact.write_bytes(content.replace(b'"shape":[1]', b'"shape":[2]'))
    assert kinds(artifact) == [("sha256", ""), ("header", "")]
    assert "'z.bias'" in verify(artifact).findings[1].got


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_truncated_file_is_found(artifact: Path, cut: int) -> None:
    os.truncate(artifact, artifact.stat().st_size - cut)
    assert kinds(artifact) == [("size", ""), ("sha256", ""), ("header", "")]


def test_an_empty_and_a_lengthened_file_are_found(artifact: Path) -> None:
    with open(artifact, "ab") as file:
        file.write(b"\0")
    assert kinds(artifact) == [("size", ""), ("sha256", ""), ("header", "")]
    artifact.write_bytes(b"")
    assert kinds(artifact) == [("size", ""), ("sha256", ""), ("header", "")]


def test_swapped_tensors_of_one_size_are_both_named(artifact: Path) -> None:
    rewrite(artifact, CONTENTS | {"a.weight": CONTENTS["b.weight"], "b.weight": CONTENTS["a.weight"]})
    assert kinds(artifact) == [("sha256", ""), ("values", "a.weight"), ("values", "b.weight"), ("weights digest", "")]


def test_missing_extra_and_reshaped_tensors_are_named(artifact: Path) -> None:
    changed = {name: data for name, data in CONTENTS.items() if name != "empty"}
    rewrite(artifact, changed | {"new": b"", "a.weight": b"abcd"})
    assert kinds(artifact) == [
        ("size", ""),
        ("sha256", ""),
        ("shape", "a.weight"),
        ("missing", "empty"),
        ("extra", "new"),
        ("weights digest", ""),
    ]


def test_another_recipe_with_the_same_weights_is_found(artifact: Path) -> None:
    rewrite(
        artifact, CONTENTS, Recipe(model="tiny", scheme="zero-2021", options={"c": 2}, ties={}, source="tests.Tiny")
    )
    found = verify(artifact).findings
    assert [finding.what for finding in found] == ["sha256", "recipe"]
    assert found[1].expected == canonical_json(recipe_json(RECIPE))


def test_no_recipe_or_a_broken_one_is_found(artifact: Path) -> None:
    for text, got in ((None, "none"), ("{", "no recipe"), ('{"format":1}', "no recipe")):
        with atomic_write(artifact, force=True) as stream:
            write(stream, entries(CONTENTS), {"format": "pt"} | ({"zero_convert": text} if text else {}))
        found = [finding for finding in verify(artifact).findings if finding.what == "recipe"]
        assert len(found) == 1
        assert found[0].got.startswith(got)


def test_findings_become_one_error_with_exit_code_1(artifact: Path) -> None:
    rewrite(artifact, {name: data[::-1] for name, data in CONTENTS.items()})
    with pytest.raises(MismatchError, match=r"'a\.weight'") as caught:
        verify(artifact).raise_findings()
    assert caught.value.exit_code == 1
    assert "tiny.safetensors" in str(caught.value)
    assert str(Finding("values", "1", "2", "w")) == "tensor 'w': values: got 1, expected 2"


def test_without_a_receipt_the_message_says_which_file_was_looked_for(artifact: Path) -> None:
    receipt_path(artifact).unlink()
    with pytest.raises(StorageError, match=r"tiny\.safetensors\.receipt\.json.*convert again"):
        verify(artifact)


def test_without_an_artifact_the_message_names_it(artifact: Path) -> None:
    artifact.unlink()
    with pytest.raises(StorageError, match=r"artifact does not exist.*tiny\.safetensors"):
        verify(artifact)


def test_a_receipt_that_was_tampered_with_is_refused(artifact: Path) -> None:
    receipt = json.loads(receipt_path(artifact).read_text())
    receipt["identity"]["tensors"]["z.bias"]["digest"] = "0" * 64
    receipt_path(artifact).write_text(json.dumps(receipt))
    with pytest.raises(MalformedError, match="contradicts itself"):
        verify(artifact)


def test_a_receipt_of_an_unknown_format_is_refused(artifact: Path) -> None:
    receipt = json.loads(receipt_path(artifact).read_text())
    receipt["identity"]["file"]["format"] = "zip"
    receipt_path(artifact).write_text(json.dumps(receipt))
    with pytest.raises(MalformedError, match="'zip'"):
        verify(artifact)


def test_a_folder_stands_for_the_artifacts_in_it(artifact: Path) -> None:
    folder = artifact.parent
    (folder / "notes.txt").write_bytes(b"no artifact")
    for name in ("b.safetensors", "a.safetensors"):
        (folder / name).write_bytes(artifact.read_bytes())
        receipt_path(folder / name).write_bytes(receipt_path(artifact).read_bytes())
    assert artifacts(folder) == tuple(folder / f"{name}.safetensors" for name in ("a", "b", "tiny"))
    assert artifacts(artifact) == (artifact,)
    (folder / "extra.ONNX").write_bytes(b"without a receipt")
    ((path, answer),) = [pair for pair in verify_all([folder]) if isinstance(pair[1], StorageError)]
    assert path == folder / "extra.ONNX" and "has no receipt" in str(answer)
    (folder / "inner").mkdir()
    with pytest.raises(StorageError, match=r"nothing in the folder can be verified.*receipt"):
        artifacts(folder / "inner")


def test_every_artifact_gets_an_answer_whatever_is_wrong_with_another(artifact: Path) -> None:
    folder = artifact.parent
    (folder / "empty").mkdir()
    (folder / "gone.safetensors.receipt.json").write_bytes(receipt_path(artifact).read_bytes())
    found = list(verify_all([folder / "missing", folder / "empty", folder]))
    assert [path.name for path, _ in found] == ["missing", "empty", "gone.safetensors", "tiny.safetensors"]
    assert [type(answer) for _, answer in found] == [StorageError, StorageError, StorageError, Verification]


def test_a_file_that_goes_away_while_it_is_read_is_an_answer_too(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact.write_bytes(b"damaged")

    def gone(path: Path) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("zero_convert.artifacts.verify.sha256_file", gone)
    ((path, answer),) = verify_all([artifact])
    assert path == artifact
    assert isinstance(answer, StorageError)
    assert answer.got == "No such file or directory"
