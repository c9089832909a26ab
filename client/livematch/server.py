"""A real tritonserver on this machine, without Docker: the binary inside the nvidia-pytriton package.

The server listens on loopback only, ends with its parent (even on SIGKILL) and serves the same repository as the NGC
container. Its `onnxruntime` backend is the Python one in `livematch/backends/onnxruntime`, run by the interpreter and
the packages of the calling process.
"""

import contextlib
import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from livematch.errors import ServerError

# Runs between fork and the server: asks the kernel for SIGTERM when the parent dies, then becomes the server.
# The parent may have died before the request was made, hence the second look at it.
_LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""

_EXIT_TIMEOUT_S = 10.0  # for requests in flight; after it the process group is killed
_POLL_INTERVAL_S = 0.05
_NUM_ERROR_LINES = 3


class LocalServer:
    """Starts tritonserver on a model repository and stops it again.

    >>> with LocalServer(Path("repository")) as server:
    ...     client = livematch.Client(server.url)

    A port of 0 stands for a free one. `config_name` chooses `configs/<config_name>.pbtxt` where a model has it.
    The log goes to `log_path`; without one to a temporary file, which is kept only if the server failed.
    """

    def __init__(
        self,
        repository: Path,
        *,
        config_name: str = "onnx",
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        log_path: Path | None = None,
        startup_timeout_s: float = 120.0,
        extra_args: Sequence[str] = (),
    ) -> None:
        self.repository = Path(repository)
        self.config_name = config_name
        self.host = host
        self.log_path = log_path
        self.startup_timeout_s = startup_timeout_s
        self.extra_args = tuple(extra_args)
        self._requested_ports = {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port}
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._resources = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """gRPC address, "host:port"."""
        return self._address("gRPC")

    @property
    def http_url(self) -> str:
        return self._address("HTTP")

    @property
    def metrics_url(self) -> str:
        return self._address("metrics")

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        """Returns when every model is ready. Raises ServerError otherwise, and then nothing is left running."""
        if self._process is not None:
            raise ServerError(f"the server for {self.repository} is already running (pid {self._process.pid})")
        if not self.repository.is_dir():
            raise ServerError(f"no model repository at {self.repository}")
        self._ports = _reserve_ports(self.host, self._requested_ports)
        with contextlib.ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="livematch-server-")))
            environment = _assemble(folder)
            log_path = self._open_log()
            self._process = _spawn(self._command(folder / "backends"), environment, log_path)
            resources.callback(self._end_process)
            self._await_ready(log_path)
            self._resources = resources.pop_all()
        if self.log_path is None:
            self._resources.callback(log_path.unlink, missing_ok=True)

    def stop(self) -> None:
        """Ends the server and everything it started; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _address(self, service: str) -> str:
        self._running()
        return f"{self.host}:{self._ports[service]}"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server is not running: call start() first")
        return self._process

    def _open_log(self) -> Path:
        if self.log_path is not None:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self.log_path.write_bytes(b"")
            return self.log_path
        descriptor, name = tempfile.mkstemp(prefix="livematch-server-", suffix=".log")
        os.close(descriptor)
        return Path(name)

    def _command(self, backends: Path) -> list[str]:
        return [
            str(_package_folder("pytriton") / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={self.repository.resolve()}",
            f"--model-config-name={self.config_name}",
            f"--backend-directory={backends}",
            "--disable-auto-complete-config",
            f"--http-address={self.host}",
            f"--grpc-address={self.host}",
            f"--metrics-address={self.host}",
            f"--http-port={self._ports['HTTP']}",
            f"--grpc-port={self._ports['gRPC']}",
            f"--metrics-port={self._ports['metrics']}",
            f"--exit-timeout-secs={int(_EXIT_TIMEOUT_S / 2)}",
            *self.extra_args,
        ]

    def _await_ready(self, log_path: Path) -> None:
        process = self._running()
        deadline = time.monotonic() + self.startup_timeout_s
        while not _is_ready(self.host, self._ports["HTTP"]):
            if process.poll() is not None:
                raise ServerError(f"tritonserver {_ending(process.returncode)}: {_reason(log_path)} (log: {log_path})")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"tritonserver was not ready after {self.startup_timeout_s:g} s: {_reason(log_path)} "
                    f"(log: {log_path})"
                )
            time.sleep(_POLL_INTERVAL_S)

    def _end_process(self) -> None:
        process = self._running()
        self._process = None
        process.terminate()
        try:
            process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # The group holds the Python backend's stubs too. It is empty after a clean stop.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        package = {"pytriton": "nvidia-pytriton"}.get(name, name)
        raise ServerError(f"the local server needs {package}: pip install 'livematch[server]'")
    return Path(next(iter(spec.submodule_search_locations)))


def _libpython() -> Path:
    """The shared library of the running interpreter, which the Python backend's stub is linked to."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib", "/usr/lib/x86_64-linux-gnu"]
    for folder in folders:
        if folder and (Path(folder) / name).exists():
            return Path(folder) / name
    raise ServerError(f"the local server needs {name}, a shared libpython, which this Python does not come with")


def _assemble(folder: Path) -> dict[str, str]:
    """Puts a backend directory together in `folder/backends`; returns the server's environment."""
    triton = _package_folder("pytriton")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise ServerError(f"nvidia-pytriton has no Python backend stub for Python {version}")

    # Copies, because Triton refuses a backend whose library is a link that leads out of the backend directory.
    backends = folder / "backends"
    shutil.copytree(triton / "tritonserver" / "backends", backends)
    shutil.copy(stub, backends / "python")
    shutil.copytree(Path(__file__).parent / "backends", backends, dirs_exist_ok=True)
    with (backends / "python" / "triton_python_backend_utils.py").open("a") as module:
        module.write("\nimport numpy2_tensor\n")
    # Linked one by one: the folder of libpython may hold other libraries, and those must not shadow the server's own.
    libraries = folder / "libraries"
    libraries.mkdir()
    (libraries / _libpython().name).symlink_to(_libpython())

    library_path = [libraries, triton.parent / "nvidia_pytriton.libs", os.environ.get("LD_LIBRARY_PATH")]
    return {
        "OPENBLAS_NUM_THREADS": "1",  # each stub imports numpy; none of them multiplies large matrices
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(str(entry) for entry in library_path if entry),
        "PATH": f"{_make_environment(folder / 'python')}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def _make_environment(folder: Path) -> Path:
    """A virtual environment that holds nothing but a way to our packages; returns its bin folder.

    The stub ignores PYTHONPATH and PYTHONHOME, and takes the environment of the first `python3` on the PATH.
    """
    packages = dict.fromkeys(str(_package_folder(name).parent) for name in ("numpy", "onnxruntime"))
    site_packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site_packages.mkdir(parents=True)
    (site_packages / "livematch.pth").write_text("\n".join(packages) + "\n")
    home = Path(sys.base_prefix) / "bin"
    (folder / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(sys.executable)
    return folder / "bin"


def _reserve_ports(host: str, requested: dict[str, int]) -> dict[str, int]:
    """The requested ports, 0 replaced by a free one. Raises ServerError for a port that is taken."""
    ports = {}
    with contextlib.ExitStack() as sockets:
        for service, port in requested.items():
            listener = sockets.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                raise ServerError(f"{service} port {port} on {host} cannot be used: {error.strerror}") from error
            ports[service] = listener.getsockname()[1]
    return ports


def _spawn(command: list[str], environment: dict[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Starts the server from a thread that lives as long as it does.

    The kernel sends the parent-death signal when the *thread* that forked ends, so not a caller's thread.
    """
    started: list[subprocess.Popen[bytes]] = []
    ready = threading.Event()

    def run() -> None:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        try:
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    launcher,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            started.append(process)
        finally:
            ready.set()
        process.wait()

    threading.Thread(target=run, name="tritonserver", daemon=True).start()
    ready.wait()
    if not started:
        raise ServerError(f"cannot run {command[0]}")
    return started[0]


def _is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _ending(return_code: int) -> str:
    return f"was killed by signal {-return_code}" if return_code < 0 else f"ended with exit code {return_code}"


def _reason(log_path: Path) -> str:
    """The first errors in a tritonserver log, without time stamps and source positions, as one line."""
    lines = log_path.read_text(errors="replace").splitlines()
    lines = [line for line in lines if "CudaDriverHelper" not in line]  # logged as an error wherever there is no GPU
    # What depends on a failed model fails too.
    causes = [line for line in lines if re.match(r"E\d{4} ", line) and "failed to load" in line]
    causes = causes or [line for line in lines if re.match(r"error: |E\d{4} |.*unrecognized option", line)]
    causes = causes or [line for line in lines if line.strip()][-1:]
    # A failed Python model's line goes on with a traceback, in which line feeds are written as \\n.
    plain = [re.sub(r"^E\d{4} \S+ \d+ \S+\] |\\n\\nAt:.*", "", line).strip(' "') for line in causes]
    return "; ".join(dict.fromkeys(plain[:_NUM_ERROR_LINES])) or "no output"
