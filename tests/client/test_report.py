import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from livematch import InputError, read_image, read_truth
from livematch.failures import Failure
from livematch.report import PICTURE_WIDTH_PX, write_report
from livematch.results import Answer, BoxPair

PAIR = BoxPair("1", (20, 10, 60, 70), (10, 20, 40, 80))
RESULT = {
    "000013": Answer("000013", 200, (PAIR,)),
    "000021": Answer("000034", 40, (PAIR,)),
}


class Page(HTMLParser):
    """The elements of a page and their attributes; fails on a tag that is closed out of order."""

    VOID = ("meta", "link", "img", "br")

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
    write_report(path, result, images=part / "image", videos=part / "video", **options)
    return path.read_text(encoding="utf-8")


def test_a_page_with_truth(part, tmp_path):
    text = report(part, tmp_path, truth=read_truth(part), distances={"000013": 0.125, "000021": 0.75})
    page = Page(text)
    assert len(page.all("article")) == 2
    assert text.count('<span class="badge">S') == 3
    assert text.count("wrong item") == 1
    assert "distance 0.125" in text
    assert text.index("000013 → 000013") < text.index("000021 → 000034")  # the smaller distance first
    assert [circle["class"] for circle in page.all("circle")] == ["good", "bad"]
    # S1 to S3: one hit of two answers and three positive videos: F1 0.4
    assert text.count("<b>0.400</b>") == 4
    boxes = [(r["x"], r["y"], r["width"], r["height"]) for r in page.all("rect") if "class" not in r]
    assert boxes == [("10", "20", "30", "60"), ("20", "10", "40", "60")] * 2
    assert [r["class"] for r in page.all("rect") if "class" in r] == ["truth"] * 3  # none in frame 40 of 000021


def test_nothing_is_loaded_from_elsewhere_or_run(part, tmp_path):
    page = Page(report(part, tmp_path))
    sources = [image["src"] for image in page.all("img")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert page.all("script") == []
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert not any(re.search(r"url\(|@import|https?:", str(element)) for element in page.elements)


def test_what_did_not_match_is_listed(part, tmp_path):
    failures = [Failure("image", "000034", "7", "decode", "7.jpg: <truncated>")]
    text = report(part, tmp_path, failures=failures)
    assert "<li>000034</li>" in text.split("Clips")[1].split("Items")[0]
    assert "<li>000021</li>" in text.split("Items")[1]
    assert "7.jpg: &lt;truncated&gt;" in text
    assert "badge" not in text.split("</style>")[1]


def test_pictures_that_are_gone_do_not_stop_it(part, tmp_path):
    result = RESULT | {"000034": Answer("000077", 9000, (PAIR,)), "000055": Answer("000013", 0, (PAIR,))}
    text = report(part, tmp_path, result)
    assert "there is no frame 9000" in text
    assert "no image 000077/1" in text
    assert "no video 000055" in text
    assert len(Page(text).all("img")) == 5


def test_pictures_are_scaled_down(tmp_path, drawing):
    folder = tmp_path / "image" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "video").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, size=(1600, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "1.png")
    text = report(tmp_path, tmp_path, {"v": Answer("a", 0, (PAIR,))})
    data = re.search(r'base64,([^"]+)"', text)[1]
    import base64

    (tmp_path / "a.jpg").write_bytes(base64.b64decode(data))
    assert read_image(tmp_path / "a.jpg").shape == (480, PICTURE_WIDTH_PX, 3)
    assert 'viewBox="0 0 1200 1600"' in text  # boxes stay in pixels of the file


def test_an_empty_result(part, tmp_path):
    page = Page(report(part, tmp_path, {}, truth=read_truth(part)))
    assert page.all("article") == []
    assert len(page.all("li")) == 6


def test_a_missing_folder_is_named(part, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "r.html", RESULT, images=part / "nowhere", videos=part / "video")
