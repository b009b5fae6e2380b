"""What files of transformers leave out: matrices that are tied to another one, and stored under its name only.

A language model's output is often its embedding, and an encoder and a decoder share theirs. Names from the classes'
`_tied_weights_keys` (transformers 5.23).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Shapes = Mapping[str, tuple[int, ...]]

OUTPUTS = (
    "lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight", "predictions.decoder.weight",
    "generator_lm_head.weight", "proj_out.weight", "embed_out.weight", "decoder.weight", "head.weight",
    "head.decoder.weight", "output_projection.weight", "decoder.output_projection.weight", "vocab_projector.weight",
    "output.weight", "lm_head.out_proj.weight", "pred_layer.proj.weight", "lm_loss.weight", "mlm_score.decoder.weight",
    "text_decoder.cls.predictions.decoder.weight", "text_decoder_postnet.lm_head.weight", "text_model.lm_head.weight",
)  # fmt: skip
_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|emb|wte|w|shared)\.weight$")
_SHARED = "shared.weight"
_SIDES = (("encoder", "decoder"), ("encoder",), ("decoder",), ("text_encoder", "text_decoder"), ("text_decoder",))


def completions(shapes: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors that may be missing, name → shape, one dict for each way."""
    tables = [shape for name, shape in shapes.items() if len(shape) == 2 and _EMBEDDING.search(name)]
    if not tables:
        return
    table = max(tables)
    heads: list[dict[str, tuple[int, ...]]] = []
    for name in OUTPUTS:
        if name not in shapes:
            outer, _, _ = name.rpartition(".decoder.")
            bias = shapes.get(f"{outer}.bias") if outer else None
            heads.append({name: table, **({f"{outer}.decoder.bias": bias} if bias is not None else {})})
    for sides in _sides(shapes):
        for head in (*heads, {}):  # a network with an output is what files mostly hold
            if added := {**sides, **head}:
                yield added


def _sides(shapes: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """What an encoder and a decoder have of the embedding that they share."""
    yield {}
    for name in (name for name in shapes if name == _SHARED or name.endswith(f".{_SHARED}")):
        before = name.removesuffix(_SHARED)
        for sides in _SIDES:
            names = [f"{before}{side}.embed_tokens.weight" for side in sides]
            if not any(each in shapes for each in names):
                yield dict.fromkeys(names, shapes[name])
