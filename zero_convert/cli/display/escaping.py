"""Text that is not ours, on its way to a terminal: nothing in it may be obeyed, or be there without being seen."""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb]"
)


def escaped(text: object) -> str:
    """The text without anything that a terminal would obey or an eye would not see; spelled instead, `\\x1b`."""
    spelled = str(text).replace("\\", "\\\\") if _HIDDEN.search(str(text)) else str(text)
    return _HIDDEN.sub(_spelled, spelled)


def escaped_lines(text: str) -> str:
    """The same for a text whose line breaks are ours."""
    return "\n".join(map(escaped, text.split("\n")))


def _spelled(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
