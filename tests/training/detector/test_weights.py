"""Random weights under vovnet-detectron2's names and in its shapes, which this file builds by rule."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export.graphs.detector import DetectorGraph
from training.detector.backbone import VoVNet
from training.detector.config import DEMO, PRODUCTION, DetectorConfig
from training.detector.weights import IMAGENET_HEAD, ignored_heads, load_backbone, load_checkpoint, load_weights

Shapes = dict[str, tuple[int, ...]]

STEM = (64, 64, 128)
# Of each body: channels inside a stage's blocks, channels they put out, layers of a block, blocks of each stage.
BODIES = {
    "ese_vovnet99b": ((128, 160, 192, 224), (256, 512, 768, 1024), 5, (1, 3, 9, 3)),
    "ese_vovnet19b_slim": ((64, 80, 96, 112), (112, 256, 384, 512), 3, (1, 1, 1, 1)),
}


def convolution(name: str, out_channels: int, in_channels: int, size: int) -> Shapes:
    norm = {f"{name}/norm.{part}": (out_channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}/conv.weight": (out_channels, in_channels, size, size), **norm}


def backbone_shapes(body: str) -> Shapes:
    inner_channels, outer_channels, num_layers, num_blocks = BODIES[body]
    shapes: Shapes = {}
    for layer, (before, after) in enumerate(zip((3, *STEM), STEM, strict=False), start=1):
        shapes |= convolution(f"stem.stem_{layer}", after, before, 3)
    before = STEM[-1]
    for stage, (inner, outer, count) in enumerate(zip(inner_channels, outer_channels, num_blocks, strict=True), 2):
        for block in range(1, count + 1):
            name, prefix = f"OSA{stage}_{block}", f"stage{stage}.OSA{stage}_{block}"
            for layer in range(num_layers):
                in_channels = inner if layer else before
                shapes |= convolution(f"{prefix}.layers.{layer}.{name}_{layer}", inner, in_channels, 3)
            shapes |= convolution(f"{prefix}.concat.{name}_concat", outer, before + num_layers * inner, 1)
            shapes |= {f"{prefix}.ese.fc.weight": (outer, outer, 1, 1), f"{prefix}.ese.fc.bias": (outer,)}
            before = outer
    return shapes


def detector_shapes(body: str) -> Shapes:
    shapes = {f"backbone.bottom_up.{name}": shape for name, shape in backbone_shapes(body).items()}
    weights: Shapes = {
        "proposal_generator.rpn_head.conv": (256, 256, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (3, 256, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (12, 256, 1, 1),
        "roi_heads.box_head.fc1": (1024, 256 * 7 * 7),
        "roi_heads.box_head.fc2": (1024, 1024),
        "roi_heads.box_predictor.cls_score": (2, 1024),
        "roi_heads.box_predictor.bbox_pred": (4, 1024),
    }
    for level, channels in enumerate(BODIES[body][1], start=2):
        weights |= {f"backbone.fpn_lateral{level}": (256, channels, 1, 1)}
        weights |= {f"backbone.fpn_output{level}": (256, 256, 3, 3)}
    for name, shape in weights.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def random_weights(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return seeded weights that keep activations near 1, with norms that differ in all their parts."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            tensors[name] = torch.randn(shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5
        else:
            is_scale = name.endswith(("norm.weight", "running_var"))
            tensors[name] = torch.rand(shape, generator=generator) * 0.5 + (0.75 if is_scale else -0.25)
    return tensors


@pytest.mark.parametrize("body", sorted(BODIES))
def test_every_tensor_of_the_backbone_has_one_source(body: str, tmp_path: Path) -> None:
    source = {name: torch.zeros(shape) for name, shape in backbone_shapes(body).items()}
    torch.save(source, tmp_path / "weights.pth")
    loaded = load_backbone(tmp_path / "weights.pth")
    with torch.device("meta"):
        network = VoVNet(body, "FrozenBN")
    assert len(loaded) == len(source)
    assert {name: value.shape for name, value in loaded.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize("body", sorted(BODIES))
def test_every_tensor_of_the_detector_has_one_source(body: str, tmp_path: Path) -> None:
    # One stored element each: a whole V-99 detector would be a file of 350 MB.
    source = {name: torch.zeros(()).expand(shape) for name, shape in detector_shapes(body).items()}
    torch.save({"model": source, "iteration": 9}, tmp_path / "model.pth")
    loaded = load_checkpoint(tmp_path / "model.pth")
    with torch.device("meta"):
        graph = DetectorGraph(replace(PRODUCTION, backbone=body))
    assert len(loaded) == len(source)
    assert {name: value.shape for name, value in loaded.items()} == {
        name: value.shape for name, value in graph.state_dict().items()
    }


def reference_levels(tensors: dict[str, torch.Tensor], pixels: torch.Tensor) -> list[torch.Tensor]:
    """The slim VoVNet (one OSA block a stage) written as functions of the source's tensors."""

    def convolve(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        x = F.conv2d(x, tensors[f"{name}/conv.weight"], stride=stride, padding="valid" if "concat" in name else 1)
        mean, variance, scale, shift = (
            tensors[f"{name}/norm.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu((x - mean) / torch.sqrt(variance + 1e-5) * scale + shift)

    x = pixels
    for layer, stride in ((1, 2), (2, 1), (3, 2)):
        x = convolve(f"stem.stem_{layer}", x, stride)
    levels = []
    for stage in (2, 3, 4, 5):
        name, prefix = f"OSA{stage}_1", f"stage{stage}.OSA{stage}_1"
        x = x if stage == 2 else F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
        parts = [x]
        for layer in range(3):
            parts.append(convolve(f"{prefix}.layers.{layer}.{name}_{layer}", parts[-1]))
        x = convolve(f"{prefix}.concat.{name}_concat", torch.cat(parts, dim=1))
        gate = F.conv2d(x.mean(dim=(2, 3), keepdim=True), tensors[f"{prefix}.ese.fc.weight"], padding=0)
        x = x * ((gate + tensors[f"{prefix}.ese.fc.bias"][:, None, None] + 3).clamp(0, 6) / 6)
        levels.append(x)
    return levels


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@torch.inference_mode()
def test_translated_weights_are_the_same_function(norm: str, tmp_path: Path) -> None:
    source = random_weights(backbone_shapes("ese_vovnet19b_slim"))
    torch.save(source, tmp_path / "weights.pth")
    network = VoVNet("ese_vovnet19b_slim", norm).eval()
    load_weights(network, load_backbone(tmp_path / "weights.pth"), tmp_path / "weights.pth")
    pixels = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(network.extract(pixels), reference_levels(source, pixels), strict=True):
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bare", "model", "numpy", "pickle"])
def test_all_forms_of_a_file_are_read(kind: str, tmp_path: Path) -> None:
    tensors = {"stem.stem_1/conv.weight": torch.randn(64, 3, 3, 3), "stem.stem_1/norm.bias": torch.randn(64)}
    arrays = {name: value.numpy() for name, value in tensors.items()}
    path = tmp_path / ("weights.pkl" if kind == "pickle" else "weights.pth")
    if kind == "pickle":
        with path.open("wb") as file:
            pickle.dump({"model": arrays, "__author__": "somebody", "matching_heuristics": True}, file)
    else:
        torch.save({"bare": tensors, "model": {"model": tensors}, "numpy": {"model": arrays}}[kind], path)
    loaded = load_backbone(path)
    assert loaded.keys() == {"stem.0.conv.weight", "stem.0.bn.bias"}
    assert loaded["stem.0.conv.weight"].equal(tensors["stem.stem_1/conv.weight"])
    assert loaded["stem.0.bn.bias"].equal(tensors["stem.stem_1/norm.bias"])


def test_prefix_classifier_and_counters_of_imagenet_weights(tmp_path: Path) -> None:
    names = {"backbone.bottom_up.stem.stem_2/norm.num_batches_tracked", *IMAGENET_HEAD}
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "weights.pth")
    assert load_backbone(tmp_path / "weights.pth").keys() == {"stem.1.bn.num_batches_tracked"}


def test_our_own_names_stay(tmp_path: Path) -> None:
    names = VoVNet("vovnet_demo", "BN").state_dict().keys()
    torch.save({"model": {f"backbone.bottom_up.{name}": torch.zeros(1) for name in names}}, tmp_path / "model.pth")
    assert load_checkpoint(tmp_path / "model.pth").keys() == {f"backbone.bottom_up.{name}" for name in names}
    assert load_backbone(tmp_path / "model.pth").keys() == names


@pytest.mark.parametrize(
    "name",
    [
        "backbone.bottom_up.stage2.OSA3_1.ese.fc.bias",
        "backbone.bottom_up.stage2.OSA2_1.layers.0.OSA2_1_1/conv.weight",
        "backbone.bottom_up.stem.stem_4/conv.weight",
        "backbone.bottom_up.classifier.weight",
        "backbone.bottom_up.res2.0.conv4.weight",
        "roi_heads.box_predictor.fed_loss_cls_weights",
    ],
)
def test_tensors_that_no_detector_has_are_listed(name: str, tmp_path: Path) -> None:
    torch.save({"model": {name: torch.zeros(1), "backbone.fpn_output2.bias": torch.zeros(1)}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth") as error:
        load_checkpoint(tmp_path / "model.pth")
    assert str(error.value).endswith(f"[{name!r}]")


def test_heads_that_boxes_do_not_depend_on_are_ignored(tmp_path: Path) -> None:
    names = ["roi_heads.mask_head.predictor.weight", "sem_seg_head.predictor.bias", "backbone.fpn_output2.bias"]
    torch.save({"model": {name: torch.zeros(1) for name in names}}, tmp_path / "model.pth")
    assert load_checkpoint(tmp_path / "model.pth").keys() == {"backbone.fpn_output2.bias"}
    assert ignored_heads(tmp_path / "model.pth") == ["roi_heads.mask_head.", "sem_seg_head."]


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_weights_of_a_resnet_keep_detectron2s_names(suffix: str, tmp_path: Path) -> None:
    config = DetectorConfig(backbone="resnet50", norm="BN", num_classes=13)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DetectorGraph(config).state_dict().items()}
    path = tmp_path / f"model_final{suffix}"
    if suffix == ".pkl":  # as in the model zoo, but for the shapes
        arrays = {name: np.zeros(1, np.float32) for name in shapes}
        with path.open("wb") as file:
            pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file)
    else:
        torch.save({"model": {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}}, path)
    loaded = load_checkpoint(path, config)
    assert loaded.keys() == shapes.keys()
    assert "backbone.bottom_up.res4.5.conv2.norm.running_var" in loaded


def test_saved_constants_are_compared(tmp_path: Path) -> None:
    anchors = torch.tensor([[-22.627417, -11.313708, 22.627417, 11.313708], [-16, -16, 16, 16], [-11.3137] * 4])
    anchors[2] = anchors[0, [1, 0, 3, 2]]
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    constants = {"pixel_mean": mean, "proposal_generator.anchor_generator.cell_anchors.0": anchors}
    torch.save({"model": constants}, tmp_path / "model.pth")
    assert load_checkpoint(tmp_path / "model.pth") == {}
    with pytest.raises(ValueError, match=r"cell_anchors\.0"):
        load_checkpoint(tmp_path / "model.pth", DEMO)
    torch.save({"model": constants | {"pixel_std": mean}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="pixel_std"):
        load_checkpoint(tmp_path / "model.pth")
    assert load_checkpoint(tmp_path / "model.pth", replace(PRODUCTION, pixel_std_bgr=PRODUCTION.pixel_mean_bgr)) == {}


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    network = VoVNet("vovnet_demo", "FrozenBN")
    state_dict = network.state_dict() | {"stem.0.bn.num_batches_tracked": torch.tensor(7)}
    load_weights(network, state_dict, tmp_path)
    state_dict["stem.9.conv.weight"] = state_dict.pop("stem.0.conv.weight")
    state_dict["stem.1.bn.bias"] = torch.zeros(5)
    with pytest.raises(
        ValueError, match=r"missing \['stem\.0.*unexpected \['stem\.9.*bn\.bias \(5,\) instead of \(16,"
    ):
        load_weights(network, state_dict, tmp_path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
def test_files_that_are_no_checkpoints_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(FileNotFoundError):
        load_backbone(path)
    for content in (b"", b"not a checkpoint", pickle.dumps([1, 2]), pickle.dumps({"model": {"a": 1}})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_backbone(path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
def test_reading_never_runs_a_files_code(name: str, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    (tmp_path / name).write_bytes(pickle.dumps({"model": Payload()}))
    with pytest.raises(ValueError, match=name):
        load_backbone(tmp_path / name)
    assert not (tmp_path / "ran").exists()
