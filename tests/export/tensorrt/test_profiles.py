"""The profiles cover all shapes that the pipeline sends, and none that exceed its batch."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from export.config import PipelineConfig, demo, production
from export.tensorrt.profiles import profiles
from export.triton.model_config import repository_files

ENGINES = production().networks
EMBEDDERS = ENGINES[1:]


def _num_profiles(model: str, name: str, shape: tuple[int, ...], config: PipelineConfig | None = None) -> int:
    """Return how many profiles admit a shape."""
    ranges = [profile.inputs[name] for profile in profiles(model, config or production())]
    return sum(
        all(low <= side <= high for low, side, high in zip(found.minimum, shape, found.maximum, strict=True))
        for found in ranges
    )


LARGE = production(80)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    "size",
    [
        *((608, 1088), (1088, 608), (608, 608), (608, 4000), (4000, 608)),
        *((800, 800), (800, 832), (832, 800), (800, 4000), (4000, 800)),
        *((32, 4000), (4000, 32), (640, 4000), (4000, 640), (32, 32)),  # images limited by their long side
    ],
)
def test_every_image_size_is_admitted(batch: int, size: tuple[int, int]) -> None:
    assert _num_profiles("detector", "pixels", (batch, 3, *size), LARGE) >= 1


def test_detector_refuses_more_than_its_batch_and_squares_of_the_longest_side() -> None:
    assert not _num_profiles("detector", "pixels", (6, 3, 608, 1088), LARGE)
    assert not _num_profiles("detector", "pixels", (2, 3, 608, 1088))
    assert not _num_profiles("detector", "pixels", (1, 3, 4000, 4000))


def chosen(shapes: dict[str, tuple[int, ...]], config: PipelineConfig) -> str:
    """Return the profile that Triton's backend chooses, with its comparison of each side with the one before."""
    best, shortest = "", 10**9
    for profile in profiles("detector", config):
        distance = 0
        for name, shape in shapes.items():
            found = profile.inputs[name]
            if not all(
                low <= side <= high for low, side, high in zip(found.minimum, shape, found.maximum, strict=True)
            ):
                break
            distance += abs(found.optimum[0] - shape[0])
            distance += sum(abs(found.optimum[index] - shape[index - 1]) for index in range(1, len(shape)))
        else:
            if distance < shortest:
                best, shortest = profile.name, distance
    return best


@pytest.mark.parametrize("config", [production(), LARGE, demo()], ids=["production", "80 GB", "demo"])
def test_triton_chooses_the_fixed_profile_where_there_is_one(config: PipelineConfig) -> None:
    max_batch = config.serving_of("detector").max_batch
    fixed = [profile for profile in profiles("detector", config) if profile.name not in ("landscape", "portrait")]
    assert len(fixed) == 3
    for profile in fixed:
        for batch in {1, max_batch}:
            size = profile.inputs["pixels"].optimum[2:]
            assert chosen({"pixels": (batch, 3, *size), "image_size": (batch, 2)}, config) == profile.name


def test_frames_and_photos_have_fixed_profiles() -> None:
    sizes = [found.inputs["pixels"].optimum[2:] for found in profiles("detector", production())[:3]]
    assert sizes == [(800, 800), (1088, 608), (608, 1088)]


@pytest.mark.parametrize("model", EMBEDDERS)
def test_embedder_has_one_profile_for_each_template(model: str) -> None:
    for height, width in production().crop_sizes:
        for batch in (1, 6):
            assert _num_profiles(model, "crops", (batch, height, width, 3)) == 1
        assert not _num_profiles(model, "crops", (7, height, width, 3))
        assert not _num_profiles(model, "crops", (1, height + 1, width, 3))
        assert _num_profiles(model, "crops", (30, height, width, 3), LARGE) == 1
    assert len(profiles(model, production())) == 12


def test_gpus_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match=r"production\.json is made for a GPU of at least 16 GB, not 8 GB"):
        production(8)


@pytest.mark.parametrize("config", [production(), LARGE, demo()], ids=["production", "80 GB", "demo"])
@pytest.mark.parametrize("model", ENGINES)
def test_served_config_fits_the_profiles(model: str, config: PipelineConfig) -> None:
    message = text_format.Parse(repository_files(config)[f"{model}/config.pbtxt"], proto.ModelConfig())
    found = profiles(model, config)
    assert list(message.instance_group[0].profile) == [str(index) for index in range(len(found))]
    inputs = {tensor.name: [-1, *tensor.dims] for tensor in message.input}
    for profile in found:
        for name, shapes in profile.inputs.items():
            assert shapes.minimum[0] == 1 and shapes.maximum[0] == message.max_batch_size
            for fixed, low, high in zip(inputs[name], shapes.minimum, shapes.maximum, strict=True):
                assert fixed == -1 or fixed == low == high
    assert message.model_warmup
    for warmup in message.model_warmup:
        for name, tensor in warmup.inputs.items():
            assert _num_profiles(model, name, (warmup.batch_size, *tensor.dims), config) > 0
    # Without a list of sizes, Triton takes those of the profiles, each in its own context.
    assert message.optimization.cuda.graphs == (model in EMBEDDERS) and not message.optimization.cuda.graph_spec


@pytest.mark.parametrize("model", ENGINES)
def test_optimum_lies_in_its_range(model: str) -> None:
    for profile in profiles(model, production()):
        for found in profile.inputs.values():
            triples = zip(found.minimum, found.optimum, found.maximum, strict=True)
            assert all(low <= middle <= high for low, middle, high in triples), profile


def test_other_models_have_no_engine() -> None:
    with pytest.raises(ValueError, match="prepare_frame"):
        profiles("prepare_frame", production())
