"""Workflow commands of GitHub Actions: an annotation in the lock for each entry that moved.

Source: "Workflow commands for GitHub Actions", docs.github.com; the escapes are those of its toolkit
(actions/toolkit, packages/core/src/command.ts). GitHub shows ten annotations of a kind for each step, so that an
entry has one.
"""

from __future__ import annotations

from . import Findings, Headline, headlines


def report(findings: Findings) -> str:
    """`::error file=…,line=…,title=…::message` lines, or one `::notice::` where nothing moved."""
    grouped: dict[str, list[Headline]] = {}
    for headline in headlines(findings):
        grouped.setdefault(headline.entry, []).append(headline)
    lines = []
    for entry, found in grouped.items():
        title = f"{entry} {'could not be checked' if found[0].kind == 'error' else 'moved'}"
        message = "\n".join(headline.message for headline in found)
        place = f"file={_property(findings.lock)},line={found[0].line},title={_property(title)}"
        lines.append(f"::error {place}::{_data(message)}")
    count = len(findings.answers)
    sound = f"{count} conversion{'' if count == 1 else 's'} made again, the same as in {findings.lock}"
    return "\n".join(lines) if lines else f"::notice title=zero-convert check::{_data(sound)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
