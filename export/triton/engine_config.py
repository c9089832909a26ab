"""The settings in a config.pbtxt that only TensorRT engines have; derived from the engine's profiles.

Sources: the README and `instance_state.cc` of Triton's tensorrt_backend, `model_config.proto` of Triton.
"""

from tritonclient.grpc import model_config_pb2 as proto

from export.config import PipelineConfig
from export.signature import EMBEDDERS, MODELS
from export.tensorrt.profiles import profiles

GRAPH_BATCHES = (1, 2, 4, 8)  # crops per call; larger calls keep the GPU busy without a CUDA graph


def add_engine_options(message: proto.ModelConfig, config: PipelineConfig) -> None:
    """List every profile, because Triton otherwise uses only the first, and record CUDA graphs for the embedders.

    The detector has no CUDA graphs: the number of boxes from its NMS is known only at run time, and it gets many sizes.
    """
    (instances,) = message.instance_group
    instances.profile.extend(str(index) for index in range(len(profiles(message.name, config))))
    # From Triton 25.05 on, each context then reserves what its own profile needs, not what the largest one needs.
    message.parameters["execution_context_allocation_strategy"].string_value = "ON_PROFILE_CHANGE"
    if message.name in EMBEDDERS:
        (crops,) = MODELS[message.name].inputs
        cuda = message.optimization.cuda
        cuda.graphs = True
        for height, width in config.crop_sizes:
            for batch in GRAPH_BATCHES:
                spec = cuda.graph_spec.add(batch_size=batch)
                spec.input[crops.name].dim.extend(crops.shape_at(height, width)[1:])
