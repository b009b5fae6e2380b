"""SARIF 2.1.0 (OASIS standard, 27 March 2020), as code scanning reads it: results at lines of the lock."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from . import Findings, Headline, headlines

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES = {
    "source": "The model's source moved: the file that was converted, its class, or the fingerprint of its structure.",
    "recipe": "A field of the recipe moved.",
    "edit": "An edit of the architecture moved.",
    "tensor": "A tensor moved: missing, extra, or its type, shape or values.",
    "weights": "The digest over all tensors moved.",
    "architecture": "The digest of the network moved.",
    "file": "The bytes of the file moved.",
    "error": "The conversion could not be made again.",
}


def report(findings: Findings) -> str:
    """A log with one run."""
    rules = [{"id": f"drift/{kind}", "shortDescription": {"text": text}} for kind, text in _RULES.items()]
    driver = {"name": "zero-convert", "rules": rules}
    results = [_result(headline, findings.lock) for headline in headlines(findings)]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _result(headline: Headline, lock: str) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": quote(lock)}, "region": {"startLine": headline.line}}
    return {
        "ruleId": f"drift/{headline.kind}",
        "ruleIndex": list(_RULES).index(headline.kind),
        "level": "error",
        "message": {"text": f"{headline.entry}: {headline.message}"},
        "locations": [{"physicalLocation": place}],
        "partialFingerprints": {"entry/v1": f"{headline.entry} {headline.kind}"},
    }
