"""A MODEL text means one thing wherever it is read, and whether it may run code is decided in one place."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import zero_convert as zc
from zero_convert import cli, doctor, model_ref, sources
from zero_convert.artifacts.lock import read_lock, write_lock
from zero_convert.errors import LoadError, UntrustedError, UsageError
from zero_convert.model_ref import LIBRARIES, ModelRef, SchemeRef, refuse_untrusted

ROOT = Path(__file__).parents[1]
NET = "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))\n"
RAN = "\nwith open('ran', 'a') as file:\n    file.write('x')\n"

# text → kind, library, name, path, factory, canonical
TEXTS: dict[str, tuple[str, str, str, str, str, str]] = {
    "resnet50": ("name", "", "resnet50", "", "", "resnet50"),
    "resnet50.a1_in1k": ("name", "", "resnet50.a1_in1k", "", "", "resnet50.a1_in1k"),
    "": ("name", "", "", "", "", ""),
    "net.py": ("name", "", "net.py", "", "", "net.py"),
    "a/net.py": ("name", "", "a/net.py", "", "", "a/net.py"),
    "torchvision:resnet50": ("library", "torchvision", "resnet50", "", "", "torchvision:resnet50"),
    "timm:resnet50.a1_in1k": ("library", "timm", "resnet50.a1_in1k", "", "", "timm:resnet50.a1_in1k"),
    "timm:": ("library", "timm", "", "", "", "timm:"),
    "transformers:bert": ("library", "transformers", "bert", "", "", "transformers:bert"),
    "transformers:BertForMaskedLM": (
        "library",
        "transformers",
        "BertForMaskedLM",
        "",
        "",
        "transformers:BertForMaskedLM",
    ),
    "net.py:net": ("script", "", "", "net.py", "net", "net.py:net"),
    "./net.py:Net": ("script", "", "", "./net.py", "Net", "net.py:Net"),
    "a/b/net.py:Net.make": ("script", "", "", "a/b/net.py", "Net.make", "net.py:Net.make"),
    "/a/net.py:net": ("script", "", "", "/a/net.py", "net", "net.py:net"),
    "my nets/n.py:f;rm": ("script", "", "", "my nets/n.py", "f;rm", "n.py:f;rm"),
    "C:/nets/net.py:net": ("script", "", "", "C:/nets/net.py", "net", "net.py:net"),
    "net.py:": ("script", "", "", "net.py", "", "net.py:"),
    "a:b/net.py:net": ("script", "", "", "a:b/net.py", "net", "net.py:net"),
    "pkg.mod:factory": ("module", "", "pkg.mod", "", "factory", "pkg.mod:factory"),
    "mod:Outer.Inner": ("module", "", "mod", "", "Outer.Inner", "mod:Outer.Inner"),
    "timm.models:resnet50": ("module", "", "timm.models", "", "resnet50", "timm.models:resnet50"),
    "C:foo": ("module", "", "C", "", "foo", "C:foo"),
    ":": ("module", "", "", "", "", ":"),
    ":net": ("module", "", "", "", "net", ":net"),
    "Timm:resnet50": ("module", "", "Timm", "", "resnet50", "Timm:resnet50"),
    " timm:resnet50": ("module", "", " timm", "", "resnet50", " timm:resnet50"),
    # What names a library first and means something else: the text before the last colon decides.
    "timm:a:b": ("module", "", "timm:a", "", "b", "timm:a:b"),
    "timm:x/net.py:net": ("script", "", "", "timm:x/net.py", "net", "net.py:net"),
    "torchvision:../../net.py:net": ("script", "", "", "torchvision:../../net.py", "net", "net.py:net"),
    "transformers:os:system": ("module", "", "transformers:os", "", "system", "transformers:os:system"),
    "weights.pt": ("file", "", "", "weights.pt", "", "weights.pt"),
    "a/weights.safetensors": ("file", "", "", "a/weights.safetensors", "", "a/weights.safetensors"),
    "C:\\weights.onnx": ("file", "", "", "C:\\weights.onnx", "", "C:\\weights.onnx"),
    "timm:x.pt": ("file", "", "", "timm:x.pt", "", "timm:x.pt"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_one_kind_of_model(text: str) -> None:
    ref = ModelRef.parse(text)
    assert (ref.kind, ref.library, ref.name, ref.path, ref.factory, ref.canonical) == TEXTS[text]
    assert str(ref) == text
    assert ref.runs_code is (ref.kind != "library")
    if ref.kind != "file":
        assert ModelRef.named(text) == ref


def test_no_recipe_or_lock_names_a_model_file() -> None:
    assert ModelRef.named("weights.pt").kind == "name" and ModelRef.named("timm:x.pt").library == "timm"


def test_a_path_is_a_file_where_there_is_one_and_a_name_stays_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("resnet50", "model.bin", "pytorch.py"):
        Path(name).write_bytes(b"")
    Path("torchvision:vgg11").write_bytes(b"")
    kinds = {
        text: ModelRef.parse(text).kind for text in ("resnet50", "./resnet50", "model.bin", "other.bin", "./other")
    }
    assert kinds == {
        "resnet50": "name",
        "./resnet50": "file",
        "model.bin": "file",
        "other.bin": "name",
        "./other": "name",
    }
    assert ModelRef.parse("torchvision:vgg11").kind == "library"
    assert ModelRef.parse("pytorch.py").kind == "name"


def test_paths_become_relative_to_a_folder_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, relative in {
        "nets/net.py:net": "../nets/net.py:net",
        f"{tmp_path}/net.py:net": "../net.py:net",
        "w.pt": "../w.pt",
        "pkg.mod:net": "pkg.mod:net",
        "timm:resnet10t": "timm:resnet10t",
    }.items():
        assert str(ModelRef.parse(text).relative_to("locks")) == relative
    assert str(SchemeRef("rules/mine.py").relative_to("rules")) == "mine.py"
    assert str(SchemeRef("zero-2022").relative_to("rules")) == "zero-2022"
    assert (SchemeRef("rules\\mine.py").canonical, SchemeRef("a/b/mine.py").canonical) == ("mine.py", "mine.py")


@pytest.mark.parametrize("path", ["/a", "C:/a", "C:a", "\\a", "\\\\host\\share\\a"])
def test_a_path_that_is_absolute_on_any_system_is_known(path: str) -> None:
    assert model_ref.is_absolute(path) and not model_ref.is_absolute("a/b") and not model_ref.is_absolute("../a")


# -- trust -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a factory, a scheme, an artifact of both and a lock of them."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET, "utf-8")
    scheme = "from zero_convert.schemes.zero_2022 import SCHEME as given\nfrom dataclasses import replace\n"
    Path("mine.py").write_text(f"{scheme}SCHEME = replace(given, name='mine')\n", "utf-8")
    words = ["lock", "net.py:net", "--scheme", "mine.py", "--input", "1x4", "--out", "a.safetensors"]
    assert cli.main([*words, "--validate", "none", "-q"]) == 0
    torch.save(torch.nn.Linear(2, 2), "whole.pt")
    return tmp_path


WAYS: dict[str, tuple[Callable[[bool], Any], list[str]]] = {
    "load": (lambda trust: zc.load("a.safetensors", trust=trust), ["net.py:net", "mine.py"]),
    "load, with a model": (
        lambda trust: zc.load("a.safetensors", "net.py:net", trust=trust),
        ["mine.py"],
    ),
    "validate": (lambda trust: zc.validate("a.safetensors", device="cpu", trust=trust), ["net.py:net", "mine.py"]),
    "check": (lambda trust: cli.main(["check", *["--trust"][: int(trust)]]), ["mine.py", "net.py:net"]),
    "update": (lambda trust: cli.main(["lock", "--update", *["--trust"][: int(trust)]]), ["mine.py", "net.py:net"]),
    "a network in a file": (
        lambda trust: zc.convert("whole.pt", (torch.zeros(1, 2),), trust=trust, validate="none"),
        ["whole.pt"],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_trust_is_decided_in_one_place(folder: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    asked: list[tuple[str, bool]] = []

    def decided(ref: ModelRef | SchemeRef, trust: bool, *args: Any, **words: Any) -> None:
        asked.append((str(ref), trust))

    go, refs = WAYS[way]
    monkeypatch.setattr(model_ref, "refuse_untrusted", decided)
    for trust in (False, True):
        asked.clear()
        with monkeypatch.context() as patch:  # what is let through here runs torch's loader, which is not the question
            patch.setattr(torch, "load", lambda *args, **settings: torch.nn.Linear(2, 2))
            go(trust)
        assert list(dict.fromkeys(asked)) == [(ref, trust) for ref in refs]


def test_without_that_decision_nothing_runs(folder: Path) -> None:
    for name in ("net.py", "mine.py"):
        Path(name).write_text(Path(name).read_text("utf-8") + RAN, "utf-8")
    for go, _ in WAYS.values():
        with contextlib.suppress(UntrustedError):
            assert go(False) == UntrustedError.exit_code
    assert not Path("ran").exists()


def test_the_decision_names_what_is_asked_for_and_lets_libraries_pass() -> None:
    with pytest.raises(UntrustedError, match=r"no code \(here\); got 'net.py:net'. Trust it"):
        refuse_untrusted(ModelRef.named("net.py:net"), False, "no code", where="here", fix="Trust it.")
    refuse_untrusted(ModelRef.named("net.py:net"), True, "no code", where="here", fix="")
    refuse_untrusted(ModelRef.named("timm:resnet10t"), False, "no code", where="here", fix="")
    refuse_untrusted(SchemeRef("zero-2022"), False, "no code", where="here", fix="")
    for text in ("resnet50", "mine.py"):
        with pytest.raises(UntrustedError):
            refuse_untrusted(ModelRef.named(text), False, "no code", where="here", fix="")


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_text_that_begins_like_a_library_has_a_file_run(folder: Path, library: str) -> None:
    """`timm:x/net.py:net` is a file of Python, and `net.py` lies beside the artifact."""
    hostile = f"{library}:x/net.py:net"
    result = zc.convert("net.py:net", validate="none")
    result.recipe = replace(result.recipe, model=hostile)
    Path("sub").mkdir()
    result.save("sub/b.safetensors")
    Path("sub/net.py").write_text(NET + RAN, "utf-8")
    with pytest.raises(UntrustedError):
        zc.load("sub/b.safetensors")
    Path(f"{library}:x").mkdir()
    Path(f"{library}:x/net.py").write_text(NET + RAN, "utf-8")
    lock = read_lock("zero.lock")
    write_lock("zero.lock", replace(lock, entries=(replace(lock.entries[0], model=hostile, scheme=""),)))
    text = Path("zero.lock").read_text("utf-8").replace('"scheme": "mine.py"', '"scheme": "zero-2022"')
    Path("zero.lock").write_text(text, "utf-8")
    assert cli.main(["check", "-q"]) == UntrustedError.exit_code
    assert not Path("ran").exists()


# -- libraries ---------------------------------------------------------------------------------------------------------


SOURCE = """
from torch import nn

def available(): return True
def names(): return ["tiny", "wide"]
def known(name): return name in names()
def build(name, args):
    width = args.get("width", 6)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
def example_inputs(name, module):
    import torch
    return (torch.ones(1, 4),)
def candidates(module): return iter(())
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Offers sources as an installed package would."""
    found: list[importlib.metadata.EntryPoint] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [p for p in found if p.group == group])

    def offer(name: str, text: str) -> None:
        Path(f"their_{name}.py").write_text(text, "utf-8")
        found.append(importlib.metadata.EntryPoint(name, f"their_{name}", model_ref.GROUP))

    return offer


def test_a_package_offers_a_library(package: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert ModelRef.named("hub:tiny").kind == "module"
    package("hub", SOURCE)
    package("timm", "raise SystemExit('the name is taken')")
    assert ModelRef.named("hub:tiny").kind == "library" and not ModelRef.named("hub:tiny").runs_code
    result = zc.convert("hub:wide", model_args={"width": 8}, validate="none")
    assert (result.recipe.model, dict(result.recipe.model_args)) == ("hub:wide", {"width": 8})
    result.save("a.safetensors")
    assert zc.load("a.safetensors")(torch.ones(1, 4)).shape == (1, 2)  # a library asks for no trust
    assert zc.plan("tiny").joins == () and sources.load("tiny").name == "hub:tiny"  # a bare name
    assert sources.names("ti*")["hub"] == ["tiny"]
    with pytest.raises(UsageError, match=r"Did you mean tiny"):
        sources.load("hub:tinny")
    with pytest.raises(LoadError, match=r"building the model failed \(hub:tiny\).*TypeError"):
        sources.load("hub:tiny", {"width": "x"})
    assert cli.main(["models", "wide"]) == 0
    assert "hub" in capsys.readouterr().out


def test_a_library_that_fails_is_named_and_keeps_no_other_from_being_used(
    package: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    package("broken", "1 / 0")
    package("partial", "def names(): return []")
    package("raising", SOURCE.replace("return name in names()", "raise KeyError(name)"))
    with pytest.raises(LoadError, match=r"the source failed \(their_broken, importing it\).*ZeroDivisionError"):
        sources.load("broken:x")
    with pytest.raises(UsageError, match=r"no source of models.*no available"):
        sources.load("partial:x")
    with pytest.raises(LoadError, match=r"their_raising, its known.*KeyError.*their_raising.py:"):
        sources.load("raising:x")
    assert sources.load("torchvision:squeezenet1_0").name == "torchvision:squeezenet1_0"
    assert cli.main(["models", "squeezenet1_0"]) == 0
    shown = capsys.readouterr().err
    assert "broken is installed, and fails" in shown and "partial is installed, and fails" in shown


def test_a_name_that_is_none_is_no_library(package: Callable[[str, str], None]) -> None:
    package("net.py", "")
    package("a:b", "")
    assert [ModelRef.named(text).kind for text in ("net.py:f", "a:b:f")] == ["script", "module"]
    assert model_ref.installed_libraries() == {}


def test_the_libraries_are_named_once() -> None:
    """README has those that it explains; `zero-convert models` lists all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras, readme = project["optional-dependencies"], (ROOT / "README.md").read_text("utf-8")
    assert [name for name in LIBRARIES if name in extras] == [name for name in LIBRARIES if name in doctor._EXTRAS]
    for library in LIBRARIES:
        assert library in extras or library in project["dependencies"]
        assert (ROOT / "zero_convert" / "sources" / f"{library}.py").exists() or (
            ROOT / "zero_convert" / "sources" / library
        ).is_dir()
    assert set(re.findall(r"^\| `(\w+):\w+`", readme, re.MULTILINE)) <= set(LIBRARIES)
    assert "a bare name: " + ", else ".join(f"{name}'s" for name in LIBRARIES[:2]) in readme
