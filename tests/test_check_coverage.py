"""The share of a model that was captured is a number, and a part that may hide joins is named."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from zero_convert.graph.traced import Region
from zero_convert.tracing import trace

from . import nets
from .test_checks import IMAGES, answers, convert


class Opaque(nn.Module):
    """What it computes depends on values, so no graph follows it."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x) if float(x.detach().numpy().sum()) > 0 else layer(x)
        return x


class Around(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(6, 6), Opaque(layers), nn.Linear(6, 3)
        self.unread = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.stem(x)))


def test_all_of_a_captured_model_is_counted_once() -> None:
    check = answers(convert(nets.tiny_resnet(), IMAGES, "zero-2022"))["coverage"]
    count = sum(p.numel() for p in nets.tiny_resnet().parameters())
    assert (check.status, check.numbers["captured"], check.numbers["parameters"]) == ("pass", count, count)
    assert "(100.0%)" in check.summary


def test_parameters_that_the_graph_reads_itself_are_captured() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.scale)

    numbers = answers(convert(Raw(), torch.zeros(1, 6), "zero-2022"))["coverage"].numbers
    assert (numbers["captured"], numbers["unread"]) == (6 + 21, 0)


def test_a_part_kept_whole_with_several_weight_layers_is_warned_of_by_name() -> None:
    check = answers(convert(Around(3), torch.zeros(1, 6), "zero-2022"))["coverage"]
    assert check.status == "warn"
    assert check.numbers["opaque"] == {"hidden": {"parameters": 3 * 42, "weight_layers": 3}}
    assert (check.numbers["captured"], check.numbers["unread"]) == (42 + 21, 6)
    assert "joins may be hidden among 3 weight layers in hidden" in check.summary


def test_a_part_kept_whole_with_one_weight_layer_hides_no_join() -> None:
    check = answers(convert(Around(1), torch.zeros(1, 6), "zero-2022"))["coverage"]
    assert (check.status, check.numbers["opaque"]["hidden"]["weight_layers"]) == ("pass", 1)


def test_coverage_warns_of_hidden_joins_in_a_small_part_too() -> None:
    net = Around(2)
    net.head = nn.Linear(6, 300)
    check = answers(convert(net, torch.zeros(1, 6), "zero-2022"))["coverage"]
    assert check.status == "warn" and check.numbers["share"] > 0.9 and "in hidden" in check.summary


def test_coverage_does_not_warn_of_a_model_that_is_one_layer() -> None:
    check = answers(convert(nn.Sequential(Opaque(1)), torch.zeros(1, 6), "zero-2022"))["coverage"]
    assert (check.status, check.numbers["captured"]) == ("pass", 0)


def test_what_only_a_recording_shows_is_told_apart_from_the_regions() -> None:
    subject = convert(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), torch.zeros(1, 6), "zero-2022")
    traced = replace(subject.traced, whole=False)
    region = Region("0", trace(subject.traced.root.get_submodule("0"), (torch.zeros(1, 6),)))
    for recording, captured in ((traced, 0), (replace(traced, regions=(region,)), 42)):
        check = answers(replace(subject, traced=recording))["coverage"]
        assert (check.numbers["captured"], check.numbers["recorded"], check.numbers["unread"]) == (
            captured,
            63 - captured,
            0,
        )
        assert "in a recording only" in check.summary


def test_an_attention_is_one_weight_layer() -> None:
    from zero_convert.checks.coverage import weight_layers

    assert weight_layers(nn.MultiheadAttention(8, 2)) == [""]
    assert weight_layers(nn.TransformerEncoderLayer(8, 2)) == ["self_attn", "linear1", "linear2"]
