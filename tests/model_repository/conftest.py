import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton

from export.build import copy_python_models
from export.config import PipelineConfig, demo
from export.graphs.crop import build_crop
from export.graphs.prepare import build_prepare
from export.signature import KINDS, signatures
from export.triton.model_config import REPOSITORY, write_files
from livematch.local.local_server import LocalServer
from tests.model_repository import handmade

Infer = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def config() -> PipelineConfig:
    """The demo's pipeline with the classes of handmade.py's detector."""
    names = tuple(f"class {label}" for label in range(handmade.NUM_CLASSES))
    detector = replace(demo().detector_config, num_classes=handmade.NUM_CLASSES)
    return replace(demo(), detector=detector, class_names=names)


@pytest.fixture(scope="session")
def detections() -> ModuleType:
    """model_repository/crop_and_embed/1/detections.py, which Triton imports from its own folder."""
    return _load(REPOSITORY / "crop_and_embed" / "1" / "detections.py")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def handmade_repository(config: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete repository with the detector and embedders of tests/model_repository/handmade.py."""
    folder = tmp_path_factory.mktemp("handmade")
    write_files(config, folder, model_identity="handmade-0")
    copy_python_models(config, folder)
    graphs = {f"prepare_{kind}": build_prepare(config, kind) for kind in KINDS}
    graphs["crop"] = build_crop()
    graphs["detector"] = handmade.build_detector(config.detector_config.pixel_mean_bgr[0])
    graphs |= {name: handmade.build_embedder(position) for position, name in enumerate(config.embedder_models)}
    for model, graph in graphs.items():
        onnx.save(graph, folder / model / "1" / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def handmade_server(handmade_repository: Path) -> Iterator[LocalServer]:
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    with LocalServer(handmade_repository) as server:
        yield server


@pytest.fixture
def infer(handmade_server: LocalServer, config: PipelineConfig) -> Iterator[Infer]:
    """infer(model, tensor=array, …) returns all outputs of a model."""
    models = signatures(config)
    with triton.InferenceServerClient(handmade_server.url) as client:

        def call(model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
            dtypes = {"uint8": "UINT8", "float32": "FP32", "int32": "INT32", "int64": "INT64"}
            tensors = []
            for name, array in inputs.items():
                tensors.append(triton.InferInput(name, array.shape, dtypes[str(array.dtype)]))
                tensors[-1].set_data_from_numpy(array)
            response = client.infer(model, tensors, client_timeout=60)
            return {tensor.name: response.as_numpy(tensor.name) for tensor in models[model].outputs}

        yield call
