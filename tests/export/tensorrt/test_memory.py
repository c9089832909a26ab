"""Hand-calculated memory of two engines."""

from dataclasses import replace

import pytest

from export.config import production
from export.tensorrt.memory import ModelMemory, require_fit, table
from export.tensorrt.profiles import profiles

CONFIG = replace(production(), gpu_memory_gb=2)  # of which the engines may use 1.5 GB
DETECTOR = ModelMemory("detector", profiles("detector", production())[:2], [200_000_000, 300_000_000], 50_000_000, 2)
EMBEDDER = ModelMemory("embedder_b6", profiles("embedder_b6", production())[:1], [400_000_000], 60_000_000, 1)


def test_every_instance_has_a_context_for_each_profile_and_one_copy_of_the_weights_serves_all() -> None:
    assert DETECTOR.total_bytes == 1_050_000_000 and EMBEDDER.total_bytes == 460_000_000


def test_table() -> None:
    assert [line.split() for line in table([DETECTOR, EMBEDDER], CONFIG).splitlines()[1:]] == [
        ["detector", "800x800", "1", "200", "2", "400"],
        ["detector", "1088x608", "1", "300", "2", "600"],
        ["detector", "weights", "50"],
        ["embedder_b6", "400x100", "6", "400", "1", "400"],
        ["embedder_b6", "weights", "60"],
        ["sum:", "1.5", "of", "1.5", "GB"],
    ]


def test_what_does_not_fit_is_refused_with_the_largest() -> None:
    require_fit([DETECTOR], CONFIG)
    message = r"the engines need 1\.5 GB, more than 1\.5 GB \(75% of 2 GB\); the largest is detector with 1\.1 GB"
    with pytest.raises(ValueError, match=message):
        require_fit([EMBEDDER, DETECTOR], CONFIG)
