"""A server that speaks Triton's gRPC protocol, and small data sets of coloured rectangles for it to recognise.

It is a real gRPC server on a real port; only its models are simple: the garment of an image is the rectangle on its
white background, and the embedding is a smooth function of the rectangle's colour.
"""

import json
import mmap
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace

import av
import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

EMBEDDING_SIZE = 2048
CLASS_NAMES = ("tall", "wide")
DIRECTIONS = np.random.default_rng(20).normal(size=(27, EMBEDDING_SIZE)).astype(np.float32)
ANCHORS = np.stack(np.meshgrid(*[[0, 128, 255]] * 3), axis=-1).reshape(27, 3)

SHAPES = {
    "image": ("UINT8", [-1, -1, -1, 3]),
    "boxes": ("FP32", [-1, -1, 4]),
    "scores": ("FP32", [-1, -1]),
    "labels": ("INT32", [-1, -1]),
    "embeddings": ("FP32", [-1, -1, EMBEDDING_SIZE]),
    "num_detections": ("INT32", [-1, 1]),
}


def color_embedding(color: np.ndarray) -> np.ndarray:
    """Return a float32 [2048] of unit length; similar colours get similar embeddings."""
    closeness = np.exp(-np.square(ANCHORS - color).sum(axis=1) / (2 * 80**2))
    embedding = closeness.astype(np.float32) @ DIRECTIONS
    return embedding / np.linalg.norm(embedding)


def recognize(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes, scores, labels and embeddings: of the rectangle of clearly non-white pixels, if there is one."""
    rows, columns = np.nonzero((image.astype(int) < 225).any(axis=2))
    if len(rows) < 16:
        return np.empty((0, 4)), np.empty(0), np.empty(0), np.empty((0, EMBEDDING_SIZE))
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    color = np.median(image[rows, columns], axis=0)
    is_wide = np.ptp(columns) > np.ptp(rows)
    return np.array([box]), np.array([0.97]), np.array([is_wide]), color_embedding(color)[np.newaxis]


class LoopbackServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves both ensembles.

    `faults` are the statuses that the next requests get instead of a response. From request number `faults_from` on,
    all get UNAVAILABLE.
    """

    def __init__(self) -> None:
        self.faults: list[grpc.StatusCode] = []
        self.faults_from: int | None = None
        self.shapes = dict(SHAPES)
        self.identity: str | None = "loopback-1"
        self.class_names = CLASS_NAMES
        self.is_ready = True
        self.delay_s = 0.0
        self.region_delay_s = 0.0
        self.num_requests = {"recognize_image": 0, "recognize_frame": 0}
        self.max_num_parallel = 0
        self.regions: dict[str, mmap.mmap] = {}  # of shared memory
        self.regions_in_use: list[str] = []
        self.parameters: dict[str, int] = {}  # of the last request
        self._num_parallel = 0
        self._lock = threading.Lock()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server; after `stop()`, on the same port."""
        self._is_stopping = threading.Event()
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def stop(self) -> None:
        self._is_stopping.set()
        self._server.stop(grace=None).wait()

    def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=self.is_ready)

    def ModelMetadata(self, request, context):
        if request.name not in self.num_requests:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        tensors = [
            service_pb2.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=shape)
            for name, (datatype, shape) in self.shapes.items()
        ]
        return service_pb2.ModelMetadataResponse(name=request.name, inputs=tensors[:1], outputs=tensors[1:])

    def ModelConfig(self, request, context):
        config = model_config_pb2.ModelConfig(name=request.name)
        if self.identity is not None:
            config.parameters["model_identity"].string_value = self.identity
        if self.class_names:
            config.parameters["class_names"].string_value = json.dumps(self.class_names)
        return service_pb2.ModelConfigResponse(config=config)

    def SystemSharedMemoryStatus(self, request, context):
        status = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.regions:
            status.regions[name].name = name
        return status

    def SystemSharedMemoryRegister(self, request, context):
        with Path(f"/dev/shm{request.key}").open("rb") as file:
            self.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size, prot=mmap.PROT_READ)
        self._is_stopping.wait(self.region_delay_s)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request, context):
        self._is_stopping.wait(self.region_delay_s)
        if request.name in self.regions_in_use:
            reason = f"Cannot unregister shared memory region '{request.name}', it is currently in use."
            context.abort(grpc.StatusCode.INTERNAL, reason)
        self.regions.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request, context):
        region = request.inputs[0].parameters["shared_memory_region"].string_param
        with self._lock:
            self.num_requests[request.model_name] += 1
            self.parameters = {n: p.uint64_param or p.int64_param for n, p in request.parameters.items()}
            fault = self.faults.pop(0) if self.faults else None
            if self.faults_from is not None and sum(self.num_requests.values()) >= self.faults_from:
                fault = grpc.StatusCode.UNAVAILABLE
            self._num_parallel += 1
            self.regions_in_use.append(region)
            self.max_num_parallel = max(self.max_num_parallel, self._num_parallel)
        try:
            self._is_stopping.wait(self.delay_s)
            if fault is not None:
                context.abort(fault, f"a fault: {fault.name}")
            if region and region not in self.regions:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unable to find shared memory region: '{region}'")
            return self._answer(request)
        finally:
            with self._lock:
                self._num_parallel -= 1
                self.regions_in_use.remove(region)

    def _answer(self, request):
        tensor = request.inputs[0]
        if region := tensor.parameters["shared_memory_region"].string_param:
            content = self.regions[region][: tensor.parameters["shared_memory_byte_size"].int64_param]
        else:
            content = request.raw_input_contents[0]
        image = np.frombuffer(content, np.uint8).reshape(tensor.shape)[0]
        boxes, scores, labels, embeddings = recognize(image)
        # One padding row, as in a batch with another image that has more detections.
        padding = ((0, 1), (0, 0))
        tensors = {
            "boxes": np.pad(boxes, padding)[np.newaxis].astype(np.float32),
            "scores": np.pad(scores, (0, 1))[np.newaxis].astype(np.float32),
            "labels": np.pad(labels, (0, 1))[np.newaxis].astype(np.int32),
            "embeddings": np.pad(embeddings, padding)[np.newaxis].astype(np.float32),
            "num_detections": np.array([[len(boxes)]], np.int32),
        }
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, tensor in tensors.items():
            response.outputs.add(name=name, datatype=SHAPES[name][0], shape=tensor.shape)
            response.raw_output_contents.append(tensor.tobytes())
        return response


@pytest.fixture
def loopback_server() -> Iterator[LoopbackServer]:
    server = LoopbackServer()
    yield server
    server.stop()


def draw(size: tuple[int, int], box: Sequence[int], color: Sequence[int]) -> np.ndarray:
    """Return uint8 [H,W,3]: a rectangle on white; `size` is (width, height)."""
    image = np.full((size[1], size[0], 3), 255, np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = color
    return image


def write_clip(path: Path, frames: Sequence[np.ndarray], *, quarter_turns: int = 0) -> None:
    """Write H.264 with even sides, which a player has to rotate by `quarter_turns`, counter-clockwise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12", "preset": "ultrafast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if quarter_turns:
            stream.set_display_rotation(90 * quarter_turns)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


COLORS = {"000013": (200, 40, 40), "000021": (30, 150, 60), "000034": (40, 60, 190)}
IMAGE_BOX = (20, 10, 60, 70)
FRAME_BOX = (10, 20, 40, 80)


def write_part(directory: Path) -> None:
    """Write three items with four images each, three clips of 400 frames, and annotations for frames 0, 40, ...

    The garment appears at frame 101 of each clip, so the annotated frames 0, 40 and 80 do not show it.
    """
    for number, (item_id, color) in enumerate(COLORS.items()):
        folders = [directory / "image" / item_id, directory / "image_annotation" / item_id]
        for folder in [*folders, directory / "video", directory / "video_annotation"]:
            folder.mkdir(parents=True, exist_ok=True)
        instance_id = 100 * (number + 1)
        for k in range(4):
            shade = np.clip(np.array(color) + 5 * k, 0, 255)
            Image.fromarray(draw((96, 80), IMAGE_BOX, shade)).save(folders[0] / f"{k}.jpg", quality=95)
            annotation = {"item_id": item_id, "img_name": f"{k}.jpg", "annotations": [_garment(instance_id, IMAGE_BOX)]}
            (folders[1] / f"{k}.json").write_text(json.dumps(annotation))
        frames = [draw((64, 96), FRAME_BOX if index > 100 else (0, 0, 0, 0), color) for index in range(400)]
        write_clip(directory / "video" / f"{item_id}.mp4", frames)
        annotated = [
            {"frame_index": index, "annotations": [_garment(instance_id, FRAME_BOX)] if index > 100 else []}
            for index in range(0, 400, 40)
        ]
        (directory / "video_annotation" / f"{item_id}.json").write_text(
            json.dumps({"video_id": item_id, "frames": annotated})
        )


def _garment(instance_id: int, box: Sequence[int]) -> dict[str, object]:
    return {"label": "短裙", "viewpoint": 0, "display": 1, "instance_id": instance_id, "box": list(box)}


@pytest.fixture(scope="session")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the data set; tests only read it."""
    directory = tmp_path_factory.mktemp("part")
    write_part(directory)
    return directory


@pytest.fixture(scope="session")
def drawing() -> SimpleNamespace:
    """The functions and the fake server of this file."""
    return SimpleNamespace(
        draw=draw, write_clip=write_clip, write_part=write_part, recognize=recognize, LoopbackServer=LoopbackServer
    )
