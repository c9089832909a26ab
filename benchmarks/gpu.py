"""Measure the pipeline on a GPU with one command, offline, in at most ten minutes.

    python -m benchmarks.gpu --wheels DIR --output build/benchmarks/gpu

DIR is a folder of wheels, copied to the machine with the GPU. It holds the packages of requirements.txt, with
onnxruntime-gpu instead of onnxruntime, and one CUDA library that onnxruntime-gpu needs and PyTorch does not bring:

    sed 's/^onnxruntime==.*/onnxruntime-gpu==1.31.1/' requirements.txt > build/gpu.txt
    echo nvidia-curand==10.4.5.25 >> build/gpu.txt
    python -m pip download --no-deps -r build/gpu.txt -d DIR

The command installs them into build/gpu-venv with `pip install --no-index`. There it runs the benchmarks baseline,
throughput, models and latency with half-precision networks, then the report. All steps together may take --minutes.

The output folder gets each benchmark's JSON file and the report. Exit codes: 0 all steps are done; 2 there is no GPU,
or ONNX Runtime does not start on it; 3 some steps, named at the end, failed or had no time left.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# With --wheels, this command runs on a Python without any packages, so it imports nothing but the standard library.
from benchmarks.harness.gpus import query_gpus
from benchmarks.harness.options import add_number, add_path, new_parser

ENVIRONMENT = Path("build/gpu-venv")
ROOT = Path(__file__).parents[1]
MIN_STEP_S = 10.0


def steps(config: str, gpu_memory_gb: int, output: Path) -> list[list[str]]:
    """Return the commands, most important first, without the interpreter."""
    common = ["--config", config, "--gpu-memory", str(gpu_memory_gb), "--precision", "fp16"]

    def command(benchmark: str, *arguments: str) -> list[str]:
        return ["-m", f"benchmarks.{benchmark}", *common, *arguments, "--output", str(output / f"gpu_{benchmark}.json")]

    return [
        # All clips of the benchmarks' world, because each clip has one request in flight.
        command(
            "baseline", "--device", "cuda", "--clips", "12", "--frames", "8", "--concurrency", "12", "--rounds", "2"
        ),
        command("throughput", "--concurrency", "1", "4", "16", "64", "--window-s", "3"),
        command("models", "--device", "cuda", "--eager-half", "--rounds", "2"),
        command("latency", "--peak-concurrency", "32", "--duration-s", "15", "--window-s", "3"),
        ["-m", "benchmarks.report", "--results", str(output), "--output", str(output / "report")],
    ]


def install(wheels: Path, deadline_s: float) -> Path:
    """Install the wheels alone into a new environment and return its interpreter; raise OSError if that fails."""
    names = sorted({path.name.split("-")[0] for path in wheels.glob("*.whl")})
    if not names:
        raise OSError(f"no wheels in {wheels}")
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    python = (ENVIRONMENT / "bin" / "python").absolute()
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links", str(wheels)]
    for command in ([sys.executable, "-m", "venv", str(ENVIRONMENT)], [*pip, *names]):
        if not run(command, deadline_s - time.monotonic()):
            raise OSError(f"{ENVIRONMENT} could not be made from {wheels}: {' '.join(command[1:4])} failed, see above")
    return python


def starts_on_gpu() -> bool:
    """Return whether ONNX Runtime starts on the GPU; its list of providers says only what it was built with."""
    import onnx
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    onnxruntime.preload_dlls()
    header = '<ir_version: 10, opset_import: ["" : 18]>'
    model = onnx.parser.parse_model(f"{header} relu (float[1] x) => (float[1] y) {{ y = Relu(x) }}")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
    return "CUDAExecutionProvider" in session.get_providers()


def run(command: Sequence[str], timeout_s: float) -> bool:
    """Run a command in the repository's root, and return whether it succeeded in time."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "client")))}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=timeout_s).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def run_steps(options: argparse.Namespace) -> list[str]:
    """Run all steps, and return the names of those that failed or had no time; raise OSError if none can run."""
    deadline_s = time.monotonic() + 60 * options.minutes
    memories_mib = query_gpus(("memory.total",))
    if not memories_mib:
        raise OSError("no GPU: nvidia-smi is missing or lists none")
    gpu_memory_gb = int(float(memories_mib[0]) * 2**20 / 1e9)
    python = Path(sys.executable) if options.wheels is None else install(options.wheels, deadline_s)
    if not run([str(python), "-c", "import sys, benchmarks.gpu; sys.exit(not benchmarks.gpu.starts_on_gpu())"], 60):
        raise OSError("onnxruntime does not start on the GPU; it needs onnxruntime-gpu and its CUDA, see --help")
    failed = []
    for step in steps(options.config, gpu_memory_gb, options.output):
        left_s = deadline_s - time.monotonic()
        if left_s < MIN_STEP_S or not run([str(python), *step], left_s):
            failed.append(step[1])
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("gpu", __doc__)
    add_path(parser, "--wheels", None, "folder of wheels to install; default: use the packages of this Python")
    parser.add_argument("--config", choices=("demo", "production"), default="production", help="pipeline")
    add_path(parser, "--output", Path("build/benchmarks/gpu"), "folder for the results")
    add_number(parser, "--minutes", 10.0, "time limit for everything")
    options = parser.parse_args(argv)
    try:
        failed = run_steps(options)
    except OSError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    if failed:
        print(f"benchmarks.gpu: failed or out of time: {', '.join(failed)}", file=sys.stderr)
    return 3 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
