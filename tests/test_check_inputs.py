"""Inputs of every form reach the network, with values of their own; outputs of every form are compared."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import zero_convert as zc
from zero_convert import schemes
from zero_convert.checks import outputs
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.inputs import BATCH, batches, crops, floats, mapped, moved
from zero_convert.checks.subject import Subject
from zero_convert.graph.traced import Traced
from zero_convert.records import Structure

from . import nets
from .test_checks import answers, convert

LINEAR = nn.Linear(2, 2)


# ---------------------------------------------------------------------------------------------------------------------
# inputs


def test_arguments_of_equal_shape_get_different_values() -> None:
    """A network that compares two inputs returns zeros for equal ones."""
    (a, b, c), _ = batches((torch.zeros(1, 6), torch.zeros(1, 6), torch.arange(6).reshape(1, 6)), None)
    assert a.shape == b.shape == c.shape == (BATCH, 6)
    assert bool((a != b).all())
    assert {int(value) for value in c.flatten()} <= set(range(6))
    (other, _, _), _ = batches((torch.zeros(1, 6), b, c), None, variant=1)
    assert bool((other != a).all())


def test_a_siamese_network_is_alive() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(self.tower(a) - self.tower(b))

    subject = convert(Siamese(), (torch.zeros(1, 6), torch.zeros(1, 6)), "zero-2022")
    assert answers(subject)["gradients"].numbers["dead"] == []


def test_nests_keep_their_form_and_what_is_no_tensor_stays() -> None:
    """A list of images keeps one image for each sample; boxes and sizes in it keep their meaning."""
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    given = (
        [torch.zeros(3, 9, 7), torch.zeros(3, 8, 8)],
        {"boxes": boxes, "labels": torch.tensor([5])},
        None,
        True,
        "a",
    )
    (images, targets, *rest), alone = batches(given, None)
    assert [tuple(image.shape) for image in images] == [(3, 9, 7), (3, 8, 8)]
    assert not torch.equal(images[0].flatten()[:100], images[1].flatten()[:100])
    assert torch.equal(targets["boxes"], boxes)
    assert targets["labels"].tolist() == [5]
    assert rest == [None, True, "a"]
    assert len(alone[0]) == 2
    half = moved((images, targets, None), LINEAR.bfloat16(), "cpu")
    assert (half[0][0].dtype, half[1]["labels"].dtype, half[2]) == (torch.bfloat16, torch.int64, None)
    LINEAR.float()


def test_only_lists_of_images_and_what_belongs_to_them_grow() -> None:
    images, targets, sizes = [torch.zeros(3, 5, 5)] * 2, [{"labels": torch.tensor([i])} for i in (7, 8)], [1, 2, 3]
    (more, labels, same), _ = batches((images, targets, sizes), None, lengthen=True)
    assert len(more) == BATCH
    assert len({image.numpy().tobytes() for image in more}) == BATCH
    assert [target["labels"].item() for target in labels] == [7, 8, 7, 8]
    assert same == sizes
    levels = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4)]
    assert len(batches((levels,), None, lengthen=True)[0][0]) == 2


def test_images_in_nests_are_seen_and_cropped_but_tokens_are_not() -> None:
    clip = {"video": torch.zeros(1, 3, 4, 90, 80), "tokens": torch.zeros(1, 90, 80)}
    assert crops((clip,), 64)
    assert not crops((clip,), 80)
    assert not crops(([torch.zeros(3, 90, 80)], torch.zeros(1, 200, 200)), 64)
    ((cropped,), _) = batches((clip,), 64)
    assert {name: tuple(t.shape) for name, t in cropped.items()} == {"video": (1, 3, 4, 64, 64), "tokens": (1, 90, 80)}


@pytest.mark.parametrize(("norm", "samples"), [(nn.BatchNorm2d(1), 2), (nn.Identity(), 1)])
def test_large_images_come_in_small_batches(norm: nn.Module, samples: int) -> None:
    """Only a batch norm needs a second sample; 136×136 is the only size this network takes."""
    net = nn.Sequential(norm, nn.AvgPool2d(17), nn.Flatten(), nn.Linear(64, 3))
    context = CheckContext(convert(net, torch.zeros(1, 1, 136, 136), "zero-2022"), "quick", "cpu")
    assert context.inputs[0][0].shape[0] == samples


class Multiples(nn.Module):
    """Refuses sides that are no multiples of 32, which a graph of it does not (a check that many segmenters have)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 32:
            raise RuntimeError("expected sides divisible by 32")
        return self.head(self.stem(x).mean((2, 3)))


def test_what_the_forward_says_to_cropped_images_counts_where_a_graph_would_take_them() -> None:
    subject = convert(Multiples(), torch.zeros(1, 3, 224, 224), "zero-2022")
    assert subject.traced.capture == "values"
    context = CheckContext(subject, "quick", "cpu")
    assert [context.inputs[0][0].shape[-1], context.small_inputs[0][0].shape[-1]] == [96, 64]


def test_a_copy_of_the_inputs_is_given_so_that_a_forward_may_write_to_them() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.add_(1))

    found = answers(convert(Writes(), torch.zeros(2, 6), "zero-2022"))
    assert (found["repeat"].status, found["gradients"].status) == ("pass", "pass")


def test_a_nest_of_any_class_is_mapped_to_its_own_class() -> None:
    class Pair(tuple):
        __slots__ = ()
        _fields = ("a", "b")

        def __new__(cls, a: Any, b: Any) -> Pair:
            return super().__new__(cls, (a, b))

    nest = OrderedDict(a=[torch.ones(1)], b=Pair(torch.ones(2), "b"))
    changed = mapped(nest, lambda t: t * 2)
    assert type(changed) is OrderedDict
    assert type(changed["b"]) is Pair
    assert (changed["a"][0].tolist(), changed["b"][0].tolist(), changed["b"][1]) == ([2.0], [2.0, 2.0], "b")
    assert nest["a"][0].tolist() == [1.0]


def test_named_arguments_reach_the_module_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, *, a: Tensor, b: Tensor) -> Tensor:
            return self.head(a) + b.mean() * 0

    subject = whole(Named(), (torch.zeros(2, 5, 1), torch.zeros(2, 6)), (((2, 3), "float32"),))
    subject = replace(subject, traced=replace(subject.traced, keywords=("b", "a"), whole=False))
    found = answers(subject)
    assert {name for name, check in found.items() if check.status == "fail"} == set()
    assert set(found["gradients"].numbers["first_step"]) == {"net.head.weight", "net.head.bias"}


# ---------------------------------------------------------------------------------------------------------------------
# outputs


def whole(net: nn.Module, inputs: tuple[Any, ...], shapes: outputs.Summary) -> Subject:
    """A subject of which nothing but its inputs and outputs is known: its graph is one call."""
    root = nn.Module()
    root.net = net
    root.forward = net.forward  # type: ignore[method-assign]
    graph = fx.Graph()
    graph.output(graph.call_module("net", tuple(graph.placeholder(f"x{i}") for i in range(len(inputs)))))
    traced = Traced(root, graph, graph, "one call", (), ("net",))
    scheme = schemes.get("zero-2022")
    return Subject(traced, Structure((), ()), scheme, {}, (), inputs, {"train": shapes, "evaluate": shapes})


class Detector(nn.Module):
    """A list of images in; for each one the boxes above a score, the scores and the labels of these."""

    def __init__(self, channels: int = 4, limit: float = 0.5) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, channels + 1, 1)
        self.limit = limit

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.one(image[None]) for image in images]

    def one(self, image: Tensor) -> dict[str, Tensor]:
        found = self.head(self.body(image).relu()).flatten(2)[0].T
        scores = found[:, -1].sigmoid()
        kept = scores > self.limit
        return {"boxes": found[kept, :-1], "scores": scores[kept], "labels": kept.nonzero()[:, 0]}


def test_a_size_that_depends_on_values_need_not_agree_and_every_other_must() -> None:
    images = ([torch.zeros(3, 16, 16), torch.zeros(3, 12, 12)],)
    net = Detector()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()  # every score is exactly 0.5, so that nothing is kept
    kept = tuple(
        each for n in (7, 0) for each in (((n, 4), "float32"), ((n,), "float32"), ((n,), "int64"))
    )  # fmt: skip
    check = answers(whole(net, images, kept))["outputs"]
    assert check.status == "pass"
    assert check.numbers["sizes_of_values"]["evaluate"] == [(i, 0) for i in range(6)]
    assert "6 sizes depend on values" in check.summary
    for wrong in (
        ((7, 5), "float32"),  # a size that is none of values
        ((7,), "float32"),  # a rank
        ((7, 4), "float64"),  # a dtype
    ):
        assert answers(whole(net, images, (wrong, *kept[1:])))["outputs"].status == "fail"
    assert answers(whole(net, images, kept[:3]))["outputs"].status == "fail"


def test_no_size_is_excused_that_does_not_change() -> None:
    net = Detector(limit=-1.0)  # keeps all
    shapes = (((64, 4), "float32"), ((64,), "float32"), ((64,), "int64"))
    assert answers(whole(net, ([torch.zeros(3, 16, 16)],), shapes))["outputs"].status == "pass"
    fewer = (((63, 4), "float32"), ((64,), "float32"), ((64,), "int64"))
    assert answers(whole(net, ([torch.zeros(3, 16, 16)],), fewer))["outputs"].status == "fail"


class Indexing(nn.Module):
    """Boxes and scores above a limit, by their indices, and all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.head(self.body(image).relu()).flatten(2)[0].T
        kept = (found[:, -1] > 1e9).nonzero()[:, 0]  # no value that the checks make up passes the limit
        return found[kept, :-1], found[kept, -1], found


def test_a_size_that_an_operation_finds_need_not_agree() -> None:
    subject = convert(Indexing(), torch.zeros(1, 3, 16, 16), "zero-2022")
    shapes = (((7, 4), "float32"), ((7,), "float32"), ((64, 5), "float32"))
    check = answers(replace(subject, outputs={"train": shapes, "evaluate": shapes}))["outputs"]
    assert check.status == "pass", check.summary
    assert check.numbers["sizes_of_values"] == {"evaluate": [(0, 0), (1, 0)]}
    fewer = (*shapes[:2], ((63, 5), "float32"))
    assert answers(replace(subject, outputs={"train": fewer, "evaluate": fewer}))["outputs"].status == "fail"


def test_a_detector_passes_through_all_checks() -> None:
    images = ([torch.zeros(3, 16, 16)],)
    net = Detector(limit=-1.0)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.1)
    found = answers(whole(net, images, (((64, 4), "float32"), ((64,), "float32"), ((64,), "int64"))))
    assert {name: check.status for name, check in found.items() if check.status != "pass"} == {
        "coverage": "warn",
        "channels": "skip",  # neither a head nor a norm that changes
    }
    assert found["gradients"].numbers["dead"] == found["gradients"].numbers["unused"] == []


@dataclass
class Fields:
    """Outputs as a record that torch knows nothing of."""

    logits: Tensor
    cache: Any = None


def test_floating_tensors_are_found_in_records_mappings_and_nests() -> None:
    one, many = torch.ones(1), torch.ones(2, dtype=torch.complex64)
    nest = Fields(one, OrderedDict(a=(one.long(), [one.double()]), b=many, c=Fields(one.half(), "text")))
    assert [(t.dtype, tuple(t.shape)) for t in floats(nest)] == [
        (torch.float32, (1,)),
        (torch.float64, (1,)),
        (torch.float32, (2, 2)),
        (torch.float16, (1,)),
    ]
    assert floats(Fields) == []


def test_a_record_as_output_is_checked_like_a_tuple() -> None:
    class Records(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Fields:
            return Fields(self.head(x), {"argmax": self.head(x).argmax(1)})

    found = answers(whole(Records(), (torch.zeros(2, 6),), (((2, 3), "float32"), ((2,), "int64"))))
    assert (found["outputs"].status, found["repeat"].status, found["precision"].status) == ("pass", "pass", "pass")
    assert set(found["gradients"].numbers["first_step"]) == {"net.head.weight", "net.head.bias"}


def test_a_recording_that_cannot_be_followed_to_its_end_is_looked_at_as_far_as_it_goes() -> None:
    class Stops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    subject = convert(Stops(), torch.zeros(2, 6), "zero-2022")
    graph = subject.traced.train
    output = next(n for n in graph.nodes if n.op == "output")
    with graph.inserting_before(output):
        output.args = (graph.call_function(torch.reshape, (output.args[0], (7, 7))),)
    with pytest.raises(RuntimeError, match="invalid for input"):
        CheckContext(subject, "quick", "cpu")._measure("train", subject.traced.root, (subject.inputs,) * 2, "cpu")
    run = CheckContext(recording(subject), "quick", "cpu").run("train")
    assert "invalid for input" in run.stopped
    assert list(run.heads) == ["head"]
    assert [tuple(t.shape) for t in run.outputs] == [(BATCH, 3)]


def recording(subject: Subject) -> Subject:
    """The same with graphs that are only to look at."""
    return replace(subject, traced=replace(subject.traced, whole=False))


@pytest.mark.parametrize(("last", "branches"), [("linear", "pass"), ("conv1", "warn")])
def test_what_a_recording_does_not_reach_is_a_warning_with_the_reason(last: str, branches: str) -> None:
    """The recording breaks before the head, or after the stem."""
    subject = convert(nets.tiny_resnet(), torch.zeros(1, 3, 32, 32))
    graph = copy.deepcopy(subject.traced.train)
    node = next(n for n in graph.nodes if n.op == "call_module" and n.target == last)
    with graph.inserting_before(node):
        node.args = (graph.call_function(torch.reshape, (node.args[0], (7, 7))),)
    traced = replace(subject.traced, train=graph, evaluate=graph)
    found = answers(recording(replace(subject, traced=traced)))
    assert (found["zero_branches"].status, found["logits"].status) == (branches, "warn")
    assert "linear not reached, because the recording ends early: RuntimeError" in found["logits"].summary
    assert ("joins were not reached, because" in found["zero_branches"].summary) == (branches == "warn")
    assert {name for name, check in found.items() if check.status == "fail"} == set()


# ---------------------------------------------------------------------------------------------------------------------
# float64


def test_a_forward_that_names_its_own_precision_is_followed_in_float64() -> None:
    class Casts(nn.Module):
        """A cast down, a new tensor of the default type and a matrix product of both."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x.to(torch.float32)).float()
            return self.head(y @ torch.eye(6) + torch.zeros(6, dtype=torch.float32))

    check = answers(convert(Casts(), torch.zeros(2, 6), "zero-2022"))["precision"]
    assert check.status == "pass"
    assert check.numbers["train"]["largest_output"] > 0
    assert torch.get_default_dtype() is torch.float32


def test_a_network_that_does_not_run_in_float64_is_measured_in_what_it_runs_in() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)
            self.constant = [torch.ones(6, 6)]  # no buffer: nobody casts it

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x @ self.constant[0])

    found = answers(whole(Stubborn(), (torch.zeros(2, 6),), (((2, 3), "float32"),)))
    assert found["precision"].status == "skip"
    assert "does not run in float64" in found["precision"].summary
    assert found["channels"].status == "skip"  # it has no layer with a role


def test_a_network_for_positive_numbers_is_looked_at_with_the_examples_own() -> None:
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x.log()))

    subject = convert(Logarithm(), torch.linspace(0.5, 2, 24).reshape(4, 6), "zero-2022")
    found = answers(subject)
    assert not [check for check in found.values() if check.status == "fail"]
    assert CheckContext(subject, "quick", "cpu").inputs[0] is subject.inputs
    with torch.no_grad():
        subject.traced.root.get_parameter("first.bias").fill_(torch.nan)
    assert answers(subject)["finite"].status == "fail"


def test_a_layer_that_reads_one_sample_without_a_batch_is_looked_at() -> None:
    class Made(nn.Module):
        """Its second weight is made from the second input (Ha et al., HyperNetworks, 2016)."""

        def __init__(self) -> None:
            super().__init__()
            self.make, self.head = nn.Linear(5, 24), nn.Linear(8, 3)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return self.head(nn.functional.linear(x, self.make(z).view(8, 3)))

    found = zc.convert(Made(), (torch.ones(4, 3), torch.ones(5)), scheme="zero-2021", device="cpu").checks
    assert {check.name: check.status for check in found if check.status in ("fail", "warn", "skip")} == {}
