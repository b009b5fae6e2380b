"""The conversions whose digests `fixtures/golden_digests.json` holds, and the command that makes it anew.

python -m tests.goldens              which pairs moved
python -m tests.goldens --update     write the file (then say why in the changelog)
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zero_convert as zc

FILE = Path(__file__).parents[1] / "fixtures" / "golden_digests.json"


@dataclass(frozen=True)
class Case:
    """One conversion. `quick` ones are compared in every run of the tests."""

    model: str
    scheme: str
    options: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    quick: bool = False

    @property
    def key(self) -> str:
        """Its name in the file: `resnet18 zero-2021 mixing=permute bfloat16`."""
        options = [f"{name}={value}" for name, value in sorted(self.options.items())]
        return " ".join([self.model, self.scheme, *options, *([] if self.dtype == "float32" else [self.dtype])])


CASES = (
    Case("resnet18", "zero-2021", quick=True),
    Case("resnet18", "zero-2021", {"mixing": "permute"}, quick=True),
    Case("resnet18", "zero-2021", {"mixing": "signs"}),
    Case("resnet18", "zero-2021", {"norm": "none"}),
    Case("resnet18", "zero-2022", {"columns": "spanning"}, quick=True),
    Case("resnet18", "zero-2022", {"c": "paper"}, "bfloat16", quick=True),
    Case("resnet18", "zero-2022", dtype="float16"),
    Case("resnet50", "zero-2021"),
    Case("resnet50", "zero-2021", {"norm": "none", "mixing": "permute"}, quick=True),
    Case("resnet50", "zero-2022"),
    Case("mobilenet_v2", "zero-2021"),
    Case("mobilenet_v2", "zero-2022", {"columns": "spanning", "order": "exact"}, quick=True),
    Case("convnext_tiny", "zero-2021"),
    Case("convnext_tiny", "zero-2022", {"order": "exact"}),
    Case("regnet_y_400mf", "zero-2021", quick=True),
    Case("regnet_y_400mf", "zero-2022"),
    Case("vit_b_16", "zero-2021"),
    Case("vit_b_16", "zero-2022"),
    Case("densenet121", "zero-2021"),
    Case("densenet121", "zero-2022"),
    Case("efficientnet_b0", "zero-2021"),
    Case("efficientnet_b0", "zero-2022"),
    Case("googlenet", "zero-2021"),
    Case("googlenet", "zero-2022"),
    Case("squeezenet1_0", "zero-2021"),
    Case("squeezenet1_0", "zero-2022", quick=True),
    Case("resnet18", "fixup", quick=True),
    Case("resnet18", "skipinit"),
    Case("resnet18", "rezero"),
    Case("resnet18", "rezero", {"norm": "none", "seed": "7"}, "bfloat16"),
    Case("resnet50", "fixup", {"seed": "7"}),
    Case("vit_b_16", "fixup"),
    Case("vit_b_16", "rezero"),
    Case("mobilenet_v2", "skipinit", dtype="float16"),
    Case("resnet18", "idinit", quick=True),
    Case("resnet50", "idinit", {"order": "centre", "tau": "sqrt2"}),
    Case("vit_b_16", "idinit", dtype="bfloat16"),
    Case("convnext_tiny", "idinit", {"order": "channels-first"}),
    Case("resnet18", "constnet", quick=True),
    Case("resnet50", "constnet"),
    Case("mobilenet_v2", "constnet", {"break_symmetry": "dropout:0.01"}),
    Case("resnet18", "risotto", quick=True),
    Case("resnet50", "risotto", {"seed": "7"}),
    Case("resnext50_32x4d", "risotto", {"head": "zero"}),
    Case("vgg11_bn", "risotto", dtype="bfloat16"),
)


PARTS = {"values": "weights_digest", "network": "architecture_digest"}


class Hashing:
    """A stream that keeps nothing but the SHA-256 of what was written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self.hash.update(data)
        return len(data)


def digests(case: Case) -> dict[str, str]:
    """SHA-256 of the file, digests of weights, architecture and start, made now."""
    result = zc.convert(case.model, scheme=case.scheme, options=case.options, dtype=case.dtype, validate="none")
    stream = Hashing()
    written = result.write(stream)
    assert written.sha256 == stream.hash.hexdigest()
    return {"sha256": written.sha256, **identity(result)}


def identity(result: zc.Result) -> dict[str, str]:
    """The digests that are the same in every format."""
    names = ("weights_digest", "architecture_digest", "start_digest")
    return {name: getattr(result, name) for name in names}


def golden() -> dict[str, dict[str, str]]:
    """What the file holds: a case's key → its digests."""
    table: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="ascii"))
    return table


def moved(case: Case, found: Mapping[str, str]) -> str:
    """What a person needs to know about a case whose digests are not the golden ones; "" where they are."""
    expected = {**dict.fromkeys(found, "nothing"), **golden().get(case.key, {})}
    if found == expected:
        return ""
    parts = [f"the {what} moved" for what, name in PARTS.items() if found[name] != expected[name]]
    lines = [f"{case.key}: {' and '.join(parts) or 'same values, other file'}"]
    lines += [f"  {name}: {expected[name]} → {found[name]}" for name in expected]
    return "\n".join(
        [*lines, "  If this is meant: `python -m tests.goldens --update`, and a line in CHANGELOG.md that says why."]
    )


def main(arguments: list[str]) -> int:
    now = {}
    for case in CASES:
        now[case.key] = digests(case)
        note = moved(case, now[case.key]).splitlines() if FILE.exists() else [f"{case.key}: new"]
        print(note[0] if note else f"{case.key}: as it was", flush=True)
    if arguments == ["--update"]:
        FILE.write_text(json.dumps(now, indent=1) + "\n", encoding="ascii")
        return 0
    return int(not FILE.exists() or now != golden())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
