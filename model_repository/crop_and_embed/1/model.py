"""Triton's Python model crop_and_embed: convert an image's detections to its pixels, and compute their embeddings.

One call handles all waiting requests, whatever their image sizes. It groups the crops of all requests by template, so
that the embedders get batches as large as the traffic allows. Besides Triton's own module it needs only numpy.
"""

import asyncio
import json
from dataclasses import dataclass

import numpy as np
import triton_python_backend_utils as pb_utils
from detections import chunks, nearest_templates, pad_rows, select, to_pixels, to_unit_length, widen


class CallError(Exception):
    """A call of another model has failed; `args` are the message, which names that model, and Triton's error code."""


@dataclass
class Image:
    """One image of a request and its selected detections."""

    request: int  # index of its request
    pixels: np.ndarray  # UINT8 [H, W, 3]
    boxes: np.ndarray  # FP32 [k, 4] in pixels, unrounded
    scores: np.ndarray  # FP32 [k]
    labels: np.ndarray  # INT32 [k], the class of each box
    crop_boxes: np.ndarray  # INT32 [k, 4]
    templates: np.ndarray  # INT [k], index of each box's template
    embeddings: np.ndarray  # FP32 [k, sum of all embedders' sizes], filled in as they arrive


class TritonPythonModel:
    """The class that Triton's Python backend looks for; it calls `initialize` once and `execute` for each batch."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.num_classes = len(json.loads(parameters["class_names"]["string_value"]))
        embedders = [part.split(":") for part in parameters["embedders"]["string_value"].split()]
        sizes = [int(size) for _, size in embedders]
        self.embedding_size = sum(sizes)
        starts = [sum(sizes[:position]) for position in range(len(sizes))]
        # Which columns of an image's embeddings each embedder fills in, by its name.
        self.columns = {
            name: slice(start, start + size) for (name, _), start, size in zip(embedders, starts, sizes, strict=True)
        }
        self.max_crops = int(parameters["max_crops"]["string_value"])
        templates = [template.split(":") for template in parameters["templates"]["string_value"].split()]
        self.aspect_ratios = np.array([float(ratio) for ratio, _ in templates])
        self.sizes = np.array([[int(side) for side in size.split("x")] for _, size in templates])  # width, height

    async def execute(self, requests: list) -> list:
        images: list[Image] = []
        errors: dict[int, tuple[str, int]] = {}  # message and code, by index of the request
        for index, request in enumerate(requests):
            try:
                images += self._read(index, request)
            except ValueError as error:
                errors[index] = (f"crop_and_embed: {error}", pb_utils.TritonError.INVALID_ARG)
        templates = {template for image in images for template in image.templates}
        await asyncio.gather(*(self._embed(template, images, errors) for template in templates))
        for image in images:
            if image.request not in errors and not image.embeddings.any(axis=1).all():
                message = "crop_and_embed: the embedding of a box is zero, which has no direction"
                errors[image.request] = (message, pb_utils.TritonError.INTERNAL)
        return [
            pb_utils.InferenceResponse(error=pb_utils.TritonError(*errors[index]))
            if index in errors
            else _respond([image for image in images if image.request == index])
            for index in range(len(requests))
        ]

    def _read(self, index: int, request: object) -> list[Image]:
        """Return the images of a request with their selected detections; raises ValueError for invalid tensors."""
        names = ("image", "boxes", "scores", "labels", "num_detections", "scale", "min_score")
        tensors = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names]
        parameters = json.loads(request.parameters())
        crop_scale = float(parameters.get("crop_scale", 1))
        images = []
        for pixels, boxes, scores, labels, num_detections, scale, min_score in zip(*tensors, strict=True):
            boxes, scores, labels = select(
                boxes,
                scores,
                labels,
                num_detections=num_detections[0],
                num_classes=self.num_classes,
                scale=scale,
                min_score=float(parameters.get("min_score", min_score[0])),
                image=pixels,
            )
            crop_boxes = to_pixels(widen(boxes, crop_scale), pixels)
            templates = nearest_templates(crop_boxes, self.aspect_ratios)
            embeddings = np.empty((len(boxes), self.embedding_size), np.float32)
            images.append(Image(index, pixels, boxes, scores, labels, crop_boxes, templates, embeddings))
        return images

    async def _embed(self, template: int, images: list[Image], errors: dict[int, tuple[str, int]]) -> None:
        """Fill in the embeddings of all boxes of one template; on failure, set the errors of the affected requests."""
        crops = []
        targets: list[tuple[Image, int]] = []  # the image and row of each crop
        concerned = [image for image in images if template in image.templates]
        parts = await asyncio.gather(*(self._crop(image, template) for image in concerned), return_exceptions=True)
        for image, part in zip(concerned, parts, strict=True):
            if isinstance(part, CallError):
                errors[image.request] = part.args
            elif isinstance(part, BaseException):
                raise part
            else:
                crops.append(part)
                targets.extend((image, row) for row in np.flatnonzero(image.templates == template))
        if not crops:
            return
        stacked = np.concatenate(crops) if len(crops) > 1 else crops[0]

        async def embed_chunk(chunk: slice, embedder: str) -> None:
            try:
                vectors = await _call(embedder, {"crops": stacked[chunk]}, "embedding")
            except CallError as error:
                errors.update((image.request, error.args) for image, _ in targets[chunk])
                return
            for (image, row), vector in zip(targets[chunk], vectors, strict=True):
                image.embeddings[row, self.columns[embedder]] = vector
                if not np.isfinite(vector).all():
                    message = f"crop_and_embed: embedding of {embedder} is not finite"
                    errors[image.request] = (message, pb_utils.TritonError.INTERNAL)

        await asyncio.gather(
            *(
                embed_chunk(chunk, embedder)
                for chunk in chunks(len(stacked), self.max_crops)
                for embedder in self.columns
            )
        )

    async def _crop(self, image: Image, template: int) -> np.ndarray:
        boxes = image.crop_boxes[image.templates == template]
        left, top = boxes[:, :2].min(axis=0)
        right, bottom = boxes[:, 2:].max(axis=0)
        inputs = {
            "image": np.ascontiguousarray(image.pixels[None, top:bottom, left:right]),  # copy only what the boxes need
            "boxes": boxes - np.array([left, top, left, top]),
            "size": self.sizes[template],
        }
        return await _call("crop", inputs, "crops")


def _respond(images: list[Image]) -> object:
    outputs = {
        "boxes": pad_rows([image.boxes for image in images]),
        "scores": pad_rows([image.scores for image in images]),
        "labels": pad_rows([image.labels for image in images]),
        "embeddings": pad_rows([to_unit_length(image.embeddings) for image in images]),
        "num_detections": np.array([[len(image.boxes)] for image in images], np.int32),
    }
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])


async def _call(model: str, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
    """Run another model of this server and return one of its outputs; raises CallError if it fails."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        requested_output_names=[output],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
    )
    response = await request.async_exec()
    if response.has_error():
        error = response.error()
        raise CallError(f"crop_and_embed: {output} of {model}: {error.message()}", error.code())
    return pb_utils.get_output_tensor_by_name(response, output).as_numpy()
