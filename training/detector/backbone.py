"""The backbones: VoVNetV2 from timm, for training with detectron2 and for the exported graph, and ResNet for the graph.

Lee and Park, CenterMask: Real-Time Anchor-Free Instance Segmentation (arXiv:1911.06667).
"""

from typing import Any

from timm.layers.create_attn import create_attn
from timm.layers.norm_act import freeze_batch_norm_2d
from timm.models.vovnet import VovNet, model_cfgs
from torch import Tensor, nn

from training.detector.config import DetectorConfig
from training.detector.resnet import NUM_BLOCKS, ResNet

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ese_vovnet99b": model_cfgs["ese_vovnet99b"],
    "ese_vovnet19b_slim": model_cfgs["ese_vovnet19b_slim"],
    "vovnet_demo": {
        "stem_chs": [16, 16, 32],
        "stage_conv_chs": [32, 40, 48, 56],
        "stage_out_chs": [64, 96, 128, 160],
        "layer_per_block": 3,
        "block_per_stage": [1, 1, 1, 1],
        "residual": True,
        "depthwise": False,
        "attn": "ese",
    },
}


def build_backbone(config: DetectorConfig) -> "VoVNet | ResNet":
    """Return the backbone that a config names, with random weights. Raises ValueError if there is none of that name."""
    if config.backbone in NUM_BLOCKS:
        return ResNet(
            NUM_BLOCKS[config.backbone],
            config.norm,
            groups=config.resnet_groups,
            group_width=config.resnet_group_width,
            has_stride_in_1x1=config.has_stride_in_1x1,
        )
    return VoVNet(config.backbone, config.norm)


class VoVNet(nn.Module):
    """The stem and the four stages of a VoVNet, under the names that timm gives them.

    Args:
        architecture: a key of ARCHITECTURES.
        norm: "FrozenBN" to keep the batch norms' statistics and weights fixed, "BN" to train them.

    Raises:
        ValueError: the architecture is unknown.
    """

    def __init__(self, architecture: str, norm: str) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"backbone is {architecture!r}, not one of {sorted(ARCHITECTURES | NUM_BLOCKS)}")
        super().__init__()
        network: Any = VovNet(ARCHITECTURES[architecture], num_classes=0, global_pool="")
        # timm has an attention module in the last block of a stage only. The authors' networks, and therefore the
        # public weights, have one in every block.
        for stage, channels in zip(network.stages, ARCHITECTURES[architecture]["stage_out_chs"], strict=True):
            for block in stage.blocks:
                if block.attn is None:
                    block.attn = create_attn("ese", channels)  # type: ignore[no-untyped-call]
        if norm == "FrozenBN":
            network = freeze_batch_norm_2d(network)  # type: ignore[no-untyped-call]
        self.stem = network.stem
        self.stages: nn.Sequential = network.stages
        self.channels: tuple[int, ...] = tuple(ARCHITECTURES[architecture]["stage_out_chs"])

    def extract(self, pixels: Tensor) -> list[Tensor]:
        """Map float32 [B, 3, H, W] (H, W multiples of 32) to [B, C, H/s, W/s] for each stride s of 4, 8, 16, 32."""
        features = self.stem(pixels)
        levels = []
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        return levels
