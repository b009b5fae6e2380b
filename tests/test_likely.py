"""Which architecture a file likely is: exact, of another head, with prefixes, a part, a family; and none, honestly."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
import torchvision

from zero_convert.inspection.likely_architecture import COUNTER, INDEX, Shapes, likely


def shapes(network: torch.nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def resnet() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(torchvision.models.resnet18())


def found(given: Shapes) -> tuple[str, str, str]:
    answer = likely(given)
    assert answer is not None
    return answer.match, answer.models[0], answer.prefix


def test_an_architecture_is_found_by_names_and_shapes(resnet: dict[str, tuple[int, ...]]) -> None:
    assert found(resnet) == ("exact", "torchvision:resnet18", "")
    assert found(dict(reversed(resnet.items()))) == ("exact", "torchvision:resnet18", "")
    assert found({n: s for n, s in resnet.items() if not n.endswith(COUNTER)}) == ("exact", "torchvision:resnet18", "")
    wider = {n: tuple(2 * size for size in s) if n == "bn1.weight" else s for n, s in resnet.items()}
    assert found(wider)[0] == "part"


def test_another_number_of_classes_is_the_same_architecture(resnet: dict[str, tuple[int, ...]]) -> None:
    other = {**resnet, "fc.weight": (7, 512), "fc.bias": (7,)}
    assert found(other) == ("classes", "torchvision:resnet18", "")
    answer = likely(other)
    assert answer is not None and answer.classes == 7
    assert found({n: s for n, s in resnet.items() if not n.startswith("fc.")})[0] == "headless"


def test_what_stands_before_the_names_does_not_hide_it(resnet: dict[str, tuple[int, ...]]) -> None:
    for prefix in ("model.", "net.backbone.", "a.b.c."):
        given = {prefix + name: shape for name, shape in resnet.items()} | {"loss.weight": (1000,)}
        assert found(given) == ("exact", "torchvision:resnet18", prefix)


def test_a_part_and_a_family_are_called_so(resnet: dict[str, tuple[int, ...]]) -> None:
    fewer = {name: shape for name, shape in resnet.items() if not name.startswith(("layer4.1", "fc"))}
    answer = likely(fewer)
    assert answer is not None and answer.match == "part" and answer.models[0] == "torchvision:resnet18"
    assert 0.7 < answer.share < 1
    sizes = {512: 48, 256: 24, 128: 12, 64: 6, 1000: 5}
    small = {name: tuple(sizes.get(size, size) for size in shape) for name, shape in resnet.items()}
    answer = likely(small)
    assert answer is not None and answer.match == "family" and "torchvision:resnet18" in answer.models


def test_tensors_that_are_tied_and_left_out_do_not_make_it_a_sibling() -> None:
    """`save_pretrained` stores a tied matrix once, under the name of the embedding."""
    transformers = pytest.importorskip("transformers")
    for name, config, sizes in (
        ("BertForMaskedLM", transformers.BertConfig, {"num_hidden_layers": 2}),
        ("RobertaForMaskedLM", transformers.RobertaConfig, {}),
        ("T5ForConditionalGeneration", transformers.T5Config, {}),
        ("GPT2LMHeadModel", transformers.GPT2Config, {"n_layer": 2}),
        ("BartForConditionalGeneration", transformers.BartConfig, {}),
    ):
        with torch.device("meta"):
            network = getattr(transformers, name)(config(**sizes))
        left_out = network.all_tied_weights_keys
        given = {key: shape for key, shape in shapes(network).items() if key not in left_out}
        assert 0 < len(given) < len(shapes(network))
        answer = likely(given)
        assert answer is not None and f"transformers:{name}" in answer.models[:2], (name, answer)
        assert (answer.match, answer.prefix) == ("family" if sizes else "exact", "")


def test_what_is_no_known_architecture_is_none() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    for given in (
        {},
        shapes(layers),
        {f"blocks.{i}.mixing.weight": (16, 16) for i in range(60)},
        {"weight": (1000, 512), "bias": (1000,)},
        {f"{i}": (i,) for i in range(100_000)},
    ):
        assert likely(given) is None


def test_every_line_of_the_index_is_one_architecture() -> None:
    versions, *lines = INDEX.read_text("utf-8").splitlines()
    assert versions.startswith("torchvision ") and " timm " in versions and " transformers " in versions
    rows = [line.split("\t") for line in lines]
    assert len({(row[0], row[1]) for row in rows}) == len(rows) > 2500
    models = [model for row in rows for model in row[6].split(" ")]
    assert len(set(models)) == len(models) and all(model.count(":") == 1 for model in models)


def test_it_takes_less_than_a_tenth_of_a_second_and_no_torch(resnet: dict[str, tuple[int, ...]]) -> None:
    likely({})
    start = time.process_time()
    assert likely({f"blocks.{i}.mixing.weight": (16, 16) for i in range(1000)}) is None
    assert time.process_time() - start < 0.3
    code = (
        "import sys; from zero_convert.inspection.likely_architecture import likely; likely({'a.b': (1,)}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_index_knows_the_networks_of_the_installed_libraries() -> None:
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        bert = transformers.BertForQuestionAnswering(transformers.BertConfig())
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    assert found(shapes(bert)) == ("exact", "transformers:BertForQuestionAnswering", "")
    assert found(shapes(vit, "module."))[::2] == ("classes", "module.")
