from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.eager import EagerNetworks
from benchmarks.harness.workload import DEMO_CHECKPOINTS
from export.config import demo
from livematch import read_image
from livematch.media.sources import list_images


def test_half_precision_finds_nearly_the_same(demo_world: Path) -> None:
    image = read_image(list_images(demo_world / "image")[0][0].path)
    full, half = (EagerNetworks(demo(), checkpoints=DEMO_CHECKPOINTS, is_half=is_half) for is_half in (False, True))
    assert {parameter.dtype for parameter in half.detector.backbone.parameters()} == {torch.float16}
    (boxes, scores), (half_boxes, half_scores) = full.detect("image", image), half.detect("image", image)
    assert len(boxes) >= 1
    np.testing.assert_allclose(half_boxes, boxes, atol=1)
    np.testing.assert_allclose(half_scores, scores, atol=0.01)
    crops = np.random.default_rng(0).integers(0, 256, (2, 116, 116, 3), np.uint8)
    for model in full.embedders:
        assert (full.embed(model, crops) * half.embed(model, crops)).sum(axis=1).min() > 0.999
        assert not np.array_equal(full.embed(model, crops), half.embed(model, crops))
