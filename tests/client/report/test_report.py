import base64
import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from livematch import InputError, read_ground_truth, read_image
from livematch.evaluation.results import Answer
from livematch.report import report as report_module
from livematch.report.report import IMAGE_WIDTH_PX, write_report
from livematch.types import Failure, Pair

PAIR = Pair("1", (20, 10, 60, 70), (10, 20, 40, 80))
RESULT = {
    "000013": Answer("000013", 200, (PAIR,)),
    "000021": Answer("000034", 40, (PAIR,)),
}


class Page(HTMLParser):
    """Parser that collects the elements of a page, and fails on a tag closed out of order."""

    VOID = ("meta", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(part, tmp_path, result=RESULT, **options) -> str:
    path = tmp_path / "new" / "report.html"
    write_report(str(path), result, images=str(part / "image"), videos=str(part / "video"), **options)
    return path.read_text(encoding="utf-8")


def data(text: str) -> dict:
    """Return the JSON in the page, which its script shows."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def entries(text: str) -> list[dict]:
    return data(text)["matches"]


def test_matches_with_truth(part, tmp_path):
    text = report(part, tmp_path, truth=read_ground_truth(part), distances={"000013": 0.125, "000021": 0.75})
    right, wrong = entries(text)
    assert [(m["video_id"], m["item_id"], m["distance"], m["level"]) for m in (right, wrong)] == [
        ("000013", "000013", 0.125, 3),
        ("000021", "000034", 0.75, 0),
    ]
    frame, photo = right["figures"]
    assert (frame["width"], frame["height"], frame["boxes"]) == (64, 96, [[10, 20, 40, 80]])
    assert (photo["width"], photo["height"], photo["boxes"]) == (96, 80, [[20, 10, 60, 70]])
    # The garment does not appear yet in frame 40 of 000021.
    assert [len(figure["truth"]) for m in (right, wrong) for figure in m["figures"]] == [1, 1, 0, 1]
    # S1 to S3: one hit of two answers and three positive videos: F1 0.4
    assert text.count("<b>0.400</b>") == 4


def test_nothing_is_loaded_from_elsewhere(part, tmp_path):
    text = report(part, tmp_path)
    page = Page(text)
    sources = [figure["src"] for match in entries(text) for figure in match["figures"]]
    assert len(sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all("src" not in script for script in page.all("script"))
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert not re.search(r"url\(|@import|https?:", text)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_images_of_further_matches_are_files_beside_the_page(part, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "NUM_EMBEDDED", 1)
    matches = entries(report(part, tmp_path, num_pictured=2, result=RESULT | {"000034": RESULT["000013"]}))
    assert matches[0]["figures"][0]["src"].startswith("data:")
    assert [figure["src"] for figure in matches[1]["figures"]] == ["report_pictures/1_0.jpg", "report_pictures/1_1.jpg"]
    assert matches[2]["figures"] == []
    assert read_image(tmp_path / "new" / "report_pictures" / "1_0.jpg").shape == (96, 64, 3)


def test_names_cannot_break_the_page(part, tmp_path):
    name = "</script><b>&'\"<!--"
    text = report(part, tmp_path, {name: Answer(name, 0, (PAIR,))})
    assert entries(text)[0]["video_id"] == name
    assert name not in text
    assert len(Page(text).all("script")) == 2


def test_titles_are_shown_and_only_web_addresses_are_linked(part, tmp_path):
    title = "</script><b>Skirt</b> & 'top' \"red\""
    url = "https://shop.example/?a=1&b='\"><script>alert(1)</script>"
    rows = [
        ("000013", f"{part}/image/000013/1.jpg", title, url),
        ("000034", f"{part}/image/000034/1.jpg", "Skirt", " JavaScript:alert(1)"),
        ("000041", f"{part}/image/000013/1.jpg", title, url),
        ("000042", f"{part}/image/000013/1.jpg", "", "HTTP://shop.example/42"),
        ("000043", f"{part}/image/000013/1.jpg", title, "javascript:alert(1)//https://shop.example"),
    ]
    with (tmp_path / "photos.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("item_id", "path", "title", "url"), *rows])
    write_report(tmp_path / "r.html", RESULT, images=tmp_path / "photos.csv", videos=part / "video")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert [(match["title"], match["url"]) for match in entries(text)] == [(title, url), ("Skirt", "")]
    # The manifest's names are paths, so that the images of RESULT, of item folders, are not found.
    assert [match["figures"][1].get("error") for match in entries(text)] == ["no image 000013/1", "no image 000034/1"]
    page = Page(text)
    assert [link["href"] for link in page.all("a")] == [url, "HTTP://shop.example/42"]
    assert len(page.all("script")) == 2
    assert page.all("b")[0] == {}
    assert text.count("Skirt&lt;/b&gt; &amp; &#39;top&#39; &#34;red&#34;") == 2  # items 41 and 43, which have no match
    assert 'href="HTTP://shop.example/42" rel="noreferrer">HTTP://shop.example/42</a></li>' in text
    assert "<b>Skirt" not in text
    assert "javascript:" not in text.lower()


def test_clips_and_items_without_a_match_are_listed(part, tmp_path):
    failures = [Failure("image", "000034", "7", "decode", "7.jpg: <truncated>")]
    text = report(part, tmp_path, failures=failures)
    assert "<li>000034</li>" in text.split("<summary>Clips")[1].split("<summary>Items")[0]
    assert "<li>000021</li>" in text.split("<summary>Items")[1]
    assert "<td>000034 7</td><td>decode</td><td>7.jpg: &lt;truncated&gt;</td>" in text
    assert [match["level"] for match in entries(text)] == [None, None]


def test_unreadable_images_are_replaced_by_their_errors(part, tmp_path):
    result = RESULT | {"000034": Answer("000077", 9000, (PAIR,)), "000055": Answer("000013", 0, (PAIR,))}
    figures = [figure for match in entries(report(part, tmp_path, result)) for figure in match["figures"]]
    errors = [figure["error"] for figure in figures if "error" in figure]
    assert "there is no frame 9000" in errors[0]
    assert errors[1:] == ["no image 000077/1", "no video 000055"]
    assert len([figure for figure in figures if "src" in figure]) == 5


def test_images_are_scaled_down(tmp_path):
    folder = tmp_path / "image" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "v.mp4").touch()
    noise = np.random.default_rng(0).integers(0, 256, size=(1600, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "1.png")
    photo = entries(report(tmp_path, tmp_path, {"v": Answer("a", 0, (PAIR,))}))[0]["figures"][1]
    (tmp_path / "a.jpg").write_bytes(base64.b64decode(photo["src"].split(",")[1]))
    assert read_image(tmp_path / "a.jpg").shape == (480, IMAGE_WIDTH_PX, 3)
    assert (photo["width"], photo["height"]) == (1200, 1600)  # boxes are in pixels of the file


def test_an_empty_result(part, tmp_path):
    text = report(part, tmp_path, {}, truth=read_ground_truth(part))
    assert entries(text) == []
    assert len(Page(text).all("li")) == 6


def test_a_missing_folder_is_named(part, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "r.html", RESULT, images=part / "nowhere", videos=part / "video")
