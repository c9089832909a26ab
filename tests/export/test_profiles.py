"""The profiles cover what the pipeline sends, and nothing that it cannot batch."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from export.config import production
from export.profiles import ENGINES, profiles
from export.signature import EMBEDDERS
from export.triton_config import REPOSITORY


def _covers(model: str, name: str, shape: tuple[int, ...]) -> bool:
    ranges = [profile.inputs[name] for profile in profiles(model, production())]
    return any(
        all(low <= side <= high for low, side, high in zip(found.minimum, shape, found.maximum, strict=True))
        for found in ranges
    )


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    "size", [(608, 1088), (1088, 608), (800, 800), (800, 1088), (800, 4000), (4000, 800), (608, 608), (32, 4000)]
)
def test_detector_takes_every_picture(batch: int, size: tuple[int, int]) -> None:
    assert _covers("detector", "pixels", (batch, 3, *size))
    assert _covers("detector", "image_size", (batch, 2))


def test_detector_refuses_more_than_its_batch_and_squares_of_the_longest_side() -> None:
    assert not _covers("detector", "pixels", (9, 3, 608, 1088))
    assert not _covers("detector", "pixels", (1, 3, 4000, 4000))


@pytest.mark.parametrize("model", EMBEDDERS)
def test_embedder_has_a_profile_for_every_template(model: str) -> None:
    for height, width in production().crop_sizes:
        assert _covers(model, "crops", (1, height, width, 3))
        assert _covers(model, "crops", (32, height, width, 3))
    assert not _covers(model, "crops", (33, *production().crop_sizes[0], 3))
    assert len(profiles(model, production())) == len(set(production().crop_sizes))


@pytest.mark.parametrize("model", ENGINES)
def test_optimum_lies_in_its_range(model: str) -> None:
    for profile in profiles(model, production()):
        for found in profile.inputs.values():
            triples = zip(found.minimum, found.optimum, found.maximum, strict=True)
            assert all(low <= middle <= high for low, middle, high in triples), profile


def test_other_models_have_no_engine() -> None:
    with pytest.raises(ValueError, match="prepare_frame"):
        profiles("prepare_frame", production())


@pytest.mark.parametrize("model", ENGINES)
def test_the_committed_config_uses_all_profiles_and_stays_inside_them(model: str) -> None:
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    message = text_format.Parse(text, proto.ModelConfig())
    found = profiles(model, production())
    (group,) = message.instance_group
    assert list(group.profile) == [str(index) for index in range(len(found))]
    for profile in found:
        assert all(item.maximum[0] == message.max_batch_size for item in profile.inputs.values())
    for warmup in message.model_warmup:
        for name, tensor in warmup.inputs.items():
            assert _covers(model, name, (1, *tensor.dims)), f"{warmup.name} is in no profile"
