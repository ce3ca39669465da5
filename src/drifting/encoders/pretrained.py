"""Pretrained feature encoders: backbones of the library `transformers`, such as ResNet, ConvNeXt-V2, DINOv2 and ViT-MAE.

A convolutional backbone gives one map per stage, "stage1", "stage2" and so on. Each place of a map is normalized over its channels:

    y <- (y - mean) / (std + 1e-3)

A vision transformer gives its patch tokens after the final norm as one map, "patches". No patch is masked; the order is kept.

Shapes: b images, c channels, h x w pixels or places, d features.

Source: paper, appendix A.5; the normalization, with the biased variance, is that of the authors' release.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drifting._checks import full_precision
from drifting._extras import is_here, load_published
from drifting.checkpoint import check_finite
from drifting.encoders.base import (
    Features,
    Frozen,
    checked_names,
)
from drifting.encoders.pooling import KINDS, Standardize, Statistics, feature_name, fits, multi_scale
from drifting.errors import InputError, reason

# Features of the ConvNeXt-V2 that the release uses in addition to those of the auto-encoder.
CONVNEXT_FEATURES = (
    *(f"stage{stage}" for stage in (2, 3, 4)),
    *(f"stage{stage}_{kind}" for stage in (1, 2, 3, 4) for kind in ("mean", "std")),
    *("pooled", "pooled_std"),
)
_PROCESSOR = "preprocessor_config.json"
_SMALLEST_VARIANCE = 1e-12

Images = Float[Tensor, "b c h w"]
Map = Float[Tensor, "b _ _ _"]


class PretrainedFeatures(Frozen):
    """Feature encoder: chosen features of a backbone, which is frozen in place.

    Args:
        network: a base model of `transformers`, such as ResNetModel or Dinov2Model.
        names: names of the features: the maps in the kinds of `pooling.multi_scale`, such as "stage2_mean", "patches" or
            "patches_std"; "pooled", the output that the network pools itself (the class token, or the mean over places, after the
            final norm); and, for a convolutional backbone, "pooled_std", the standard deviation over places of the last map before
            it is normalized.
        image_shape: channels, height and width of the images, which are in [-1, 1].
        statistics: mean and standard deviation of every channel in the training of the network, for images in [0, 1].
        resize: side of the square that images are resized to, bilinearly; None to keep their size.
        normalize: whether each place of a convolutional map is normalized over its channels.

    Raises:
        InputError: if a name is unknown or repeated, or the network does not accept such images.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str] = ("pooled",),
        *,
        image_shape: Sequence[int],
        statistics: Statistics,
        resize: int | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__(network)
        self.normalize, self._config = normalize, cast(Any, network.config)
        channels, device = getattr(self._config, "num_channels", image_shape[0]), next(network.parameters()).device
        if image_shape[0] != channels:
            raise InputError(f"images have {image_shape[0]} channels, but the encoder takes {channels}: convert them")
        self.standardize = Standardize(image_shape, statistics, resize).to(device)
        self._grid = self._patch_grid()
        if self._config.model_type == "vit_mae":
            self._config.mask_ratio = 0.0
        self.eval()
        # One forward pass finds the names and sizes of the maps.
        with torch.no_grad():
            maps, _ = self.maps(torch.zeros(1, *image_shape, device=device))
        known = [feature_name(name, kind) for name, map in maps.items() for kind in KINDS if fits(kind, *map.shape[2:])]
        self.names = checked_names(names, (*known, "pooled", *(() if "patches" in maps else ("pooled_std",))))
        self._kinds = {map: [kind for kind in KINDS if feature_name(map, kind) in names] for map in maps}

    def _patch_grid(self) -> tuple[int, int]:
        """Return the rows and columns of patches, or raise InputError if they do not fill the images."""
        patch = getattr(self._config, "patch_size", 1)
        rows, columns = patch if isinstance(patch, (list, tuple)) else (patch, patch)
        height, width = self.standardize.sides
        if height % rows or width % columns:
            taken = f"multiples of {rows} x {columns}: pass resize, such as {rows * 8}"
            raise InputError(f"images are {height} x {width} pixels, but the encoder takes {taken}")
        return height // rows, width // columns

    def maps(self, samples: Images) -> tuple[dict[str, Map], Float[Tensor, "b d"]]:
        """Return the maps of the network, not normalized, and its pooled output."""
        options: dict[str, Any] = {"output_hidden_states": hasattr(self._config, "depths")}
        if self._config.model_type == "vit_mae":
            # The network sorts the patches by this "noise", so rising values keep their order.
            order = torch.arange(float(self._grid[0] * self._grid[1]), device=samples.device)
            options["noise"] = order.expand(len(samples), -1)
            options["interpolate_pos_encoding"] = True
        output = self.module(self.standardize(samples), **options)
        last, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
        if last.ndim == 4:
            stages = output.hidden_states[-len(self._config.depths) :]
            maps = {f"stage{number}": map for number, map in enumerate(stages, 1)}
        else:
            if last.ndim != 3 or last.shape[1] < self._grid[0] * self._grid[1]:
                raise InputError(f"encoder is a '{self._config.model_type}', which has no map of patches: name another backbone")
            # The class token and any registers come before the patches.
            patches = last[:, -self._grid[0] * self._grid[1] :]
            maps = {"patches": patches.transpose(1, 2).unflatten(2, self._grid)}
        return maps, last[:, 0] if pooled is None else pooled.flatten(1)

    def forward(self, samples: Images) -> Features:
        """Return the chosen features in the order of `names`, in float32."""
        maps, pooled = self.maps(samples)
        features = {"pooled": full_precision(pooled)[:, None]}
        with torch.autocast(samples.device.type, enabled=False):
            if "pooled_std" in self.names:
                features.update(multi_scale("pooled", list(maps.values())[-1], ("std",)))
            for name, map in maps.items():
                if self._kinds[name]:
                    places = normalize_places(map) if self.normalize and name != "patches" else map
                    features.update(multi_scale(name, places, self._kinds[name]))
        return {name: features[name] for name in self.names}


def normalize_places(map: Images) -> Images:
    """Return a map with every place normalized over its channels, (y - mean) / (std + 1e-3), in float32."""
    centered = full_precision(map) - full_precision(map).mean(1, keepdim=True)
    # Without the clamp, the gradient would be NaN at a place where all channels are equal.
    std = centered.square().mean(1, keepdim=True).clamp_min(_SMALLEST_VARIANCE).sqrt()
    return centered / (std + 1e-3)


def load_pretrained(
    name_or_folder: str | Path,
    names: Sequence[str] = ("pooled",),
    *,
    image_shape: Sequence[int],
    resize: int | None = None,
    statistics: Statistics | None = None,
    normalize: bool = True,
) -> PretrainedFeatures:
    """Return a published backbone as a feature encoder. It reads only safetensors and runs no code that comes with them.

    Args:
        name_or_folder: id on the Hugging Face Hub, such as "facebook/dinov2-small", or a folder made by `save_pretrained`.
        names: names of the features, see `PretrainedFeatures`.
        image_shape: channels, height and width of the images, which are in [-1, 1].
        resize: side of the square that images are resized to, such as 224; None to keep their size.
        statistics: mean and standard deviation of every channel, for images in [0, 1]; None for those published with the weights.
        normalize: whether each place of a convolutional map is normalized over its channels.

    Raises:
        InputError: if the library or the weights are missing or do not fit, or an argument is out of its range.
    """
    origin = str(name_or_folder)
    network = _load_network(origin)
    statistics = statistics or _published_statistics(origin)
    return PretrainedFeatures(network, names, image_shape=image_shape, statistics=statistics, resize=resize, normalize=normalize)


def _load_network(origin: str) -> nn.Module:
    options = {"output_loading_info": True, "trust_remote_code": False}
    network, report = load_published("encoder", origin, "transformers", "AutoModel", **options)
    # The library only warns and leaves these weights at random values.
    wrong = [str(key) for part in ("missing_keys", "mismatched_keys") for key in sorted(report.get(part, ()))]
    if wrong:
        raise InputError(f"encoder is '{origin}', whose weights lack {', '.join(wrong[:3])}: name weights of the whole backbone")
    check_finite(network.state_dict().items(), origin)
    return network.float()


def _published_statistics(origin: str) -> Statistics:
    """Return the mean and standard deviation of the image processor published with the weights."""
    fix = "pass the mean and the standard deviation of every channel"
    try:
        file = Path(origin) / _PROCESSOR
        if not Path(origin).is_dir():
            import huggingface_hub

            file = Path(huggingface_hub.hf_hub_download(origin, _PROCESSOR, local_files_only=is_here(origin)))
        facts = json.loads(file.read_text())
        if not facts.get("do_normalize", True):
            return (0.0,) * 3, (1.0,) * 3
        return tuple(facts["image_mean"]), tuple(facts["image_std"])
    except Exception as error:  # from the Hub, the file or JSON, or a missing key
        raise InputError(f"statistics is None, and '{origin}' has none in {_PROCESSOR} ({reason(error)}): {fix}") from None
