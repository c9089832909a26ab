import os
import shutil
import signal
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from PIL import Image

from livematch import (
    Client,
    ContractError,
    DecodeError,
    FeaturesError,
    InputError,
    RequestError,
    UnavailableError,
    open_features,
    read_features,
)
from livematch.pipeline.embed import EmbedOptions, embed_images, embed_videos


@pytest.fixture
def client(loopback_server):
    with Client(loopback_server.url, first_pause_s=0.01, max_tries=3) as client:
        yield client


def test_images(client, part, tmp_path, drawing, loopback_server):
    done = embed_images(client, part / "image", tmp_path / "f.parquet")
    assert (done.num_stored, done.num_resumed, done.num_boxes, done.failures) == (12, 0, 12, [])
    found = read_features(tmp_path / "f.parquet")
    assert found.sources == ["000013"] * 4 + ["000021"] * 4 + ["000034"] * 4
    assert found.names == ["0", "1", "2", "3"] * 3
    assert (found.frame_indices == -1).all()
    assert np.abs(found.boxes - (20, 10, 60, 70)).max() <= 1
    with Image.open(part / "image" / "000021" / "2.jpg") as image:
        assert np.array_equal(found.embeddings[6], drawing.recognize(np.asarray(image))[3][0])
    assert found.model_identity == "loopback-1"
    assert loopback_server.num_requests == {"recognize_image": 12, "recognize_frame": 0}


def test_videos(client, part, tmp_path, loopback_server):
    done = embed_videos(client, part / "video", tmp_path / "f.parquet")
    assert (done.num_stored, done.num_boxes) == (3, 42)  # frames 80 and 100 do not show the garment yet
    found = read_features(tmp_path / "f.parquet")
    assert found.sources == ["000013"] * 14 + ["000021"] * 14 + ["000034"] * 14
    assert found.names == [""] * 42
    assert found.frame_indices.tolist() == [*range(120, 400, 20)] * 3
    assert loopback_server.num_requests == {"recognize_image": 0, "recognize_frame": 48}


def test_a_finished_run_sends_no_requests(client, part, tmp_path, loopback_server):
    for number in range(2):
        done = embed_videos(client, part / "video", tmp_path / "f.parquet", frames=range(0, 80, 40))
        assert (done.num_stored, done.num_resumed, done.num_boxes) == (3, 3 * number, 0)
    assert loopback_server.num_requests["recognize_frame"] == 6


def test_sources_of_an_earlier_run_on_another_folder_do_not_count_as_tried(client, part, tmp_path):
    embed_images(client, part / "image", tmp_path / "f.parquet")
    (tmp_path / "more" / "000055").mkdir(parents=True)
    shutil.copy(part / "image" / "000013" / "0.jpg", tmp_path / "more" / "000055")
    (tmp_path / "more" / "000055" / "1.jpg").write_bytes(b"")
    done = embed_images(client, tmp_path / "more", tmp_path / "f.parquet")
    assert (done.num_stored, done.num_resumed, done.num_tried) == (13, 0, 2)
    assert done.sources_per_s == 2 / done.elapsed_s


def test_requests_overlap(client, part, tmp_path, loopback_server):
    loopback_server.delay_s = 0.05
    embed_images(client, part / "image", tmp_path / "one.parquet", EmbedOptions(concurrency=1))
    assert loopback_server.max_num_parallel == 1
    embed_images(client, part / "image", tmp_path / "f.parquet", EmbedOptions(concurrency=3))
    assert loopback_server.max_num_parallel == 3
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "f.parquet").read_bytes()


@pytest.fixture
def damaged(tmp_path, drawing):
    """Return a part with four sources that fail, among unusual ones that must not fail."""
    drawing.write_part(tmp_path)
    item = tmp_path / "image" / "000013"
    for name, mode in (("gray.png", "L"), ("ink.jpg", "CMYK"), ("list.png", "P")):
        Image.fromarray(drawing.draw((96, 80), (20, 10, 60, 70), (40, 40, 40))).convert(mode).save(item / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(drawing.draw((80, 96), (10, 20, 70, 60), (200, 40, 40))).save(item / "turned.jpg", exif=exif)
    jpeg = (item / "0.jpg").read_bytes()
    (item / "1.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (item / "2.jpg").write_bytes(b"")
    (tmp_path / "video" / "000021.mp4").write_bytes(b"")
    drawing.write_clip(tmp_path / "video" / "000034.mp4", [np.zeros((48, 64, 3), np.uint8)] * 100)
    return tmp_path


def test_damaged_sources_are_listed_and_the_others_are_stored(client, damaged):
    done = embed_images(client, damaged / "image", damaged / "images.parquet")
    assert [(f.kind, f.source, f.name) for f in done.failures] == [("image", "000013", "1"), ("image", "000013", "2")]
    assert "truncated" in done.failures[0].reason
    assert "empty" in done.failures[1].reason
    names = read_features(damaged / "images.parquet").names
    assert names[:6] == ["gray", "ink", "list", "turned", "0", "3"]
    boxes = read_features(damaged / "images.parquet").boxes
    assert np.abs(boxes[3] - (36, 10, 76, 70)).max() <= 1  # in the upright image

    done = embed_videos(client, damaged / "video", damaged / "videos.parquet")
    assert [(f.kind, f.source) for f in done.failures] == [("video", "000021"), ("video", "000034")]
    assert "has 100 frames" in done.failures[1].reason
    assert set(read_features(damaged / "videos.parquet").sources) == {"000013"}


def test_the_next_run_tries_only_the_failures_again(client, damaged, loopback_server):
    embed_images(client, damaged / "image", damaged / "images.parquet")
    loopback_server.num_requests["recognize_image"] = 0
    (damaged / "image" / "000013" / "1.jpg").write_bytes((damaged / "image" / "000013" / "0.jpg").read_bytes())
    done = embed_images(client, damaged / "image", damaged / "images.parquet")
    assert [f.name for f in done.failures] == ["2"]
    assert loopback_server.num_requests["recognize_image"] == 1


def test_strict_raises_the_first_failure(client, damaged):
    with pytest.raises(DecodeError, match=r"1\.jpg"):
        embed_images(client, damaged / "image", damaged / "images.parquet", EmbedOptions(strict=True))
    with pytest.raises(DecodeError, match="the item has no images"):
        (damaged / "image" / "000001").mkdir()
        embed_images(client, damaged / "image", damaged / "images.parquet", EmbedOptions(strict=True))


def test_a_refused_image_is_a_failure(client, part, tmp_path, loopback_server):
    loopback_server.faults = [grpc.StatusCode.INVALID_ARGUMENT]
    done = embed_images(client, part / "image", tmp_path / "f.parquet", EmbedOptions(concurrency=1))
    assert [(f.source, f.name) for f in done.failures] == [("000013", "0")]
    assert done.failures[0].reason.endswith("0.jpg: a fault: INVALID_ARGUMENT")
    loopback_server.faults = [grpc.StatusCode.INVALID_ARGUMENT]
    with pytest.raises(RequestError, match=r"0\.jpg: a fault"):
        embed_images(client, part / "image", tmp_path / "f.parquet", EmbedOptions(strict=True))


def test_what_is_stored_stays_when_the_server_goes_away(client, part, tmp_path, loopback_server):
    path = tmp_path / "f.parquet"
    loopback_server.faults_from = 6
    with pytest.raises(UnavailableError, match=r"in 3 tries: .*; 5 sources are stored, the next run resumes there"):
        embed_images(client, part / "image", path, EmbedOptions(concurrency=1))
    loopback_server.faults_from = None
    done = embed_images(client, part / "image", path)
    assert (done.num_stored, done.num_resumed) == (12, 5)
    assert read_features(path).names == ["0", "1", "2", "3"] * 3


def test_no_file_is_written_if_the_models_were_replaced(client, part, tmp_path, loopback_server):
    loopback_server.identity = "loopback-2"  # between two requests
    with pytest.raises(ContractError, match=r"loopback-2 instead of loopback-1; remove .*f\.partial, which"):
        embed_images(client, part / "image", tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["f.partial"]


def test_a_server_that_stays_away_does_not_stop_the_others(part, tmp_path, drawing, loopback_server):
    second_server = drawing.LoopbackServer()
    with Client([loopback_server.url, second_server.url], first_pause_s=30) as client:
        second_server.stop()
        assert embed_images(client, part / "image", tmp_path / "f").num_stored == 12


def test_a_killed_run_is_resumed(part, tmp_path, loopback_server):
    loopback_server.delay_s = 0.1
    path = tmp_path / "f.parquet"
    command = ["embed", "--images", str(part / "image"), "-o", str(path), "--server", loopback_server.url]
    process = subprocess.Popen(
        [sys.executable, "-m", "livematch.cli", *command, "--concurrency", "1"], stderr=subprocess.DEVNULL
    )
    while loopback_server.num_requests["recognize_image"] < 6:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not path.exists()
    loopback_server.num_requests["recognize_image"] = 0
    loopback_server.delay_s = 0
    with Client(loopback_server.url) as client:
        done = embed_images(client, part / "image", path)
    assert done.num_resumed >= 4
    assert loopback_server.num_requests["recognize_image"] == 12 - done.num_resumed
    assert read_features(path).names == ["0", "1", "2", "3"] * 3


@pytest.mark.parametrize("frames", [range(0), range(-20, 100, 20)])
def test_frames_out_of_range_are_refused(client, part, tmp_path, frames):
    with pytest.raises(InputError, match="frames"):
        embed_videos(client, part / "video", tmp_path / "f.parquet", frames=frames)


def test_a_concurrency_of_zero_is_refused():
    with pytest.raises(InputError, match="concurrency"):
        EmbedOptions(concurrency=0)


def test_all_shards_together_are_the_whole(client, part, tmp_path):
    embed_images(client, part / "image", tmp_path / "whole")
    for index in range(2):
        embed_images(client, part / "image", tmp_path / str(index), EmbedOptions(shard=(index, 2)))
    shards = open_features([tmp_path / "0", tmp_path / "1"])
    whole = open_features([tmp_path / "whole"])
    assert (len(read_features(tmp_path / "0")), len(whole)) == (4, 12)  # one item of three, and two
    assert (shards.sources, shards.names) == (whole.sources, whole.names)
    (shard_block,), (block,) = (list(features.blocks(99)) for features in (shards, whole))
    assert np.array_equal(shard_block.embeddings, block.embeddings)
    with pytest.raises(InputError, match="2/2"):
        embed_images(client, part / "image", tmp_path / "2", EmbedOptions(shard=(2, 2)))


@pytest.mark.parametrize(
    ("settings", "selection"),
    [({"crop_scale": 1.1}, r"images, crops scaled by 1\.1"), ({"min_score": 0.5}, r"images, scores above 0\.5")],
)
def test_other_settings_for_the_same_file_are_refused(client, part, tmp_path, loopback_server, settings, selection):
    embed_images(client, part / "image", tmp_path / "f.parquet")
    with (
        Client(loopback_server.url, **settings) as other,
        pytest.raises(FeaturesError, match=f"holds images, not {selection}"),
    ):
        embed_images(other, part / "image", tmp_path / "f.parquet")


def test_a_crop_scale_below_1_is_refused(loopback_server):
    with pytest.raises(InputError, match=r"crop_scale must be from 1 to 2, got 0\.9"):
        Client(loopback_server.url, crop_scale=0.9)


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path, drawing, loopback_server):
    drawing.write_clip(tmp_path / "clip.mp4", [drawing.draw((640, 360), (50, 60, 300, 200), (200, 40, 40))] * 11)
    code = (
        "import sys; from pathlib import Path; from livematch.cli import main; main(sys.argv[1:]);"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    peak_kib = []
    for num_clips in (20, 200):
        folder = tmp_path / str(num_clips)
        folder.mkdir()
        for k in range(num_clips):
            (folder / f"{k:06}.mp4").hardlink_to(tmp_path / "clip.mp4")
        command = ["embed", "--videos", folder, "-o", tmp_path / f"{num_clips}.parquet", "--frames", "0:11:5"]
        command += ["--server", loopback_server.url, "--concurrency", "4"]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, check=True
        )
        peak_kib.append(int(done.stdout.split()[-1]))
    assert peak_kib[1] < 1.1 * peak_kib[0]
