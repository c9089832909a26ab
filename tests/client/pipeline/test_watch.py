import json
import threading
import time

import grpc
import numpy as np
import pytest

from livematch import (
    CatalogueOptions,
    Client,
    ContractError,
    DecodeError,
    Features,
    FeaturesError,
    InputError,
    Recognition,
    read_features,
)
from livematch.cli import main
from livematch.media.videos import StreamFrame, read_stream
from livematch.pipeline.embed import embed_images
from livematch.pipeline.watch import Watcher, _newest, watch
from livematch.serving.settings import PRIORITIES


def unit(axis: int, size: int = 4) -> list[float]:
    return [float(i == axis) for i in range(size)]


@pytest.fixture
def products() -> Features:
    """Return three items with embeddings on three axes, the second one not of unit length."""
    return Features(
        sources=["a", "b", "c"],
        names=["0", "1", "2"],
        titles=["Red", "", "Blue"],
        urls=["https://a.b", "", ""],
        frame_indices=np.full(3, -1),
        boxes=np.ones((3, 4)),
        scores=np.ones(3),
        embeddings=np.array([unit(0), np.array(unit(1)) * 5, unit(2)]),
    )


def found(*axes: int, scores: float = 0.5) -> Recognition:
    boxes = np.array([(axis, 0, axis + 1, 2) for axis in axes], np.float32).reshape(-1, 4)
    embeddings = np.array([unit(axis) for axis in axes], np.float32).reshape(-1, 4)
    return Recognition(boxes, np.full(len(axes), scores, np.float32), np.array(["shirt"] * len(axes)), embeddings)


def test_the_window_slides(products):
    watcher = Watcher(products, CatalogueOptions(window=2, limit=1.0, min_evidence=0.25))
    # Each box weighs 0.5: score 0.5 times (1 - distance 0). The fourth axis is at distance 2 from all products.
    decisions = [watcher.decide(k, k / 25, found(*axes)) for k, axes in enumerate([(0,), (1, 0), (1,), (3,), ()])]
    assert [(d.item_id, d.evidence) for d in decisions] == [("a", 0.25), ("a", 0.5), ("b", 0.5), ("b", 0.25), (None, 0)]
    assert (decisions[1].distance, decisions[1].img_name, decisions[1].frame_box) == (0.0, "0", (0, 0, 1, 2))
    assert (decisions[3].distance, decisions[3].frame_box) == (None, None)
    assert (decisions[4].frame_index, decisions[4].time_s) == (4, 0.16)
    assert [d.title for d in decisions] == ["Red", "Red", "", "", ""]
    assert [d.url for d in decisions] == ["https://a.b", "https://a.b", "", "", ""]


def test_only_products_of_the_same_label_are_seen(products):
    products.labels = ["hat", "shirt", "shirt"]
    recognition = found(0, scores=1.0)
    recognition.labels[:] = "shirt"
    watcher = Watcher(products, CatalogueOptions(window=1, limit=4, same_label=True))
    assert watcher.decide(0, 0.0, recognition).item_id == "b"  # at distance 2, as "c" is
    assert Watcher(products, CatalogueOptions(window=1, limit=4)).decide(0, 0.0, recognition).item_id == "a"


def test_a_clip(part, tmp_path, loopback_server, capsys):
    with Client(loopback_server.url) as client:
        embed_images(client, part / "image", tmp_path / "f")
    command = ["watch", "--video", part / "video" / "000021.mp4", "--gallery", tmp_path / "f", "--every", "40"]
    assert main([str(word) for word in [*command, "--server", loopback_server.url]]) == 0
    assert loopback_server.parameters["priority"] == PRIORITIES["live"]
    *decisions, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert summary == {"num_decisions": 10}
    assert [d["frame_index"] for d in decisions] == [*range(0, 400, 40)]
    assert [d["item_id"] for d in decisions] == [None] * 4 + ["000021"] * 6
    assert (decisions[-1]["time_s"], decisions[-1]["evidence"]) == (14.4, pytest.approx(0.97, abs=0.01))
    assert np.abs(np.subtract(decisions[-1]["frame_box"], (10, 20, 40, 80))).max() <= 1


def test_other_models_are_refused(products, loopback_server, part):
    object.__setattr__(products, "model_identity", "other")
    with Client(loopback_server.url) as client, pytest.raises(FeaturesError, match=r"other.*the server by loopback-1"):
        next(watch(client, str(part / "video" / "000021.mp4"), products))


def test_models_that_are_replaced_end_the_watch(loopback_server, part, tmp_path):
    with Client(loopback_server.url, first_pause_s=0.01) as client:
        embed_images(client, part / "image", tmp_path / "f")
        decisions = watch(client, str(part / "video" / "000021.mp4"), read_features(tmp_path / "f"))
        assert next(decisions).frame_index == 0
        loopback_server.faults = [grpc.StatusCode.UNAVAILABLE]
        loopback_server.identity = "loopback-2"
        with pytest.raises(ContractError, match="loopback-2 instead of loopback-1"):
            next(decisions)


def test_a_video_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DecodeError, match=r"nowhere\.mp4: not a readable video"):
        next(read_stream(str(tmp_path / "nowhere.mp4")))
    with pytest.raises(InputError, match="every"):
        next(read_stream("v.mp4", 0))


def test_frames_not_consumed_in_time_are_dropped():
    all_read = threading.Event()

    def stream():
        for index in range(5):
            yield StreamFrame(index, index / 25, np.zeros((1, 1, 3), np.uint8))
            if index == 0:
                time.sleep(0.2)
        all_read.set()
        raise DecodeError("broken off")

    frames = _newest(stream())
    assert next(frames).frame_index == 0
    all_read.wait(5)
    assert next(frames).frame_index == 4
    with pytest.raises(DecodeError, match="broken off"):
        next(frames)


def test_a_stream_that_ended_before_its_reader_leaves_no_thread_behind():
    taken, ended = threading.Event(), threading.Event()
    threads = []

    def stream():
        threads.append(threading.current_thread())
        for index in range(2):
            yield StreamFrame(index, index / 25, np.zeros((1, 1, 3), np.uint8))
            taken.wait(5)
        ended.set()

    frames = _newest(stream())
    assert next(frames).frame_index == 0
    taken.set()
    ended.wait(5)
    frames.close()  # with the second frame unread
    threads[0].join(5)
    assert not threads[0].is_alive()
