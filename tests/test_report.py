"""The report is one file that asks for nothing, says everything, and trusts no name."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

import zero_convert as zc
from tests import browser, nets
from tests.command_line import Run, runner
from zero_convert import checks, report
from zero_convert.cli import report as cli_report
from zero_convert.errors import StorageError, UsageError
from zero_convert.formats import atomic
from zero_convert.formats.digests import FileDigest
from zero_convert.records import Recipe
from zero_convert.report import blocks, charts, drawing, facts, layout
from zero_convert.saving import Saved

SECTIONS = ["blocks", "depth", "weights", "rules", "checks", "recipe", "repeat"]
HOSTILE = "<img src=x onerror=alert(1)>&\"'$\\frac{1}{0}$"


@pytest.fixture(scope="module", autouse=True)
def _few_checks() -> Iterator[None]:
    """Those that the page draws and warns of; the others have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        drawn = ("outputs", "channels", "precision", "signal")
        patch.setattr(checks, "FILES", {name: checks.FILES[name] for name in drawn})
        yield


@pytest.fixture(scope="module")
def bottleneck(_few_checks: None) -> zc.Result:
    return zc.convert(nets.BottleneckNet(), torch.zeros(1, 3, 32, 32), options={"mixing": "none"}, device="cpu")


@pytest.fixture(scope="module")
def plain(_few_checks: None) -> zc.Result:
    return zc.convert(nets.mlp(), torch.zeros(1, 20), scheme="zero-2022", device="cpu")


@pytest.fixture(scope="module")
def text(bottleneck: zc.Result) -> str:
    return report.html(bottleneck)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


class _Links(HTMLParser):
    """Every address that the page names, its ids, and what stands open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def _read(text: str) -> _Links:
    links = _Links()
    links.feed(text)
    return links


def _figures(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, re.DOTALL)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_names_no_address_but_its_own_parts_and_runs_no_script(text: str) -> None:
    links = _read(text)
    assert links.addresses
    assert [a for a in links.addresses if not a.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)[^)]*", text) == [] and "@import" not in text
    assert not {"script", "iframe", "object", "embed", "base", "form"}.intersection(links.tags)


def test_every_section_is_there_and_no_id_comes_twice(text: str) -> None:
    links = _read(text)
    assert [name for name in links.ids if name in SECTIONS] == SECTIONS
    assert len(links.ids) == len(set(links.ids))
    for pointed in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert pointed in links.ids


def test_all_figures_are_well_formed_follow_the_colour_scheme_and_speak(text: str) -> None:
    figures = _figures(text)
    assert len(figures) == 4 + 6 + 3  # curves, three kinds of block before and after, weights
    for figure in figures:
        element = ET.fromstring(figure)
        assert element.get("role") == "img" and element.get("aria-label")
        colours = re.findall(r"(?:fill|stroke): ?(#[0-9a-f]{6})", figure)
        assert set(colours) <= {"#2166ac", "#e9e9ec", "#d9730d", "#ffffff", "#000000"}
        assert "#0101" not in figure and "#0102" not in figure
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_page_says_what_was_done_and_how_to_repeat_it(bottleneck: zc.Result, text: str) -> None:
    assert "3 of its 3 residual joins" in text and "none of them comes from a random number" in text
    assert text.count(bottleneck.weights_digest) == 1 and bottleneck.fingerprint in text
    assert "live module" in text  # no command can name it
    for check in bottleneck.checks:
        assert f">{check.status}</td>" in text


def test_a_known_weakness_stands_at_the_top_with_its_remedy(text: str, bottleneck: zc.Result) -> None:
    (channels,) = [check for check in bottleneck.checks if check.name == "channels"]
    assert channels.status == "warn"
    head = text[text.index("<header>") : text.index("</header>")]
    assert html.escape(channels.summary).replace("&#x27;", "&#39;") in head
    assert "--set mixing=permute" in re.sub("<[^>]*>", "", head)


def test_the_same_result_gives_the_same_bytes(plain: zc.Result, tmp_path: Path) -> None:
    first = report.save(plain, tmp_path / "a.html", plots=tmp_path / "a")
    second = report.save(plain, tmp_path / "b.html", plots=tmp_path / "b")
    assert [p.name for p in first[1:]] == [p.name for p in second[1:]] and len(first) > 5
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_the_users_settings_of_matplotlib_change_nothing_and_come_back(bottleneck: zc.Result, text: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "none", "axes.facecolor": "red"}):
        assert report.html(bottleneck) == text
        assert matplotlib.rcParams["font.size"] == 30


def test_a_network_without_joins_has_a_page_too(plain: zc.Result) -> None:
    text = report.html(plain)
    assert "no residual join" in text and "Hadamard" in text
    assert len(_figures(text)) == 4 + len(report.weights.chosen(plain.module, plain.plan.assignments))


def test_sizes_that_a_forward_asks_for_are_no_signal_and_a_kept_architecture_shows_its_rules() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            places = torch.arange(x.shape[-1]).to(x.dtype)
            return self.head(x + self.up(x.reshape(x.size(0), x.shape[1])) * places)

    result = zc.convert(Sized(), torch.zeros(3, 8), scheme="zero-2022", device="cpu")
    (kind,) = report._kinds(result)
    assert kind.before is not None and kind.after is not None
    assert [box.label for box in kind.before] == ["input", "linear 8 → 8", "×", "+"]
    assert [box.rule for box in kind.after] == ["", "identity 8×8", "", ""]


def test_without_checks_the_page_says_so() -> None:
    text = report.html(zc.convert(nets.mlp(), torch.zeros(1, 20), scheme="zero-2022", validate="none"))
    assert "No check was asked for." in text and "No depth was measured" in text


def test_names_of_a_model_never_become_markup() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(HOSTILE, nn.Linear(8, 8))
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + getattr(self, HOSTILE)(torch.relu(x)))

    result = zc.convert(Named(), torch.zeros(1, 8), scheme="zero-2022", device="cpu")
    text = report.html(result)
    assert "img" not in _read(text).tags and "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    for figure in _figures(text):
        ET.fromstring(figure)


def test_texts_of_checks_and_files_are_escaped(plain: zc.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Saved(Path(f"{HOSTILE.replace('/', '')}.safetensors"), Path("x"), (FileDigest("0" * 64, 1),), "0" * 64)
    monkeypatch.setattr(plain, "device", HOSTILE)
    text = report.html(plain, [saved])  # type: ignore[list-item]
    assert "<img" not in text and text.count("&lt;img src=x") >= 3


# -- writing -----------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept_unless_forced_and_nothing_else_is_written(plain: zc.Result, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("mine")
    with pytest.raises(UsageError):
        report.save(plain, target, plots=tmp_path / "plots")
    assert target.read_text() == "mine" and not (tmp_path / "plots").exists()
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "weight-1.png").write_text("mine")
    with pytest.raises(UsageError):
        report.save(plain, tmp_path / "other.html", plots=tmp_path / "plots")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plots", "report.html"]
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["weight-1.png"]
    report.save(plain, target, plots=tmp_path / "plots", force=True)
    assert target.read_text().startswith("<!doctype html>")
    assert (tmp_path / "plots" / "weight-1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("failing", [".safetensors", ".json", ".html", ".png"])
@pytest.mark.parametrize("old", [True, False])
def test_page_figures_artifact_and_receipt_are_written_all_or_none(
    plain: zc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, old: bool
) -> None:
    plots = tmp_path / "deep" / "plots"
    if old:
        plots.mkdir(parents=True)
        for name in ("a.safetensors", "a.safetensors.receipt.json", "a.html", "deep/plots/weight-1.png"):
            (tmp_path / name).write_text("mine")
    before = _files(tmp_path)
    rename, tried = atomic._rename, list[str]()

    def fail(temporary: Path, target: Path, force: bool) -> None:
        tried.append(target.suffix)
        if target.suffix == failing:
            raise OSError(28, "No space left on device")
        rename(temporary, target, force)

    monkeypatch.setattr(atomic, "_rename", fail)
    pages = cli_report.Pages(plain, str(tmp_path / "a.html"), str(plots), force=old)
    with pytest.raises(StorageError):
        plain.save(tmp_path / "a.safetensors", force=old, beside=pages.beside)
    assert _files(tmp_path) == before and not pages.written and tried[-1] == failing
    monkeypatch.setattr(atomic, "_rename", rename)
    plain.save(tmp_path / "a.safetensors", force=old, beside=pages.beside)
    assert {path.suffix for path in pages.written} == {".html", ".png"}
    assert all(path.read_bytes() != b"mine" for path in tmp_path.rglob("*") if path.is_file())


def _files(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_plots_need_a_folder(plain: zc.Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        report.save(plain, plots=tmp_path / "file")


def test_without_the_extra_its_exact_command_is_named(
    monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "matplotlib" else SimpleNamespace())
    ran = run("resnet18", "--out", str(tmp_path / "a.safetensors"), "--report", str(tmp_path / "a.html"))
    assert ran.code == 2 and "pip install 'zero-convert[report]'" in ran.err and list(tmp_path.iterdir()) == []


def test_the_command_writes_page_and_figures_beside_the_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from tests.nets import tiny_resnet\n")
    words = ["net.py:tiny_resnet", "--input", "1x3x32x32", "--device", "cpu", "--out", "a.safetensors"]
    ran = run(*words, "--report", "a.html", "--plots", "figures", "--json")
    facts = json.loads(ran.out)
    assert ran.code == 0 and facts["report"][0] == "a.html" and all(Path(name).is_file() for name in facts["report"])
    text = Path("a.html").read_text(encoding="utf-8")
    assert facts["outputs"][0]["sha256"] in text and facts["weights_digest"] in text
    assert "zero-convert net.py:tiny_resnet --scheme zero-2021" in text and str(tmp_path) not in text
    assert "zero-convert verify a.safetensors" in text


@pytest.mark.parametrize(
    "words",
    [
        ["--dry-run", "--report", "a.html"],
        ["--out", "a.safetensors", "--report", "a.safetensors"],
        ["--out", "a.safetensors", "--report", "-"],
        ["--out", "a.safetensors", "--report", "a.safetensors.receipt.json"],
        ["--out", "a.onnx", "--report", "./a.onnx.data"],
    ],
)
def test_a_report_about_nothing_or_in_the_place_of_its_model_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("resnet18", *words).code == 2 and list(tmp_path.iterdir()) == []


# -- its parts ---------------------------------------------------------------------------------------------------------


def test_the_drawn_block_is_that_of_the_graph(bottleneck: zc.Result) -> None:
    first, second, third = report._kinds(bottleneck)
    assert (first.names, second.names, third.names) == (("body.0",), ("body.1",), ("body.2",))
    assert second.before is not None and second.after is not None
    assert [box.label for box in second.before] == [
        "from body.0.act", "1×1 conv 32 → 8", "batch norm", "ReLU", "3×3 conv 8 → 8", "batch norm", "ReLU",
        "1×1 conv 8 → 32", "batch norm", "+", "ReLU",
    ]  # fmt: skip
    assert second.before[9].sources == (8, 0)  # the branch, and the identity
    rules = [(box.label, box.rule) for box in second.after if box.rule and "conv" in box.label]
    assert rules == [
        ("1×1 conv 32 → 8", "partial identity 8×32"),
        ("3×3 conv 8 → 8", "constant 0"),
        ("1×1 conv 8 → 32", "constant 0"),
    ]
    assert sum(box.label == "+" for box in second.after) == 2  # the inner skip came in


def test_a_kept_architecture_is_drawn_with_the_same_operations_before_and_after() -> None:
    kept = zc.convert(nets.BottleneckNet(), torch.zeros(1, 3, 32, 32), scheme="zero-2022", device="cpu")
    for kind in report._kinds(kept):
        assert kind.before is not None and kind.after is not None
        assert [box.label for box in kind.before] == [box.label for box in kind.after]


def _box(*sources: int) -> blocks.Box:
    return blocks.Box("x", "x", "", sources)


def test_no_two_boxes_and_no_line_share_a_place() -> None:
    attention = (_box(), _box(0), _box(1), _box(1), _box(1), _box(2, 3), _box(5, 4), _box(6, 0), _box(7), _box(8, 7))
    found = layout.layout(attention)
    assert len(set(found.places)) == len(attention)
    taken = set(found.places)
    for source, target, lane in found.edges:
        between = range(found.places[source][0] + 1, found.places[target][0])
        assert (lane is None) == (len(between) == 0)
        for rank in between:
            assert (rank, lane) not in taken
            taken.add((rank, lane))  # type: ignore[arg-type]
    assert [found.places[i][1] for i in (0, 1, 2, 5, 6, 7, 8, 9)] == [0] * 8  # the branch goes straight down


def test_curves_follow_the_residual_stream_where_there_is_one() -> None:
    column: dict[str, Any] = {
        "kind": ["layer", "join", "layer", "join", "layer", "join", "layer"],
        "activation": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
        "gradient": [None, 2.0, 0.0, 0.0, 1.0, 1.0, 1.0],
        "channels": [4] * 7,
        "distinct": [4, 3, 4, 2, 4, 1, 4],
    }
    assert facts.curves({"converted": column}, "activation") == {"converted": [(1, 2.0), (2, 4.0), (3, 6.0), (4, 7.0)]}
    assert facts.curves({"converted": column}, "distinct")["converted"] == [(1, 75), (2, 50), (3, 25), (4, 100)]
    plain = {key: [value for value, kind in zip(values, column["kind"], strict=True) if kind == "layer"]
             for key, values in column.items()}  # fmt: skip
    assert facts.curves({"converted": plain}, "gradient")["converted"] == [(1, 0.0), (2, 1.0), (3, 1.0)]


def test_a_value_of_exactly_0_is_seen_on_a_logarithmic_scale() -> None:
    with drawing.settings():
        made = charts.curve({"converted": [(0, 1.0), (1, 0.0)]}, "x", logarithmic=True)
    labels = [line.get_label() for line in made.axes[0].lines]
    assert labels == ["converted", "converted: exactly 0"]


def test_the_heat_map_of_a_frozen_transform_is_its_matrix(bottleneck: zc.Result) -> None:
    from zero_convert.formulas import hadamard

    shown = report.weights.chosen(bottleneck.module, bottleneck.plan.assignments)[0]
    matrix = np.ones((1, 1), np.int8)
    for factor in hadamard.kronecker_factors(len(shown.values)):
        matrix = np.kron(matrix, factor)
    assert "Hadamard" in shown.rule and len(shown.values) == 8
    assert (shown.values * 8**0.5).round().astype(int).tolist() == matrix.tolist()


def test_the_command_quotes_what_a_shell_would_read() -> None:
    recipe = Recipe(
        model="my nets/n.py:f;rm", scheme="zero-2022", options={"c": "paper"}, model_args={"a": "x y", "n": 3},
        dtype="float16", uncovered="keep", ties={}, source="n.f",
    )  # fmt: skip
    assert facts.command(recipe, ["a b.onnx"]) == (
        "zero-convert 'my nets/n.py:f;rm' --scheme zero-2022 --set c=paper --model-arg 'a=x y' --model-arg n=3 "
        "--dtype float16 --uncovered keep --out 'a b.onnx'"
    )


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(browser.PROGRAM is None, reason=browser.REASON)
@pytest.mark.parametrize("width", [400, 1400])
def test_chromium_opens_the_page_without_complaint_request_or_overflow(text: str, tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    seen = browser.measured(file, width, tmp_path / "profile")
    assert seen["console"] == [] and seen["resources"] == []
    assert seen["scroll"] <= width and seen["wide"] == []
    assert seen["sections"] == SECTIONS and len(seen["svgs"]) == len(_figures(text))
    assert all(100 <= w <= width and h >= 30 for w, h in seen["svgs"])


def test_a_layer_of_several_matrices_says_what_each_of_them_became() -> None:
    """An attention whose last matrix is 0 adds nothing, whatever its first one is; a GRU has no `weight` at all."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gru, self.head = (
                torch.nn.Linear(6, 8),
                torch.nn.GRU(8, 8, batch_first=True),
                torch.nn.Linear(8, 2),
            )
            self.layers = torch.nn.Sequential(
                *(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(2))
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.stem(x)
            made: torch.Tensor = self.head(self.layers(h + self.gru(h)[0]))
            return made

    result = zc.convert(Net(), (torch.zeros(2, 5, 6),))
    scene = blocks.Scene(result.module, result.graph, result.structure, result.plan.assignments)
    found = blocks.kinds(None, scene, result.plan.joins)
    boxes = {box.kind: (box.rule, box.mark) for kind in found for box in kind.after or ()}
    assert boxes["attention"] == ("identity 8×8; constant 0", "other")
    assert boxes["GRU"] == ("constant 0; identity 8×8", "other")
    assert {boxes["linear"], boxes["layer norm"]} == {("constant 0", "zero"), ("constant 1", "plain")}
    twice = next(kind for kind in found if len(kind.names) > 1)
    assert twice.names == ("layers.0", "layers.1") and twice.others == ("layers.1",)
    assert blocks.Kind(("a", "a", "b", "b"), None, None).others == ("b",)
