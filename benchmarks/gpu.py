"""All benchmarks on a GPU by one command that needs no network and at most ten minutes.

    python -m benchmarks.gpu --wheels DIR --output build/benchmarks/gpu

Carry a folder of wheels there, onnxruntime-gpu among them instead of onnxruntime, and with it the one library of CUDA
that it needs and PyTorch does not bring:

    sed 's/^onnxruntime==.*/onnxruntime-gpu==1.31.1/' requirements.txt > build/gpu.txt
    echo nvidia-curand==10.4.5.25 >> build/gpu.txt
    python -m pip download --no-deps -r build/gpu.txt -d DIR

The command makes build/gpu-venv from them with `pip install --no-index`, then runs baseline, models, throughput and
latency there with half-precision networks, and the report. Each step gets what is left of --minutes; steps that no
time is left for are named at the end.

Without a GPU, or where onnxruntime cannot start on it, it ends with one line and exit code 2.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.machine import query_gpus
from benchmarks.harness.results import RESULTS

ENVIRONMENT = Path("build/gpu-venv")
ROOT = Path(__file__).parents[1]


def steps(config: str, output: Path) -> list[list[str]]:
    """The commands in the order of their worth, without the interpreter."""
    common = ["--config", config, "--precision", "fp16"]

    def command(benchmark: str, *arguments: str) -> list[str]:
        return ["-m", f"benchmarks.{benchmark}", *common, *arguments, "--output", str(output / f"gpu_{benchmark}.json")]

    return [
        # All clips of the benchmarks' world, since each has one request in flight.
        command(
            "baseline", "--device", "cuda", "--clips", "12", "--frames", "8", "--concurrency", "12", "--rounds", "2"
        ),
        command("throughput", "--concurrency", "1", "4", "16", "64", "--window-s", "3"),
        command("models", "--device", "cuda", "--eager-half", "--rounds", "2"),
        command("latency", "--peak-concurrency", "32", "--duration-s", "15", "--window-s", "3"),
        ["-m", "benchmarks.report", "--results", str(output), "--output", str(output / "report")],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="without it this Python's packages are used")
    parser.add_argument("--config", choices=("demo", "production"), default="production", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu", metavar="DIR")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="default: %(default)s")
    options = parser.parse_args(argv)
    deadline_s = time.monotonic() + 60 * options.minutes
    if not query_gpus(("name",)):
        print("benchmarks.gpu: no GPU: nvidia-smi is missing or lists none", file=sys.stderr)
        return 2
    python = Path(sys.executable)
    if options.wheels is not None:
        python = install(options.wheels, deadline_s)
    if not run([str(python), "-c", "import sys, benchmarks.gpu; sys.exit(not benchmarks.gpu.starts_on_gpu())"], 60):
        print(
            "benchmarks.gpu: onnxruntime does not start on the GPU; it takes onnxruntime-gpu and its CUDA, see --help",
            file=sys.stderr,
        )
        return 2
    failed = []
    for step in steps(options.config, options.output):
        left_s = deadline_s - time.monotonic()
        if left_s < 10 or not run([str(python), *step], left_s):
            failed.append(step[1])
    if failed:
        print(f"benchmarks.gpu: failed or out of time: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def install(wheels: Path, deadline_s: float) -> Path:
    """Makes the environment from the folder alone; returns its interpreter. Raises CalledProcessError."""
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
    python = (ENVIRONMENT / "bin" / "python").absolute()
    names = sorted({path.name.split("-")[0] for path in wheels.glob("*.whl")})
    command = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links", wheels, *names]
    subprocess.run(command, check=True, timeout=deadline_s - time.monotonic())
    return python


def starts_on_gpu() -> bool:
    """Whether onnxruntime really takes the GPU; that CUDA is among its providers says only how it was built."""
    import onnx  # not before: what calls for the environment to be made runs on a bare Python
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    onnxruntime.preload_dlls()
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", tensors[:1], tensors[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
    return "CUDAExecutionProvider" in session.get_providers()


def run(command: Sequence[str], timeout_s: float) -> bool:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "client")))}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=timeout_s).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    raise SystemExit(main())
