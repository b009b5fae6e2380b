"""JUnit XML, as CI servers read it: a test case for each entry. Times are the seconds of each conversion."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from . import Findings, headlines

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold


def report(findings: Findings) -> str:
    """An XML document in ASCII."""
    failed = sum(1 for answer in findings.answers if answer.differences)
    errors = sum(1 for answer in findings.answers if answer.error)
    counts = {"tests": str(len(findings.answers)), "failures": str(failed), "errors": str(errors)}
    seconds = f"{sum(answer.seconds for answer in findings.answers):.3f}"
    root = ET.Element("testsuites", counts | {"time": seconds})
    suite = ET.SubElement(root, "testsuite", {"name": "zero-convert check", **counts, "skipped": "0", "time": seconds})
    found = list(headlines(findings))
    for answer in findings.answers:
        attributes = {"classname": findings.lock, "name": answer.entry.name, "time": f"{answer.seconds:.3f}"}
        case = ET.SubElement(suite, "testcase", {key: _clean(value) for key, value in attributes.items()})
        own = [headline for headline in found if headline.entry == answer.entry.name]
        if own:
            tag = "error" if answer.error else "failure"
            kind = type(answer.error).__name__ if answer.error else own[0].kind
            element = ET.SubElement(case, tag, {"message": _clean(own[0].message), "type": kind})
            element.text = _clean("\n".join([headline.message for headline in own]))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="us-ascii", xml_declaration=True)
    return document.decode("ascii")


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
