"""The detector built from detectron2's modules, for training and as the reference for the exported graph."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, ResNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, StandardROIHeads

from training.detector.backbone import VoVNet
from training.detector.config import LEVELS, DetectorConfig
from training.detector.resnet import NUM_BLOCKS, RES2_CHANNELS, STEM_CHANNELS

STAGES = tuple(f"res{level}" for level in LEVELS[:-1])


class VoVNetBackbone(VoVNet, Backbone):  # type: ignore[misc]  # detectron2 has no types
    """Adapter of `VoVNet` to detectron2's backbone interface; the outputs are called res2..res5."""

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(STAGES, self.extract(pixels), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=channels, stride=2**level)
            for name, channels, level in zip(STAGES, self.channels, LEVELS[:-1], strict=True)
        }


def build_resnet(config: DetectorConfig) -> ResNet:
    """Build the ResNet that a config names from detectron2's modules, none of which is frozen."""
    stages = []
    in_channels = STEM_CHANNELS
    for index, num_blocks in enumerate(NUM_BLOCKS[config.backbone]):
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                num_blocks,
                stride_per_block=[2 if index else 1] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                bottleneck_channels=config.resnet_groups * config.resnet_group_width * 2**index,
                out_channels=RES2_CHANNELS * 2**index,
                num_groups=config.resnet_groups,
                stride_in_1x1=config.has_stride_in_1x1,
                norm=config.norm,
            )
        )
        in_channels = RES2_CHANNELS * 2**index
    return ResNet(BasicStem(out_channels=STEM_CHANNELS, norm=config.norm), stages, out_features=list(STAGES))


def build_detector(
    config: DetectorConfig,
    *,
    rpn_batch_size: int = 256,
    roi_batch_size: int = 512,
    train_pre_nms_top_k: int = 2000,
    train_post_nms_top_k: int = 1000,
) -> GeneralizedRCNN:
    """Build the detector with random weights.

    A ResNet consists of detectron2's own modules, as a reference for ours. The input of the detector is detectron2's: a
    list of {"image": uint8 [3, H, W] BGR, "instances": …}, one per image. The model subtracts the mean, divides by the
    standard deviation and pads the images itself.

    Args:
        config: architecture and test-time settings.
        rpn_batch_size: anchors per image in the loss (training only, as are the following).
        roi_batch_size: proposals per image in the loss.
        train_pre_nms_top_k: proposals kept per level before NMS.
        train_post_nms_top_k: proposals kept per image after NMS.
    """
    is_resnet = config.backbone in NUM_BLOCKS
    backbone = FPN(
        bottom_up=build_resnet(config) if is_resnet else VoVNetBackbone(config.backbone, config.norm),
        in_features=STAGES,
        out_channels=config.fpn_channels,
        top_block=LastLevelMaxPool(),
    )
    proposal_names = [f"p{level}" for level in LEVELS]
    pooled_names = proposal_names[:-1]
    rpn = RPN(
        in_features=proposal_names,
        head=StandardRPNHead(in_channels=config.fpn_channels, num_anchors=len(config.anchor_ratios)),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[size] for size in config.anchor_sizes_px],
            aspect_ratios=list(config.anchor_ratios),
            strides=[2**level for level in LEVELS],
            offset=config.anchor_offset,
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=rpn_batch_size,
        positive_fraction=0.5,
        pre_nms_topk=(train_pre_nms_top_k, config.pre_nms_top_k),
        post_nms_topk=(train_post_nms_top_k, config.post_nms_top_k),
        nms_thresh=config.rpn_nms_iou,
    )
    pooled = ShapeSpec(channels=config.fpn_channels, height=config.pooled_size, width=config.pooled_size)
    roi_heads = StandardROIHeads(
        num_classes=config.num_classes,
        batch_size_per_image=roi_batch_size,
        positive_fraction=0.25,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        box_in_features=pooled_names,
        box_pooler=ROIPooler(
            output_size=config.pooled_size,
            scales=[1 / 2**level for level in LEVELS[:-1]],
            sampling_ratio=config.sampling_ratio,
            pooler_type="ROIAlignV2",
            canonical_box_size=config.canonical_box_size_px,
            canonical_level=config.canonical_level,
        ),
        box_head=FastRCNNConvFCHead(pooled, conv_dims=[], fc_dims=[config.box_head_dim] * config.box_head_layers),
        box_predictor=FastRCNNOutputLayers(
            ShapeSpec(channels=config.box_head_dim),
            box2box_transform=Box2BoxTransform(weights=config.box_weights),
            num_classes=config.num_classes,
            cls_agnostic_bbox_reg=config.has_class_agnostic_boxes,
            test_score_thresh=config.score_threshold,
            test_nms_thresh=config.nms_iou,
            test_topk_per_image=config.max_detections,
        ),
    )
    return GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=rpn,
        roi_heads=roi_heads,
        pixel_mean=config.pixel_mean_bgr,
        pixel_std=config.pixel_std_bgr,
        input_format="BGR",
    )
