"""Running a file of Python that is the user's, what installed packages offer, and where in it something went wrong.

For models and for schemes. Whoever calls this was asked for it by the user. No torch here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zero_convert.errors import LoadError, UsageError, ZeroConvertError

from .patches import Shared

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def offered(group: str) -> dict[str, EntryPoint]:
    """Name → entry point of what installed packages offer in a group, sorted. Runs none of them."""
    import importlib.metadata

    return {point.name: point for point in sorted(importlib.metadata.entry_points(group=group), key=lambda p: p.name)}


def run_file(path: Path, prefix: str) -> ModuleType:
    """The file, executed afresh as the module `prefix` + its stem: a second load must not meet the first one's."""
    name = prefix + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError("this is no Python file", got=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """As for `python file.py`: modules beside it can be imported, by the calling thread. `sys.path` stays as it is."""
    with _beside.needed():
        _folders.paths.insert(0, str(folder))
        try:
            yield
        finally:
            _folders.paths.remove(str(folder))


class _Folders(threading.local):
    """Finds modules in the folders that the calling thread has named."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, self.paths, target) if path is None and self.paths else None


def _put() -> Callable[[], object]:
    index = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
    sys.meta_path.insert(index, _folders)

    def take() -> None:
        if _folders in sys.meta_path:
            sys.meta_path.remove(_folders)

    return take


_folders = _Folders()
_beside = Shared(_put)


@contextmanager
def failing_as(what: str, where: str) -> Iterator[None]:
    """What the code of a user or of another package raises, as a LoadError that names it.

    Args:
        what: "scheme" or "source".
        where: which, and what of it.
    """
    try:
        yield
    except ZeroConvertError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(f"the {what} failed", where=where, got=spell(error) + place(error)) from error


def spell(error: BaseException) -> str:
    """ "ValueError: what it says", in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def place(error: BaseException) -> str:
    """ " at file:line" of the last frame that is the user's; else of the library's last one; "" if all are ours."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {os.path.basename(error.filename)}:{error.lineno}"
    ours = str(Path(__file__).parents[1])
    libraries = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((ours, "<"))]
    inside = [f for f in frames if not f.filename.startswith(tuple(libraries))] or frames
    return f" at {os.path.basename(inside[-1].filename)}:{inside[-1].lineno}" if inside else ""
