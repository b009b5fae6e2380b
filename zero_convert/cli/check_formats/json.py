"""One JSON object: every entry with every difference."""

from __future__ import annotations

import json
from typing import Any

from zero_convert.replay import Answer

from . import Findings


def report(findings: Findings) -> str:
    """{"lock", "entries": [{"name", "files", "model", "status", "differences", "error", "seconds"}], "exit_code"}."""
    entries = [_entry(answer) for answer in findings.answers]
    return json.dumps({"lock": findings.lock, "entries": entries, "exit_code": findings.exit_code}, indent=2)


def _entry(answer: Answer) -> dict[str, Any]:
    names = ("kind", "name", "what", "got", "expected")
    row: dict[str, Any] = {
        "name": answer.entry.name,
        "files": [file.path for file in answer.entry.files],
        "model": answer.entry.model,
        "status": ("error" if answer.error else "drift") if answer.exit_code else "ok",
        "exit_code": answer.exit_code,
        "differences": [{name: getattr(one, name) for name in names} for one in answer.differences],
        "seconds": round(answer.seconds, 3),
    }
    if answer.error is not None:
        row["error"] = {"type": type(answer.error).__name__, "message": str(answer.error)}
    return row
