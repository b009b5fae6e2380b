"""`inspect FILE`: what a person and a program are told, escaped, within the window, at once even for large files."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from benchmarks.fuzz.corpus import FORMATS, sound
from tests.bombs import framed
from zero_convert import inspection, readers
from zero_convert.cli import main
from zero_convert.formulas.hadamard import sylvester
from zero_convert.inspection.tensor_values import describe

PACKAGE = Path(inspection.__file__).parent
SCHEMA = json.loads((PACKAGE / "inspect.schema.json").read_text("utf-8"))


def check(value: Any, schema: Any, where: str = "$") -> None:
    """As much of JSON Schema as ours uses; a keyword that is not known here fails."""
    known = {"type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "const", "minimum"}
    known |= {"pattern", "$ref", "description", "$schema", "title", "$defs"}
    assert schema.keys() <= known, schema.keys() - known
    if "$ref" in schema:
        return check(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], where)
    if "anyOf" in schema:
        errors = []
        for each in schema["anyOf"]:
            try:
                return check(value, each, where)
            except AssertionError as error:
                errors.append(error)
        raise AssertionError(f"{where}: none of the kinds fits: {errors}")
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in schema and schema["type"] == "null":
        assert value is None, where
    elif "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), f"{where}: {value!r} is no {schema['type']}"
        assert schema["type"] in ("boolean",) or not isinstance(value, bool), where
    assert value in schema.get("enum", [value]) and value == schema.get("const", value), where
    assert "minimum" not in schema or value >= schema["minimum"], where
    if isinstance(value, dict):
        assert not {*schema.get("required", ())} - value.keys(), where
        for key, inner in value.items():
            rest = schema.get("additionalProperties", True)
            rule = schema.get("properties", {}).get(key, rest)
            assert rule is not False, f"{where}: {key} is not in the schema"
            if isinstance(rule, dict):
                check(inner, rule, f"{where}.{key}")
    elif isinstance(value, list) and "items" in schema:
        for index, inner in enumerate(value):
            check(inner, schema["items"], f"{where}[{index}]")
    return None


@pytest.mark.parametrize("kind", FORMATS)
def test_the_json_of_every_format_fits_the_published_schema(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in sound(kind):
        (tmp_path / "f.pt").write_bytes(data)
        for options in ([], ["--no-digest", "--no-values"]):
            assert main(["inspect", str(tmp_path / "f.pt"), "--json", *options]) == 0
            facts = json.loads(capsys.readouterr().out)
            check(facts, SCHEMA)
            assert (facts["weights_digest"] is None) == bool(options)
            assert all((tensor["values"] is None) == bool(options or tensor["tie"]) for tensor in facts["tensors"])


def test_the_checker_of_the_schema_can_fail() -> None:
    for wrong in ({}, {"exit_code": 1}, []):
        with pytest.raises(AssertionError):
            check(wrong, SCHEMA)


MATRICES: dict[str, tuple[Any, str]] = {
    "zero": (np.zeros((3, 4), "<f4"), "zero"),
    "ones": (np.ones(5, "<f4"), "ones"),
    "constant": (np.full((2, 2), 0.25, "<f4"), "constant 0.25"),
    "identity": (np.eye(5, dtype="<f4"), "identity"),
    "partial": (np.eye(3, 5, dtype="<f2"), "partial identity"),
    "not quite": (np.eye(3, dtype="<f4") * 2, "mean 0.667, std 0.943, 0 to 2"),
    "hadamard": (sylvester(np.arange(5), np.arange(8)).astype("<f4") * np.float32(0.5), "hadamard ±0.5"),
    "signs": (np.array([[1, 1], [1, 1], [-1, 1]], "<f4"), "signs ±1"),
    "nan": (np.array([np.nan, np.inf, 1, 3], "<f4"), "mean 2, std 1, 1 to 3; 1 NaN; 1 infinite"),
    "empty": (np.empty((0, 3), "<f4"), "empty"),
    "scalar": (np.array(7, "<i8"), "constant 7"),
}


@pytest.mark.parametrize("name", MATRICES)
def test_values_are_called_what_they_are(name: str) -> None:
    array, expected = MATRICES[name]
    dtype = {"<f4": "F32", "<f2": "F16", "<i8": "I64"}[array.dtype.str]
    data = array.tobytes()
    for step in (len(data) or 1, 8):
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        assert str(describe(dtype, array.shape, pieces)) == expected


def test_a_kernel_is_named_by_the_matrix_at_its_tap() -> None:
    kernel = np.zeros((4, 8, 3, 3), "<f4")
    kernel[:, :, 1, 1] = np.eye(4, 8)
    assert str(describe("F32", kernel.shape, [kernel.tobytes()])) == "partial identity at tap (1, 1)"
    kernel[:, :, 1, 1] = sylvester(np.arange(4), np.arange(8)) * 0.25
    assert str(describe("F32", kernel.shape, [kernel.tobytes()])) == "hadamard ±0.25 at tap (1, 1)"
    kernel[0, 0, 0, 0] = 1e-9
    assert describe("F32", kernel.shape, [kernel.tobytes()]).kind == "other"


def test_numbers_of_every_type_are_torchs() -> None:
    from tests.model_files import TORCH_TYPES

    raw = torch.arange(256, dtype=torch.uint8)
    for name, dtype in TORCH_TYPES.items():
        if name in ("BOOL", "F8_E8M0") or name.startswith("C"):
            continue
        values = raw.view(dtype).double().numpy() if name not in ("U16", "U32", "U64") else raw.view(dtype).numpy()
        found = describe(name, values.shape, [bytes(raw.numpy())])
        finite = np.asarray(values, np.float64)[np.isfinite(np.asarray(values, np.float64))]
        assert (found.nan, found.min, found.max) == (int(np.isnan(values).sum()), finite.min(), finite.max()), name


def test_equal_tensors_and_ties_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.arange(6.0)
    torch.save({"a": weight, "b": weight, "c": weight.clone(), "z": torch.zeros(6)}, tmp_path / "m.pt")
    assert main(["inspect", str(tmp_path / "m.pt")]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["b"].endswith("tied to a") and lines["c"].endswith("; = a") and lines["z"].endswith("zero")
    assert "4, 1 of them tied; 18 values, 72 bytes" in lines["tensors"]


HARMFUL = "\x1b]0;x\x07[bold red]|`x`</td><script>"


def test_whatever_a_file_says_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = {"__metadata__": {"format": HARMFUL, "k\u202e|": "v\n# title"}}
    header["[red]a|`b"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}  # type: ignore[dict-item]
    path = tmp_path / "x.safetensors"
    path.write_bytes(framed(json.dumps(header).encode(), b"\0"))
    for options in ([], ["-v"], ["--markdown"], ["--json"]):
        assert main(["inspect", str(path), *options]) == 0
        shown = capsys.readouterr().out
        assert not any(character in shown for character in "\x1b\x07\u202e")
        if options == ["--json"]:
            assert json.loads(shown)["metadata"]["format"] == HARMFUL
        else:
            assert "\\x1b]0;x\\x07[bold red]" in shown and "[red]a" in shown and "\n# title" not in shown
    assert main(["inspect", str(path), "--markdown"]) == 0
    for line in capsys.readouterr().out.splitlines()[2:]:
        assert not line or line.replace("\\|", "").count("|") in (3, 6)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_fits_the_window(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(*(nn.Linear(3, 3) for _ in range(40)))
    state = {f"a.rather.long.name.of.some.layer.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "m.pt")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["inspect", str(tmp_path / "m.pt")]) == 0
    lines = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert "and 40 more; -v lists them" in lines[-1]


def test_a_file_of_10_gb_is_shown_in_half_a_second(tmp_path: Path) -> None:
    count = 2_500_000_000
    header = json.dumps({"big": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    path = tmp_path / "big.safetensors"
    path.write_bytes(framed(header))
    os.truncate(path, path.stat().st_size + 4 * count)
    best, times = float("inf"), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import typer, rich.table"], check=True)
        middle = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "zero_convert", "inspect", str(path)], capture_output=True, text=True, check=True
        )
        end = time.perf_counter()
        best, times = min(best, end - middle), min(times, (end - middle) / (middle - start))
    assert "10.0 GB" in done.stdout and "--digest" in done.stdout
    assert best < 0.5 or times < 4  # a busy machine slows the start as well


def test_limits_refuse_and_options_raise_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.safetensors"
    save_file({f"layer{i}": np.zeros(1, "<f4") for i in range(300)}, path)
    assert main(["inspect", str(path), "--max-tensors", "299"]) == 4
    assert "--max-tensors raises the limit" in capsys.readouterr().err
    assert main(["inspect", str(path), "--max-tensors", "300"]) == 0
    assert main(["inspect", str(path), "--max-bytes", "10K"]) == 4
    assert "--max-bytes raises the limit" in capsys.readouterr().err
    assert main(["inspect", str(path), "--max-bytes", "1M"]) == 0
    assert main(["inspect", str(path), "--max-bytes", "much"]) == 2
    assert main(["inspect", "resnet18", "--markdown"]) == 2


def test_views_that_repeat_the_file_are_not_read(tmp_path: Path) -> None:
    base = torch.zeros(1 << 16)
    torch.save({str(i): base[i:] for i in range(200)}, tmp_path / "m.pt")
    contents = readers.read(tmp_path / "m.pt")
    limits = readers.Limits(max_bytes=1 << 20)
    from zero_convert.errors import RefusedError

    with pytest.raises(RefusedError, match="too often"):
        inspection.survey(contents, digest=True, limits=limits)
    assert inspection.survey(contents, digest=False, values=False, limits=limits).digest is None


def test_the_name_of_a_file_cannot_command_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names come out of archives as well; an error shows them."""
    path = tmp_path / "\x1b]0;owned\x07\u202e\n.pt"
    path.write_bytes(b"no model")
    assert main(["inspect", str(path)]) == 4
    said = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07\\u202e\\x0a.pt" in said
    assert not {"\x1b", "\x07", "\u202e"} & set(said)


def test_options_that_mean_nothing_for_the_target_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "m.safetensors")
    for arguments, said in (
        ([path, "--input", "1x3"], "--input is for a model"),
        ([path, "--model-arg", "a=1"], "--model-arg is for a model"),
        ([path, "--json", "--markdown"], "one output at a time"),
        (["resnet18", "--digest"], "--digest is for a file"),
        (["resnet18", "--max-bytes", "1M"], "--max-bytes is for a file"),
        (["resnet18", "--markdown"], "--markdown is for a file"),
    ):
        assert main(["inspect", *arguments]) == 2
        captured = capsys.readouterr()
        assert said in captured.err + captured.out


def test_what_is_no_file_is_not_taken_for_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 74
    assert "no regular file" in capsys.readouterr().err
