"""Two processes that share each batch, against one that has all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.embedder import distributed
from training.embedder.crops import Crop
from training.embedder.data import AspectBatches
from training.embedder.losses import ArcFace, CrossBatchMemory
from training.embedder.recipe import RECIPES

ROOT = Path(__file__).parents[3]

PROGRAM = """
import sys, torch
from torch.nn.parallel import DistributedDataParallel
from training.embedder import distributed
from training.embedder.losses import ArcFace, CrossBatchMemory

distributed.start()
rank, size = distributed.rank_and_size()
inputs, network, arcface, memory = torch.load(sys.argv[1], weights_only=False)
network, arcface = DistributedDataParallel(network), DistributedDataParallel(arcface)
losses = []
for pixels, identities in inputs:
    share = slice(rank * len(pixels) // size, (rank + 1) * len(pixels) // size)
    embeddings, identities = distributed.gather_batch(network(pixels[share]), identities[share])
    loss = arcface(embeddings, identities) + memory.loss(embeddings, identities)
    loss.backward()
    losses.append(loss.item())
gradients = [p.grad for p in (*network.parameters(), *arcface.parameters())]
torch.save((losses, gradients, memory.state_dict()), f"{sys.argv[1]}.{rank}")
distributed.stop()
"""

WAITING = """
import sys, time
from datetime import timedelta
import torch.distributed as dist
from training.embedder import distributed

distributed.start()
dist.barrier()
dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), dist.group.WORLD)
rank, _ = distributed.rank_and_size()
with distributed.main_process_first():
    if rank == 0:
        time.sleep(4)
    with open(sys.argv[1], "a") as file:
        file.write(str(rank))
distributed.stop()
"""

DISAGREEING = """
from training.embedder import distributed

distributed.start()
distributed.check_agreement(7, "seven")
try:
    distributed.check_agreement(distributed.rank_and_size()[0], "the rank")
except ValueError as error:
    print(error)
distributed.stop()
"""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client")]),
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_losses_gradients_and_memory_are_those_of_one_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, arcface, memory = torch.nn.Linear(6, 4), ArcFace(4, 5), CrossBatchMemory(12, 4)
    inputs = [(torch.randn(8, 6), torch.randint(0, 5, (8,))) for _ in range(3)]
    torch.save((inputs, network, arcface, memory), tmp_path / "case")
    (tmp_path / "program.py").write_text(PROGRAM)
    finished = torchrun(str(tmp_path / "program.py"), str(tmp_path / "case"))
    assert finished.returncode == 0, finished.stderr[-2000:]
    expected = []
    for pixels, identities in inputs:
        embeddings = network(pixels)
        loss = arcface(embeddings, identities) + memory.loss(embeddings, identities)
        loss.backward()
        expected.append(loss.item())
    for rank in (0, 1):
        losses, gradients, state = torch.load(tmp_path / f"case.{rank}")
        assert losses == pytest.approx(expected, rel=1e-5)
        for gradient, parameter in zip(gradients, (*network.parameters(), *arcface.parameters()), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)
        torch.testing.assert_close(state, memory.state_dict())


def test_the_others_wait_for_the_first_process_longer_than_the_default_timeout(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WAITING)
    finished = torchrun(str(tmp_path / "program.py"), str(tmp_path / "ranks"))
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert (tmp_path / "ranks").read_text() == "01"


def test_processes_that_disagree_all_notice(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(DISAGREEING)
    finished = torchrun(str(tmp_path / "program.py"))
    assert finished.stdout.count("the rank differs between processes: [0, 1]") == 2, finished.stderr[-2000:]


def test_processes_split_every_batch() -> None:
    crops = [Crop(Path(), (0, 0, 1, 1), 1, "1", False, number % 2) for number in range(20)]
    options = {"batch_size": 4, "template_sets": ("S", "M"), "seed": 1}
    whole = list(AspectBatches(crops, **options))
    shares = [list(AspectBatches(crops, **options, rank=rank, num_processes=2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole
    with pytest.raises(ValueError, match="a batch of 4 cannot be split evenly over 3 processes"):
        AspectBatches(crops, **options, rank=0, num_processes=3)


def test_torchrun_trains(demo_world: Path, tmp_path: Path) -> None:
    """The command line itself on two processes."""
    command = ["-m", "training.embedder.train", "--config", "demo-b6", "--data", str(demo_world), "--num-threads", "1"]
    finished = torchrun(*command, "--output", str(tmp_path))
    assert finished.returncode == 0, finished.stderr[-2000:]
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [line["epoch"] for line in lines[1:]] == list(range(1, RECIPES["demo-b6"].total_epochs + 1))
    assert lines[-1]["arcface"] < lines[1]["arcface"]
    assert (tmp_path / "embedder_b6.pth").exists() and (tmp_path / "b6.resume.pth").exists()


def test_an_error_in_torchruns_processes_is_shown_and_ends_all_of_them(tmp_path: Path) -> None:
    finished = torchrun(
        *("-m", "training.embedder.train", "--config", "demo-b6", "--data", str(tmp_path), "--output", str(tmp_path))
    )
    assert finished.returncode != 0
    assert f"training.embedder.train: {tmp_path} holds no folder per identity" in finished.stderr


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 has no GPU: this machine has 2"):
        distributed.start()
