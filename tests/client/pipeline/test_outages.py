"""Runs that are killed, that lose their server, or whose sources are broken lose no result."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
from PIL import Image

from livematch import Client, read_features
from livematch.cli import main
from livematch.pipeline.embed import EmbedOptions, embed_images, embed_videos
from livematch.pipeline.failures import read_failures

FRAMES = ("--frames", "0:400:40")


def run_command(part, out, server) -> list[str]:
    folders = ("--images", part / "image", "--videos", part / "video", "-o", out)
    return [str(word) for word in ("run", *folders, "--server", server.url, "--concurrency", "2", *FRAMES)]


def test_a_run_killed_at_ten_random_moments_gives_the_result_of_an_unbroken_run(part, tmp_path, loopback_server):
    assert main(run_command(part, tmp_path / "unbroken", loopback_server)) == 0
    assert sum(loopback_server.num_requests.values()) == 42
    loopback_server.delay_s = 0.02
    out = tmp_path / "broken"
    moments = random.Random(11)
    num_kills = 0
    while num_kills < 10:
        loopback_server.num_requests = dict.fromkeys(loopback_server.num_requests, 0)
        process = subprocess.Popen(
            [sys.executable, "-m", "livematch.cli", *run_command(part, out, loopback_server)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not sum(loopback_server.num_requests.values()) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            num_kills += 1
        else:  # it finished before the kill: start over
            assert_same_matches(out, tmp_path / "unbroken")
            shutil.rmtree(out)
    loopback_server.delay_s = 0
    assert main(run_command(part, out, loopback_server)) == 0
    assert_same_matches(out, tmp_path / "unbroken")
    assert [path.suffix for path in (out / "features").iterdir()] == [".parquet"] * 2


def assert_same_matches(first, second):
    for name in ("result.json", "matches.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_server_restart_during_a_run_costs_only_time(part, tmp_path, loopback_server):
    loopback_server.delay_s = 0.05
    with Client(loopback_server.url, first_pause_s=0.2, max_tries=8) as client:

        def restart():
            while loopback_server.num_requests["recognize_frame"] < 5:
                time.sleep(0.005)
            loopback_server.stop()
            time.sleep(0.5)
            loopback_server.start()

        outage = threading.Thread(target=restart)
        outage.start()
        done = embed_videos(
            client, part / "video", tmp_path / "f", EmbedOptions(concurrency=2), frames=range(0, 400, 40)
        )
        outage.join()
    assert (done.num_stored, done.failures) == (3, [])
    loopback_server.delay_s = 0
    with Client(loopback_server.url) as client:
        embed_videos(client, part / "video", tmp_path / "g", frames=range(0, 400, 40))
    assert np.array_equal(read_features(tmp_path / "f").embeddings, read_features(tmp_path / "g").embeddings)


def test_sources_broken_in_twelve_ways_are_each_listed(part, tmp_path, drawing, loopback_server):
    images, videos = tmp_path / "image", tmp_path / "video"
    shutil.copytree(part / "image", images)
    shutil.copytree(part / "video", videos)
    jpeg = (images / "000013" / "0.jpg").read_bytes()
    mp4 = (videos / "000013.mp4").read_bytes()
    broken = images / "000013"
    (broken / "10.jpg").write_bytes(b"")
    (broken / "11.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (broken / "12.jpg").write_bytes(b"not an image")
    (broken / "13.jpg").symlink_to(tmp_path / "nowhere")
    (broken / "3.png").write_bytes(jpeg)  # there is a 3.jpg
    Image.fromarray(np.zeros((8, 8), np.float32)).save(broken / "14.tif")
    (images / "000001").mkdir()
    (videos / "20.mp4").write_bytes(b"")
    (videos / "21.mp4").write_bytes(mp4[: len(mp4) // 2])
    (videos / "22.mp4").write_bytes(b"not a video" * 99)
    (videos / "23.jpg").write_bytes(jpeg)
    drawing.write_clip(videos / "24.mp4", [np.zeros((48, 64, 3), np.uint8)] * 9)
    reasons = {
        ("000013", "10", "decode"): "empty",
        ("000013", "11", "decode"): "truncated",
        ("000013", "12", "decode"): "not a readable image",
        ("000013", "13", "decode"): "no such file",
        ("000013", "3", "list"): "another file has the same name",
        ("000013", "14", "decode"): "floating-point",
        ("000001", "", "list"): "no images",
        ("20", "", "decode"): "empty",
        ("21", "", "decode"): "not a readable video",
        ("22", "", "decode"): "not a readable video",
        ("23", "", "decode"): "there is no frame",
        ("24", "", "decode"): "has 9 frames",
    }
    out = tmp_path / "out"
    assert main(run_command(tmp_path, out, loopback_server)) == 3
    found = {(f.source, f.name, f.stage): f.reason for f in read_failures(out / "failures.parquet")}
    assert found.keys() == reasons.keys()
    for key, reason in reasons.items():
        assert reason in found[key]
    assert len(read_features(out / "features" / "images.parquet")) == 12
    assert set(read_features(out / "features" / "videos.parquet").sources) == {"000013", "000021", "000034"}


def test_a_killed_run_keeps_no_lock(part, tmp_path, loopback_server):
    loopback_server.delay_s = 0.1
    command = ["embed", "--images", str(part / "image"), "-o", str(tmp_path / "f"), "--server", loopback_server.url]
    process = subprocess.Popen([sys.executable, "-m", "livematch.cli", *command], stderr=subprocess.DEVNULL)
    while not loopback_server.num_requests["recognize_image"]:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with Client(loopback_server.url) as client:
        assert embed_images(client, part / "image", tmp_path / "f").num_stored == 12
