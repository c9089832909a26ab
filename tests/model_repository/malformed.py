"""Requests that a server must refuse, each with the expected message; sent over gRPC or HTTP."""

import http.client
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

GRPC, HTTP = "gRPC", "HTTP"


@dataclass(frozen=True)
class Input:
    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes

    @staticmethod
    def of(name: str, array: np.ndarray) -> "Input":
        datatype = {"uint8": "UINT8", "float32": "FP32", "int32": "INT32", "int64": "INT64"}[str(array.dtype)]
        return Input(name, datatype, array.shape, array.tobytes())


@dataclass(frozen=True)
class Malformed:
    kind: str
    inputs: tuple[Input, ...]
    refusal: str  # regular expression
    model: str = "recognize_image"
    output: str = "boxes"


def malformed_requests(seed: int) -> Iterator[Malformed]:
    """Yield requests without end, cycling through all kinds."""
    rng = random.Random(seed)
    while True:
        height, width = rng.randint(1, 300), rng.randint(1, 300)
        pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (1, height, width, 3), np.uint8)
        valid = Input.of("image", pixels)
        size = pixels.nbytes

        def image(shape: tuple[int, ...], num_bytes: int | None = None) -> tuple[Input, ...]:
            return (Input("image", "UINT8", shape, bytes(int(np.prod(shape)) if num_bytes is None else num_bytes)),)

        yield Malformed("dtype", (Input.of("image", pixels.astype(np.float32)),), "FP32.*UINT8")
        nan = np.full((1, height, width, 3), np.nan, np.float32)
        yield Malformed("NaN", (Input.of("image", nan),), "FP32.*UINT8")
        yield Malformed("rank", image((height, width, 3)), "unexpected shape for input 'image'|batch-size must")
        yield Malformed("rank", image((1, 1, height, width, 3)), "unexpected shape for input 'image'")
        yield Malformed("scalar", image((), 1), "'image' has no shape")
        yield Malformed(
            "channels", image((1, height, width, rng.choice([1, 2, 4]))), "unexpected shape for input 'image'"
        )
        yield Malformed("batch", image((rng.randint(9, 20), 4, 4, 3)), "batch-size must be <= 8")
        yield Malformed("empty", image((1, 0, width, 3)), r"image sides must be 1 to 8192 pixels.*image \[")
        yield Malformed("no image", image((0, height, width, 3)), "byte size mismatch for input 'image'")
        yield Malformed("too large", image((1, rng.randint(8193, 9000), 1, 3)), "image sides must be 1 to 8192 pixels")
        yield Malformed("truncated", image(pixels.shape, rng.randrange(size)), "byte size mismatch for input 'image'")
        yield Malformed(
            "surplus", image(pixels.shape, size + rng.randint(1, 99)), "byte size mismatch for input 'image'"
        )
        huge = (1, 2 ** rng.randint(30, 40), 2 ** rng.randint(20, 22), 3)
        yield Malformed("huge", image(huge, 30), "byte size mismatch for input 'image'")
        yield Malformed("negative", image((1, -height, width, 3), size), "byte size mismatch|Unable to parse 'shape'")
        yield Malformed("other input", (Input.of("picture", pixels),), "unexpected inference input 'picture'")
        yield Malformed("no input", (), "missing required input.*image")
        yield Malformed("other model", (valid,), "recognise.*not found", model="recognise")
        yield Malformed("other output", (valid,), "unexpected inference output 'vectors'", output="vectors")
        yield Malformed(
            "NaN box", detections(rng, box=(1, 2, np.nan, 4)), "crop_and_embed: boxes.*nan", "crop_and_embed"
        )
        yield Malformed(
            "turned box", detections(rng, box=(9, 9, 2, 12)), "crop_and_embed: boxes.*negative", "crop_and_embed"
        )
        yield Malformed(
            "box outside", detections(rng, box=(-9, 1, -2, 5)), "crop_and_embed: boxes.*outside", "crop_and_embed"
        )
        yield Malformed("NaN score", detections(rng, score=np.nan), "crop_and_embed: scores.*nan", "crop_and_embed")
        yield Malformed(
            "label",
            detections(rng, label=100),
            "crop_and_embed: labels has 100, which is not 0 to 99",
            "crop_and_embed",
        )
        yield Malformed("count", detections(rng, count=101), "crop_and_embed: num_detections is 101", "crop_and_embed")
        yield Malformed("scale", detections(rng, scale=0), "crop_and_embed: scale is", "crop_and_embed")
        yield Malformed(
            "too many",
            detections(rng, num_rows=101),
            "unexpected shape for input '(boxes|scores|labels)'",
            "crop_and_embed",
        )


def detections(
    rng: random.Random,
    *,
    box: tuple[float, ...] = (1, 2, 3, 4),
    score: float = 0.99,
    label: int = 7,
    count: int = 3,
    scale: float = 1,
    num_rows: int = 100,
) -> tuple[Input, ...]:
    """Return inputs of crop_and_embed for an image with three boxes, the last with `box`, `score` and `label`."""
    boxes = np.zeros((1, num_rows, 4), np.float32)
    boxes[0, :3] = [(1, 2, 3, 4), (5, 6, 20, 30), box]
    scores = np.zeros((1, num_rows), np.float32)
    scores[0, :3] = [0.99, 0.98, score]
    labels = np.zeros((1, num_rows), np.int32)
    labels[0, 2] = label
    arrays = {
        "image": np.full((1, rng.randint(30, 60), rng.randint(30, 60), 3), 128, np.uint8),
        "boxes": boxes,
        "scores": scores,
        "labels": labels,
        "num_detections": np.array([[count]], np.int32),
        "scale": np.full((1, 2), scale, np.float32),
        "min_score": np.array([[0.9]], np.float32),
    }
    return tuple(Input.of(name, array) for name, array in arrays.items())


def send(request: Malformed, protocol: str, url: str) -> str:
    """Return the message of the refusal; raise AssertionError if the request was answered."""
    return _send_grpc(request, url) if protocol == GRPC else _send_http(request, url)


def _send_grpc(request: Malformed, url: str) -> str:
    message = service_pb2.ModelInferRequest(model_name=request.model)
    for tensor in request.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(tensor.content)
    message.outputs.add(name=request.output)
    with triton.InferenceServerClient(url) as client:
        try:
            client._client_stub.ModelInfer(message, timeout=60)
        except Exception as error:
            return str(error.details())
    raise AssertionError(f"{request.kind} was answered")


def _send_http(request: Malformed, url: str) -> str:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(tensor.content)},
                }
                for tensor in request.inputs
            ],
            "outputs": [{"name": request.output, "parameters": {"binary_data": True}}],
        }
    ).encode()
    body = header + b"".join(tensor.content for tensor in request.inputs)
    connection = http.client.HTTPConnection(url, timeout=60)
    try:
        headers = {"Inference-Header-Content-Length": str(len(header))}
        connection.request("POST", f"/v2/models/{request.model}/infer", body, headers)
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    assert 400 <= response.status < 600, f"{request.kind} was answered"
    return str(json.loads(text)["error"])
