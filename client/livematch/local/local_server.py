"""A real tritonserver on this machine, without Docker: the binary inside the nvidia-pytriton package.

The server listens on loopback only unless told otherwise, ends with its parent (even on SIGKILL) and serves the same
repository as the NGC container. Its `onnxruntime` backend is the Python one in `livematch/backends/onnxruntime`, run by
the interpreter and the packages of the calling process.
"""

import contextlib
import http.client
import importlib.util
import ipaddress
import math
import os
import re
import secrets
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from livematch.errors import LocalServerError
from livematch.local.process import Process
from livematch.types import KEY_NAME

_ADMINISTRATION = "model-repository,shared-memory,trace,logging"  # of the endpoints, those that change the server
_USE = "inference,metadata,model-config,statistics"  # the rest but for health, which is always open

_SHARED_MEMORY_BYTES = 4 << 20  # of each Python instance, to begin with and to grow by; one 800 × 800 photo as float
_KILL_AFTER_S = 5.0  # past the exit timeout
_POLL_INTERVAL_S = 0.05
_NUM_ERROR_LINES = 3


class LocalServer:
    """Starts tritonserver on a model repository and stops it again.

    >>> with LocalServer(Path("repository")) as server:
    ...     client = livematch.Client(server.url)

    A port of 0 stands for a free one. `config_name` chooses `configs/<config_name>.pbtxt` where a model has it.
    The log goes to `log_path`; without one to a temporary file, which is kept only if the server failed.
    `stop()` lets requests in flight finish for `exit_timeout_s`; then the server can be started again, on the same
    ports. With an `access_key` every endpoint but health wants it (see KEY_NAME); without one, those that change the
    server are closed wherever `host` is not a loopback address.
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
        startup_timeout_s: float = 600.0,
        exit_timeout_s: float = 10.0,
        access_key: str | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        self.repository = Path(repository)
        self.config_name = config_name
        self.host = host
        self.log_path = log_path
        self.startup_timeout_s = startup_timeout_s
        self.exit_timeout_s = exit_timeout_s
        self.access_key = access_key
        self.extra_args = tuple(extra_args)
        self._requested_ports = {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port}
        self._ports: dict[str, int] = {}
        self._process: Process | None = None
        self._log_in_use = Path()
        self._shared_memory_prefix = f"livematch-server-{secrets.token_hex(8)}"
        self._on_death: list[Callable[[], None]] = []
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
        """Returns when every model is ready. Raises LocalServerError otherwise, and then nothing is left running."""
        if self._process is not None:
            raise LocalServerError(f"the server for {self.repository} is already running (pid {self._process.pid})")
        if not self.repository.is_dir():
            raise LocalServerError(f"no model repository at {self.repository}")
        self._ports = _reserve_ports(self.host, self._ports or self._requested_ports)
        with contextlib.ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="livematch-server-")))
            environment = _assemble(folder)
            self._log_in_use = self._open_log()
            self._process = Process(self._command(folder / "backends"), environment, self._log_in_use, self._tell_death)
            resources.callback(self._end_process)
            self._await_ready()
            self._process.watch_children()
            self._resources = resources.pop_all()
        if self.log_path is None:
            self._resources.callback(self._discard_log)

    def call_on_death(self, callback: Callable[[], None]) -> None:
        """`callback` is called, in another thread, as soon as the server ends without having been stopped."""
        self._on_death.append(callback)

    def check(self) -> None:
        """Raises LocalServerError if the server has ended."""
        ending = self._running().ending
        if ending is not None:
            raise LocalServerError(f"tritonserver {ending}: {_reason(self._log_in_use)} (log: {self._log_in_use})")

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

    def _running(self) -> Process:
        if self._process is None:
            raise LocalServerError("the server is not running: call start() first")
        return self._process

    def _open_log(self) -> Path:
        if self.log_path is not None:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            if self._log_in_use != self.log_path:  # a server that is started again goes on in its log
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
            f"--exit-timeout-secs={math.ceil(self.exit_timeout_s)}",
            f"--backend-config=python,shm-default-byte-size={_SHARED_MEMORY_BYTES}",
            f"--backend-config=python,shm-growth-byte-size={_SHARED_MEMORY_BYTES}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory_prefix}",
            *self._restrictions(),
            *self.extra_args,
        ]

    def _restrictions(self) -> list[str]:
        if self.access_key is not None:
            setting = f"{_USE},{_ADMINISTRATION}:{KEY_NAME}={self.access_key}"
        elif not ipaddress.ip_address(socket.gethostbyname(self.host)).is_loopback:
            setting = f"{_ADMINISTRATION}:{KEY_NAME}={secrets.token_hex()}"  # nobody has this key
        else:
            return []
        return [f"--http-restricted-api={setting}", f"--grpc-restricted-protocol={setting}"]

    def _discard_log(self) -> None:
        if self._running().ending is None:
            self._log_in_use.unlink()

    def _tell_death(self) -> None:
        for callback in self._on_death:
            callback()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self.startup_timeout_s
        while not _is_ready(self.host, self._ports["HTTP"]):
            self.check()
            log = self._log_in_use
            if _has_failed(log):  # Triton does not always end then: a failed warm-up makes it wait for ever
                raise LocalServerError(f"tritonserver cannot serve its models: {_reason(log)} (log: {log})")
            if time.monotonic() > deadline:
                raise LocalServerError(
                    f"tritonserver was not ready after {self.startup_timeout_s:g} s: {_reason(log)} (log: {log})"
                )
            time.sleep(_POLL_INTERVAL_S)

    def _end_process(self) -> None:
        process = self._running()
        self._process = None
        process.stop(self.exit_timeout_s + _KILL_AFTER_S)
        for region in Path("/dev/shm").glob(f"{self._shared_memory_prefix}*"):  # of a server that was killed
            region.unlink()


def _package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        package = {"pytriton": "nvidia-pytriton"}.get(name, name)
        raise LocalServerError(f"the local server needs {package}: pip install 'livematch[server]'")
    return Path(next(iter(spec.submodule_search_locations)))


def _libpython() -> Path:
    """The shared library of the running interpreter, which the Python backend's stub is linked to."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib", "/usr/lib/x86_64-linux-gnu"]
    for folder in folders:
        if folder and (Path(folder) / name).exists():
            return Path(folder) / name
    raise LocalServerError(f"the local server needs {name}, a shared libpython, which this Python does not come with")


def _assemble(folder: Path) -> dict[str, str]:
    """Puts a backend directory together in `folder/backends`; returns the server's environment."""
    triton = _package_folder("pytriton")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise LocalServerError(f"nvidia-pytriton has no Python backend stub for Python {version}")

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
    """The requested ports, 0 replaced by a free one. Raises LocalServerError for a port that is taken, or none."""
    ports = {}
    with contextlib.ExitStack() as sockets:
        for service, port in requested.items():
            listener = sockets.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except (OSError, OverflowError) as error:
                reason = error.strerror if isinstance(error, OSError) else "ports are 0 to 65535"
                raise LocalServerError(f"{service} port {port} on {host} cannot be used: {reason}") from error
            ports[service] = listener.getsockname()[1]
    return ports


def _is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _has_failed(log_path: Path) -> bool:
    return re.search(r"^E\d{4} .*failed to load", log_path.read_text(errors="replace"), re.MULTILINE) is not None


def _reason(log_path: Path) -> str:
    """The first errors in a tritonserver log, without time stamps and source positions, as one line."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", log_path.read_text(errors="replace")).splitlines()  # without colours
    lines = [line for line in lines if "CudaDriverHelper" not in line]  # logged as an error wherever there is no GPU
    # What depends on a failed model fails too.
    causes = [line for line in lines if re.match(r"E\d{4} ", line) and "failed to load" in line]
    causes = causes or [
        line for line in lines if re.match(r"error: |E\d{4} |.*unrecognized option|.*\[E:onnxruntime", line)
    ]
    causes = causes or [line for line in lines if line.strip()][-1:]
    # A failed Python model's line goes on with a traceback, in which line feeds are written as \\n.
    plain = [re.sub(r"^E\d{4} \S+ \d+ \S+\] |\\n\\nAt:.*", "", line).strip(' "') for line in causes]
    return "; ".join(dict.fromkeys(plain[:_NUM_ERROR_LINES])) or "no output"
