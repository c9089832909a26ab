"""The detector in plain PyTorch with static, batched shapes: the graph that is exported.

It holds the weights under detectron2's names and computes the same boxes as `training.detector.model` at test time
(Ren et al., Faster R-CNN; Lin et al., Feature Pyramid Networks). No shape depends on the data: where detectron2 filters
boxes out, this graph masks them. Shape letters:

    B images    L pyramid levels    A anchors per location    N anchors of one level    K pre_nms_top_k
    P post_nms_top_k    M candidates    D max_detections    C channels    Y classes

Boxes are x0 y0 x1 y1 in pixels of the padded image; sizes are (height, width). The weights of the backbone and of the
hidden layers may be float16 (see `export.graphs.precision`); all arithmetic on logits and boxes is float32.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from export.graphs.nms import Nms
from training.detector.backbone import build_backbone
from training.detector.config import LEVELS, DetectorConfig

LOWEST = -1e30
"""The logit of a masked box, far below any that a network computes."""

INEXACT = -1
"""The number of detections of an image whose result is not exact or not finite; `crop_and_embed` refuses it."""

MAX_LOG_SCALE = math.log(1000 / 16)
"""detectron2's limit on predicted log width and height, so that exp cannot overflow."""


Outputs = tuple[Tensor, Tensor, Tensor, Tensor]  # boxes, scores, num_detections, labels


class DetectorGraph(nn.Module):
    """The whole detector, except for resizing: load a detectron2 state dict into it, then call eval()."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        if not config.max_detections <= config.post_nms_top_k <= len(LEVELS) * config.pre_nms_top_k:
            raise ValueError(
                f"max_detections {config.max_detections} <= post_nms_top_k {config.post_nms_top_k} <= "
                f"{len(LEVELS)} levels x pre_nms_top_k {config.pre_nms_top_k} does not hold"
            )
        if config.num_classes > 1 and config.max_detections > config.max_candidates:
            raise ValueError(f"max_detections {config.max_detections} exceeds max_candidates {config.max_candidates}")
        self.config = config
        self.backbone = Pyramid(config)
        self.proposal_generator = ProposalGenerator(config)
        self.roi_heads = RoiHeads(config)

    def half_modules(self) -> Iterator[nn.Module]:
        """Yield the parts that half precision turns into float16."""
        yield from (self.backbone, self.proposal_generator.rpn_head.conv, self.roi_heads.box_head)

    def forward(self, pixels: Tensor, image_size: Tensor) -> Outputs:
        """Detect objects, such as garments.

        Args:
            pixels: float32 [B, 3, H, W] BGR, mean subtracted and divided by the standard deviation as the config says,
                zero outside each image; H and W multiples of 32.
            image_size: float32 [B, 2], each image's own (height, width) within H, W.

        Returns:
            boxes: float32 [B, D, 4] within image_size, zero past the count.
            scores: float32 [B, D] in descending order, zero past the count.
            num_detections: int32 [B, 1]; INEXACT for an image whose boxes the unrolled NMS could not settle.
            labels: int32 [B, D], the class of each box, from 0 on; zero past the count.
        """
        levels = self.backbone(pixels)
        proposals = self.proposal_generator(levels, image_size)
        detections: Outputs = self.roi_heads(levels[:-1], *proposals, image_size)
        return detections


class Pyramid(nn.Module):
    """The backbone and its feature pyramid."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.bottom_up = build_backbone(config)
        for level, channels in zip(LEVELS, self.bottom_up.channels, strict=False):
            self.add_module(f"fpn_lateral{level}", nn.Conv2d(channels, config.fpn_channels, 1))
            self.add_module(f"fpn_output{level}", nn.Conv2d(config.fpn_channels, config.fpn_channels, 3, padding=1))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map [B, 3, H, W] to P2..P6, each [B, C, H/s, W/s] with stride s = 2**level (rounded up for P6)."""
        dtype = self.get_parameter("fpn_lateral2.weight").dtype
        bottom_up = self.bottom_up.extract(pixels.to(dtype))
        merged = None
        outputs = []
        for level, features in zip(LEVELS[-2::-1], bottom_up[::-1], strict=True):
            lateral = self.get_submodule(f"fpn_lateral{level}")(features)
            merged = lateral if merged is None else lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            outputs.append(self.get_submodule(f"fpn_output{level}")(merged))
        return [*outputs[::-1], F.max_pool2d(outputs[0], kernel_size=1, stride=2)]


class RpnHead(nn.Module):
    """One hidden layer, then a logit and four deltas for each anchor."""

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * num_anchors, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, C, h, w] to logits [B, N] and deltas [B, N, 4], with N = h·w·A in this order."""
        hidden = F.relu(self.conv(features)).float()
        logits = self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = self.anchor_deltas(hidden).unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        return logits, deltas


class ProposalGenerator(nn.Module):
    """Region proposal network: take the best K anchors of each level, apply NMS per level, keep the best P of all."""

    cells: Tensor  # [L, A, 4]
    rank_scores: Tensor  # [K]
    placeholder: Tensor  # [4]

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.rpn_head = RpnHead(config.fpn_channels, len(config.anchor_ratios))
        self.top_k = config.pre_nms_top_k
        self.num_proposals = config.post_nms_top_k
        self.nms = Nms(config.rpn_nms_iou)
        self.anchor_offset = config.anchor_offset
        cells = torch.stack([cell_anchors(size, config.anchor_ratios) for size in config.anchor_sizes_px])
        self.register_buffer("cells", cells, persistent=False)
        # The K boxes of a level are already sorted, so ranks serve as scores: no ties, and all positive.
        self.register_buffer("rank_scores", torch.arange(self.top_k, 0, -1) / self.top_k, persistent=False)
        # The placeholder has an area, because some runtimes compute NaN for RoiAlign of an empty box.
        self.register_buffer("placeholder", torch.tensor([0.0, 0.0, 1.0, 1.0]), persistent=False)

    def forward(self, levels: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return proposals [B, P, 4], best first, is_proposal [B, P], False for a placeholder, and is_exact [B]."""
        candidates = [self._best_of_level(index, features) for index, features in enumerate(levels)]
        logits, anchors, deltas = (torch.stack(parts, dim=1) for parts in zip(*candidates, strict=True))  # [B, L, K, …]
        boxes = clip(decode(deltas, anchors), image_size)
        sides = boxes[..., 2:] - boxes[..., :2]
        is_box = (logits > LOWEST) & (sides > 0).all(dim=-1)

        scores = torch.where(is_box, self.rank_scores, 0.0)
        kept, is_exact = self.nms(boxes.flatten(0, 1), scores.flatten(0, 1))
        kept, is_exact = (part.unflatten(0, (-1, len(LEVELS))) for part in (kept, is_exact))
        logits = torch.where(kept > 0, logits, LOWEST).flatten(1)
        logits, order = logits.topk(self.num_proposals)
        is_proposal = logits > LOWEST
        proposals = take(boxes.flatten(1, 2), order)
        proposals = torch.where(is_proposal[..., None], proposals, self.placeholder)
        return proposals, is_proposal, is_exact.all(dim=1)

    def _best_of_level(self, index: int, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the K highest logits [B, K], LOWEST where the level has fewer anchors, their anchors and deltas."""
        logits, deltas = self.rpn_head(features)
        anchors = grid_anchors(
            self.cells[index], features.shape[2], features.shape[3], 2 ** LEVELS[index], self.anchor_offset
        )
        num_anchors = logits.shape[1]
        logits, order = F.pad(logits, (0, self.top_k), value=LOWEST).topk(self.top_k)
        order = order.clamp(max=num_anchors - 1)
        return logits, anchors[order], take(deltas, order)


class BoxHead(nn.Module):
    """Fully connected layers fc1, fc2, … on a pooled region."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        in_features = config.fpn_channels * config.pooled_size**2
        for index in range(config.box_head_layers):
            self.add_module(f"fc{index + 1}", nn.Linear(in_features, config.box_head_dim))
            in_features = config.box_head_dim

    def forward(self, regions: Tensor) -> Tensor:
        """Map float32 [n, C, s, s] to float32 [n, box_head_dim]."""
        hidden = regions.flatten(1).to(self.get_parameter("fc1.weight").dtype)
        for layer in self.children():
            hidden = F.relu(layer(hidden))
        return hidden.float()


class BoxPredictor(nn.Module):
    """Predict the logits of the classes, the last of which is the background, and deltas for each class or for all."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        num_boxes = 1 if config.has_class_agnostic_boxes else config.num_classes
        self.cls_score = nn.Linear(config.box_head_dim, config.num_classes + 1)
        self.bbox_pred = nn.Linear(config.box_head_dim, 4 * num_boxes)


class RoiHeads(nn.Module):
    """Classify and refine the proposals, apply the score threshold and NMS of each class, and keep the best D."""

    smallest_sizes: Tensor
    scales: Tensor
    box_weights: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.nms = Nms(config.nms_iou)
        self.box_head = BoxHead(config)
        self.box_predictor = BoxPredictor(config)
        pooled_levels = LEVELS[:-1]
        # A box is pooled from level floor(canonical_level + log2(size / canonical size)), here a sum of comparisons.
        steps = [level - config.canonical_level for level in pooled_levels[1:]]
        smallest_sizes = [config.canonical_box_size_px * 2.0**step for step in steps]
        self.register_buffer("smallest_sizes", torch.tensor(smallest_sizes), persistent=False)
        self.register_buffer("scales", torch.tensor([2.0**-level for level in pooled_levels]), persistent=False)
        self.register_buffer("box_weights", torch.tensor(config.box_weights), persistent=False)

    def forward(
        self, levels: Sequence[Tensor], proposals: Tensor, is_proposal: Tensor, is_exact: Tensor, image_size: Tensor
    ) -> Outputs:
        """Take P2..P5 and the outputs of `ProposalGenerator`; return the outputs of `DetectorGraph.forward`."""
        hidden = self.box_head(self._pool(levels, proposals))
        scores = self.box_predictor.cls_score(hidden).softmax(dim=1)
        scores = scores[:, 0] if self.config.num_classes == 1 else scores[:, :-1]
        scores = scores.unflatten(0, (-1, self.config.post_nms_top_k))
        is_finite = (scores >= 0).flatten(1).all(dim=1)  # NaN, from an overflow anywhere in the network, is not
        deltas = self.box_predictor.bbox_pred(hidden).unflatten(0, (-1, self.config.post_nms_top_k))
        boxes, scores, labels, is_last_exact = self.select(scores, deltas, proposals, is_proposal, image_size)
        num_detections = torch.where(is_exact & is_last_exact & is_finite, (scores > 0).sum(dim=1), INEXACT)
        return boxes, scores, num_detections[:, None].to(torch.int32), labels.to(torch.int32)

    def select(
        self, scores: Tensor, deltas: Tensor, proposals: Tensor, is_proposal: Tensor, image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Apply the score threshold and NMS, for each class by itself, and take the best D of all.

        Args:
            scores: float32 [B, P, Y], or [B, P] for one class.
            deltas: float32 [B, P, 4 * Y] or, the same for all classes, [B, P, 4].
            proposals: float32 [B, P, 4].
            is_proposal: bool [B, P], False for a placeholder.
            image_size: float32 [B, 2].

        Returns:
            Boxes [B, D, 4], scores [B, D] in descending order and labels int64 [B, D], all zero where fewer remain, and
            is_exact [B].
        """
        config = self.config
        labels = None
        if config.num_classes == 1:
            scores = torch.where(is_proposal & (scores > config.score_threshold), scores, 0.0)
        else:
            scores = torch.where(is_proposal[..., None] & (scores > config.score_threshold), scores, 0.0)
            scores, labels, deltas, proposals = best_pairs(scores, deltas, proposals, config.max_candidates)
        boxes = clip(decode(deltas / self.box_weights, proposals), image_size)

        kept, is_exact = self.nms(boxes, scores, labels, config.num_classes)
        scores = scores * kept
        scores, order = scores.topk(config.max_detections)
        is_detection = scores > 0
        boxes = take(boxes, order) * is_detection[..., None]
        labels = torch.zeros_like(order) if labels is None else labels.gather(1, order) * is_detection
        return boxes, scores, labels, is_exact

    def _pool(self, levels: Sequence[Tensor], proposals: Tensor) -> Tensor:
        """Pool each proposal to [C, s, s] with one RoiAlign over all levels (see `feature_atlas`); returns [B·P, …]."""
        level = assign_levels(proposals, self.smallest_sizes)
        scale = self.scales[level]
        # The rows above a level are those of the finer levels, each with two padding rows, and its own padding row.
        stride = 2 ** LEVELS[0]
        image_height = levels[0].shape[2] * stride
        first_row = image_height * 2 * (self.scales[0] - scale) + (2 * level + 1)
        x0, y0, x1, y1 = (proposals * scale[..., None]).unbind(dim=-1)
        image = torch.arange(proposals.shape[0]).to(scale.dtype)[:, None].expand_as(scale)
        regions = torch.stack([image, x0, y0 + first_row, x1, y1 + first_row], dim=-1).flatten(0, 1)
        pooled_size = self.config.pooled_size
        atlas = feature_atlas(levels).float()
        pooled: Tensor = roi_align(atlas, regions, pooled_size, 1.0, self.config.sampling_ratio, aligned=True)
        return pooled


def best_pairs(
    scores: Tensor, deltas: Tensor, proposals: Tensor, max_candidates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the M pairs of proposal and class that score best: the candidates for class-wise NMS.

    detectron2 applies NMS to all pairs above the score threshold. As better boxes never depend on worse ones, both
    agree on everything among the first M pairs. So the detections are exact if at most M pairs exceed the threshold,
    or if NMS leaves D of the first M; otherwise those that score less than all M candidates are missing.

    Args:
        scores: float32 [B, P, Y], 0 for a pair that is no candidate.
        deltas: float32 [B, P, 4 * Y] or, the same for all classes, [B, P, 4].
        proposals: float32 [B, P, 4].
        max_candidates: M, unless there are fewer pairs.

    Returns:
        Scores [B, M] in descending order, labels int64 [B, M], and the pairs' deltas and proposals, both [B, M, 4].
    """
    num_proposals, num_classes = scores.shape[1:]
    scores, pair = scores.flatten(1).topk(min(max_candidates, num_proposals * num_classes))
    row = pair // num_classes
    is_for_all = deltas.shape[2] == 4
    deltas = take(deltas, row) if is_for_all else take(deltas.reshape(-1, num_proposals * num_classes, 4), pair)
    return scores, pair - row * num_classes, deltas, take(proposals, row)


def assign_levels(boxes: Tensor, smallest_sizes: Tensor) -> Tensor:
    """Return int64 [...], the index of the level that each box [..., 4] is pooled from.

    `smallest_sizes` holds, for each level after the first, the square root of the area of its smallest box, in pixels.
    """
    size = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1).sqrt()
    return (size[..., None] >= smallest_sizes).sum(dim=-1)


def feature_atlas(levels: Sequence[Tensor]) -> Tensor:
    """Stack the levels [B, C, h, w] from top to bottom in one map as wide as the first.

    Each level's edges are repeated: one row above and below, and up to the full width on the right. Bilinear sampling
    at a level's border then reads the same values as from the level alone.
    """
    width = levels[0].shape[3]
    return torch.cat([F.pad(level, (0, width - level.shape[3], 1, 1), mode="replicate") for level in levels], dim=2)


def cell_anchors(size: float, ratios: Sequence[float]) -> Tensor:
    """Return float32 [A, 4]: boxes of area size² centred on the origin, one for each height / width ratio."""
    widths = [math.sqrt(size**2 / ratio) for ratio in ratios]
    sides = [(width, ratio * width) for width, ratio in zip(widths, ratios, strict=True)]
    return torch.tensor([(-width / 2, -height / 2, width / 2, height / 2) for width, height in sides])


def grid_anchors(cells: Tensor, height: int, width: int, stride: int, offset: float) -> Tensor:
    """Repeat the cells [A, 4] at every location of a height x width grid; return [N, 4] in row order.

    `offset` is a fraction of the stride: 0 centres them on a location's upper left corner, 0.5 on its middle.
    """
    x = (torch.arange(width) + offset) * stride
    y = (torch.arange(height) + offset) * stride
    x, y = x[None, :].expand(height, width), y[:, None].expand(height, width)
    return (torch.stack([x, y, x, y], dim=-1)[:, :, None] + cells).flatten(0, 2)


def decode(deltas: Tensor, boxes: Tensor) -> Tensor:
    """Move the boxes' centres by (dx, dy) times their sides, and scale the sides by exp(dw), exp(dh); all [..., 4]."""
    sides = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * sides + deltas[..., :2] * sides
    half = 0.5 * (deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * sides)
    return torch.cat([centre - half, centre + half], dim=-1)


def clip(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Clip boxes [B, ..., 4] to each image's (height, width) [B, 2]."""
    limit = image_size.flip(1).repeat(1, 2)
    while limit.ndim < boxes.ndim:
        limit = limit.unsqueeze(1)
    return torch.minimum(boxes.clamp(min=0.0), limit)


def take(rows: Tensor, order: Tensor) -> Tensor:
    """Return the rows [B, m, 4] of `rows` [B, n, 4] at the indices `order` int64 [B, m]."""
    return rows.gather(1, order[..., None].expand(-1, -1, rows.shape[2]))
