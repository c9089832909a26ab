import pytest

from livematch import Client, InputError, MatchOptions, read_ground_truth, read_result
from livematch.pipeline.run import run


def test_a_program_can_run_it_with_paths_as_strings(part, tmp_path, loopback_server):
    with Client(loopback_server.url) as client:
        folders = str(part / "image"), str(part / "video"), str(tmp_path / "out")
        summary = run(client, *folders, truth=read_ground_truth(str(part)), frames=range(0, 400, 40))
        assert {match.video_id: match.item_id for match in summary.matches} == {
            video_id: video_id for video_id in ("000013", "000021", "000034")
        }
        assert summary.score is not None
        assert summary.score.final == pytest.approx(1)
        assert (summary.images.num_boxes, summary.videos.num_boxes, summary.failures) == (12, 21, [])
        assert read_result(str(tmp_path / "out" / "result.json")).keys() == {"000013", "000021", "000034"}

        num_requests = sum(loopback_server.num_requests.values())
        again = run(client, *folders, frames=range(0, 400, 40), match_options=MatchOptions(limit=0.0))
        assert sum(loopback_server.num_requests.values()) == num_requests
        assert (again.images.num_resumed, again.videos.num_resumed) == (12, 3)
        assert (again.matches, again.score) == ([], None)


def test_failures_of_both_folders_are_collected(tmp_path, drawing, loopback_server):
    drawing.write_part(tmp_path)
    (tmp_path / "image" / "000013" / "2.jpg").write_bytes(b"")
    (tmp_path / "video" / "000034.mp4").write_bytes(b"no video")
    with Client(loopback_server.url) as client:
        summary = run(client, tmp_path / "image", tmp_path / "video", tmp_path / "out")
        assert [(f.kind, f.source, f.name) for f in summary.failures] == [
            ("image", "000013", "2"),
            ("video", "000034", ""),
        ]
        assert "000034.mp4: not a readable video" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_missing_folder_and_too_little_memory_are_refused(part, tmp_path, loopback_server):
    with Client(loopback_server.url) as client:
        with pytest.raises(InputError, match="no such folder"):
            run(client, tmp_path / "nowhere", part / "video", tmp_path / "out")
        with pytest.raises(InputError, match="memory"):
            run(client, part / "image", part / "video", tmp_path / "out", frames=range(200, 201), memory_bytes=1)
