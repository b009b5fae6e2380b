"""The telling part of what a native library says: without its own source positions, C++ signatures and host names."""

from __future__ import annotations

import re

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")  # errors quote one another, the cause last
_CALL = re.compile(r"\b(?:CUDA|CUDNN|CUDNN_FE|CUBLAS|CURAND|CUFFT|NCCL) failure [^;\n]*[^;\s]")
_SOURCE = re.compile(r"\s*/onnxruntime_src/\S+\s.*")
LENGTH = 300  # characters


def gist(message: str) -> str:
    """One line, at most `LENGTH` characters; the message's first line where nothing in it is noise."""
    calls = _CALL.findall(message)
    if calls:
        return str(calls[-1])[:LENGTH]
    line = (message.strip().splitlines() or [""])[0]
    cause = _CODE.split(line)[-1]
    return (_SOURCE.sub("", cause) or cause)[:LENGTH]
