"""Starting is cheap: whatever does not need torch does not import it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import zero_convert
from zero_convert import cli
from zero_convert.exporters import safetensors

HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "timm", "transformers"}


def _modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    report = "import sys, json\nprint(json.dumps(sorted({m.split('.')[0] for m in sys.modules})), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["convert", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    modules = _modules_after(f"from zero_convert.cli import main\nassert main({arguments!r}) == 0")
    assert "typer" in modules
    assert not modules & (HEAVY | {"numpy"})


@pytest.mark.parametrize("arguments", [["schemes"], ["schemes", "zero-2022"], ["inspect", "FILE"]])
def test_listing_schemes_and_reading_a_file_do_not_import_torch(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    with file.open("wb") as stream:
        safetensors.write(stream, [safetensors.Entry("a", "F32", (2,), lambda: np.zeros(2, "<f4"))])
    arguments = [str(file) if argument == "FILE" else argument for argument in arguments]
    assert not _modules_after(f"from zero_convert.cli import main\nassert main({arguments!r}) == 0") & HEAVY


def test_verifying_and_the_package_itself_do_not_import_torch() -> None:
    assert (
        not _modules_after("import zero_convert, zero_convert.artifacts.verify, zero_convert.artifacts.receipt") & HEAVY
    )


def test_help_costs_at_most_three_times_the_import_of_typer() -> None:
    fastest = {"import typer": float("inf"), "from zero_convert.cli import main; main(['--help'])": float("inf")}
    for _ in range(5):
        for code in fastest:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
            fastest[code] = min(fastest[code], time.perf_counter() - start)
    typer, help_ = fastest.values()
    assert help_ <= 3 * typer


def test_a_checkout_that_is_not_installed_has_a_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert zero_convert.__version__ == "0+checkout"
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == "zero-convert 0+checkout\n"
