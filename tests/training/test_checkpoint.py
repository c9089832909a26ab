import math
from pathlib import Path

import pytest
import torch

from training.checkpoint import check_gradients, save_checkpoint


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "embedder.pth"
    save_checkpoint({"model": 1}, path)
    with pytest.raises(AttributeError, match="pickle"):
        save_checkpoint({"model": 2, "not to be pickled": lambda: None}, path)
    assert torch.load(path) == {"model": 1}


@pytest.mark.parametrize(
    ("norm", "scale", "stops"),
    [
        (math.nan, 2.0, False),
        (math.inf, 1.0, False),
        (math.inf, 0.5, True),
        (7.0, 0.5, False),
        (7.0, None, False),
        (math.nan, None, True),
    ],
)
def test_gradients_that_are_not_finite_stop_a_run_unless_the_scale_can_be_halved(
    norm: float, scale: float | None, stops: bool
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    scaler.scale(torch.ones(()))  # makes the scale
    if stops:
        with pytest.raises(FloatingPointError, match=f"gradient norm is {norm} at step 3"):
            check_gradients(torch.tensor(norm), scaler, "at step 3")
    else:
        check_gradients(torch.tensor(norm), scaler, "at step 3")
