"""What a MODEL string names, what comes back, and what is said when nothing does."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from tests import nets
from zero_convert import sources
from zero_convert.errors import LoadError, UsageError
from zero_convert.sources import inputs
from zero_convert.sources.building.fingerprint import fingerprint, recognize
from zero_convert.sources.building.nan_constructor import nan_filled_names

NETS = str(Path(nets.__file__))


def test_a_bare_name_is_torchvisions() -> None:
    loaded = sources.load("resnet18", {"num_classes": 7})
    assert (loaded.name, loaded.source) == ("torchvision:resnet18", "torchvision.models.resnet.ResNet")
    assert loaded.module.fc.out_features == 7
    assert loaded.module.training
    assert loaded.nan_filled
    assert (loaded.model_args, loaded.notes, loaded.drawn) == ({"num_classes": 7}, (), ())
    assert [tuple(x.shape) for x in loaded.example_inputs or ()] == [(1, 3, 224, 224)]


def test_a_name_that_only_timm_knows_is_timms() -> None:
    pytest.importorskip("timm")
    loaded = sources.load("resnet10t")
    assert (loaded.name, loaded.source) == ("timm:resnet10t", "timm.models.resnet.ResNet")
    assert tuple(loaded.example_inputs[0].shape) == (1, 3, 176, 176)
    assert "conv1.0.weight" in nan_filled_names(loaded.module)


def test_names_are_all_of_torchvisions_and_patterns_choose() -> None:
    assert sources.names()["torchvision"] == sorted(torchvision.models.list_models())
    assert sources.names("ResNet1?")["torchvision"] == ["resnet18"]
    assert sources.names("wide")["torchvision"] == ["wide_resnet101_2", "wide_resnet50_2"]


def test_naming_torchvisions_models_imports_no_other_library() -> None:
    code = (
        "import sys, zero_convert.sources as s; assert 'torch' not in sys.modules;"
        "s.load('squeezenet1_1'); assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_file_gives_the_same_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("import beside\nfrom torch import nn\ndef make(n=2): return beside.Net(n)\n")
    (tmp_path / "beside.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, n):\n"
        "        super().__init__(nn.Linear(3, n))\n"
    )
    loaded = sources.load(f"{tmp_path}/mine.py:make", {"n": 5})
    assert (loaded.name, loaded.source) == ("mine.py:make", "beside.Net")
    assert tuple(loaded.example_inputs[0].shape) == (1, 3)
    assert nan_filled_names(loaded.module) == {"0.weight", "0.bias"}
    assert str(tmp_path) not in sys.path
    again = sources.load(loaded.name, {"n": 5}, folders=[str(tmp_path)])
    assert again.name == loaded.name
    monkeypatch.chdir(tmp_path)
    assert sources.load("mine:make").name == "mine:make"


def test_a_module_made_when_its_file_is_run_is_filled_with_NaN_too(tmp_path: Path) -> None:
    (tmp_path / "ready.py").write_text("from torch import nn\nprint('hello')\nnet = nn.Linear(4, 2)\n")
    loaded = sources.load(f"{tmp_path}/ready.py:net")
    assert nan_filled_names(loaded.module) == {"weight", "bias"}


def test_a_factory_that_prints_leaves_stdout_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loud.py").write_text("from torch import nn\ndef make():\n    print('hello')\n    return nn.ReLU()\n")
    loaded = sources.load(f"{tmp_path}/loud.py:make")
    assert loaded.example_inputs is None
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


def test_drawn_integers_of_a_factory_are_named(tmp_path: Path) -> None:
    (tmp_path / "shuffled.py").write_text(
        "import torch\nfrom torch import nn\ndef make():\n"
        "    net = nn.Linear(2, 2)\n    net.register_buffer('order', torch.randperm(2))\n    return net\n"
    )
    loaded = sources.load(f"{tmp_path}/shuffled.py:make")
    assert loaded.drawn == ("order",)
    assert "random integers" in loaded.notes[0]


def line_of(text: str) -> int:
    lines = Path(NETS).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("model", "args", "error", "said"),
    [
        ("resnet5", {}, UsageError, "Did you mean resnet50"),
        ("torchvision:rsnet50", {}, UsageError, "Did you mean resnet50"),
        ("torchvision:resnet10t", {}, UsageError, "torchvision"),
        ("resnet18", {"classes": 3}, UsageError, "no argument 'classes'"),
        ("resnet18", {"weights": "DEFAULT"}, UsageError, "trained weights are not used"),
        ("resnet18", {"num_classes": "ten"}, LoadError, "TypeError"),
        (f"{NETS}:mlpp", {}, UsageError, "Did you mean mlp?"),
        (f"{NETS}:mlp", {"depth": 3}, UsageError, "'depth'"),
        (NETS, {}, UsageError, "expected path/to/file.py:factory"),
        ("missing.py:net", {}, UsageError, "no such file"),
        ("no_such_package.part:net", {}, UsageError, "no such Python module; got 'no_such_package'"),
        ("torch.nn:Linear", {"in_features": 3}, UsageError, "'out_features'"),
        (":net", {}, UsageError, "names no factory"),
        ("", {}, UsageError, "no model has this name"),
        (f"{NETS}:failing_factory", {}, LoadError, f"KeyError: 'inputs' at nets.py:{line_of('sizes[')}"),
        (f"{NETS}:factory_without_module", {}, LoadError, "of type builtins.builtin_function_or_method"),
        ("math:pi", {}, LoadError, "of type builtins.float"),
        ("torch.nn:LazyLinear", {"out_features": 3}, LoadError, "no example input is known to give them one"),
        ("torch.nn:Linear", {"in_features": 3, "out_features": 2, "device": "meta"}, LoadError, "meta device"),
        ("sys:exit", {}, LoadError, "SystemExit"),
    ],
)
def test_what_cannot_be_loaded_says_why(model: str, args: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        sources.load(model, args)
    assert said in str(caught.value)


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\ndef make(:\n")
    with pytest.raises(LoadError, match=r"SyntaxError.* at broken\.py:2"):
        sources.load(f"{tmp_path}/broken.py:make")


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from zero_convert.sources import timm, transformers

    monkeypatch.setattr(timm, "available", lambda: False)
    with pytest.raises(UsageError, match="pip install timm"):
        sources.load("timm:resnet10t")
    with pytest.raises(UsageError, match="pip install timm"):
        sources.load("resnet10t")
    assert list(sources.names()) == ["torchvision", "transformers"]
    monkeypatch.setattr(transformers, "available", lambda: False)
    with pytest.raises(UsageError, match="pip install transformers"):
        sources.load("transformers:bert")
    with pytest.raises(UsageError, match="transformers is not installed; `pip install transformers` adds"):
        sources.load("bert")
    assert list(sources.names()) == ["torchvision"]


def test_model_arguments_are_literals_or_text() -> None:
    assert sources.parse_model_args(["a=3", "b=[1, 2]", "c=batch", "d=", "e=x=y", "weights=None"]) == {
        "a": 3,
        "b": [1, 2],
        "c": "batch",
        "d": "",
        "e": "x=y",
        "weights": None,
    }


@pytest.mark.parametrize("texts", [["a"], ["=3"], ["a b=3"], ["a=1", "a=2"], ["pretrained=True"], ["weights=DEFAULT"]])
def test_bad_model_arguments_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        sources.parse_model_args(texts)


def test_an_adopted_module_is_a_copy_with_its_ties_and_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    module[1].weight = module[0].weight
    before = [p.detach().clone() for p in module.parameters()]
    loaded = sources.adopt(module, (torch.ones(2, 4, requires_grad=True),))
    assert loaded.module[0].weight is loaded.module[1].weight
    assert (loaded.name, loaded.nan_filled, loaded.module.training) == ("", False, False)
    assert not loaded.example_inputs[0].requires_grad
    with torch.no_grad():
        loaded.module[0].weight.zero_()
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("thing", [nn.Linear, torch.relu, None])
def test_what_is_no_module_is_not_adopted(thing: object) -> None:
    with pytest.raises(UsageError, match="not a module"):
        sources.adopt(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet50", {}),
        ("wide_resnet50_2", {"num_classes": 12}),
        ("mobilenet_v3_small", {}),
        ("regnet_x_400mf", {}),
        ("inception_v3", {}),
        ("squeezenet1_0", {"num_classes": 12}),
    ],
)
def test_a_library_module_is_recognized(name: str, args: dict[str, object]) -> None:
    loaded = sources.adopt(sources.load(name, args).module)
    assert (loaded.name, loaded.model_args) == (f"torchvision:{name}", args)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("m.added_by_hand = 3", True),
        ("m.features[0][2] = nn.GELU()", False),
        ("m.features[0][0].stride = (1, 1)", False),
        ("m.features[2].stride = 1", False),
        ("m.half()", False),
        ("m.register_forward_hook(print)", False),
        ("m.forward = print", False),
    ],
)
def test_a_changed_library_module_is_not_recognized(change: str, found: bool) -> None:
    module = sources.load("mobilenet_v2").module
    exec(change, {"m": module, "nn": nn})
    assert recognize(module) == (("torchvision:mobilenet_v2", {}) if found else None)


def test_the_fingerprint_sees_structure_and_no_values() -> None:
    def convolution(**changes: object) -> str:
        return fingerprint(
            nn.Sequential(nn.Conv2d(**({"in_channels": 4, "out_channels": 4, "kernel_size": 3} | changes)))
        )

    assert convolution() == convolution()
    changes = [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 2}, {"bias": False}, {"dtype": torch.float64}]
    assert len({convolution(), *(convolution(**change) for change in changes)}) == len(changes) + 1
    assert fingerprint(nn.ReLU()) != fingerprint(nn.GELU())
    assert fingerprint(nn.ReLU()) == fingerprint(nn.ReLU(inplace=True))
    parts = [["", "ReLU", {}]]
    text = json.dumps([parts, []], separators=(",", ":"))
    assert fingerprint(nn.ReLU()) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("vit_b_16", [(1, 3, 224, 224)]),
        ("inception_v3", [(1, 3, 299, 299)]),
        ("r3d_18", [(1, 3, 16, 112, 112)]),
        ("raft_small", [(1, 3, 128, 128)] * 2),
        ("lraspp_mobilenet_v3_large", [(1, 3, 224, 224)]),
        ("deeplabv3_mobilenet_v3_large", [(2, 3, 224, 224)]),
        ("quantized_shufflenet_v2_x0_5", [(1, 3, 224, 224)]),
    ],
)
def test_each_kind_of_torchvision_model_gets_its_inputs(name: str, shapes: list[object]) -> None:
    example = sources.load(name).example_inputs or ()
    assert [[tuple(y.shape) for y in x] if isinstance(x, list) else tuple(x.shape) for x in example] == shapes


DETECTORS = sorted(torchvision.models.list_models(module=torchvision.models.detection))


def runs_in_both_modes(loaded: sources.Loaded) -> None:
    """The forward of small numbers, in evaluation and training mode, returns boxes and then losses."""
    module = loaded.module
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.nan_to_num_(0.001)
        found = inputs.run(module.eval(), inputs.copied(loaded.example_inputs))
        losses = inputs.run(module.train(), inputs.copied(loaded.example_inputs))
    assert [set(each) >= {"boxes", "scores", "labels"} for each in found] == [True] * len(found)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert len(losses) >= 2


def test_a_detector_gets_an_image_and_a_target_for_both_modes() -> None:
    loaded = sources.load("ssdlite320_mobilenet_v3_large")
    (image, other), (target, _) = loaded.example_inputs or ((), ())
    assert tuple(image.shape) == tuple(other.shape) == (3, 320, 320)
    boxes = target["boxes"].tolist()
    assert [80.0, 80.0, 240.0, 240.0] in boxes
    assert all(0 <= x1 < x2 < 320 and (y1, y2) == (x1, x2) for x1, y1, x2, y2 in boxes)
    assert len({x2 - x1 for x1, _, x2, _ in boxes}) == len(boxes) == 9  # an object for each level of a detector
    assert target["labels"].tolist() == [1] * 9
    runs_in_both_modes(loaded)


def test_targets_have_what_the_heads_are_trained_with() -> None:
    _, (target,) = sources.load("maskrcnn_resnet50_fpn").example_inputs or ((), ())
    assert tuple(target["masks"].shape) == (9, 224, 224)
    assert 112 * 112 in target["masks"].sum((1, 2)).tolist()
    _, (target,) = sources.load("keypointrcnn_resnet50_fpn", {"num_keypoints": 5}).example_inputs or ((), ())
    points = target["keypoints"][0]
    x1, y1, x2, y2 = target["boxes"][0].tolist()
    assert points.shape == (5, 3)
    assert all(x1 < x < x2 and y1 < y < y2 and seen == 1 for x, y, seen in points.tolist())


@pytest.mark.zoo
@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_runs_in_both_modes(name: str) -> None:
    runs_in_both_modes(sources.load(name))


@pytest.mark.zoo
@pytest.mark.parametrize("name", torchvision.models.list_models())
def test_every_torchvision_model_is_built(name: str) -> None:
    loaded = sources.load(f"torchvision:{name}")
    assert loaded.drawn == ()
    assert loaded.notes == ()
    weights = {f"{path}.weight" for path, m in loaded.module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    zeroed = {n for n in weights if not loaded.module.get_parameter(n).any()}  # some builders zero a last layer
    assert weights - zeroed <= nan_filled_names(loaded.module)
