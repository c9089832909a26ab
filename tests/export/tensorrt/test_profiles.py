"""The profiles cover all shapes that the pipeline sends, and none that exceed its batch."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from export.config import PipelineConfig, demo, production
from export.signature import EMBEDDERS
from export.tensorrt.profiles import ENGINES, profiles
from export.triton.model_config import repository_files


def _num_profiles(model: str, name: str, shape: tuple[int, ...], config: PipelineConfig | None = None) -> int:
    """Return how many profiles admit a shape."""
    ranges = [profile.inputs[name] for profile in profiles(model, config or production())]
    return sum(
        all(low <= side <= high for low, side, high in zip(found.minimum, shape, found.maximum, strict=True))
        for found in ranges
    )


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    "size",
    [
        *((608, 1088), (1088, 608), (608, 608), (608, 4000), (4000, 608)),
        *((800, 800), (800, 832), (832, 800), (800, 4000), (4000, 800)),
        *((32, 4000), (4000, 32), (640, 4000), (4000, 640)),  # images limited by their long side
    ],
)
def test_every_image_size_belongs_to_one_profile(batch: int, size: tuple[int, int]) -> None:
    assert _num_profiles("detector", "pixels", (batch, 3, *size)) == 1


def test_usual_sizes_are_the_optimum() -> None:
    optima = {found.name: found.inputs["pixels"].optimum[2:] for found in profiles("detector", production())}
    assert optima["frame_portrait"] == (1088, 608) and optima["image_landscape"] == (800, 800)


def test_detector_refuses_more_than_its_batch_and_squares_of_the_longest_side() -> None:
    assert not _num_profiles("detector", "pixels", (9, 3, 608, 1088))
    assert not _num_profiles("detector", "pixels", (1, 3, 4000, 4000))


@pytest.mark.parametrize("model", EMBEDDERS)
def test_embedder_has_one_profile_for_all_templates(model: str) -> None:
    for height, width in production().crop_sizes:
        assert _num_profiles(model, "crops", (1, height, width, 3)) == 1
        assert _num_profiles(model, "crops", (32, height, width, 3)) == 1
    assert not _num_profiles(model, "crops", (33, *production().crop_sizes[0], 3))
    assert len(profiles(model, production())) == 1


@pytest.mark.parametrize("config", [production(), demo()], ids=lambda config: config.name)
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
            shape = (warmup.batch_size, *tensor.dims)
            num_fitting = _num_profiles(model, name, shape, config)
            assert num_fitting == 1 if name in ("pixels", "crops") else num_fitting > 0
    graphs = [(spec.batch_size, *spec.input["crops"].dim) for spec in message.optimization.cuda.graph_spec]
    assert message.optimization.cuda.graphs == bool(graphs) == (model in EMBEDDERS)
    assert len(graphs) == len(set(graphs))
    assert all(_num_profiles(model, "crops", shape, config) == 1 for shape in graphs)


@pytest.mark.parametrize("model", ENGINES)
def test_optimum_lies_in_its_range(model: str) -> None:
    for profile in profiles(model, production()):
        for found in profile.inputs.values():
            triples = zip(found.minimum, found.optimum, found.maximum, strict=True)
            assert all(low <= middle <= high for low, middle, high in triples), profile


def test_other_models_have_no_engine() -> None:
    with pytest.raises(ValueError, match="prepare_frame"):
        profiles("prepare_frame", production())
