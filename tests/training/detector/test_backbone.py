import pytest
import torch

from training.detector.backbone import VoVNet


def test_levels_have_strides_4_to_32() -> None:
    network = VoVNet("vovnet_demo", "BN").eval()
    with torch.inference_mode():
        levels = network.extract(torch.zeros(2, 3, 96, 160))
    assert [tuple(level.shape) for level in levels] == [
        (2, 64, 24, 40),
        (2, 96, 12, 20),
        (2, 128, 6, 10),
        (2, 160, 3, 5),
    ]


def test_frozen_norms_are_not_trained_and_share_their_names() -> None:
    frozen, trained = VoVNet("vovnet_demo", "FrozenBN"), VoVNet("vovnet_demo", "BN")
    assert all("bn" not in name for name, _ in frozen.named_parameters())
    trained_names = {name for name in trained.state_dict() if not name.endswith("num_batches_tracked")}
    assert set(frozen.state_dict()) == trained_names


def test_every_block_of_v99_attends_as_in_the_authors_network() -> None:
    with torch.device("meta"):
        network = VoVNet("ese_vovnet99b", "FrozenBN")
    blocks = [block for stage in network.stages for block in stage.blocks]
    assert len(blocks) == 16
    assert all(block.attn.fc.weight.shape[0] == block.conv_concat.conv.weight.shape[0] for block in blocks)


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet50"):
        VoVNet("resnet50", "BN")
