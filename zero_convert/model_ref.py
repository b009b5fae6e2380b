"""The MODEL text, parsed once: what it names, whether that runs code, how recipes and locks spell it. No torch.

    resnet50                 a name; the libraries are asked for it in turn
    torchvision:resnet50     a name of one library
    folder/weights.pt        a model file
    folder/net.py:factory    a factory in a file of Python
    package.module:factory   a factory in a module that can be imported

A library is one of `LIBRARIES`, or what an installed package offers under the entry point group `GROUP`: the name
there is the library's, the value a module with the functions of `sources/`. The text before the last colon decides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING

from .errors import UntrustedError
from .runtime.user_code import offered

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

LIBRARIES = ("torchvision", "timm", "transformers")  # in the order in which they are asked for a bare name
GROUP = "zero_convert.sources"

_MODEL_FILES = (".safetensors", ".onnx", ".pt", ".pth", ".pt2", ".gguf")


def installed_libraries() -> dict[str, EntryPoint]:
    """Name → entry point of the sources that installed packages offer. They cannot take the name of one of ours."""
    return {name: point for name, point in offered(GROUP).items() if name.isidentifier() and name not in LIBRARIES}


def is_absolute(path: str) -> bool:
    """Whether a path is absolute on any system."""
    windows = PureWindowsPath(path)
    return bool(path.startswith("/") or windows.drive or windows.root)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A MODEL text, taken apart. `str` gives the text back.

    Attributes:
        kind: "name", "library", "file", "script" or "module", in the order above.
        library: of kind "library".
        name: the model's; of kind "module" the module's.
        path: of the file, as it was typed.
        factory: of kinds "script" and "module".
    """

    kind: str
    library: str = ""
    name: str = ""
    path: str = ""
    factory: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """What a user typed; the file system is asked whether it is a file."""
        return cls("file", path=text) if _names_file(text) else cls.named(text)

    @classmethod
    def named(cls, text: str) -> ModelRef:
        """The same where no model file can be meant: in a recipe, in a lock, after `--arch`."""
        place, colon, name = text.rpartition(":")
        if not colon:
            return cls("name", name=text)
        if place in LIBRARIES or (place.isidentifier() and place in installed_libraries()):
            return cls("library", library=place, name=name)
        return cls("script", path=place, factory=name) if place.endswith(".py") else cls("module", "", place, "", name)

    def __str__(self) -> str:
        if self.kind in ("name", "file"):
            return self.name or self.path
        return f"{self.library}:{self.name}" if self.library else f"{self.path or self.name}:{self.factory}"

    @property
    def canonical(self) -> str:
        """The text as recipes hold it: of a file of Python without folders, the same on every machine."""
        return f"{PurePath(self.path).name}:{self.factory}" if self.kind == "script" else str(self)

    @property
    def runs_code(self) -> bool:
        """Whether following it may run code that is no model library's. A bare name does not say that it cannot."""
        return self.kind != "library"

    def relative_to(self, folder: str | os.PathLike[str]) -> ModelRef:
        """The same with the path of its file, if it has one, relative to a folder and spelled with `/`."""
        return replace(self, path=_relative(self.path, folder)) if self.path else self


@dataclass(frozen=True, slots=True)
class SchemeRef:
    """The name of a scheme, or the path of a file of Python that holds one."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def runs_code(self) -> bool:
        """Whether it is a file, whose code runs when the scheme is asked for."""
        return self.text.endswith(".py")

    @property
    def canonical(self) -> str:
        """The name as recipes hold it: of a file without folders, the same on every machine."""
        return self.text.replace("\\", "/").rpartition("/")[2] if self.runs_code else self.text

    def relative_to(self, folder: str | os.PathLike[str]) -> SchemeRef:
        """The same with the file's path relative to a folder and spelled with `/`."""
        return SchemeRef(_relative(self.text, folder)) if self.runs_code else self


def refuse_untrusted(
    ref: ModelRef | SchemeRef, trust: bool, message: str, *, where: str, got: str = "", expected: str = "", fix: str
) -> None:
    """The one decision about trust: what is named in a file or a lock runs code only where the user trusts it.

    Args:
        ref: what is named there.
        trust: what the user says of it.
        got: by default the text of `ref`.

    Raises:
        UntrustedError: with the message, if it runs code and is not trusted.
    """
    if ref.runs_code and not trust:
        raise UntrustedError(message, where=where, got=got or repr(str(ref)), expected=expected, fix=fix)


def _names_file(text: str) -> bool:
    """Whether it is a file to read rather than a model's name; `resnet50` stays a name beside a file of that name."""
    path = Path(text)
    if path.suffix in (*_MODEL_FILES, ".py"):
        return path.suffix != ".py"
    return path.is_file() if path.name == text and path.suffix else path.name != text and path.exists()


def _relative(path: str, folder: str | os.PathLike[str]) -> str:
    return PurePath(os.path.relpath(path, folder)).as_posix()
