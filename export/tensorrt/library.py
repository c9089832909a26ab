"""Import TensorRT or TensorRT for RTX, and collect the messages of its compiler.

Both have the same Python API. TensorRT builds engines for the GPU it runs on, and Triton serves them. TensorRT for RTX
compiles without a GPU, for one that need not be there: that shows whether a network compiles, and which memory it
needs, but Triton does not serve its engines.
"""

import functools
import importlib
from typing import Any

import torch

from livematch.errors import LivematchError

RTX_MODULE = "tensorrt_rtx_bindings"


class EngineError(LivematchError):
    """The GPU or the library that runs an engine is missing, or the engine fails to run; the message is one line."""


def load_tensorrt(hint: str = "") -> Any:
    """Return the module tensorrt; if it or a GPU is missing, raise EngineError with a message that ends with `hint`."""
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise EngineError(f"TensorRT cannot be imported ({error}){hint}") from error
    if not torch.cuda.is_available():
        raise EngineError(f"PyTorch sees no GPU{hint}")
    return trt


def load_compiler() -> Any:
    """Return the module tensorrt if it and a GPU are there, else TensorRT for RTX; EngineError if there is neither."""
    try:
        return load_tensorrt()
    except EngineError as without:
        try:
            return importlib.import_module(RTX_MODULE)
        except ImportError as error:
            hint = "install tensorrt-rtx-cu13-libs and tensorrt-rtx-cu13-bindings, which need no GPU"
            raise EngineError(f"{without}, nor can TensorRT for RTX ({error}); {hint}") from error


def is_for_rtx(trt: Any) -> bool:
    """Tell whether a module is TensorRT for RTX."""
    return bool(trt.__name__ == RTX_MODULE)


@functools.cache
def message_log(trt: Any) -> Any:
    """Return the logger of this process; TensorRT uses the first one it is given for everything.

    Its `lines` are pairs of a severity's name, such as "WARNING", and a text; whoever starts a build clears them.
    """

    class MessageLog(trt.ILogger):  # type: ignore[misc]  # TensorRT is imported at run time
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            if severity != trt.ILogger.VERBOSE:
                self.lines.append((severity.name, text))

    return MessageLog()
