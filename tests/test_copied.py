"""What users copy works: the commands of the workflow and of the pre-commit hooks do what they are for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_line import Run, runner

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / "examples" / "github-workflow.yml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"


def steps() -> list[dict[str, Any]]:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow[True]) == {"pull_request", "push"}  # YAML 1.1 reads the key `on` as true
    (job,) = workflow["jobs"].values()
    assert job["runs-on"].startswith("ubuntu-")
    found: list[dict[str, Any]] = job["steps"]
    assert all(("uses" in step) != ("run" in step) for step in found)
    return found


def commands() -> list[list[str]]:
    """Every command line of ours that the workflow and the hooks run."""
    lines = [step["run"] for step in steps() if "run" in step] + [
        hook["entry"] for hook in yaml.safe_load(HOOKS.read_text())
    ]
    return [words[1:] for words in map(shlex.split, lines) if words[0] == "zero-convert"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A repository with a small lock in it."""
    monkeypatch.chdir(tmp_path)

    run = runner(capsys)
    small = ("--model-arg", "num_classes=3", "--input", "1x3x64x64", "--validate", "none", "--device", "cpu", "-q")
    made = run("lock", "squeezenet1_1", "--out", "start.safetensors", *small)
    assert made.code == 0, made.err
    return run


def test_the_commands_that_users_copy_pass_on_a_sound_lock_and_fail_on_another(project: Run) -> None:
    assert [words[0] for words in commands()] == ["check", "check", "verify"]
    for words in commands():
        ran = project(*words)
        assert ran.code == 0, (words, ran.err)
    lock = Path("zero.lock")
    lock.write_text(re.sub('"size": [0-9]+', '"size": 1', lock.read_text()))
    for words in commands():
        assert project(*words).code == 1, words
    assert project(*commands()[0]).out.startswith("::error file=zero.lock,line=")


def test_hooks_have_what_pre_commit_asks_for() -> None:
    hooks = yaml.safe_load(HOOKS.read_text())
    assert [hook["id"] for hook in hooks] == ["zero-convert-check", "zero-convert-verify"]
    for hook in hooks:
        assert {"id", "name", "entry", "language", "files", "pass_filenames"} <= set(hook)
        assert hook["language"] == "system" and hook["pass_filenames"] is False
        assert re.search(hook["files"], "models/zero.lock") and re.search(hook["files"], "zero.lock")
        assert not re.search(hook["files"], "zero.locksmith")
    assert re.search(hooks[0]["files"], "models/net.py")
    assert re.search(hooks[1]["files"], "zero_r50.safetensors")
