"""Detectors: the Python around them stays, the backbone is rewritten in its place, and both modes go on working."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

import zero_convert as zc
from zero_convert.sources import load

NAMES = sorted(name for name in models.list_models() if "detection" in models.get_model_builder(name).__module__)
SCHEMES = ("zero-2021", "zero-2022")

pytestmark = pytest.mark.zoo


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
def test_detectors_convert_and_pass_their_checks(name: str, scheme: str) -> None:
    result = zc.convert(f"torchvision:{name}", scheme=scheme, device="cpu")
    assert not [f"{check.name}: {check.summary}" for check in result.failed]
    assert result.plan.rung == "regions"


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
