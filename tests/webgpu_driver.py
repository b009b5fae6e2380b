"""Where the driver of a software adapter lies, for the tests of WebGPU, and the environment in which it is found.

SwiftShader's is in Debian's package `chromium-common`, with a Vulkan loader beside it. Another place is named in
`VK_DRIVER_FILES`, and on a machine with a GPU its own driver is taken.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from zero_convert.doctor import webgpu

PLACES = (Path(webgpu.ICD),)
LOADER = "libvulkan.so.1"


def environment() -> dict[str, str]:
    """What has to be in the environment; the library's path counts for processes that start later."""
    given = {webgpu.SOFTWARE: "1", "XDG_RUNTIME_DIR": os.environ.get("XDG_RUNTIME_DIR", "/tmp")}
    driver = next((place for place in PLACES if place.is_file()), None)
    if driver is not None and "VK_DRIVER_FILES" not in os.environ:
        given["VK_DRIVER_FILES"] = str(driver)
        if not _loads(LOADER) and (driver.parent / LOADER).is_file():
            paths = [str(driver.parent), os.environ.get("LD_LIBRARY_PATH", "")]
            given["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    return given


def lacking() -> str:
    """Why nothing can be computed there, and the command that changes it; "" if something can."""
    against = webgpu.refusal(webgpu.asked())
    return f"{against.got}. {against.fix}" if against else ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
