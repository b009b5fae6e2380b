"""Where in the user's own source an exception came from. A place is spelled without folders of this machine."""

from __future__ import annotations

import inspect
import os
import sys
import traceback

from torch import nn


def user_frame(error: BaseException, module: nn.Module) -> str:
    """`file.py:123` of the innermost frame in the file that defines the module's class or one of its submodules'.

    Empty if no such frame is on the traceback. For an installed file it is `torchvision/models/vgg.py:66`.
    """
    files = {getattr(sys.modules.get(type(m).__module__), "__file__", None) for m in module.modules()}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in files and f"{os.sep}torch{os.sep}nn{os.sep}" not in frame.filename
    ]
    return f"{spelled(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def defined_at(module: nn.Module) -> str:
    """`file.py:35`, where the module's class is defined; empty where no file says (a class typed into a shell)."""
    try:
        file, (_, line) = inspect.getsourcefile(type(module)), inspect.getsourcelines(type(module))
    except (OSError, TypeError):
        return ""
    return f"{spelled(file)}:{line}" if file else ""


def spelled(file: str) -> str:
    """The file as Python finds it, `torchvision/models/vgg.py`; its bare name where it is in no folder of imports."""
    found = os.path.realpath(file)
    folders = [os.path.realpath(entry or os.curdir) for entry in sys.path]
    inside = [
        os.path.relpath(found, folder)
        for folder in folders
        if os.path.dirname(folder) != folder and found.startswith(folder + os.sep)
    ]
    return min(inside, key=len, default=os.path.basename(file)).replace(os.sep, "/")
