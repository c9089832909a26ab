"""Reads detector and backbone weights, and translates the vovnet-detectron2 project's names into ours.

Both name a detector's tensors as detectron2 does, and differ inside `backbone.bottom_up`, where ours are timm's:

    stem.stem_2/conv.weight                             stem.1.conv.weight
    stage4.OSA4_3.layers.0.OSA4_3_0/norm.running_mean   stages.2.blocks.2.conv_mid.0.bn.running_mean
    stage4.OSA4_3.concat.OSA4_3_concat/conv.weight      stages.2.blocks.2.conv_concat.conv.weight
    stage4.OSA4_3.ese.fc.bias                           stages.2.blocks.2.attn.fc.bias
"""

import codecs
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.detector.config import PRODUCTION, DetectorConfig

BOTTOM_UP = "backbone.bottom_up."

IMAGENET_HEAD = frozenset({"classifier.weight", "classifier.bias"})
"""The only tensors of a backbone's checkpoint that are left out."""

_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_PICKLED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    "_codecs.encode": codecs.encode,
}
"""All that a file may name besides tensors and plain values, so that reading one never runs its code."""

_TENSOR = r"(?:conv\.weight|(?:bn|norm)\.(?:weight|bias|running_mean|running_var|num_batches_tracked))"
_THEIR_STEM = re.compile(rf"stem\.stem_(?P<layer>[123])/(?P<tensor>{_TENSOR})")
_THEIR_BLOCK = re.compile(
    r"stage(?P<stage>[2-5])\.(?P<block>OSA(?P=stage)_(?P<index>[1-9]\d*))\."
    rf"(?:layers\.(?P<layer>\d+)\.(?P=block)_(?P=layer)/(?P<mid>{_TENSOR})"
    rf"|concat\.(?P=block)_concat/(?P<concat>{_TENSOR})"
    r"|ese\.(?P<ese>fc\.(?:weight|bias)))"
)
_OUR_BACKBONE = re.compile(
    rf"stem\.\d\.{_TENSOR}"
    rf"|stages\.[0-3]\.blocks\.\d+\.(?:conv_mid\.\d+\.{_TENSOR}|conv_concat\.{_TENSOR}|attn\.fc\.(?:weight|bias))"
)
_BEHIND_THE_BACKBONE = re.compile(
    r"(?:backbone\.fpn_(?:lateral|output)[2-5]"
    r"|proposal_generator\.rpn_head\.(?:conv|objectness_logits|anchor_deltas)"
    r"|roi_heads\.(?:box_head\.fc[12]|box_predictor\.(?:cls_score|bbox_pred)))\.(?:weight|bias)"
)
_CELL_ANCHORS = re.compile(r"proposal_generator\.anchor_generator\.cell_anchors\.(?P<level>[0-4])")


def load_checkpoint(path: Path, config: DetectorConfig = PRODUCTION) -> dict[str, Tensor]:
    """Reads a whole detector, in our naming or vovnet-detectron2's, and returns its tensors under our names.

    The file is torch's or a pickle (.pkl), holds torch tensors or numpy arrays, under "model" or at its top. Constants
    that older versions of detectron2 saved (anchors, pixel mean and deviation) are compared with the config's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, its constants are not the config's, or it has tensors that no detector of
            ours has, which are listed. Missing ones and shapes are up to `load_weights`.
    """
    found: dict[str, Tensor] = {}
    unmatched = []
    for name, value in _read(path).items():
        if _is_constant(name):
            _check_constant(path, name, value, config)
        elif name.startswith(BOTTOM_UP) and (ours := _our_name(name.removeprefix(BOTTOM_UP))):
            found[BOTTOM_UP + ours] = value
        elif _BEHIND_THE_BACKBONE.fullmatch(name):
            found[name] = value
        else:
            unmatched.append(name)
    if unmatched:
        raise ValueError(f"{path}: tensors that no detector has: {sorted(unmatched)}")
    return found


def load_backbone(path: Path) -> dict[str, Tensor]:
    """Reads the ImageNet weights of a VoVNet and returns its tensors under the names of `backbone.VoVNet`.

    Names may begin with "backbone.bottom_up."; a classifier (IMAGENET_HEAD) is left out. Errors as `load_checkpoint`.
    """
    found: dict[str, Tensor] = {}
    unmatched = []
    for name, value in _read(path).items():
        inner = name.removeprefix(BOTTOM_UP)
        if ours := _our_name(inner):
            found[ours] = value
        elif inner not in IMAGENET_HEAD:
            unmatched.append(name)
    if unmatched:
        raise ValueError(f"{path}: tensors that no backbone has: {sorted(unmatched)}")
    return found


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: Path) -> None:
    """Copies the tensors into the model, in which exactly these names and shapes must be.

    A norm's num_batches_tracked, which only counts training steps, may be missing on either side.

    Raises ValueError, listing missing, unexpected and misshapen tensors after the name of the source.
    """
    expected = model.state_dict()
    names = {name for name in expected.keys() | state_dict.keys() if not name.endswith(".num_batches_tracked")}
    missing = sorted(names - state_dict.keys())
    unexpected = sorted(names - expected.keys())
    reshaped = [
        f"{name} {tuple(state_dict[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(names & expected.keys() & state_dict.keys())
        if state_dict[name].shape != expected[name].shape
    ]
    if missing or unexpected or reshaped:
        raise ValueError(f"{source}: missing {missing}, unexpected {unexpected}, wrong shapes {reshaped}")
    model.load_state_dict({name: state_dict.get(name, value) for name, value in expected.items()})


def _our_name(name: str) -> str | None:
    """Translates a name inside the backbone; None if it is nobody's."""
    if _OUR_BACKBONE.fullmatch(name):
        return name
    if match := _THEIR_STEM.fullmatch(name):
        return f"stem.{int(match['layer']) - 1}.{_with_bn(match['tensor'])}"
    if match := _THEIR_BLOCK.fullmatch(name):
        block = f"stages.{int(match['stage']) - 2}.blocks.{int(match['index']) - 1}"
        if match["mid"]:
            return f"{block}.conv_mid.{match['layer']}.{_with_bn(match['mid'])}"
        if match["concat"]:
            return f"{block}.conv_concat.{_with_bn(match['concat'])}"
        return f"{block}.attn.{match['ese']}"
    return None


def _with_bn(tensor: str) -> str:
    return re.sub(r"^norm\.", "bn.", tensor)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                content = _PlainUnpickler(file, encoding="latin1").load()
        else:
            numpy_types = [(value, name) for name, value in _PICKLED.items()] + [type(np.dtype(np.float32))]
            with torch.serialization.safe_globals(numpy_types):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    content = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: not a dictionary of tensors but {type(content).__name__}")
    tensors = {
        name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray | np.generic) else value
        for name, value in content.items()
    }
    others = sorted(str(name) for name, value in tensors.items() if not isinstance(value, Tensor))
    if others:
        raise ValueError(f"{path}: not tensors: {others}")
    return tensors


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _PICKLED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint")
        return _PICKLED[f"{module}.{name}"]


def _is_constant(name: str) -> bool:
    return name in ("pixel_mean", "pixel_std") or _CELL_ANCHORS.fullmatch(name) is not None


def _check_constant(path: Path, name: str, value: Tensor, config: DetectorConfig) -> None:
    if match := _CELL_ANCHORS.fullmatch(name):
        size = config.anchor_sizes_px[int(match["level"])]
        sides = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in config.anchor_ratios]
        expected = torch.tensor([(-width / 2, -height / 2, width / 2, height / 2) for width, height in sides])
    else:
        expected = torch.tensor(config.pixel_mean_bgr if name == "pixel_mean" else (1.0, 1.0, 1.0))
        value = value.flatten()
    if value.shape != expected.shape or not torch.allclose(value.float(), expected, rtol=1e-4):
        raise ValueError(f"{path}: {name} is {value.tolist()}, not {expected.tolist()}")
