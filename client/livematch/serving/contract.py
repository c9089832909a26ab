"""What the client and the server's two ensembles agree on: model names, tensors, and how a response is read."""

from typing import Any

import tritonclient.grpc as triton

from livematch.errors import ContractError
from livematch.types import EMBEDDING_SIZE, Recognition

IMAGE_MODEL = "recognize_image"
FRAME_MODEL = "recognize_frame"
IDENTITY_MODEL = "crop_and_embed"
"""The model whose config has the parameter `model_identity`."""

INPUTS = {"image": ("UINT8", (-1, -1, -1, 3))}
OUTPUTS = {
    "boxes": ("FP32", (-1, -1, 4)),
    "scores": ("FP32", (-1, -1)),
    "embeddings": ("FP32", (-1, -1, EMBEDDING_SIZE)),
    "num_detections": ("INT32", (-1, 1)),
}


def check_tensors(model: str, url: str, metadata: dict[str, Any]) -> None:
    """Raise ContractError if a model's metadata lists other tensors than this client expects."""
    for direction, expected in (("inputs", INPUTS), ("outputs", OUTPUTS)):
        found = {t["name"]: (t["datatype"], tuple(map(int, t["shape"]))) for t in metadata.get(direction, [])}
        if found != expected:
            raise ContractError(
                f"{model} at {url} has unexpected {direction}: {_describe(found)} instead of {_describe(expected)}"
            )


def check_identities(identities: dict[str, str | None]) -> None:
    """Raise ContractError if servers, by address, serve models with different identities."""
    if len(set(identities.values())) > 1:
        found = ", ".join(f"{identity or 'unnamed models'} at {url}" for url, identity in identities.items())
        raise ContractError(f"the servers have different models: {found}")


def decode(response: triton.InferResult) -> Recognition:
    """Return the detections of a batch of one, without the rows that only pad the batch."""
    num_detections = int(response.as_numpy("num_detections")[0, 0])
    boxes, scores, embeddings = (
        response.as_numpy(name)[0, :num_detections] for name in ("boxes", "scores", "embeddings")
    )
    return Recognition(boxes, scores, embeddings)


def _describe(tensors: dict[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{name} {datatype} {list(shape)}" for name, (datatype, shape) in sorted(tensors.items()))
