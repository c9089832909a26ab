"""LocalServer on a repository of one tiny Python model, so that a server starts in a second."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from benchmarks.harness.resources import process_tree
from livematch.errors import LocalServerError
from livematch.local.local_server import LocalServer
from livematch.local.process import has_ended

pytestmark = pytest.mark.triton

CONFIG = """
name: "double"
backend: "python"
max_batch_size: 0
input [{ name: "x", data_type: TYPE_FP32, dims: [-1, -1] }]
output [{ name: "y", data_type: TYPE_FP32, dims: [-1, -1] }]
instance_group [{ count: 1, kind: KIND_CPU }]
"""
MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * array)]) for array in arrays]
"""


@pytest.fixture(scope="module", autouse=True)
def _needs_tritonserver() -> None:
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "double" / "1").mkdir(parents=True)
    (folder / "double" / "config.pbtxt").write_text(CONFIG)
    (folder / "double" / "1" / "model.py").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("repository")
    (folder / "double" / "1").mkdir(parents=True)
    (folder / "double" / "config.pbtxt").write_text(CONFIG)
    (folder / "double" / "1" / "model.py").write_text(MODEL)
    with LocalServer(folder) as started:
        yield started


def wait_until_gone(pids: set[int], timeout_s: float = 20.0) -> set[int]:
    """Return those of `pids` that still run after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (running := {pid for pid in pids if is_running(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def is_running(pid: int) -> bool:
    try:
        return not has_ended(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 0), (700, 900)])
def test_arrays_pass_unchanged(server: LocalServer, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with triton.InferenceServerClient(server.url) as client:
        tensor = triton.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        np.testing.assert_array_equal(client.infer("double", [tensor]).as_numpy("y"), 2 * x)


def test_addresses(server: LocalServer) -> None:
    assert urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready").status == 200
    assert b"nv_inference_count" in urllib.request.urlopen(f"http://{server.metrics_url}/metrics").read()


def test_listens_on_loopback_only(server: LocalServer) -> None:
    ports = {int(url.rpartition(":")[2]) for url in (server.url, server.http_url, server.metrics_url)}
    listening = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, port = local.partition(":")
            if state == "0A" and int(port, 16) in ports:
                listening.add((address, int(port, 16)))
    assert {port for _, port in listening} == ports
    # 127.0.0.1 in the kernel's byte order, and the same as an IPv6 address
    assert {address for address, _ in listening} <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_stop_leaves_no_process(repository: Path, tmp_path: Path) -> None:
    log_path = tmp_path / "logs" / "server.log"
    server = LocalServer(repository, log_path=log_path)
    server.start()
    pids = set(process_tree(server.pid))
    assert len(pids) >= 2  # the server and a stub
    server.stop()
    assert not wait_until_gone(pids, timeout_s=1.0)
    assert "Started GRPCInferenceService" in log_path.read_text()
    server.stop()
    with pytest.raises(LocalServerError, match="not running"):
        _ = server.url


def test_ends_with_a_parent_that_is_killed(repository: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from livematch.local.local_server import LocalServer\n"
        f"server = LocalServer(Path({str(repository)!r})); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    pids = set(process_tree(pid))
    parent.kill()
    parent.communicate()
    assert not wait_until_gone(pids)


def test_outlives_the_thread_that_started_it(repository: Path) -> None:
    server = LocalServer(repository)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    time.sleep(0.5)
    try:
        assert urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready").status == 200
    finally:
        server.stop()


def test_killed_server_leaves_nothing_and_can_be_stopped(repository: Path) -> None:
    with LocalServer(repository) as server:
        pids = set(process_tree(server.pid))
        regions = f"{server._shared_memory_prefix}*"
        assert list(Path("/dev/shm").glob(regions))
        os.kill(server.pid, signal.SIGKILL)
    assert not wait_until_gone(pids)
    assert not list(Path("/dev/shm").glob(regions))


def test_second_start_is_refused(server: LocalServer) -> None:
    with pytest.raises(LocalServerError, match="already running"):
        server.start()


def test_missing_repository(tmp_path: Path) -> None:
    with pytest.raises(LocalServerError, match=r"no model repository at .*nowhere"):
        LocalServer(tmp_path / "nowhere").start()


def test_folder_without_models(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    with pytest.raises(LocalServerError, match=r"no model repository at .*: no folder with a config\.pbtxt"):
        LocalServer(tmp_path).start()


@pytest.mark.parametrize(("argument", "service"), [("grpc_port", "gRPC"), ("http_port", "HTTP")])
def test_taken_port_is_named(repository: Path, argument: str, service: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            LocalServerError, match=f"{service} port {port} on 127.0.0.1 cannot be used: Address already in use"
        ):
            LocalServer(repository, **{argument: port}).start()


def test_broken_model_is_named_in_one_line(repository: Path) -> None:
    (repository / "double" / "1" / "model.py").write_text("import there_is_no_such_module\n")
    with pytest.raises(
        LocalServerError, match=r"failed to load 'double'.*No module named 'there_is_no_such_module'"
    ) as caught:
        LocalServer(repository).start()
    assert "\n" not in str(caught.value)
    log_path = Path(str(caught.value).rpartition("(log: ")[2].rstrip(")"))
    assert "there_is_no_such_module" in log_path.read_text()
    log_path.unlink()


def test_startup_timeout(repository: Path, tmp_path: Path) -> None:
    (repository / "double" / "1" / "model.py").write_text(f"import time\ntime.sleep(30)\n{MODEL}")
    server = LocalServer(repository, startup_timeout_s=0.5, log_path=tmp_path / "log")
    with pytest.raises(LocalServerError, match=r"not ready after 0.5 s"):
        server.start()
    with pytest.raises(LocalServerError, match="not running"):
        _ = server.url


def test_extra_arguments_reach_the_server(repository: Path) -> None:
    with pytest.raises(LocalServerError, match="no-such-option"):
        LocalServer(repository, extra_args=["--no-such-option"]).start()


def test_missing_package_is_named(repository: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.modules['pytriton'] = None\n"
        "from livematch.local.local_server import LocalServer\n"
        f"LocalServer(Path({str(repository)!r})).start()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "LocalServerError: the local server needs nvidia-pytriton: pip install 'livematch[server]'" in run.stderr
