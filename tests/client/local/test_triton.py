"""The client against a real Triton server with the demo repository."""

import asyncio
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from livematch import AsyncClient, Client, RequestError, read_image
from livematch.cli import main

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def client(triton_server):
    with Client(triton_server.url) as client:
        yield client


def test_recognition_of_real_images(client, part):
    image = read_image(part / "image" / "000013" / "0.jpg")
    for recognize in (client.recognize_image, client.recognize_frame):
        found = recognize(image)
        again = recognize(image)
        assert found.embeddings.shape == (len(found), 2048)
        assert np.linalg.norm(found.embeddings, axis=1) == pytest.approx(np.ones(len(found)), abs=1e-4)
        assert (np.diff(found.scores) <= 0).all()
        assert (found.boxes[:, :2] <= found.boxes[:, 2:]).all()
        assert np.abs(found.embeddings - again.embeddings).max(initial=0) < 1e-4


def test_the_async_client_recognizes_the_same(client, triton_server, part):
    paths = sorted((part / "image" / "000013").iterdir())

    async def ask():
        async with AsyncClient(triton_server.url) as asynchronous:
            return [found async for found in asynchronous.recognize_images(paths)], asynchronous.model_identity

    found, identity = asyncio.run(ask())
    assert identity == client.model_identity
    for recognition, expected in zip(found, client.recognize_images(paths), strict=True):
        assert recognition.boxes == pytest.approx(expected.boxes, abs=0.01)
        assert np.abs(recognition.embeddings - expected.embeddings).max(initial=0) < 1e-4


def test_an_odd_size_is_recognised(client):
    assert client.recognize_image(np.zeros((37, 301, 3), np.uint8)).boxes.shape[1] == 4


def test_the_server_has_an_identity(client):
    assert client.model_identity.startswith("demo-")


def test_run(triton_server, part, tmp_path, capsys):
    """Run everything, with one damaged image. What the models detect in coloured rectangles does not matter."""
    for item_id in ("000013", "000021"):
        shutil.copytree(part / "image" / item_id, tmp_path / "image" / item_id)
    (tmp_path / "video").mkdir()
    shutil.copy(part / "video" / "000013.mp4", tmp_path / "video")
    (tmp_path / "image" / "000013" / "3.jpg").write_bytes(b"")
    out = tmp_path / "out"
    command = ["run", "--images", tmp_path / "image", "--videos", tmp_path / "video", "--truth", part, "-o", out]
    code = main([*map(str, command), "--server", triton_server.url, "--frames", "120:400:80"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 3
    assert (summary["images"]["num_stored"], summary["videos"]["num_stored"]) == (7, 1)
    assert [f["name"] for f in pq.read_table(out / "failures.parquet").to_pylist()] == ["3"]
    assert (out / "report.html").stat().st_size > 1000


def test_an_image_the_server_refuses_does_not_end_the_connection(client):
    with pytest.raises(RequestError):
        client.recognize_image(np.zeros((1, 20000, 3), np.uint8))
    assert client.recognize_image(np.zeros((64, 64, 3), np.uint8)).boxes.shape[1] == 4
