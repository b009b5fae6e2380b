"""`za1` and `zs1` in files, receipts, locks and state dicts: equal in each form of a start, compared on loading."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from tests import nets
from tests.command_line import Run, runner
from zero_convert import schemes
from zero_convert.artifacts.lock import parse_lock, spell
from zero_convert.artifacts.receipt import read_receipt, receipt_from_json, receipt_json
from zero_convert.artifacts.verify import verify
from zero_convert.errors import DeclinedError, MalformedError, MismatchError
from zero_convert.exporters import safetensors
from zero_convert.formats import naming
from zero_convert.formats.naming import ARCHITECTURE_KEY
from zero_convert.nn.state_guard import guarded_by
from zero_convert.pipeline import Result
from zero_convert.records import Option
from zero_convert.validation import validate

IMAGE = (torch.zeros(2, 3, 16, 16),)
NETS = {
    "post-activation": lambda: nets.tiny_resnet(),
    "plain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ),
    "normless": lambda: nets.NormFreeNet(),
    "bottleneck": lambda: nets.BottleneckNet(),
}  # fmt: skip
EXTRA: Mapping[str, tuple[Option, ...]] = {"seed": (0, 7), "break_symmetry": ("none", "dropout:0.01", "dropout:0.1")}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def converted(module: nn.Module, scheme: str, **options: Option) -> Result:
    return zc.convert(module, IMAGE, scheme=scheme, options=options, validate="none")


def settings(scheme: str) -> Iterator[dict[str, Option]]:
    """Every choice of the scheme's options; of those that are numbers, a few."""
    specs = schemes.get(scheme).options
    for values in product(*(EXTRA.get(spec.name, spec.choices) for spec in specs)):
        yield dict(zip((spec.name for spec in specs), values, strict=True))


def answers(module: nn.Module) -> list[Tensor]:
    """Outputs in both modes and gradients for seeded weights."""
    made = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    for value in made.state_dict(keep_vars=True).values():
        if value.is_floating_point():
            value.data.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.1)
    x = torch.randn((2, 3, 16, 16), generator=generator)
    with torch.no_grad():
        found = [made.eval()(x)]
    torch.manual_seed(2)
    y = made.train()(x)
    y.square().sum().backward()
    return [*found, y.detach(), *(p.grad for p in made.parameters() if p.grad is not None)]


LONG = ("normless", "bottleneck")


@pytest.mark.parametrize("net", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in NETS])
def test_pairs_of_options_that_change_the_function_have_other_digests(net: str) -> None:
    groups: dict[str, list[tuple[str, Result]]] = {}
    starts: dict[str, str] = {}
    count = 0
    for scheme in schemes.names():
        for options in settings(scheme):
            try:
                result = converted(NETS[net](), scheme, **options)
            except DeclinedError:
                continue
            count += 1
            groups.setdefault(result.architecture_digest, []).append((f"{scheme} {options}", result))
            assert starts.setdefault(result.start_digest, result.weights_digest) == result.weights_digest
    assert count >= 20 and len(groups) >= 4
    for group in groups.values():
        name, first = group[0]
        usual = answers(first.module)
        for other, result in group[1:]:
            assert list(first.module.state_dict()) == list(result.module.state_dict()), (name, other)
            made = answers(result.module)
            assert len(made) == len(usual)
            assert all(torch.equal(a, b) for a, b in zip(usual, made, strict=True)), (name, other)


@pytest.mark.parametrize(
    ("scheme", "count"),
    [("zero-2021", 6), ("zero-2022", 1), ("constnet", 3), ("idinit", 1), ("rezero", 2), ("risotto", 1), ("fixup", 1)],
)
def test_options_of_weights_do_not_change_the_architecture(scheme: str, count: int) -> None:
    found = []
    for options in settings(scheme):
        if options.get("norm") == "keep" and scheme == "risotto":
            continue
        found.append(converted(nets.tiny_resnet(), scheme, **options))
    assert len({result.architecture_digest for result in found}) == count
    for one, other in combinations(found, 2):
        same = one.architecture_digest == other.architecture_digest, one.weights_digest == other.weights_digest
        assert (one.start_digest == other.start_digest) == all(same)


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "skipinit"])
@pytest.mark.parametrize("net", ["post-activation", "plain"])
def test_a_start_is_one_in_both_formats_receipts_and_the_live_module(net: str, scheme: str, tmp_path: Path) -> None:
    result = converted(NETS[net](), scheme)
    paths = [tmp_path / "a.safetensors", tmp_path / "a.onnx"]
    result.save(*paths)
    recorded = {naming.load(naming.format_in(path)).read_metadata(path)[ARCHITECTURE_KEY] for path in paths}
    assert recorded == {f"za1:{result.architecture_digest}"}
    for path in paths:
        identity = read_receipt(naming.receipt_path(path)).identity
        assert identity.start_digest == result.start_digest
        assert (identity.architecture_digest, identity.weights_digest) == (
            result.architecture_digest, result.weights_digest,
        )  # fmt: skip
        assert not verify(path).findings
    assert guarded_by(result.module) == result.architecture_digest
    loaded = zc.load(paths[0], NETS[net](), IMAGE)
    assert guarded_by(loaded) == result.architecture_digest
    again = converted(NETS[net](), scheme)
    assert again.start_digest == result.start_digest


def test_a_folded_file_has_neither_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    converted(nets.tiny_resnet(), "zero-2022").save(path, fold=True)
    assert ARCHITECTURE_KEY not in naming.load("onnx").read_metadata(path)
    assert read_receipt(naming.receipt_path(path)).identity.start_digest == ""
    assert not verify(path).findings


# ------------------------------------------------------------------------------------------------------------- guards


def trained(module: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD(module.train().parameters(), 0.01)
    for _ in range(2):
        module(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def starts() -> dict[str, Result]:
    choices = ("none", "permute", "signs")
    return {mixing: converted(nets.tiny_resnet(), "zero-2021", mixing=mixing) for mixing in choices}


@pytest.mark.parametrize(("one", "other"), list(combinations(("none", "permute", "signs"), 2)))
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_of_another_architecture_is_not_loaded(
    starts: Mapping[str, Result], one: str, other: str, strict: bool
) -> None:
    assert starts[one].weights_digest == starts[other].weights_digest
    state = starts[one].module.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    target = copy.deepcopy(starts[other].module)
    for each in (state, torch.load(file, weights_only=True)):
        with pytest.raises(RuntimeError, match=f"another architecture.*{starts[other].architecture_digest}"):
            target.load_state_dict(each, strict=strict)
    whole, inner = nn.Sequential(target), nn.Sequential(starts[one].module)
    with pytest.raises(RuntimeError, match="another architecture"):
        whole.load_state_dict(inner.state_dict())
    target.load_state_dict(dict(state))  # a bare dict cannot be told


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "rezero"])
def test_a_trained_checkpoint_loads(scheme: str) -> None:
    result = converted(nets.tiny_resnet(), scheme)
    module = trained(copy.deepcopy(result.module))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = converted(nets.tiny_resnet(), scheme).module
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(next(fresh.parameters()), next(module.parameters()))
    half = copy.deepcopy(module).half().state_dict()
    fresh.load_state_dict(half)
    if scheme == "zero-2022":
        fresh.load_state_dict(nets.tiny_resnet().state_dict())  # it records nothing


def test_a_guard_goes_with_the_module(starts: Mapping[str, Result]) -> None:
    module = starts["signs"].module
    digest = starts["signs"].architecture_digest
    assert guarded_by(copy.deepcopy(module)) == guarded_by(torch.compile(copy.deepcopy(module))._orig_mod) == digest
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert guarded_by(torch.load(file, weights_only=False)) == digest


def rewritten(path: Path, target: Path, change: Mapping[str, str | None]) -> Path:
    """The file with other metadata."""
    from safetensors.torch import load_file

    known = dict(naming.load("safetensors").read_metadata(path)) | dict(change)
    tensors = load_file(path)
    entries = [
        safetensors.Entry(name, {torch.float32: "F32", torch.int64: "I64"}[t.dtype], tuple(t.shape), t.numpy().tobytes)
        for name, t in tensors.items()
    ]
    with target.open("wb") as stream:
        safetensors.write(stream, entries, {k: v for k, v in known.items() if v is not None})
    return target


OTHER = "za1:" + "ab" * 32


def test_loading_validating_and_verifying_compare(starts: Mapping[str, Result], tmp_path: Path) -> None:
    result = starts["permute"]
    path = tmp_path / "a.safetensors"
    result.save(path)
    recipe = json.loads(naming.load("safetensors").read_metadata(path)["zero_convert"])
    recipe["options"]["mixing"] = "signs"  # the same weights, and another network
    for change in ({ARCHITECTURE_KEY: OTHER}, {"zero_convert": json.dumps(recipe)}):
        other = rewritten(path, tmp_path / "b.safetensors", change)
        with pytest.raises(MismatchError, match=r"za1 .*expected za1") as caught:
            zc.load(other, nets.tiny_resnet(), IMAGE)
        assert caught.value.exit_code == 1 and str(other) in str(caught.value)
        checks = {check.name: check for check in validate(other, nets.tiny_resnet(), IMAGE, device="cpu").checks}
        assert checks["architecture"].status == "fail" and checks["values"].status == "pass"
    changed = rewritten(path, tmp_path / "b.safetensors", {ARCHITECTURE_KEY: OTHER})
    found = {finding.what for finding in verify(changed, naming.receipt_path(path)).findings}
    assert found == {"sha256", "architecture digest"}
    checks = {check.name: check for check in validate(path, nets.tiny_resnet(), IMAGE, device="cpu").checks}
    assert checks["architecture"].status == "pass"
    zc.load(path, nets.tiny_resnet(), IMAGE)


@pytest.mark.parametrize("text", ["", "za1:", "za1:xyz", "ab" * 32, "za2:" + "ab" * 32])
def test_a_malformed_digest_is_refused(starts: Mapping[str, Result], text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    starts["none"].save(path)
    other = rewritten(path, tmp_path / "b.safetensors", {ARCHITECTURE_KEY: text})
    if text:
        with pytest.raises(MalformedError, match="architecture digest"):
            zc.load(other, nets.tiny_resnet(), IMAGE)
    else:
        zc.load(other, nets.tiny_resnet(), IMAGE)


def test_what_an_earlier_version_wrote_is_read_and_not_compared(starts: Mapping[str, Result], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    starts["signs"].save(path)
    old = rewritten(path, tmp_path / "b.safetensors", {ARCHITECTURE_KEY: None})
    zc.load(old, nets.tiny_resnet(), IMAGE)
    checks = {check.name: check for check in validate(old, nets.tiny_resnet(), IMAGE, device="cpu").checks}
    assert checks["architecture"].status == "skip"
    spelled = receipt_json(read_receipt(naming.receipt_path(path)))
    del spelled["identity"]["architecture_digest"]
    receipt = receipt_from_json(spelled)
    assert receipt.identity.architecture_digest == receipt.identity.start_digest == ""
    assert receipt_json(receipt) == spelled
    beside = naming.receipt_path(old)
    beside.write_text(json.dumps(spelled))
    assert "architecture digest" not in {finding.what for finding in verify(old, beside).findings}


# -------------------------------------------------------------------------------------------------- the original class


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "idinit", "constnet", "fixup"])
def test_the_line_about_the_original_class_is_true(net: str, scheme: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    try:
        result = converted(NETS[net](), scheme)
    except DeclinedError:
        pytest.skip("the scheme declines this network")
    path, original = tmp_path / "a.safetensors", NETS[net]()
    result.save(path)
    about = result.original_class
    assert about is not None
    if not about.loads:
        with pytest.raises(RuntimeError) as caught:
            original.load_state_dict(load_file(path))
        assert about.sentence.startswith("does not load") and about.differing[0] in str(caught.value)
        return
    original.load_state_dict(load_file(path))
    same = [torch.equal(a, b) for a, b in zip(answers(original), answers(result.module), strict=False)]
    assert about.same == all(same)
    assert ("is the same network there" in about.sentence) == about.same
    assert ("is another network there" in about.sentence) != about.same


def test_ties_are_told() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Embedding(12, 8)
            self.out = nn.Linear(8, 12, bias=False)
            self.out.weight = self.inside.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.inside(x))

    result = zc.convert(Tied(), (torch.zeros(2, 3, dtype=torch.int64),), scheme="zero-2022", validate="none")
    about = result.original_class
    assert about is not None and about.loads and about.same and about.tied == ("out.weight",)
    assert "with strict=False (1 tied names are stored once)" in about.sentence


# ---------------------------------------------------------------------------------------------------------- said aloud


def test_stdout_and_json_name_start_and_weights(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    words = ["tests.nets:tiny_resnet", "--input", "1x3x32x32", "--out", str(out), "--validate", "none"]
    said = run(*words)
    lines = said.out.splitlines()
    receipt = json.loads(Path(f"{out}.receipt.json").read_text())["identity"]
    identity = read_receipt(f"{out}.receipt.json").identity
    assert lines[0] == f"{receipt['file']['sha256']}  {out}"
    assert lines[1:] == [f"# start zs1 {identity.start_digest}", f"# weights zc1 {identity.weights_digest}"]
    assert "the original class" in " ".join(said.err.split())
    facts = json.loads(run(*words, "--force", "--json").out)
    assert facts["start_digest"] == identity.start_digest
    assert facts["architecture_digest"] == identity.architecture_digest == receipt["architecture_digest"]
    assert facts["weights_digest"] == identity.weights_digest
    assert facts["original_class"]["loads"] is False and facts["original_class"]["same"] is False
    row = json.loads(run("verify", str(out), "--json").out)["files"][0]
    assert (row["start_digest"], row["architecture_digest"]) == (identity.start_digest, identity.architecture_digest)
    seen: dict[str, Any] = json.loads(run("inspect", str(out), "--json").out)
    assert (seen["start_digest"], seen["architecture_digest"]) == (identity.start_digest, identity.architecture_digest)
    assert "needs_trust" in seen


def test_a_lock_holds_the_architecture_and_reads_one_without(run: Run, tmp_path: Path) -> None:
    out, lock = tmp_path / "a.safetensors", tmp_path / "zero.lock"
    words = ["tests.nets:tiny_resnet", "--input", "1x3x32x32", "--out", str(out), "--lock", str(lock)]
    assert run("lock", *words, "--validate", "none").code == 0
    text = lock.read_text()
    known = parse_lock(text.encode())
    digest = known.entries[0].identity.architecture_digest
    assert digest and spell(known) == text
    assert run("check", str(lock), "--trust").code == 0
    lock.write_text(text.replace(digest, "ab" * 32))
    drifted = run("check", str(lock), "--trust")
    assert drifted.code == 1 and "architecture: digest" in drifted.err
    earlier = "".join(line for line in text.splitlines(True) if "architecture_digest" not in line)
    assert parse_lock(earlier.encode()).entries[0].identity.architecture_digest == ""
    lock.write_text(earlier)
    assert run("check", str(lock), "--trust").code == 0
