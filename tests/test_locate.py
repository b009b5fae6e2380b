"""A place in a message is one that the reader can open, and says nothing about the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from zero_convert.runtime.source_lines import defined_at, spelled, user_frame

from . import nets


def raised(module: nn.Module, *inputs: torch.Tensor) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011  whatever it raises
        module(*inputs)
    return caught.value


def test_a_line_of_an_installed_library_is_named_as_it_is_imported() -> None:
    models = pytest.importorskip("torchvision.models")
    net = models.squeezenet1_0()
    error = raised(net, torch.zeros(1, 2, 64, 64))
    place, _, line = user_frame(error, net).rpartition(":")
    assert place == "torchvision/models/squeezenet.py"
    assert int(line) > 1
    assert defined_at(net).rpartition(":")[0] == "torchvision/models/squeezenet.py"


def test_a_line_of_the_users_file_is_the_one_that_raised() -> None:
    net = nets.FailingForward()
    place, _, line = user_frame(raised(net, torch.zeros(1)), net).rpartition(":")
    assert place.endswith("nets.py")
    assert not Path(place).is_absolute()
    source = Path(nets.__file__).read_text().splitlines()
    assert "this forward always fails" in source[int(line) - 1]
    assert source[int(defined_at(net).rpartition(":")[2]) - 1] == "class FailingForward(nn.Module):"


def test_a_file_outside_the_folders_of_imports_is_named_without_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pack" / "net.py"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr(sys, "path", [])
    assert spelled(str(file)) == "net.py"
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert spelled(str(file)) == "pack/net.py"
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", str(file.parent)])
    assert spelled(str(file)) == "net.py"
    monkeypatch.setattr(sys, "path", ["/"])
    assert spelled(str(file)) == "net.py"


def test_a_class_without_a_file_has_no_place() -> None:
    space: dict[str, type[nn.Module]] = {}
    exec("class Typed(nn.Module): pass", {"nn": nn, "__name__": "nowhere"}, space)
    assert defined_at(space["Typed"]()) == ""
    assert user_frame(ValueError(), space["Typed"]()) == ""
