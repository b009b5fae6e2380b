"""`lock` records, `check` finds whatever moved and writes nothing, in every format."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.command_line import Ran, Run, runner
from tests.test_cli import MODELS, SMALL
from zero_convert.artifacts.lock import read_lock, spell

QUICK = (*SMALL, "--validate", "none")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a project with `nets/net.py`."""
    monkeypatch.chdir(tmp_path)
    Path("nets").mkdir()
    Path("nets/net.py").write_text(MODELS)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: Path) -> Run:
    return runner(capsys)


def lock(run: Run, *more: str, out: str = "a.safetensors") -> Ran:
    ran = run("lock", "nets/net.py:Net", "--out", out, *QUICK, *more)
    assert ran.code == 0, ran.err
    return ran


def replace(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def tree() -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(Path().rglob("*")) if path.is_file()
    }


# ---------------------------------------------------------------------------------------------------------------------
# lock


def test_lock_converts_writes_and_records_and_check_finds_the_same(run: Run) -> None:
    ran = lock(run)
    assert "locked in zero.lock, 1 entry" in ran.err
    assert re.fullmatch(
        r"[0-9a-f]{64}  a\.safetensors\n# start zs1 [0-9a-f]{64}\n# weights zc1 [0-9a-f]{64}\n", ran.out
    )
    assert run("verify", "a.safetensors").code == 0
    (entry,) = read_lock("zero.lock").entries
    assert (entry.model, entry.inputs) == ("nets/net.py:Net", ("2x3x8x8",))
    assert entry.files[0].files[0].sha256 == ran.out[:64]
    before = tree()
    ran = run("check", "--trust")
    assert (ran.code, ran.out) == (0, "a.safetensors: OK\n")
    assert "1 conversion in" in ran.err and "1 the same" in ran.err
    assert tree() == before


def test_check_writes_no_file_and_asks_no_network(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("check asked the network")

    Path("nets/helper.py").write_text("CLASSES = 3\n")
    replace("nets/net.py", "import os\n", "import os\nfrom helper import CLASSES\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    lock(run)
    shutil.rmtree("nets/__pycache__")  # which an import leaves
    sys.modules.pop("helper")
    before = tree()
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert run("check", "--trust").code == 0
    assert sys.modules.pop("helper").__file__ == str(folder / "nets" / "helper.py")
    assert tree() == before
    replace("nets/net.py", "8, classes)", "8, 5)")
    before = tree()
    for name in ("text", "json", "github", "junit", "sarif"):
        sys.modules.pop("helper", None)
        assert run("check", "--trust", "--format", name).code == 1
        assert tree() == before


def test_the_lock_holds_nothing_of_the_machine_and_of_the_time(run: Run, folder: Path) -> None:
    import torch

    lock(run)
    text = Path("zero.lock").read_text()
    for word in (
        str(folder),
        os.path.expanduser("~") + "/",
        torch.__version__,
        sys.version.split()[0],
        "zero_convert_file",
    ):
        assert word not in text
    first = Path("zero.lock").read_bytes()
    lock(run, "--force")
    assert Path("zero.lock").read_bytes() == first


def test_the_lock_means_the_same_from_every_folder(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(run)
    here = Path("zero.lock").read_bytes()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run("check", "../zero.lock", "--trust").code == 0
    again = ("lock", str(folder / "nets" / "net.py") + ":Net", "--lock", "../zero.lock", "--out", "../a.safetensors")
    assert run(*again, *QUICK, "--force").code == 0
    assert (folder / "zero.lock").read_bytes() == here
    assert os.listdir() == []


def test_several_files_of_one_conversion_are_one_entry_and_other_options_another(run: Run) -> None:
    lock(run, "--out", "nets/../b.safetensors")
    lock(run, "--scheme", "zero-2022", out="c.safetensors")
    lock(run, out="d.safetensors")
    entries = read_lock("zero.lock").entries
    assert [[file.path for file in entry.files] for entry in entries] == [
        ["a.safetensors", "b.safetensors", "d.safetensors"],
        ["c.safetensors"],
    ]
    assert run("check", "--trust").out == "a.safetensors, b.safetensors, d.safetensors: OK\nc.safetensors: OK\n"
    lock(run, "--dtype", "bfloat16", "--force", out="c.safetensors")
    assert [entry.identity.recipe.dtype for entry in read_lock("zero.lock").entries] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (2, "nothing to lock", ("nets/net.py:Net",)),
        (2, "nothing to lock", ("--out", "a.safetensors")),
        (2, "--force", ("nets/net.py:Net", "--out", "old.safetensors")),
        (2, "below", ("nets/net.py:Net", "--out", "../new.safetensors")),
        (2, "stdout", ("nets/net.py:Net", "--out", "-")),
        (2, "safetensors", ("nets/net.py:Net", "--out", "zero.lock")),
        (2, "the lock itself", ("nets/net.py:Net", "--out", "zero.lock", "--format", "safetensors", "--force")),
        (2, "--update", ("nets/net.py:Net", "--update")),
        (2, "--update", ("--update", "--out", "x.safetensors")),
        (2, "mixing", ("nets/net.py:Net", "--out", "a.safetensors", "--set", "mixin=signs")),
        (4, "not JSON", ("nets/net.py:Net", "--out", "nets/a.safetensors", "--lock", "nets/net.py")),
        (74, "does not exist", ("nets/net.py:Net", "--out", "a.safetensors", "--lock", "missing/zero.lock")),
        (74, "cannot read the lock", ("--update", "--lock", "missing.lock")),
        (74, "a folder", ("nets/net.py:Net", "--out", "a.safetensors", "--lock", "nets")),
        (3, "no such dataset", ("nets/net.py:fails", "--out", "a.safetensors")),
        (1, "finite", ("nets/net.py:LogarithmOfZero", "--out", "a.safetensors", *SMALL)),
    ],
)
def test_what_cannot_be_locked_leaves_lock_and_files_alone(
    run: Run, code: int, says: str, arguments: tuple[str, ...]
) -> None:
    Path("old.safetensors").write_bytes(b"somebody's work")
    Path("zero.lock").write_text('{"zero.lock": 1, "entries": []}')
    before = tree()
    ran = run("lock", *arguments)
    assert ran.code == code, ran.err
    assert says in ran.err
    assert ran.err.count("error: ") == 1
    assert tree() == before


# ---------------------------------------------------------------------------------------------------------------------
# check


def test_drift_of_the_source_names_the_first_thing_and_the_first_tensor(run: Run) -> None:
    lock(run)
    replace("nets/net.py", "nn.Linear(8, classes)", "nn.Linear(8, classes, bias=False)")
    before = tree()
    ran = run("check", "--trust")
    assert (ran.code, ran.out) == (1, "a.safetensors: DRIFT\n")
    lines = [line.strip() for line in ran.err.splitlines()]
    assert lines[0].startswith("source: fingerprint: got ")
    assert lines[1] == "tensor 'fc.bias': missing: got no such tensor, expected F32 [3]"
    assert "`zero-convert lock --update` records what they are now." in lines
    assert tree() == before


@pytest.mark.parametrize(
    ("old", "new", "first"),
    [
        ('"mixing": "none"', '"mixing": "signs"', "architecture: digest"),
        ('"dtype": "float32"', '"dtype": "bfloat16"', "tensor "),
        ('"source": "net.Net"', '"source": "net.Old"', "source 'source': value: got \"net.Net\""),
        (
            '"identity", "8"',
            '"max-pool", "8"',
            "edit 'stem_skip stem': source: got x identity 8, expected x max-pool 8",
        ),
        (
            '"kind": "stem_skip", "site": "stem"',
            '"kind": "stem_skip", "site": "steam"',
            "edit 'stem_skip steam': missing",
        ),
        ('"size": 8', '"size": 9', "file 'a.safetensors': size"),
    ],
)
def test_a_lock_that_says_something_else_is_drift_with_its_name(run: Run, old: str, new: str, first: str) -> None:
    lock(run)
    replace("zero.lock", old, new)
    ran = run("check", "--trust")
    assert ran.code == 1
    assert ran.err.strip().startswith(first), ran.err


def test_code_that_the_lock_names_runs_only_with_trust(run: Run) -> None:
    lock(run)
    Path("nets/net.py").write_text("open('ran', 'w')\n" + MODELS)
    for arguments in (("check",), ("lock", "--update")):
        ran = run(*arguments)
        assert ran.code == 4
        assert "--trust" in ran.err
        assert not Path("ran").exists()


def test_every_entry_is_looked_at_and_the_highest_code_is_the_answer(run: Run) -> None:
    for index, model in enumerate(("Net", "Noisy", "WrongChannels", "Net")):
        Path("nets/net.py").write_text(MODELS.replace("x[:, :2]", "x"))
        made = run(
            "lock",
            f"nets/net.py:{model}",
            "--out",
            f"{index}.safetensors",
            *QUICK,
            "--set",
            f"mixing={('none', 'signs')[index % 2]}",
        )
        assert made.code == 0, made.err
    Path("nets/net.py").write_text(MODELS)
    replace("zero.lock", '"mixing": "signs"', '"mixing": "permute"')
    ran = run("check", "--trust")
    assert ran.code == 3
    assert [line.split(": ")[1] for line in ran.out.splitlines()] == ["OK", "DRIFT", "NOT CHECKED", "DRIFT"]
    assert "printed by the model" not in ran.out
    assert "channels" in ran.err
    assert "4 conversions" in ran.err and "1 the same, 2 moved, 1 failed" in ran.err


@pytest.mark.parametrize(("text", "code"), [(None, 74), ("{", 4), ("<<<<<<< HEAD\n", 4)])
def test_a_lock_that_cannot_be_read_is_one_message(run: Run, text: str | None, code: int) -> None:
    if text is not None:
        Path("zero.lock").write_text(text)
    for arguments in ((), ("--format", "junit"), ("--format", "github")):
        ran = run("check", *arguments)
        assert (ran.code, ran.out) == (code, "")
        assert ran.err.count("error: ") == 1
    assert json.loads(run("check", "--json").out)["exit_code"] == code
    assert json.loads(run("check", "--format", "json").out)["exit_code"] == code
    assert json.loads(run("check", "--format=json").out)["exit_code"] == code


def test_an_empty_lock_is_sound(run: Run) -> None:
    Path("zero.lock").write_text('{"zero.lock": 1, "entries": []}')
    assert run("check").code == 0


# ---------------------------------------------------------------------------------------------------------------------
# lock --update


def test_update_writes_what_moved_and_only_that(run: Run) -> None:
    lock(run)
    lock(run, "--scheme", "zero-2022", out="c.safetensors")
    before = tree()
    ran = run("lock", "--update", "--trust", "--validate", "none")
    assert (ran.code, ran.out) == (0, "a.safetensors: OK\nc.safetensors: OK\n")
    assert tree() == before
    Path("c.safetensors").unlink()
    assert run("lock", "--update", "--trust", "--validate", "none").code == 0
    after = tree()
    assert after["c.safetensors"][1] == before["c.safetensors"][1]
    assert after["a.safetensors"] == before["a.safetensors"]
    replace("nets/net.py", "nn.Linear(8, classes)", "nn.Linear(8, classes, bias=False)")
    ran = run("lock", "--update", "--trust", "--validate", "none", "--json")
    assert ran.code == 0, ran.out
    assert [row["status"] for row in json.loads(ran.out)["entries"]] == ["drift", "drift"]
    assert run("check", "--trust").code == 0
    assert run("verify", "a.safetensors", "c.safetensors").code == 0


def test_an_update_that_fails_leaves_files_and_lock_in_step(run: Run) -> None:
    lock(run)
    lock(run, "--scheme", "zero-2022", out="c.safetensors")
    replace("nets/net.py", "nn.Linear(8, classes)", "nn.Linear(8, classes, bias=False)")
    replace("zero.lock", '"scheme": "zero-2022"', '"scheme": "zero-1999"')
    ran = run("lock", "--update", "--trust", "--validate", "none")
    assert ran.code == 2
    assert "zero-1999" in ran.err
    entries = read_lock("zero.lock").entries
    assert "fc.bias" not in entries[0].identity.tensors
    assert "fc.bias" in entries[1].identity.tensors
    assert run("verify", "a.safetensors", "c.safetensors").code == 0


# ---------------------------------------------------------------------------------------------------------------------
# formats for programs


@pytest.fixture
def drifted(run: Run, folder: Path) -> Run:
    """Three entries: one sound, one moved, one that cannot be made, with signs in its name that formats escape."""
    lock(run)
    lock(run, "--scheme", "zero-2022", out="50%, b:<&>.safetensors")
    lock(run, "--dtype", "float16", out="c.safetensors")
    replace("zero.lock", '"dtype": "float16"', '"dtype": "bfloat16"')
    replace("zero.lock", '"scheme": "zero-2022"', '"scheme": "zero-1999"')
    return run


def test_json_has_every_difference(drifted: Run) -> None:
    ran = drifted("check", "--trust", "--format", "json")
    assert ran.code == 2
    answer = json.loads(ran.out)
    timeless = [re.sub(r'"seconds": .*', "", text) for text in (ran.out, drifted("check", "--trust", "--json").out)]
    assert timeless[0] == timeless[1]
    assert [(row["name"], row["status"]) for row in answer["entries"]] == [
        ("50%, b:<&>.safetensors", "error"),
        ("a.safetensors", "ok"),
        ("c.safetensors", "drift"),
    ]
    assert answer["exit_code"] == 2
    assert "zero-1999" in answer["entries"][0]["error"]["message"]
    assert {"kind": "tensor", "name": "bn.bias", "what": "dtype", "got": "BF16", "expected": "F16"} in answer[
        "entries"
    ][2]["differences"]


def test_junit_is_xml_with_a_case_for_each_entry(drifted: Run) -> None:
    root = ET.fromstring(drifted("check", "--trust", "--format", "junit").out)
    (suite,) = root
    assert root.tag == "testsuites" and suite.tag == "testsuite"
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    found = {case.get("name"): [child.tag for child in case] for case in suite}
    assert found == {"50%, b:<&>.safetensors": ["error"], "a.safetensors": [], "c.safetensors": ["failure"]}
    failure = suite[2][0]
    assert failure.get("message", "").startswith("tensor 'block.bn1.bias': dtype: got BF16, expected F16, and ")
    assert "file 'c.safetensors': size" in (failure.text or "")


def test_junit_leaves_out_what_xml_cannot_hold() -> None:
    from zero_convert.cli.check_formats.junit import _clean

    text = _clean("x\x1b[0m\x00\ufffe\ud800y")
    assert ET.fromstring(f"<a>{text}</a>").text == "x\ufffd[0m\ufffd\ufffd\ufffdy"


def test_github_annotations_point_into_the_lock_and_are_escaped(drifted: Run) -> None:
    ran = drifted("check", "--trust", "--format", "github")
    lines = ran.out.splitlines()
    commands = [re.fullmatch(r"::error file=([^,:]+),line=(\d+),title=([^,:]+)::(.+)", line) for line in lines]
    assert [command[3] if command else None for command in commands] == [
        "50%25%2C b%3A<&>.safetensors could not be checked",
        "c.safetensors moved",
    ]
    assert commands[1] is not None
    text = Path("zero.lock").read_text().splitlines()
    assert '"block.bn1.bias"' in text[int(commands[1][2]) - 1]
    assert "%0Aweights: digest" in commands[1][4]
    assert "a.safetensors: OK" in ran.err


def test_github_says_it_where_nothing_moved(run: Run) -> None:
    lock(run)
    assert run("check", "--trust", "--format", "github").out == (
        "::notice title=zero-convert check::1 conversion made again, the same as in zero.lock\n"
    )


def test_sarif_has_what_the_standard_requires(drifted: Run) -> None:
    log = json.loads(drifted("check", "--trust", "--format", "sarif").out)
    assert (log["version"], log["$schema"]) == ("2.1.0", "https://json.schemastore.org/sarif-2.1.0.json")
    (one,) = log["runs"]
    driver = one["tool"]["driver"]
    assert driver["name"] == "zero-convert"
    rules = [rule["id"] for rule in driver["rules"]]
    assert len(set(rules)) == len(rules)
    assert all(rule["shortDescription"]["text"] for rule in driver["rules"])
    assert [result["ruleId"] for result in one["results"]] == [
        "drift/error",
        "drift/tensor",
        "drift/weights",
        "drift/file",
    ]
    lines = Path("zero.lock").read_text().splitlines()
    for result in one["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "zero.lock"
        assert 1 <= place["region"]["startLine"] <= len(lines)
    where = one["results"][1]["locations"][0]["physicalLocation"]["region"]["startLine"]
    assert '"block.bn1.bias"' in lines[where - 1]


def test_a_lock_that_somebody_laid_out_anew_points_to_its_first_line(drifted: Run) -> None:
    Path("zero.lock").write_text(json.dumps(json.loads(Path("zero.lock").read_text()), indent=4))
    assert ",line=1," in drifted("check", "--trust", "--format", "github").out
    assert spell(read_lock("zero.lock")).count("\n") > 10


def test_an_unknown_format_is_a_usage_error(run: Run) -> None:
    ran = run("check", "--format", "xml")
    assert ran.code == 2
    assert "sarif" in ran.err


def test_a_lock_of_a_library_needs_no_trust(run: Run) -> None:
    shutil.rmtree("nets")
    made = run(
        "lock",
        "squeezenet1_1",
        "--out",
        "s.safetensors",
        "--input",
        "1x3x64x64",
        "--validate",
        "none",
        "--device",
        "cpu",
    )
    assert made.code == 0, made.err
    assert run("check").out == "s.safetensors: OK\n"
