import json

import pytest

from livematch import Client, InputError, MatchOptions, read_ground_truth, read_result
from livematch.pipeline.run import run

ITEMS = ("000013", "000021", "000034")


def test_a_program_can_run_it_with_paths_as_strings(part, tmp_path, loopback_server):
    with Client(loopback_server.url) as client:
        folders = str(part / "image"), str(part / "video"), str(tmp_path / "out")
        summary = run(client, *folders, truth=read_ground_truth(str(part)), frames=range(0, 400, 40))
        assert {match.video_id: match.item_id for match in summary.matches} == {item_id: item_id for item_id in ITEMS}
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


def test_a_manifest_gives_titles_also_to_photos_embedded_before(part, tmp_path, loopback_server):
    rows = [f"{path.parent.name},{path},," for path in sorted((part / "image").glob("*/*.jpg"))]
    manifest = tmp_path / "photos.csv"
    manifest.write_text("\n".join(["item_id,path,title,url", *rows]))
    with Client(loopback_server.url) as client:
        summary = run(client, manifest, part / "video", tmp_path / "out", frames=range(200, 201))
        assert [(match.item_id, match.title) for match in summary.matches] == [(k, "") for k in ITEMS]
        assert summary.images.num_stored == 12

        rows += ["000013,nowhere.jpg,Skirt,https://shop.example/13"]
        manifest.write_text("\n".join(["item_id,path,title,url", *rows]))
        loopback_server.num_requests["recognize_image"] = 0
        summary = run(client, manifest, part / "video", tmp_path / "out", frames=range(200, 201))
        assert loopback_server.num_requests["recognize_image"] == 0
    failure = ("image", "000013", "nowhere", "decode", f"{tmp_path}/nowhere.jpg: no such file")
    assert [(f.kind, f.source, f.name, f.stage, f.reason) for f in summary.failures] == [failure]
    matches = json.loads((tmp_path / "out" / "matches.json").read_text())
    shown = {match["item_id"]: (match["title"], match["url"]) for match in matches["matches"]}
    assert shown == {"000013": ("Skirt", "https://shop.example/13"), "000021": ("", ""), "000034": ("", "")}
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {key for answer in result.values() for key in answer} == {"item_id", "frame_index", "result"}
    assert result["000013"]["result"][0]["img_name"].startswith(f"{part}/image/000013/")
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '"title": "Skirt"' in report
    assert "no image" not in report


def test_a_missing_folder_and_too_little_memory_are_refused(part, tmp_path, loopback_server):
    with Client(loopback_server.url) as client:
        with pytest.raises(InputError, match="no such folder"):
            run(client, tmp_path / "nowhere", part / "video", tmp_path / "out")
        with pytest.raises(InputError, match="memory"):
            run(client, part / "image", part / "video", tmp_path / "out", frames=range(200, 201), memory_bytes=1)
