"""VoVNetV2 from timm as a feature extractor; used by detectron2 in training and by the graph that is exported.

Lee and Park, CenterMask: Real-Time Anchor-Free Instance Segmentation (arXiv:1911.06667).
"""

from timm.layers import create_attn, freeze_batch_norm_2d
from timm.models.vovnet import VovNet, model_cfgs
from torch import Tensor, nn

ARCHITECTURES = {
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


class VoVNet(nn.Module):
    """The stem and the four stages of a VoVNet, named as timm names them."""

    def __init__(self, architecture: str, norm: str) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"backbone is {architecture!r}, not one of {sorted(ARCHITECTURES)}")
        super().__init__()
        network = VovNet(ARCHITECTURES[architecture], num_classes=0, global_pool="")
        # timm attends in a stage's last block only; the authors' networks, so also the public weights, in every block.
        for stage, channels in zip(network.stages, ARCHITECTURES[architecture]["stage_out_chs"], strict=True):
            for block in stage.blocks:
                if block.attn is None:
                    block.attn = create_attn("ese", channels)
        if norm == "FrozenBN":
            network = freeze_batch_norm_2d(network)
        self.stem = network.stem
        self.stages = network.stages
        self.channels: tuple[int, ...] = tuple(ARCHITECTURES[architecture]["stage_out_chs"])

    def extract(self, pixels: Tensor) -> list[Tensor]:
        """Maps float32 [B, 3, H, W] (H, W multiples of 32) to [B, C, H/s, W/s] for the strides s = 4, 8, 16, 32."""
        features = self.stem(pixels)
        levels = []
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        return levels
