"""Where in the user's own source an exception came from."""

from __future__ import annotations

import os
import sys
import traceback

from torch import nn


def user_frame(error: BaseException, module: nn.Module) -> str:
    """`file.py:123` of the innermost frame in the file that defines the module's class or one of its submodules'.

    Empty if no such frame is on the traceback. Only the file's name is given, not its folder.
    """
    files = {getattr(sys.modules.get(type(m).__module__), "__file__", None) for m in module.modules()}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in files and f"{os.sep}torch{os.sep}nn{os.sep}" not in frame.filename
    ]
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
