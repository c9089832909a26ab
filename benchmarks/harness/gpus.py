"""Query GPUs through nvidia-smi; imports only the standard library, as `benchmarks.gpu` needs."""

import shutil
import subprocess


def query_gpus(fields: tuple[str, ...]) -> list[str]:
    """Return one line "value, value, ..." per GPU, as nvidia-smi prints it; empty where nvidia-smi is missing."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return answer.stdout.splitlines() if answer.returncode == 0 else []
