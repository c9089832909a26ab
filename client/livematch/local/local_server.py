"""Run a real tritonserver on this machine without Docker: the binary from the nvidia-pytriton package.

The server listens on loopback by default, ends with its parent process (even after SIGKILL) and serves
the same model repository as the NGC container. Its `onnxruntime` backend is the Python one in `backends/onnxruntime`;
it uses the interpreter and the packages of the calling process.
"""

import contextlib
import http.client
import ipaddress
import math
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from livematch.errors import LocalServerError
from livematch.local.environment import find_package, prepare_environment
from livematch.local.log import has_failed, summarize_errors
from livematch.local.process import Process
from livematch.types import KEY_NAME

_ADMIN_ENDPOINTS = "model-repository,shared-memory,trace,logging"  # they change the server
_USER_ENDPOINTS = "inference,metadata,model-config,statistics"  # all others except health, which is always open

_SHARED_MEMORY_BYTES = 4 << 20  # initial size and growth step of each Python instance's region
_KILL_AFTER_S = 5.0  # past the exit timeout
_POLL_INTERVAL_S = 0.05


class LocalServer:
    """Starts tritonserver on a model repository and stops it again.

    >>> with LocalServer("model_repository") as server:
    ...     client = livematch.Client(server.url)

    `stop()` waits up to `exit_timeout_s` for requests in flight. Afterwards the server can be started again, on the
    same ports.

    Args:
        repository: folder of the models.
        config_name: use `configs/<config_name>.pbtxt` of each model that has this file.
        host: address to listen on.
        http_port, grpc_port, metrics_port: 0 chooses a free port.
        log_path: file for the server's log. Without one, the log is a temporary file, kept only if the server fails.
        startup_timeout_s: how long loading the models may take.
        exit_timeout_s: how long `stop()` waits for requests in flight.
        access_key: key that clients must send to every endpoint except health (see `KEY_NAME`). Without a key, the
            endpoints that change the server are blocked unless `host` is a loopback address.
        extra_args: further arguments for tritonserver.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        config_name: str = "onnx",
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        log_path: str | Path | None = None,
        startup_timeout_s: float = 600.0,
        exit_timeout_s: float = 10.0,
        access_key: str | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        self.repository = Path(repository)
        self.config_name = config_name
        self.host = host
        self.log_path = None if log_path is None else Path(log_path)
        self.startup_timeout_s = startup_timeout_s
        self.exit_timeout_s = exit_timeout_s
        self.access_key = access_key
        self.extra_args = tuple(extra_args)
        self._requested_ports = {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port}
        self._ports: dict[str, int] = {}
        self._process: Process | None = None
        self._current_log = Path()
        self._shared_memory_prefix = f"livematch-server-{secrets.token_hex(8)}"
        self._exit_callbacks: list[Callable[[], None]] = []
        self._resources = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """The gRPC address, "host:port"."""
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
        """Start the server and wait until every model is ready; after a LocalServerError, no process is left."""
        if self._process is not None:
            raise LocalServerError(f"the server for {self.repository} is already running (pid {self._process.pid})")
        if not any(self.repository.glob("*/config.pbtxt")):
            raise LocalServerError(f"no model repository at {self.repository}: no folder with a config.pbtxt")
        self._ports = _reserve_ports(self.host, self._ports or self._requested_ports)
        with contextlib.ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="livematch-server-")))
            environment = prepare_environment(folder)
            self._current_log = self._open_log()
            self._process = Process(
                self._command(folder / "backends"), environment, self._current_log, self._run_exit_callbacks
            )
            resources.callback(self._end_process)
            self._await_ready()
            self._process.watch_children()
            self._resources = resources.pop_all()
        if self.log_path is None:
            self._resources.callback(self._discard_log)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Call `callback` in another thread as soon as the server ends without `stop()`."""
        self._exit_callbacks.append(callback)

    def check(self) -> None:
        """Raise LocalServerError if the server has ended."""
        exit_reason = self._running().exit_reason
        if exit_reason is not None:
            raise LocalServerError(f"tritonserver {exit_reason}: {self._describe_errors()}")

    def stop(self) -> None:
        """End the server and all processes it started; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
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
            if self._current_log != self.log_path:  # after a restart, the log is continued
                self.log_path.write_bytes(b"")
            return self.log_path
        with tempfile.NamedTemporaryFile(prefix="livematch-server-", suffix=".log", delete=False) as log:
            return Path(log.name)

    def _command(self, backends: Path) -> list[str]:
        return [
            str(find_package("pytriton") / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={self.repository.resolve()}",
            f"--model-config-name={self.config_name}",
            f"--backend-directory={backends}",
            "--disable-auto-complete-config",
            *(f"--{service.lower()}-address={self.host}" for service in self._ports),
            *(f"--{service.lower()}-port={port}" for service, port in self._ports.items()),
            f"--exit-timeout-secs={math.ceil(self.exit_timeout_s)}",
            f"--backend-config=python,shm-default-byte-size={_SHARED_MEMORY_BYTES}",
            f"--backend-config=python,shm-growth-byte-size={_SHARED_MEMORY_BYTES}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory_prefix}",
            *self._restrictions(),
            *self.extra_args,
        ]

    def _restrictions(self) -> list[str]:
        if self.access_key is not None:
            setting = f"{_USER_ENDPOINTS},{_ADMIN_ENDPOINTS}:{KEY_NAME}={self.access_key}"
        elif not ipaddress.ip_address(socket.gethostbyname(self.host)).is_loopback:
            setting = f"{_ADMIN_ENDPOINTS}:{KEY_NAME}={secrets.token_hex()}"  # nobody has this key
        else:
            return []
        return [f"--http-restricted-api={setting}", f"--grpc-restricted-protocol={setting}"]

    def _discard_log(self) -> None:
        if self._running().exit_reason is None:
            self._current_log.unlink()

    def _run_exit_callbacks(self) -> None:
        for callback in self._exit_callbacks:
            callback()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self.startup_timeout_s
        while not _is_ready(self.host, self._ports["HTTP"]):
            self.check()
            if has_failed(self._current_log):  # the process may keep running: Triton waits after a failed warm-up
                raise LocalServerError(f"tritonserver cannot serve its models: {self._describe_errors()}")
            if time.monotonic() > deadline:
                raise LocalServerError(
                    f"tritonserver was not ready after {self.startup_timeout_s:g} s: {self._describe_errors()}"
                )
            time.sleep(_POLL_INTERVAL_S)

    def _describe_errors(self) -> str:
        return f"{summarize_errors(self._current_log)} (log: {self._current_log})"

    def _end_process(self) -> None:
        process = self._running()
        self._process = None
        process.stop(self.exit_timeout_s + _KILL_AFTER_S)
        for region in Path("/dev/shm").glob(f"{self._shared_memory_prefix}*"):  # left by a server that was killed
            region.unlink()


def _reserve_ports(host: str, requested: dict[str, int]) -> dict[str, int]:
    """Return the ports, each 0 replaced by a free one; raise LocalServerError if one is in use or out of range."""
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
    with contextlib.suppress(OSError), contextlib.closing(connection):
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    return False
