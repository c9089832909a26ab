"""Read detector and backbone weights, and translate the tensor names of the vovnet-detectron2 project into ours.

All names are detectron2's, also those of a ResNet. Only inside a VoVNet (`backbone.bottom_up`) ours are timm's:

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

from training.checkpoint import explain_unreadable, read_checkpoint
from training.detector.config import PRODUCTION, DetectorConfig

BOTTOM_UP = "backbone.bottom_up."

IGNORED_HEADS = ("roi_heads.mask_head.", "roi_heads.keypoint_head.", "sem_seg_head.")
"""Prefixes of the heads whose weights are ignored: they predict from the boxes or beside them, which stay the same."""

BOX_PREDICTOR = "roi_heads.box_predictor."

IMAGENET_HEAD = frozenset({"classifier.weight", "classifier.bias", "stem.fc.weight", "stem.fc.bias"})
"""The only tensors of a backbone checkpoint that are ignored, of a VoVNet and of a ResNet."""

_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    "_codecs.encode": codecs.encode,
}
"""What a pickle may refer to besides tensors and plain values. Anything else is refused: it could run code."""

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
    r"|(?:stem\.conv1|res[2-5]\.\d+\.(?:conv[123]|shortcut))"
    r"\.(?:weight|norm\.(?:weight|bias|running_mean|running_var|num_batches_tracked))"
)
_AFTER_BACKBONE = re.compile(
    r"(?:backbone\.fpn_(?:lateral|output)[2-5]"
    r"|proposal_generator\.rpn_head\.(?:conv|objectness_logits|anchor_deltas)"
    r"|roi_heads\.(?:box_head\.fc[1-9]|box_predictor\.(?:cls_score|bbox_pred)))\.(?:weight|bias)"
)
_CELL_ANCHORS = re.compile(r"proposal_generator\.anchor_generator\.cell_anchors\.(?P<level>[0-4])")


def load_checkpoint(path: Path, config: DetectorConfig = PRODUCTION) -> dict[str, Tensor]:
    """Read a detector under our tensor names or vovnet-detectron2's; return its tensors under our names.

    The file was written by torch.save, or is a pickle (.pkl), with torch tensors or numpy arrays, either at the top
    level or under "model". Constants that older versions of detectron2 saved (anchors, pixel mean and standard
    deviation) are compared with those of the config. The heads in IGNORED_HEADS are left out (see `ignored_heads`).
    Missing tensors and wrong shapes are left to `load_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, its constants differ from the config's, or it has tensors that our
            detector does not have; the message lists them.
    """
    found: dict[str, Tensor] = {}
    unmatched = []
    for name, value in _read(path).items():
        if _is_constant(name):
            _check_constant(path, name, value, config)
        elif name.startswith(BOTTOM_UP) and (ours := _our_name(name.removeprefix(BOTTOM_UP))):
            found[BOTTOM_UP + ours] = value
        elif _AFTER_BACKBONE.fullmatch(name):
            found[name] = value
        elif not name.startswith(IGNORED_HEADS):
            unmatched.append(name)
    if unmatched:
        raise ValueError(f"{path} has tensors that the detector does not have: {sorted(unmatched)}")
    return found


def ignored_heads(path: Path) -> list[str]:
    """Return those of IGNORED_HEADS that a checkpoint has. Raises the same errors as `load_checkpoint`."""
    names = _read(path)
    return [prefix for prefix in IGNORED_HEADS if any(name.startswith(prefix) for name in names)]


def load_backbone(path: Path) -> dict[str, Tensor]:
    """Read the ImageNet weights of a backbone; return its tensors under our names.

    Names in the file may begin with "backbone.bottom_up."; the classifier (IMAGENET_HEAD) is ignored. Raises the same
    errors as `load_checkpoint`.
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
        raise ValueError(f"{path} has tensors that the backbone does not have: {sorted(unmatched)}")
    return found


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: Path) -> None:
    """Copy the tensors into the model, which must have exactly these names and shapes.

    Only the num_batches_tracked of a batch norm, which counts training steps, may be missing on either side.

    Raises ValueError, naming `source` and listing the missing and unexpected tensors and the wrong shapes.
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


def load_initial_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: Path) -> list[str]:
    """Do what `load_weights` does, but leave tensors of the box predictor that have another shape as they are.

    They depend on the number of classes. Returns their names.
    """
    expected = model.state_dict()
    kept = {
        name: expected[name]
        for name, value in state_dict.items()
        if name.startswith(BOX_PREDICTOR) and name in expected and value.shape != expected[name].shape
    }
    load_weights(model, {**state_dict, **kept}, source)
    return sorted(kept)


def _our_name(name: str) -> str | None:
    """Translate the name of a tensor in the backbone; None if neither project uses it."""
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
    if path.suffix == ".pkl":
        with path.open("rb") as file, explain_unreadable(path):
            content = _RestrictedUnpickler(file, encoding="latin1").load()
    else:
        with torch.serialization.safe_globals(
            [type(np.dtype(np.float32)), *((value, name) for name, value in _ALLOWED.items())]
        ):
            content = read_checkpoint(path)
    content = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: not a dictionary of tensors but {type(content).__name__}")
    tensors = {
        name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray | np.generic) else value
        for name, value in content.items()
    }
    not_tensors = sorted(str(name) for name, value in tensors.items() if not isinstance(value, Tensor))
    if not_tensors:
        raise ValueError(f"{path}: not tensors: {not_tensors}")
    return tensors


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which a checkpoint may not contain")
        return _ALLOWED[f"{module}.{name}"]


def _is_constant(name: str) -> bool:
    return name in ("pixel_mean", "pixel_std") or _CELL_ANCHORS.fullmatch(name) is not None


def _check_constant(path: Path, name: str, value: Tensor, config: DetectorConfig) -> None:
    if match := _CELL_ANCHORS.fullmatch(name):
        size = config.anchor_sizes_px[int(match["level"])]
        sides = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in config.anchor_ratios]
        expected = torch.tensor([(-width / 2, -height / 2, width / 2, height / 2) for width, height in sides])
    else:
        expected = torch.tensor(config.pixel_mean_bgr if name == "pixel_mean" else config.pixel_std_bgr)
        value = value.flatten()
    if value.shape != expected.shape or not torch.allclose(value.float(), expected, rtol=1e-4):
        raise ValueError(f"{path}: {name} is {value.tolist()}, not {expected.tolist()}")
