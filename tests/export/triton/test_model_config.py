from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from export.config import CUDA_OPTIONS, PipelineConfig, demo, production
from export.signature import PRIORITIES, signatures
from export.triton.__main__ import main
from export.triton.model_config import REPOSITORY, repository_files, stale_files, write_files
from livematch.serving.settings import PRIORITIES as CLIENT_PRIORITIES


def pbtxt_files(config: PipelineConfig) -> dict[str, str]:
    return {path: text for path, text in repository_files(config).items() if path.endswith(".pbtxt")}


def parse(text: str) -> proto.ModelConfig:
    return text_format.Parse(text, proto.ModelConfig())


def test_committed_repository_is_production_and_not_stale() -> None:
    assert stale_files(production(), REPOSITORY) == []
    assert main([]) == 0
    assert "model_identity" not in (REPOSITORY / "crop_and_embed" / "config.pbtxt").read_text()
    assert all((REPOSITORY / model / "1").is_dir() for model in signatures(production()))


def test_command_lists_stale_files_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("export.triton.__main__.REPOSITORY", tmp_path / "repository")
    assert main([]) == 3
    assert "stale: repository/detector/config.pbtxt" in capsys.readouterr().err
    assert main(["--write"]) == 0
    assert main([]) == 0


def test_stale_files_are_listed(tmp_path: Path) -> None:
    write_files(demo(), tmp_path)
    assert stale_files(demo(), tmp_path) == []
    (tmp_path / "detector" / "config.pbtxt").write_text('name: "detector"')
    (tmp_path / "crop" / "config.pbtxt").unlink()
    (tmp_path / "crop" / "old.pbtxt").write_text("")
    assert stale_files(demo(), tmp_path) == ["crop/config.pbtxt", "crop/old.pbtxt", "detector/config.pbtxt"]


@pytest.mark.parametrize("config", [production(), demo()], ids=lambda config: config.name)
def test_ensembles_connect_tensors_of_the_same_type(config: PipelineConfig) -> None:
    files, models = repository_files(config), signatures(config)
    for ensemble in ("recognize_image", "recognize_frame"):
        message = parse(files[f"{ensemble}/config.pbtxt"])
        known = {tensor.name: tensor for tensor in models[ensemble].inputs}
        for step in message.ensemble_scheduling.step:
            signature = models[step.model_name]
            assert set(step.input_map) == {tensor.name for tensor in signature.inputs}
            for tensor in signature.inputs:
                source = known[step.input_map[tensor.name]]
                assert (source.dtype, source.dims) == (tensor.dtype, tensor.dims)
            known |= {step.output_map[tensor.name]: tensor for tensor in signature.outputs}
            assert message.max_batch_size <= config.serving_of(step.model_name).max_batch
        for tensor in models[ensemble].outputs:
            assert (known[tensor.name].dtype, known[tensor.name].dims) == (tensor.dtype, tensor.dims)


def test_networks_have_an_engine_by_default_and_onnx_by_name() -> None:
    files = repository_files(production())
    for model in production().networks:
        engine, graph = parse(files[f"{model}/config.pbtxt"]), parse(files[f"{model}/configs/onnx.pbtxt"])
        assert engine.platform == "tensorrt_plan" and graph.backend == "onnxruntime"
        assert engine.input == graph.input and engine.output == graph.output
        assert [warmup.name for warmup in engine.model_warmup] == [warmup.name for warmup in graph.model_warmup]


def test_networks_on_a_gpu_have_the_options_of_the_parity_check() -> None:
    """Without TF32, and without cuDNN's search, which Triton's backend makes unless `parameters` disables it."""
    assert CUDA_OPTIONS == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    for path, text in pbtxt_files(production()).items():
        message = parse(text)
        if message.backend != "onnxruntime":
            continue
        is_network = path.endswith("configs/onnx.pbtxt")
        accelerators = message.optimization.execution_accelerators.gpu_execution_accelerator
        assert [(entry.name, dict(entry.parameters)) for entry in accelerators] == (
            [("cuda", {"use_tf32": "0"})] if is_network else []
        )
        assert message.parameters["cudnn_conv_algo_search"].string_value == ("1" if is_network else "")


def test_models_are_warmed_up_at_the_usual_sizes() -> None:
    files = repository_files(production())

    def sizes(path: str, tensor: str) -> list[list[int]]:
        return [list(warmup.inputs[tensor].dims) for warmup in parse(files[path]).model_warmup]

    assert sizes("prepare_image/config.pbtxt", "image") == [[800, 800, 3]]
    assert sizes("prepare_frame/config.pbtxt", "image") == [[960, 540, 3], [540, 960, 3]]
    # 540 × 960 at short side 608 is 608 × 1081, padded to multiples of 32
    assert sizes("detector/configs/onnx.pbtxt", "pixels") == [[3, 800, 800], [3, 1088, 608], [3, 608, 1088]]
    crops = sizes("embedder_b7/configs/onnx.pbtxt", "crops")
    assert len(crops) == 12 and crops[0] == [400, 100, 3]


@pytest.mark.parametrize("config", [production(), demo()], ids=lambda config: config.name)
def test_every_queue_is_bounded_and_has_two_instances(config: PipelineConfig) -> None:
    """See `ServingConfig` for the two instances."""
    queued = set()
    for path, text in pbtxt_files(config).items():
        message = parse(text)
        if message.platform == "ensemble":
            continue
        assert message.instance_group[0].count > 0, path
        if message.HasField("dynamic_batching"):
            queued.add(message.name)
            assert message.instance_group[0].count > 1, path
            policy = message.dynamic_batching.default_queue_policy
            assert policy.max_queue_size > 0 and policy.default_timeout_microseconds > 0, path
            assert message.dynamic_batching.priority_levels == len(PRIORITIES) == 2, path
            assert message.dynamic_batching.default_priority_level == PRIORITIES["batch"], path
    assert queued == {"detector", "crop_and_embed"}


def test_the_client_knows_the_priorities() -> None:
    assert CLIENT_PRIORITIES == PRIORITIES


def test_crop_and_embed_knows_its_templates() -> None:
    files = repository_files(production(), model_identity="production-0123456789ab")
    message = parse(files["crop_and_embed/config.pbtxt"])
    templates = message.parameters["templates"].string_value.split()
    assert len(templates) == 12
    assert templates[0] == "0.25:100x400" and templates[5] == "0.66857143:234x350"
    assert message.parameters["model_identity"].string_value == "production-0123456789ab"
    assert message.input[0].name == "image" and message.input[0].allow_ragged_batch
