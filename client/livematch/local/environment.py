"""Prepare what a local tritonserver needs: a backend directory, libraries and a Python environment."""

import importlib.util
import os
import shutil
import sys
import sysconfig
import venv
from pathlib import Path

from livematch.errors import LocalServerError

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def find_package(name: str) -> Path:
    """Return the folder of a package without importing it; raise LocalServerError if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        package = {"pytriton": "nvidia-pytriton"}.get(name, name)
        raise LocalServerError(f"the local server needs {package}: pip install 'livematch[server]'")
    return Path(next(iter(spec.submodule_search_locations)))


def prepare_environment(folder: Path) -> dict[str, str]:
    """Assemble a backend directory in `folder/backends`; return the server's environment variables.

    Raises:
        LocalServerError: a package, the Python backend for this Python version or a shared libpython is missing.
    """
    triton = find_package("pytriton")
    stub = triton / "tritonserver" / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    if not stub.exists():
        raise LocalServerError(f"nvidia-pytriton has no Python backend for Python {_PYTHON}")

    # Copies, because Triton rejects a backend whose library is a link that leads out of the backend directory.
    backends = folder / "backends"
    shutil.copytree(triton / "tritonserver" / "backends", backends)
    shutil.copy(stub, backends / "python")
    shutil.copytree(Path(__file__).parent / "backends", backends, dirs_exist_ok=True)
    with (backends / "python" / "triton_python_backend_utils.py").open("a") as module:
        module.write("\nimport numpy2_tensor\n")
    # Only libpython is linked: other libraries in its folder must not shadow the server's own.
    libraries = folder / "libraries"
    libraries.mkdir()
    libpython = _find_libpython()
    (libraries / libpython.name).symlink_to(libpython)

    # The stub ignores PYTHONPATH and PYTHONHOME; it uses the environment of the first `python3` on the PATH. This one
    # only refers to installed packages.
    packages = dict.fromkeys(str(find_package(name).parent) for name in ("numpy", "onnxruntime"))
    python = folder / "python"
    venv.create(python, symlinks=True)
    site_packages = python / "lib" / f"python{_PYTHON}" / "site-packages"
    (site_packages / "livematch.pth").write_text("\n".join(packages) + "\n")

    library_path = [libraries, triton.parent / "nvidia_pytriton.libs", os.environ.get("LD_LIBRARY_PATH")]
    return {
        "OPENBLAS_NUM_THREADS": "1",  # each stub process imports numpy, and none multiplies large matrices
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(str(entry) for entry in library_path if entry),
        "PATH": f"{python / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def _find_libpython() -> Path:
    """Return the shared library of the running interpreter, which the Python backend's stub is linked to."""
    name = f"libpython{_PYTHON}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib", "/usr/lib/x86_64-linux-gnu"]
    for folder in folders:
        if folder and (Path(folder) / name).exists():
            return Path(folder) / name
    raise LocalServerError(f"the local server needs the shared library {name}, which this Python does not include")
