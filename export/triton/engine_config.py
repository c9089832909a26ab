"""What a config.pbtxt says about an engine besides what every model's says; derived from the engine's profiles.

Sources: the README and `instance_state.cc` of Triton's tensorrt_backend, `model_config.proto` of Triton.
"""

from tritonclient.grpc import model_config_pb2 as proto

from export.config import PipelineConfig
from export.signature import EMBEDDERS, MODELS
from export.tensorrt.profiles import profiles

GRAPH_BATCHES = (1, 2, 4, 8)  # crops of one template in a call; larger calls keep the GPU busy without a graph


def add_engine_options(message: proto.ModelConfig, config: PipelineConfig) -> None:
    """Names every profile, without which Triton uses the first alone; for embedders records CUDA graphs.

    The detector has none: the number of boxes that its NMS finds is known only while it runs, and its sizes are many.
    """
    (instances,) = message.instance_group
    instances.profile.extend(str(index) for index in range(len(profiles(message.name, config))))
    # Each context then reserves what its own profile needs, instead of the most that any needs; from Triton 25.05 on.
    message.parameters["execution_context_allocation_strategy"].string_value = "ON_PROFILE_CHANGE"
    if message.name in EMBEDDERS:
        (crops,) = MODELS[message.name].inputs
        cuda = message.optimization.cuda
        cuda.graphs = True
        for height, width in config.crop_sizes:
            for batch in GRAPH_BATCHES:
                spec = cuda.graph_spec.add(batch_size=batch)
                spec.input[crops.name].dim.extend(crops.shape_at(height, width)[1:])
