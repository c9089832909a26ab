import inspect
import json
import signal
import socket
import subprocess
import sys
import time

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livematch import CatalogueOptions, Client, MatchOptions
from livematch.cli.arguments import parse_arguments
from livematch.cli.main import _match_options, main
from livematch.matching.nearest import DEFAULT_MEMORY_BYTES
from livematch.media.videos import DEFAULT_FRAMES
from livematch.pipeline.failures import read_failures
from livematch.pipeline.watch import watch
from livematch.report.report import NUM_PICTURED
from tests.client.cli.command import run_command


def error_lines(stderr: str) -> list[str]:
    """What is on stderr besides progress bars."""
    return [line for line in stderr.splitlines() if line.startswith("livematch:")]


def run_options(part, out, server, *more):
    return ("run", "--images", part / "image", "--videos", part / "video", "-o", out, "--server", server.url, *more)


def test_run_with_truth(part, tmp_path, loopback_server, capsys):
    code, summary, _ = run_command(capsys, *run_options(part, tmp_path, loopback_server, "--truth", part))
    assert code == 0
    images = summary["images"]
    assert images["sources_per_s"] == pytest.approx(12 / images["elapsed_s"], rel=0.1)
    del images["sources_per_s"], images["elapsed_s"]
    assert images == {"num_stored": 12, "num_resumed": 0, "num_boxes": 12, "num_failures": 0}
    assert summary["videos"]["num_boxes"] == 42
    assert (summary["num_matches"], summary["num_failures"], summary["score"]["final"]) == (3, 0, pytest.approx(1))
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert names == [
        "failures.parquet",
        "features/images.parquet",
        "features/videos.parquet",
        "matches.json",
        "report.html",
        "result.json",
        "score.json",
    ]
    result = json.loads((tmp_path / "result.json").read_text())
    assert {video: answer["item_id"] for video, answer in result.items()} == {v: v for v in result}
    assert len(result) == 3
    assert json.loads((tmp_path / "score.json").read_text())["s3"]["f1"] == 1
    assert read_failures(tmp_path / "failures.parquet") == []


def test_run_without_truth_writes_a_report_and_no_score(part, tmp_path, loopback_server, capsys):
    code, summary, _ = run_command(capsys, *run_options(part, tmp_path, loopback_server))
    assert code == 0
    assert "score" not in summary
    assert not (tmp_path / "score.json").exists()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(video_id in page for video_id in ("000013", "000021", "000034"))
    assert "data:image/jpeg;base64," in page


def test_run_with_damaged_sources(tmp_path, drawing, loopback_server, capsys):
    drawing.write_part(tmp_path)
    (tmp_path / "image" / "000013" / "2.jpg").write_bytes(b"")
    (tmp_path / "video" / "000034.mp4").write_bytes(b"no video")
    options = run_options(tmp_path, tmp_path / "out", loopback_server, "--truth", tmp_path)
    code, summary, stderr = run_command(capsys, *options)
    assert (code, summary["num_failures"], summary["num_matches"]) == (3, 2, 2)
    assert [line.split(": ")[1].rsplit("/", 1)[1] for line in error_lines(stderr)] == ["2.jpg", "000034.mp4"]
    failures = read_failures(tmp_path / "out" / "failures.parquet")
    assert [(f.kind, f.source, f.name, f.stage) for f in failures] == [
        ("image", "000013", "2", "decode"),
        ("video", "000034", "", "decode"),
    ]
    code, summary, stderr = run_command(capsys, *options, "--strict")
    assert (code, summary) == (2, {})
    assert len(error_lines(stderr)) == 1
    assert "2.jpg: the file is empty" in stderr


def test_the_single_commands_write_the_same_files_as_run(part, tmp_path, loopback_server, capsys):
    frames, limit = ("--frames", "0:400:40"), ("--limit", "0.9")
    run_command(capsys, *run_options(part, tmp_path / "run", loopback_server, "--truth", part, *frames, *limit))
    out = tmp_path / "steps"
    server = ("--server", loopback_server.url)
    folders = ("--images", part / "image", "--videos", part / "video")
    features = ("--queries", out / "images.parquet", "--gallery", out / "videos.parquet")
    result, matches, page = (out / name for name in ("result.json", "matches.json", "report.html"))
    steps = [
        ("embed", *folders[:2], "-o", out / "images.parquet", *server),
        ("embed", *folders[2:], "-o", out / "videos.parquet", *frames, *server),
        ("match", *features, "-o", result, "--matches", matches, *limit),
        ("evaluate", "--result", result, "--truth", part, "-o", out / "score.json"),
        ("report", "--result", result, *folders, "--truth", part, "--matches", matches, *limit, "-o", page),
    ]
    for step in steps:
        assert run_command(capsys, *step)[0] == 0
    for name in ("result.json", "matches.json", "score.json", "report.html"):
        assert (out / name).read_text() == (tmp_path / "run" / name).read_text()


def test_embed_writes_failures(tmp_path, loopback_server, capsys):
    (tmp_path / "image" / "a").mkdir(parents=True)
    (tmp_path / "image" / "a" / "0.jpg").write_bytes(b"")
    command = ("embed", "--images", tmp_path / "image", "-o", tmp_path / "f.parquet", "--server", loopback_server.url)
    code, summary, _ = run_command(capsys, *command, "--failures", tmp_path / "failures.parquet")
    assert (code, summary["num_failures"], summary["num_boxes"]) == (3, 1, 0)
    assert read_failures(tmp_path / "failures.parquet")[0].source == "a"


def write_features(path, sources, embeddings, **metadata):
    num_rows = len(sources)
    content = {
        "source": sources,
        "name": [str(k) for k in range(num_rows)],
        "frame_index": pa.array([80] * num_rows, pa.int32()),
        "box": [[1.5, 2.5, 30.5, 40.5]] * num_rows,
        "score": pa.array(np.linspace(0.9, 1, num_rows), pa.float32()),
        "embedding": pa.array(np.asarray(embeddings).tolist(), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(content).replace_schema_metadata(metadata or None), path)


def test_match_accepts_files_of_other_tools_with_a_warning(tmp_path, capsys):
    angles = np.array([0.1, 0.2, 0.3, 0.4])
    write_features(tmp_path / "q.parquet", ["item"] * 4, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    write_features(tmp_path / "g.parquet", ["clip"], [[1.0, 0.0]])
    command = ("match", "--queries", tmp_path / "q.parquet", "--gallery", tmp_path / "g.parquet")
    code, summary, stderr = run_command(capsys, *command, "-o", tmp_path / "result.json")
    assert (code, summary) == (0, {"num_matches": 1})
    assert "identity" in stderr
    pair = {"img_name": "0", "item_box": [1, 2, 30, 40], "frame_box": [1, 2, 30, 40]}
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "clip": {"item_id": "item", "frame_index": 80, "result": [pair]}
    }
    code, summary, _ = run_command(capsys, *command, "-o", tmp_path / "result.json", "--limit", "0.001")
    assert (code, summary) == (4, {"num_matches": 0})


def test_match_refuses_features_of_different_models(tmp_path, capsys):
    for name in ("q", "g"):
        write_features(tmp_path / name, ["x"], [[1.0, 0.0]], **{"livematch:model_identity": f"models-{name}"})
    command = ("match", "--queries", tmp_path / "q", "--gallery", tmp_path / "g", "-o", tmp_path / "result.json")
    code, _, stderr = run_command(capsys, *command)
    assert code == 2
    assert "models-q" in stderr
    assert "models-g" in stderr
    assert not (tmp_path / "result.json").exists()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("match --queries nowhere.parquet --gallery g -o r.json", "nowhere.parquet: no such features file"),
        ("evaluate --result r.json --truth nowhere", "r.json: cannot be read"),
        ("serve --repository nowhere --grpc-port 0 --http-port 0 --metrics-port 0", "no model repository at nowhere"),
        (
            "serve --repository . --http-port 0 --grpc-port 70000",
            "gRPC port 70000 on 127.0.0.1 cannot be used: ports are 0 to 65535",
        ),
        (
            "embed --images image -o f.parquet --tls-cert c.pem",
            "certificate and its private key together, got only c",
        ),
        ("embed --images image -o f.parquet --tls-key k.pem", "certificate and its private key together, got only k"),
        ("embed --images image -o f.parquet --repository nowhere", "no model repository at nowhere"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image" / "000013").mkdir(parents=True)
    code, summary, stderr = run_command(capsys, *command.split())
    assert (code, summary) == (2, {})
    assert stderr.splitlines() == error_lines(stderr)
    assert len(stderr.splitlines()) == 1
    assert message in stderr


def test_a_missing_folder_is_one_line(tmp_path, loopback_server, capsys):
    code, _, stderr = run_command(
        capsys, "embed", "--images", tmp_path / "nowhere", "-o", tmp_path / "f", "--server", loopback_server.url
    )
    assert (code, len(stderr.splitlines())) == (2, 1)
    assert "no such folder" in stderr


def test_a_missing_server_is_one_line(part, tmp_path, capsys):
    command = ("embed", "--images", part / "image", "-o", tmp_path / "f", "--server", f"127.0.0.1:{free_port()}")
    code, _, stderr = run_command(capsys, *command, "--max-tries", "1")
    assert (code, len(stderr.splitlines())) == (2, 1)
    assert "no answer from the server at 127.0.0.1:" in stderr


def test_a_server_that_dies_is_one_line(part, tmp_path, loopback_server, capsys):
    loopback_server.faults_from = 4
    options = run_options(part, tmp_path, loopback_server, "--concurrency", "1", "--max-tries", "2")
    code, summary, stderr = run_command(capsys, *options)
    assert (code, summary) == (2, {})
    assert "3 sources are stored, the next run resumes there" in error_lines(stderr)[-1]
    assert "Traceback" not in stderr
    loopback_server.faults_from = None
    code, summary, _ = run_command(capsys, *run_options(part, tmp_path, loopback_server))
    assert (code, summary["images"]["num_resumed"], summary["num_matches"]) == (0, 3, 3)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--frames", ["80:400", "0:0:1", "-20:80:20", "80:400:0", "a:b:c"]),
        ("--shard", ["1", "2/2", "-1/2", "0/0", "a/b"]),
        ("--concurrency", ["0", "-1", "x"]),
    ],
)
def test_invalid_options_are_refused(tmp_path, capsys, option, values):
    for value in values:
        with pytest.raises(SystemExit, match="2"):
            main(["embed", "--videos", str(tmp_path), "-o", "f.parquet", f"{option}={value}"])
        assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "embed --images i -o .",
        "embed --images i -o folder",
        "embed --images i -o f.parquet --failures folder/",
        f"embed --images i -o {'x' * 300}",
        "match --queries q --gallery g -o .",
        "match --queries q --gallery g -o r.json --matches folder",
        "evaluate --result r --truth t -o folder",
        "report --result r --images i --videos v -o folder",
    ],
)
def test_a_folder_is_refused_as_an_output_file(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(("got the folder '.'", "got the folder 'folder'", "got the folder 'folder/'", "File name too long"))
    )


@pytest.mark.parametrize("text", ["nan", "-1", "x"])
def test_invalid_numbers_are_refused(capsys, text):
    report = ("report", "--result", "r", "--images", "i", "--videos", "v", "-o", "h", f"--limit={text}")
    for command in (report, ("serve", "--repository", "r", f"--exit-timeout={text}")):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        assert f"{command[-1].split('=')[0]}: expected a number" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("text", ["800", "G", "1.5G", "-1G", "2K"])
def test_an_invalid_memory_size_is_refused(capsys, text):
    with pytest.raises(SystemExit, match="2"):
        main(["match", "--queries", "q", "--gallery", "g", "-o", "r", f"--memory={text}"])
    assert "--memory" in capsys.readouterr().err


def test_defaults_are_those_of_the_package():
    """Defaults are written down twice, because options are parsed before the package is imported."""
    match = parse_arguments(["match", "--queries", "q", "--gallery", "g", "-o", "r"])
    assert _match_options(match) == CatalogueOptions()
    contest = parse_arguments(["match", "--rule", "contest", "--queries", "q", "--gallery", "g", "-o", "r"])
    assert _match_options(contest) == MatchOptions()
    assert match.memory == DEFAULT_MEMORY_BYTES
    assert parse_arguments(["embed", "--videos", "v", "-o", "f"]).frames == DEFAULT_FRAMES
    report = parse_arguments(["report", "--result", "r", "--images", "i", "--videos", "v", "-o", "h"])
    assert (report.limit, report.pictures) == (MatchOptions.limit, NUM_PICTURED)
    options = parse_arguments(["watch", "--video", "v", "--gallery", "g"])
    defaults = inspect.signature(watch).parameters
    assert options.every == defaults["every"].default
    assert _match_options(options) == CatalogueOptions()
    defaults = inspect.signature(Client).parameters
    for option in ("max_tries", "crop_scale", "min_score"):
        assert getattr(options, option) == defaults[option].default


def test_matching_options_are_checked_before_anything_is_embedded(part, tmp_path, loopback_server, capsys):
    code, _, stderr = run_command(capsys, *run_options(part, tmp_path, loopback_server, "--min-evidence", "2"))
    assert (code, stderr) == (2, "livematch: min_evidence must be more than 0 and at most 1, got 2.0\n")
    code, _, stderr = run_command(capsys, *run_options(part, tmp_path, loopback_server, "--pairs", "2"))
    assert (code, stderr) == (2, "livematch: --pairs is an option of --rule contest\n")
    rule = ("--rule", "contest", "--window", "2")
    code, _, stderr = run_command(capsys, *run_options(part, tmp_path, loopback_server, *rule))
    assert (code, stderr) == (2, "livematch: --window is an option of --rule catalogue\n")
    assert sum(loopback_server.num_requests.values()) == 0


def test_shards_and_pairs(part, tmp_path, loopback_server, capsys):
    server = ("--server", loopback_server.url)
    for kind, folder in (("images", part / "image"), ("videos", part / "video")):
        for index in range(2):
            output = tmp_path / f"{kind}{index}"
            command = ("embed", f"--{kind}", folder, "-o", output, "--shard", f"{index}/2", *server)
            assert run_command(capsys, *command)[0] == 0
    files = [[tmp_path / f"{kind}{index}" for index in range(2)] for kind in ("images", "videos")]
    command = ("match", "--queries", *files[0], "--gallery", *files[1], "-o", tmp_path / "result.json")
    options = ("--rule", "contest", "--pairs", "3", "--quantile", "0.9", "--memory", "16G")
    code, summary, _ = run_command(capsys, *command, *options)
    assert (code, summary) == (0, {"num_matches": 3})
    result = json.loads((tmp_path / "result.json").read_text())
    assert [answer["item_id"] for answer in result.values()] == list(result)
    assert max(len(answer["result"]) for answer in result.values()) > 1


@pytest.mark.parametrize("trouble", ["none", "no answers", "refusals"])
def test_interrupted_run_ends_cleanly_and_at_once(part, tmp_path, loopback_server, trouble):
    loopback_server.delay_s = {"none": 0.2, "no answers": 100, "refusals": 0}[trouble]
    loopback_server.faults_from = 3 if trouble == "refusals" else None
    command = [str(c) for c in run_options(part, tmp_path, loopback_server)]
    # Background jobs of a shell ignore SIGINT. It is set in the program: with preexec_fn, Python forks while the fake
    # server's gRPC threads run, which gRPC answers with SIGABRT at times.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from livematch.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True)
    while loopback_server.num_requests["recognize_image"] < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=20)[1]  # all tries would take 47 s
    assert process.returncode == 130
    *warnings, last = error_lines(stderr)
    assert last == "livematch: interrupted"
    assert all(trouble == "refusals" and "trying again: a fault" in warning for warning in warnings)
    assert "Traceback" not in stderr


def test_refused_images_do_not_stop_a_run(part, tmp_path, loopback_server, capsys):
    loopback_server.faults = [grpc.StatusCode.INVALID_ARGUMENT]
    code, summary, _ = run_command(capsys, *run_options(part, tmp_path, loopback_server))
    assert (code, summary["num_failures"], summary["num_matches"]) == (3, 1, 3)


def test_serve_passes_further_options_to_tritonserver(monkeypatch):
    monkeypatch.setenv("LIVEMATCH_KEY", "from the environment")
    options = parse_arguments(["serve", "--repository", "r", "--", "--grpc-use-ssl=true", "--grpc-server-cert=c"])
    assert options.triton_options == ["--grpc-use-ssl=true", "--grpc-server-cert=c"]
    assert options.key == "from the environment"
    assert parse_arguments(["serve", "--repository", "r"]).triton_options == []
