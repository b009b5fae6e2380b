"""The telling part of what a native library says: without its own source positions, C++ signatures and host names."""

from __future__ import annotations

import re

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")  # errors quote one another, the cause last
_CALL = re.compile(r"\b(?:CUDA|CUDNN|CUBLAS|CURAND|CUFFT|CUSPARSE|NCCL)\w* failure [^;\n]*[^;\s]")
_FALSE = re.compile(r"\s*/onnxruntime_src/.* was false\. ")  # what ONNX Runtime demanded, and then why it was not so
_SOURCE = re.compile(r"\s*/onnxruntime_src/\S+\s.*")
HEAD, TAIL = 100, 200  # characters that are kept of a line that is longer than both


def gist(message: str) -> str:
    """One line; the message's first line where nothing in it is noise. The middle of a long one is left out."""
    calls = _CALL.findall(message)
    if calls:
        return _short(calls[-1])
    line = (message.strip().splitlines() or [""])[0]
    cause = _FALSE.sub("", _CODE.split(line)[-1])
    return _short(_SOURCE.sub("", cause) or cause)


def _short(line: str) -> str:
    return line if len(line) <= HEAD + TAIL else f"{line[:HEAD]} … {line[-TAIL:]}"
