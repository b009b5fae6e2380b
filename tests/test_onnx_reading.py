"""Whatever happened to an ONNX file is found and the tensor named; whatever a file says, only its folder is read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sealed import receipt_of, write_receipt
from zero_convert.artifacts.receipt import recipe_metadata
from zero_convert.artifacts.verify import verify
from zero_convert.cli import main
from zero_convert.errors import MalformedError, ModelError, RefusedError, StorageError, UsageError, ZeroConvertError
from zero_convert.exporters import onnx as exporter
from zero_convert.exporters.safetensors import Entry
from zero_convert.formats.atomic import commit_all, staged
from zero_convert.formats.onnx import file_digests, read_header
from zero_convert.formats.protobuf import Message, opening, varint
from zero_convert.records import Recipe

RECIPE = Recipe(model="tiny", scheme="zero-2021", options={"c": 1}, ties={}, source="tests.Tiny")
TENSORS = {
    "a.weight": np.arange(300, dtype="<f4").reshape(3, 100),
    "b.weight": np.arange(300, 600, dtype="<f4").reshape(3, 100),
    "counter": np.array(7, "<i8"),
    "empty": np.empty((0, 4), "<f4"),
    "half": np.arange(5, dtype="<f2"),
    "mask": np.array([True, False]),
}
TYPES = {"<f4": "F32", "<i8": "I64", "<f2": "F16", "|b1": "BOOL"}


def entries(tensors: dict[str, np.ndarray]) -> list[Entry]:
    return [Entry(name, TYPES[a.dtype.str], a.shape, lambda a=a: a) for name, a in tensors.items()]


def tiny_graph(tensors: dict[str, np.ndarray]) -> exporter.Graph:
    """x (batch, 100) → x · a.weightᵀ, and readers of the rest; a.weight has another width where the tensors say so."""
    width = tensors.get("a.weight", TENSORS["a.weight"]).shape[1]
    make = onnx.helper.make_node
    nodes = [make("Transpose", ["a.weight"], ["t"]), make("MatMul", ["x", "t"], ["y"])]
    nodes += [make("Identity", [name], [f"/{name}"]) for name in tensors if name != "a.weight" and name.isprintable()]
    value = onnx.helper.make_tensor_value_info
    head = onnx.GraphProto(node=nodes, name="tiny")
    tail = onnx.GraphProto(input=[value("x", 1, ["batch", width])], output=[value("y", 1, ["batch", 3])])
    return exporter.Graph(head.SerializeToString(), tail.SerializeToString(), 20)


def save(
    path: Path, tensors: dict[str, np.ndarray] = TENSORS, receipt: bool = True, external_data: bool = False
) -> Path:
    taken = entries(tensors)
    places = [path, exporter.checked_data_path(path)] if exporter.wants_data_file(taken, external_data) else [path]
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(staged(place, force=True)) for place in places]
        data = (outputs[1], places[1].name) if len(places) > 1 else ()
        written = exporter.write(outputs[0], tiny_graph(tensors), taken, recipe_metadata(RECIPE), *data)
        for output, file in zip(outputs, written.files, strict=True):
            output.expect(file.size, file.sha256)
            output.flush_and_verify()
        commit_all(outputs)
    if receipt:
        write_receipt(path, receipt_of(written, RECIPE, file_format="onnx"), force=True)
    return path


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return save(tmp_path / "tiny.onnx")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """The same with a data file."""
    return save(tmp_path / "tiny.onnx", external_data=True)


def kinds(path: Path) -> list[tuple[str, str]]:
    return [(finding.what, finding.tensor) for finding in verify(path).findings]


# -- sound files -------------------------------------------------------------------------------------------------------


def test_the_reader_agrees_with_the_onnx_library(artifact: Path) -> None:
    model = onnx.load(artifact)
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString(deterministic=True) == artifact.read_bytes()
    header = read_header(artifact)
    assert {t.name: (t.dtype, t.shape) for t in header.tensors} == {
        name: (TYPES[a.dtype.str], a.shape) for name, a in TENSORS.items()
    }
    content = artifact.read_bytes()
    assert all(content[t.begin : t.end] == TENSORS[t.name].tobytes() for t in header.tensors)
    assert header.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert (header.ir_version, header.opsets, header.size) == (model.ir_version, {"": 20}, len(content))
    assert (header.inputs, header.outputs) == ({"x": "F32 batch×100"}, {"y": "F32 batch×3"})
    assert header.operators == {"Identity": 5, "Transpose": 1, "MatMul": 1}


def test_both_layouts_have_one_weights_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = save(tmp_path / "one.onnx"), save(tmp_path / "two.onnx", external_data=True)
    digests = [file_digests(path) for path in (one, two)]
    assert digests[0].weights_digest == digests[1].weights_digest
    assert digests[0].tensors == digests[1].tensors
    assert (tmp_path / "two.onnx.data").stat().st_size == 2400
    assert kinds(one) == kinds(two) == []
    assert main(["inspect", str(two)]) == 0
    assert "2 tensors in two.onnx.data" in capsys.readouterr().out


def test_verifying_and_inspecting_import_neither_torch_nor_onnx(artifact: Path) -> None:
    for command in ("verify", "inspect"):
        code = f"from zero_convert.cli import main\nimport sys\nassert main([{command!r}, {str(artifact)!r}]) == 0\n"
        code += "assert not {'torch', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_inspect_shows_signature_tensors_and_the_digest_made_anew(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = file_digests(artifact).weights_digest
    assert main(["inspect", str(artifact)]) == 0
    shown = capsys.readouterr().out
    for text in (f"zc1 {digest}", "ai.onnx 20", "x F32 batch×100", "y F32 batch×3", "5 Identity", "tiny", "a.weight"):
        assert text in shown
    assert main(["inspect", str(artifact), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["weights_digest"] == digest
    assert facts["outputs"] == {"y": "F32 batch×3"}
    assert len(facts["tensors"]) == len(TENSORS)


def test_without_a_receipt_the_digest_is_told(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = file_digests(artifact).weights_digest
    os.unlink(f"{artifact}.receipt.json")
    assert main(["verify", str(artifact)]) == 74
    assert digest in capsys.readouterr().err


def test_a_file_of_others_is_shown_without_a_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.STRING, [2], [b"a", b"b"])
    graph = onnx.GraphProto(name="g", initializer=[tensor])
    path = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "no digest: w: the file holds no values for it in a form that can be read" in shown
    assert "none: not written by zero-convert" in shown
    with pytest.raises(MalformedError, match="raw bytes"):
        file_digests(path)


def test_names_that_a_reader_would_refuse_are_not_written(tmp_path: Path) -> None:
    for name in ("two\nlines.onnx", "back\\slash.onnx"):
        with pytest.raises(UsageError, match="cannot name a data file like this"):
            save(tmp_path / name, external_data=True)
    for name in ("a\x07", "half \ud800"):
        with pytest.raises(ModelError, match="a tensor's name cannot be written"):
            save(tmp_path / "a.onnx", {name: TENSORS["half"]})
    assert os.listdir(tmp_path) == []


def test_a_model_that_no_reader_could_parse_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_LIMIT", 2000)
    with pytest.raises(ModelError, match=r"too large for protobuf.*--external-data"):
        save(tmp_path / "a.onnx")
    save(tmp_path / "a.onnx", external_data=True)


# -- damage ------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found_and_in_the_data_its_tensor_is_named(tmp_path: Path) -> None:
    small = {name: array[..., :2].copy() if array.ndim == 2 else array for name, array in TENSORS.items()}
    artifact = save(tmp_path / "tiny.onnx", small)
    content = artifact.read_bytes()
    owner = {offset: t.name for t in read_header(artifact).tensors for offset in range(t.begin, t.end)}
    assert len(owner) == 2 * 24 + 8 + 10 + 2
    for position in (position for position in range(len(content)) if position in owner or position % 4 == 0):
        for bit in (1 << position % 8, 128) if position not in owner else (1 << position % 8,):
            artifact.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
            try:
                found = kinds(artifact)
            except RefusedError:
                continue  # the flipped bit made it a path that leads out
            assert ("sha256", "") in found, position
            if position in owner:
                assert found == [("sha256", ""), ("values", owner[position]), ("weights digest", "")]
            else:
                assert all(what != "values" for what, _ in found)


def test_every_flipped_byte_of_a_data_file_names_its_tensor(outside: Path) -> None:
    beside = outside.parent / "tiny.onnx.data"
    content = beside.read_bytes()
    for position in range(0, len(content), 29):
        beside.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        name = "a.weight" if position < 1200 else "b.weight"
        assert kinds(outside) == [("values", name), ("weights digest", ""), ("data file", "")]


def test_a_data_file_that_is_shorter_longer_or_gone_is_found(outside: Path) -> None:
    beside = outside.parent / "tiny.onnx.data"
    content = beside.read_bytes()
    for changed in (content[:-1], content + b"\0", b""):
        beside.write_bytes(changed)
        assert [what for what, _ in kinds(outside)] == ["header"]
    beside.unlink()
    with pytest.raises(StorageError, match=r"cannot read the data file.*tiny\.onnx\.data"):
        verify(outside)


def test_swapped_renamed_missing_and_extra_tensors_are_named(artifact: Path) -> None:
    a, b = TENSORS["a.weight"], TENSORS["b.weight"]
    save(artifact, TENSORS | {"a.weight": b, "b.weight": a}, receipt=False)
    assert kinds(artifact)[:3] == [("sha256", ""), ("values", "a.weight"), ("values", "b.weight")]
    changed = {name: array for name, array in TENSORS.items() if name != "counter"}
    save(artifact, changed | {"new": b, "half": TENSORS["half"][:4]}, receipt=False)
    found = kinds(artifact)
    assert [each for each in found if each[1]] == [("missing", "counter"), ("shape", "half"), ("extra", "new")]
    assert ("recorded weights digest", "") in found


def test_a_recorded_digest_that_is_another_is_found(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = artifact.read_bytes()
    at = content.index(b"zc1:") + 4
    artifact.write_bytes(content[:at] + (b"0" if content[at : at + 1] != b"0" else b"1") + content[at + 1 :])
    assert kinds(artifact) == [("sha256", ""), ("recorded weights digest", "")]
    capsys.readouterr()
    assert main(["inspect", str(artifact)]) == 0
    assert re.search("the file records zc1:[0-9a-f]{64}: its tensors were changed", capsys.readouterr().out)


@pytest.mark.parametrize("cut", [1, 100, 1500])
def test_a_truncated_file_is_found(artifact: Path, cut: int) -> None:
    os.truncate(artifact, artifact.stat().st_size - cut)
    assert kinds(artifact) == [("size", ""), ("sha256", ""), ("header", "")]


# -- files that lie ----------------------------------------------------------------------------------------------------


def message(*fields: tuple[int, bytes | int]) -> bytes:
    made = b""
    for number, value in fields:
        if isinstance(value, int):
            made += varint(number << 3) + varint(value)
        else:
            made += opening(number, len(value)) + value
    return made


def write_model(path: Path, *initializers: bytes, graph: tuple[tuple[int, bytes | int], ...] = ()) -> Path:
    inner = message(*((5, tensor) for tensor in initializers), *graph)
    path.write_bytes(message((1, 10), (7, inner), (8, message((2, 20)))))
    return path


WEIGHT = ((1, 1), (2, 1), (8, b"w"))
LIES: dict[str, tuple[bytes, str]] = {
    "two datas": (message(*WEIGHT, (9, b"abcd"), (9, b"efgh")), "field 9 comes twice"),
    "two names": (message((1, 1), (2, 1), (8, b"w"), (8, b"v"), (9, b"abcd")), "field 8 comes twice"),
    "too short": (message((1, 2), (2, 1), (8, b"w"), (9, b"abcd")), "tensor 'w' with 4 bytes; expected 8 for F32"),
    "huge": (message((1, 1 << 62), (1, 1 << 62), (2, 1), (8, b"w"), (9, b"")), "fewer than 2\\*\\*63 bytes"),
    "negative": (message((1, (1 << 64) - 1), (2, 1), (8, b"w"), (9, b"abcd")), "no natural number"),
    "many sizes": (message(*[(1, 1)] * 65, (2, 1), (8, b"w"), (9, b"abcd")), "at most 64 sizes"),
    "no data": (message(*WEIGHT), "tensor 'w' has no data"),
    "no name": (message((1, 1), (2, 1), (9, b"abcd")), "names of their own"),
    "control": (message((1, 1), (2, 1), (8, b"\x1b[2J"), (9, b"abcd")), "control characters"),
    "segment": (message(*WEIGHT, (3, b"")), "in segments"),
    "data as number": (message(*WEIGHT, (9, 5)), "field 9 is no message"),
    "group": (message(*WEIGHT) + bytes([9 << 3 | 3]), "begins no field"),
    "endless": (b"\xff" * 12, "a number does not end"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_initializer_that_contradicts_itself_is_malformed(lie: str, tmp_path: Path) -> None:
    tensor, expected = LIES[lie]
    with pytest.raises(MalformedError, match=expected):
        read_header(write_model(tmp_path / "a.onnx", tensor))


def test_readers_must_not_disagree_on_which_graph_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(message((1, 10), (7, b""), (8, message((2, 20))), (7, b"")))
    with pytest.raises(MalformedError, match="field 7 comes twice"):
        read_header(path)
    weight = message(*WEIGHT, (9, b"abcd"))
    with pytest.raises(MalformedError, match="initializer 'w', number 2"):
        read_header(write_model(path, weight, weight))
    with pytest.raises(MalformedError, match="a sparse initializer"):
        read_header(write_model(path, weight, graph=((15, b""),)))
    for content in (b"", b"{}", b"\x08\x0a"):
        path.write_bytes(content)
        with pytest.raises(MalformedError):
            read_header(path)


def external(location: str, offset: str = "0", length: str = "4") -> bytes:
    pairs = (("location", location), ("offset", offset), ("length", length))
    return message(*WEIGHT, *((13, message((1, k.encode()), (2, v.encode()))) for k, v in pairs), (14, 1))


def test_data_is_looked_for_in_the_models_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "inner").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_bytes(b"abcd")
    (folder / "link").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path)
    path = folder / "a.onnx"
    for location in (str(secret), "../secret", "inner/../../secret", "link", "out/secret", "..\\secret", ""):
        with pytest.raises(RefusedError, match="outside of the model's folder") as caught:
            read_header(write_model(path, external(location)))
        assert caught.value.exit_code == 4
    (folder / "inner" / "data").write_bytes(b"abcd")
    (folder / "sibling").symlink_to(folder / "inner" / "data")
    for location in ("inner/data", "sibling"):
        assert file_digests(write_model(path, external(location))).tensors["w"].shape == (1,)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        ("8", "4", "ends outside of its data file"),
        ("-4", "4", "impossible offset"),
        ("0", "9" * 40, "impossible offset"),
        ("0", "8", "tensor 'w' with 8 bytes"),
        ("4", "4", "leaves a hole before it"),
        ("0", "4", "bytes follow the last tensor"),
    ],
)
def test_offsets_and_lengths_must_fit_the_data_file(offset: str, length: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"abcdefgh")
    path = write_model(tmp_path / "a.onnx", external("data", offset, length))
    with pytest.raises(MalformedError, match=expected):
        file_digests(path)


def test_a_data_file_that_is_a_folder_or_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(ZeroConvertError):
            file_digests(write_model(tmp_path / "a.onnx", external(name)))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_model_or_malformed(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(message((1, 10), (8, message((2, 20)))) + opening(7, len(content)) + content)
    try:
        header = read_header(path)
    except (MalformedError, RefusedError, StorageError):
        return
    assert header.size == path.stat().st_size


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_are_written_as_protobuf_writes_them(value: int) -> None:
    assert onnx.TensorProto.FromString(b"\x10" + varint(value & 0x7FFFFFFF)).data_type == value & 0x7FFFFFFF
    parsed = onnx.TensorProto.FromString(b"\x08" + varint(value)).dims[0]
    assert parsed == struct.unpack("<q", struct.pack("<Q", value))[0]


def test_packed_numbers_are_numbers(tmp_path: Path) -> None:
    tensor = message((1, varint(2) + varint(300)), (2, 1), (8, b"w"), (9, bytes(2400)))
    (read,) = read_header(write_model(tmp_path / "a.onnx", tensor)).tensors
    assert read.shape == (2, 300)


def test_a_message_never_reads_outside_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(opening(1, 10) + b"abcdefghij")
    reading: Callable[[int], list[int]]
    with path.open("rb") as file:
        reading = lambda end: [field.end for field in Message(file, 0, end, "here").fields()]  # noqa: E731
        assert reading(12) == [12]
        for end in range(1, 12):
            with pytest.raises(MalformedError, match="here"):
                reading(end)
