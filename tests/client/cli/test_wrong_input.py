"""Input in which nothing can be found: what is said, and with which exit code."""

import time

import numpy as np
import pytest
from PIL import Image

from tests.client.cli.command import run_command


def test_nothing_found_is_said_and_has_its_own_exit_code(part, tmp_path, loopback_server, capsys):
    for item_id in ("000013", "000021"):
        (tmp_path / "empty" / item_id).mkdir(parents=True)
        Image.fromarray(np.full((80, 96, 3), 255, np.uint8)).save(tmp_path / "empty" / item_id / "0.jpg")
    server = ("--server", loopback_server.url)
    code, summary, stderr = run_command(
        capsys, "embed", "--images", tmp_path / "empty", "-o", tmp_path / "empty.parquet", *server
    )
    assert (code, summary["num_boxes"]) == (4, 0)
    assert "livematch: nothing was detected in 2 files; --min-score sets the limit for scores" in stderr
    code, _, _ = run_command(capsys, "embed", "--videos", part / "video", "-o", tmp_path / "videos.parquet", *server)
    assert code == 0
    files = ("--queries", tmp_path / "empty.parquet", "--gallery", tmp_path / "videos.parquet")
    code, _, stderr = run_command(capsys, "match", *files, "-o", tmp_path / "result.json")
    assert (code, stderr) == (4, "livematch: no item matches any clip; see whether the features files hold boxes\n")


@pytest.mark.parametrize(
    ("option", "folder", "message"),
    [
        ("--images", "empty", "holds nothing: expected {folder}/<item_id>/<photo>, {or_csv}"),
        ("--videos", "empty", "holds nothing: expected {folder}/<video_id>.mp4"),
        ("--images", "flat", "holds 1 file, but no item folders: expected {folder}/<item_id>/<photo>, {or_csv}"),
        ("--videos", "image", "holds 3 folders, but no files: expected {folder}/<video_id>.mp4"),
        ("--images", "video", "holds 3 files, but no item folders: expected {folder}/<item_id>/<photo>, {or_csv}"),
    ],
)
def test_a_folder_of_another_layout_is_named(option, folder, message, part, tmp_path, loopback_server, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "1.jpg").write_bytes(b"a photo")
    given = tmp_path / folder if (tmp_path / folder).exists() else part / folder
    code, _, stderr = run_command(
        capsys, "embed", option, given, "-o", tmp_path / "f.parquet", "--server", loopback_server.url
    )
    expected = message.format(folder=given, or_csv="or a CSV manifest item_id,path[,title,url]")
    assert (code, stderr) == (2, f"livematch: {given} {expected}\n")
    assert not list(tmp_path.glob("f.parquet*"))


def test_a_report_on_a_wrong_manifest_or_a_flat_folder_is_refused(part, tmp_path, capsys):
    manifest, flat = tmp_path / "photos.csv", tmp_path / "flat"
    manifest.write_text("item_id,path\n000013,a.jpg\n,b.jpg\n")
    flat.mkdir()
    (flat / "1.jpg").touch()
    (tmp_path / "result.json").write_text("{}")
    report = ("report", "--result", tmp_path / "result.json", "--videos", part / "video", "-o", tmp_path / "r.html")
    code, _, stderr = run_command(capsys, *report, "--images", manifest)
    assert (code, stderr) == (2, f"livematch: {manifest}:3: item_id is empty\n")
    code, _, stderr = run_command(capsys, *report, "--images", flat)
    assert (code, stderr.count("\n")) == (2, 1)
    assert stderr.startswith(f"livematch: {flat} holds 1 file, but no item folders: expected {flat}/<item_id>/<photo>")
    assert not (tmp_path / "r.html").exists()


def test_wrong_folders_are_named_before_a_server_is_needed(part, tmp_path, capsys):
    (tmp_path / "photos.csv").write_text("item_id,file\n")
    command = ("run", "--server", "127.0.0.1:1", "-o", tmp_path / "out")
    start_s = time.monotonic()
    code, _, stderr = run_command(capsys, *command, "--images", tmp_path / "photos.csv", "--videos", part / "video")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "photos.csv:1: no column path" in stderr
    code, _, stderr = run_command(capsys, *command, "--images", part / "image", "--videos", part / "nowhere")
    assert (code, stderr) == (2, f"livematch: no such folder: {part}/nowhere\n")
    assert time.monotonic() - start_s < 10  # a server that does not answer is waited for during 47 seconds


def test_exchanged_files_are_named(part, tmp_path, loopback_server, capsys):
    images, videos = tmp_path / "images.parquet", tmp_path / "videos.parquet"
    server = ("--server", loopback_server.url)
    run_command(capsys, "embed", "--images", part / "image", "-o", images, *server)
    run_command(capsys, "embed", "--videos", part / "video", "-o", videos, *server)
    out = ("-o", tmp_path / "result.json")
    frames = f"livematch: {videos} holds frames 80:400:20, but"
    code, _, stderr = run_command(capsys, "match", "--queries", videos, "--gallery", images, *out)
    assert (code, stderr) == (2, f"{frames} queries (product photos) must hold images\n")
    code, _, stderr = run_command(capsys, "match", "--queries", images, "--gallery", images, *out)
    assert (code, stderr) == (2, f"livematch: {images} holds images, but a gallery (clips) must hold frames\n")
    clip = part / "video" / "000013.mp4"
    code, _, stderr = run_command(capsys, "watch", "--video", clip, "--gallery", videos, *server)
    assert (code, stderr) == (2, f"{frames} a gallery of products (photos) must hold images\n")
    assert not out[1].exists()
