"""Detectors: the Python around them stays, the backbone is rewritten in its place, and both modes go on working."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import zero_convert as zc
from zero_convert.sources import load

NAMES = sorted(name for name in models.list_models() if "detection" in models.get_model_builder(name).__module__)
SCHEMES = ("zero-2021", "zero-2022")


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_detectors_convert_and_pass_their_checks(name: str, scheme: str) -> None:
    result = zc.convert(f"torchvision:{name}", scheme=scheme, device="cpu")
    assert not [f"{check.name}: {check.summary}" for check in result.failed]
    assert result.plan.capture == "regions"


@pytest.mark.zoo
@pytest.mark.parametrize("scheme", SCHEMES)
def test_images_of_other_numbers_and_sizes_still_go_through(scheme: str) -> None:
    name = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
    result = zc.convert(name, scheme=scheme, device="cpu", validate="none")
    assert sum(join.residual for join in result.plan.joins) == 11
    _, targets = load(name).example_inputs or ((), ())
    images = [torch.rand(3, 240, 320), torch.rand(3, 320, 200)]
    losses = result.module.train()(images, [targets[0], targets[0]])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    assert len(result.module.eval()(images)) == 2


def _settings(detector: nn.Module) -> tuple[object, ...]:
    heads, transform = detector.roi_heads, detector.transform
    sampled = heads.fg_bg_sampler.batch_size_per_image
    return transform.min_size, transform.max_size, sampled, heads.detections_per_img


def _small(**sizes: int) -> FasterRCNN:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 4, 1), nn.ReLU())
    backbone.out_channels = 8
    return FasterRCNN(
        backbone,
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(((32, 64),), ((0.5, 1.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 2, 2),
        **sizes,
    )


def test_a_detector_is_looked_at_on_small_images_and_comes_back_as_it_was_made(tmp_path: Path) -> None:
    given = _small(min_size=800, max_size=1333)
    seen: list[int] = []
    given.backbone[0].register_forward_pre_hook(_Sides(seen))
    result = zc.convert(given, scheme="zero-2022", device="cpu")
    assert not [f"{check.name}: {check.summary}" for check in result.failed]
    assert seen and max(seen) <= 160  # 128, filled up to a multiple of 32
    assert _settings(given) == _settings(result.module) == ((800,), 1333, 512, 100)
    assert "every run here scaled images to 128 pixels instead of 800" in result.plan.notes
    result.save(tmp_path / "detector.safetensors")
    assert _settings(zc.load(tmp_path / "detector.safetensors", _small())) == _settings(given)


def test_a_detector_of_small_images_is_left_as_it_is() -> None:
    plan = zc.plan(_small(min_size=96, max_size=128), scheme="zero-2022")
    assert not [note for note in plan.notes if "scaled" in note]


class _Sides:
    """Notes the sides of the images that reach a layer; a copy notes them in the same place."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.seen.extend(inputs[0].shape[-2:])

    def __deepcopy__(self, memo: object) -> _Sides:
        return self
