"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from zero_convert import cli


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("resnet50", …)` is the command line `zero-convert resnet50 …` in the current folder."""

    def call(*arguments: str) -> Ran:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
