"""Find out from a tritonserver's log why it failed to start."""

import re
from pathlib import Path

_NUM_ERRORS = 3


def has_failed(log_path: Path) -> bool:
    """Tell whether a model could not be loaded."""
    return re.search(r"^E\d{4} .*failed to load", log_path.read_text(errors="replace"), re.MULTILINE) is not None


def summarize_errors(log_path: Path) -> str:
    """Return the first errors of the log as one line, without time stamps and source positions."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", log_path.read_text(errors="replace")).splitlines()  # without colours
    # The excluded line is logged as an error on every machine without a GPU.
    lines = [line for line in lines if "CudaDriverHelper" not in line]
    # Errors other than "failed to load" are often consequences: whatever depends on a failed model fails too.
    errors = [line for line in lines if re.match(r"E\d{4} ", line) and "failed to load" in line]
    errors = errors or [
        line for line in lines if re.match(r"error: |E\d{4} |.*unrecognized option|.*\[E:onnxruntime", line)
    ]
    errors = errors or [line for line in lines if line.strip()][-1:]
    # The line of a failed Python model continues with a traceback, whose line feeds are written as \\n.
    plain = [re.sub(r"^E\d{4} \S+ \d+ \S+\] |\\n\\nAt:.*", "", line).strip(' "') for line in errors]
    return "; ".join(dict.fromkeys(plain[:_NUM_ERRORS])) or "no output"
