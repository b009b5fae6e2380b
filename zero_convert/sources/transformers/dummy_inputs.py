"""What an argument of a transformers model looks like: one function for each name, from fields of the configuration.

Token ids below the vocabulary's size, images of the configured size, as many spectrogram frames as the encoder has
positions. Each function gives the forms to try, the likeliest first; none where the configuration does not tell.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zero_convert.graph.example_values import reference_tensor

from .configs import inner_configs, value_of

LENGTH = 16  # tokens
CODEPOINTS = 128  # where there is no vocabulary: ASCII
SIDE = 224  # of an image where no configuration names a size
LARGE = 512  # sides above this are avoided where the network takes smaller ones
SAMPLES = 3840  # of raw audio: about a quarter of a second, a multiple of the usual strides
FRAMES = (128, 3000)  # of a spectrogram where no configuration names a length
GRID = (1, 4, 4)  # frames, rows and columns of patches, where images come as patches

TEXT = ("text_config", "text")  # keys of the configuration for the text
AUDIO_MASKS = ("input_features_mask", "feature_attention_mask")

_Made = list[dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """What a network says about its inputs.

    Attributes:
        module: the network.
    """

    module: nn.Module

    @property
    def config(self) -> Any:
        return self.module.config

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.module.forward).parameters

    @property
    def required(self) -> list[str]:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [n for n, p in self.parameters.items() if p.default is p.empty and p.kind in kinds]

    @property
    def main(self) -> str:
        name = getattr(self.module, "main_input_name", "input_ids")
        return name if isinstance(name, str) and name in self.parameters else ""

    @property
    def modalities(self) -> list[str]:
        declared = getattr(self.module, "input_modalities", ())
        return [declared] if isinstance(declared, str) else list(declared)

    def field(self, *names: str, inside: tuple[str, ...] = ()) -> Any:
        """The first of the fields that the configuration has, else one inside it; None where none has it.

        Args:
            inside: configurations to look into before the others.
        """
        inner = dict(_all_inner(self.config))
        preferred = [inner[key] for key in inside if key in inner]
        for config in (*preferred, self.config, *inner.values()):
            for name in names:
                if (value := value_of(config, name)) is not None:
                    return value
        return None


def _all_inner(config: Any) -> Iterator[tuple[str, Any]]:
    level = list(inner_configs(config))
    while level:
        yield from level
        level = [deeper for _, inner in level for deeper in inner_configs(inner)]


def _tokens(asked: Asked) -> _Made:
    inside = ("encoder", "text_encoder") if asked.config.is_encoder_decoder else TEXT
    ids = _ids(asked, inside)
    return [] if ids is None else [{"input_ids": ids, **text_masks(asked, ids), **_decoder(asked)}]


def _decoder(asked: Asked) -> dict[str, torch.Tensor]:
    if not asked.config.is_encoder_decoder or "decoder_input_ids" not in asked.parameters:
        return {}
    ids = _ids(asked, ("decoder", "text_config"))
    return {} if ids is None else {"decoder_input_ids": ids}


def _ids(asked: Asked, inside: tuple[str, ...]) -> torch.Tensor | None:
    """Token ids (1, LENGTH) without special tokens, but for an end of sentence at the end."""
    vocabulary = asked.field("vocab_size", inside=inside) or CODEPOINTS
    if not isinstance(vocabulary, int) or vocabulary < 2:
        return None
    positions = asked.field("max_position_embeddings", "n_positions", inside=inside)
    length = min(LENGTH, positions // 2) if isinstance(positions, int) and positions > 1 else LENGTH
    if axes := asked.field("axial_pos_shape", inside=inside):  # in training these positions fit one length only
        length = math.prod(axes)
    special = _special(asked.config)
    plain = [token for token in range(min(vocabulary, 4 * len(special) + 4096)) if token not in special] or [0]
    ids = reference_tensor((1, length), torch.int64, vocabulary)
    for index in range(length):
        if int(ids[0, index]) in special:
            ids[0, index] = plain[index % len(plain)]
    end = asked.field("eos_token_id", inside=inside)
    if isinstance(end, int) and 0 <= end < vocabulary:
        ids[0, -1] = end
    return ids


def _special(config: Any) -> set[int]:
    found: set[int] = set()
    for _, each in (("", config), *_all_inner(config)):
        for key, value in vars(each).items():
            if key.endswith(("_token_id", "_token_index")) and isinstance(value, int):
                found.add(value)
    return found


def text_masks(asked: Asked, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    if "attention_mask" in asked.parameters:
        found["attention_mask"] = torch.ones_like(ids)
    if "mm_token_type_ids" in asked.parameters:
        image = asked.field("image_token_id", "image_token_index")
        found["mm_token_type_ids"] = (ids == image).to(torch.int64) if isinstance(image, int) else torch.zeros_like(ids)
    if "bbox" in asked.parameters:
        corner = torch.arange(ids.shape[1])
        found["bbox"] = torch.stack([corner, corner, 2 * corner + 1, 2 * corner + 1], dim=-1)[None]
    return found


def _side(asked: Asked) -> tuple[int, int]:
    size = asked.field("image_size", "img_size", inside=("vision_config", "encoder"))
    if isinstance(size, Mapping):
        size = [size.get("height", SIDE), size.get("width", SIDE)]
    if isinstance(size, (list, tuple)) and len(size) == 1:
        size = size[0]
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return (size, size) if isinstance(size, int) and size > 0 else (SIDE, SIDE)


def _image(asked: Asked) -> _Made:
    """(1, C, H, W), (1, 1, C, H, W) for lists of images, (1, T, C, H, W) for clips; patches with their grid.

    Where the configured size is large a small one comes first: many networks take any size.
    """
    channels = asked.field("num_channels", "in_channels", "in_chans", "num_input_channels", inside=("vision_config",))
    patch = asked.field("patch_size", inside=("vision_config",))
    small = 16 * patch if isinstance(patch, int) else SIDE
    configured = _side(asked)
    sizes = [(small, small), configured] if min(configured) > max(LARGE, small) else [configured]
    found = _patches(asked)
    for height, width in sizes:
        found += _forms(asked, reference_tensor((1, channels if isinstance(channels, int) else 3, height, width)))
    return found


def _forms(asked: Asked, image: torch.Tensor) -> _Made:
    frames = asked.field("num_frames", inside=("vision_config",))
    clip = reference_tensor((1, frames, *image.shape[1:])) if isinstance(frames, int) else image[:, None]
    pair = torch.stack([image, image.flip(-1)], dim=1)  # for models that match two images
    found = []
    for pixels in (clip, image, pair) if isinstance(frames, int) else (image, clip, pair):
        found.append({"pixel_values": pixels, **_decoder(asked)})
        if "image_sizes" in asked.parameters:
            found.append({**found[-1], "image_sizes": torch.tensor([list(image.shape[-2:])])})
    return found


def _patches(asked: Asked) -> _Made:
    """Images that come as rows of flattened patches, with frames, rows and columns of the grid they stand in."""
    grid = next((name for name in ("image_grid_thw", "grid_thw") if name in asked.parameters), None)
    side = asked.field("patch_size", inside=("vision_config",))
    if grid is None or not isinstance(side, int):
        return []
    channels = asked.field("in_channels", "in_chans", "num_channels", inside=("vision_config",)) or 3
    depth = asked.field("temporal_patch_size", inside=("vision_config",)) or 1
    count = GRID[0] * GRID[1] * GRID[2]
    rows = reference_tensor((count, channels * depth * side * side))
    carrier = "pixel_values" if "pixel_values" in asked.parameters else "hidden_states"
    return [{carrier: rows, grid: torch.tensor([GRID])}]


def _flattened(asked: Asked) -> _Made:
    """Patches (1, patches, 2 + values), each after its row and column, counted from 1."""
    side = asked.field("patch_size", inside=("vision_config",))
    channels = asked.field("num_channels", inside=("vision_config",)) or 3
    if not isinstance(side, int):
        return []
    rows, columns = torch.meshgrid(torch.arange(1.0, GRID[1] + 1), torch.arange(1.0, GRID[2] + 1), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=-1)
    values = reference_tensor((len(places), channels * side * side))
    return [{"flattened_patches": torch.cat([places, values], dim=-1)[None], **_decoder(asked)}]


def _video(asked: Asked) -> _Made:
    frames = asked.field("num_frames", "frames_per_clip", inside=("vision_config",))
    return [
        {"pixel_values_videos": clip["pixel_values"].expand(-1, frames if isinstance(frames, int) else 8, -1, -1, -1)}
        for clip in _image(asked)
        if clip["pixel_values"].dim() == 5
    ]


def _spectrogram(asked: Asked) -> _Made:
    """(1, bins, frames) for encoders with convolutions over time, (1, frames, bins) for the others."""
    bins = asked.field(
        "num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", inside=("audio_config", "encoder")
    )
    if not isinstance(bins, int):
        return []
    positions = asked.field("max_source_positions", inside=("audio_config", "encoder"))
    frames = 2 * positions if isinstance(positions, int) else FRAMES[0]
    shapes = [(1, bins, frames), (1, FRAMES[0], bins), (1, bins, FRAMES[0]), (1, 1, FRAMES[0], bins)]
    shapes += [(1, bins, FRAMES[1]), (1, FRAMES[1], bins)]
    found = []
    for shape in shapes:
        along = shape[-1] if shape[1] == bins else shape[-2]
        masks = {name: torch.ones(1, along, dtype=torch.int64) for name in AUDIO_MASKS}
        found.append({"input_features": reference_tensor(shape), **masks, **_decoder(asked)})
    return found


def _audio(asked: Asked) -> _Made:
    """Raw samples (1, n); a spectrogram (1, frames, bins) where the configuration counts bins; channels of samples."""
    bins, frames = asked.field("num_mel_bins"), asked.field("max_length")
    shapes: list[tuple[int, ...]] = [(1, SAMPLES), (1, asked.field("audio_channels") or 1, SAMPLES)]
    if isinstance(bins, int):
        shapes.insert(0, (1, frames if isinstance(frames, int) else FRAMES[0], bins))
    return [{"input_values": reference_tensor(shape), **_decoder(asked)} for shape in shapes]


def _series(asked: Asked) -> _Made:
    """Values (1, time, channels), or (1, time) of one series with the features and masks its model asks for."""
    context = asked.field("context_length", "prediction_length") or 32
    lags = asked.field("lags_sequence") or [0]
    channels = asked.field("num_input_channels", "input_size") or 1
    past, future = context + max(lags), asked.field("prediction_length") or 1
    features = asked.field("num_time_features") or 0
    series: dict[str, torch.Tensor] = {
        "past_time_features": reference_tensor((1, past, features)),
        "future_time_features": reference_tensor((1, future, features)),
    }
    found = []
    for shape in ((channels,), ()) if channels > 1 or "past_time_features" not in asked.parameters else ((),):
        observed = {
            "past_observed_mask": torch.ones(1, past, *shape),
            "future_values": reference_tensor((1, future, *shape)),
        }
        known = {name: value for name, value in {**series, **observed}.items() if name in asked.parameters}
        found.append({"past_values": reference_tensor((1, past, *shape)), **known})
    return found


def _embedded(name: str) -> Callable[[Asked], _Made]:
    """Vectors (1, LENGTH, hidden size) that another network would have made."""

    def make(asked: Asked) -> _Made:
        width = asked.field("hidden_size", "d_model")
        return [{name: reference_tensor((1, LENGTH, width))}] if isinstance(width, int) else []

    return make


def _given_with(main: str) -> Callable[[Asked], _Made]:
    """An argument that comes with another one."""
    return lambda asked: [{}] if main in asked.parameters else []


MAKERS: Mapping[str, Callable[[Asked], _Made]] = {
    "input_ids": _tokens,
    "pixel_values": _image,
    "pixel_values_videos": _video,
    "input_features": _spectrogram,
    "input_values": _audio,
    "past_values": _series,
    "past_time_features": _given_with("past_values"),
    "past_observed_mask": _given_with("past_values"),
    "flattened_patches": _flattened,
    "inputs": _embedded("inputs"),
    "query_embeds": _embedded("query_embeds"),
    "inputs_embeds": _embedded("inputs_embeds"),
    "hidden_states": lambda asked: _patches(asked) or _embedded("hidden_states")(asked),
    "grid_thw": lambda asked: [{}],
    "image_grid_thw": _given_with("pixel_values"),
    "decoder_input_ids": lambda asked: [{}],
    "bbox": _given_with("input_ids"),
    "attention_mask": _given_with("input_ids"),
    "input_features_mask": _given_with("input_features"),
}
