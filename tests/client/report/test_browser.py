"""The report in a real browser, since its script shows the matches and draws the histogram."""

import math
import random
import re
import shutil
import subprocess

import pytest

from livematch import read_ground_truth
from livematch.evaluation.results import Answer
from livematch.report.report import write_report
from livematch.types import Pair

CHROMIUM = shutil.which("chromium")
PAIR = Pair("1", (20, 10, 60, 70), (10, 20, 40, 80))
RESULT = {
    "000013": Answer("000013", 200, (PAIR,)),
    "000021": Answer("000034", 40, (PAIR,)),
}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture
def show(part, tmp_path):
    """Function that writes a report, opens it, runs `script` in it, and returns the page's elements as HTML."""

    def show(result=RESULT, *, script="", images=part / "image", **options):
        path = tmp_path / "report.html"
        write_report(path, result, images=images, videos=part / "video", **options)
        page = path.read_text(encoding="utf-8")
        path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        switches = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
        command = [CHROMIUM, *switches, "--dump-dom", path.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
        return re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)

    return show


def titles(dom: str) -> list[str]:
    return re.findall("<h3>(.*?)</h3>", dom)


def test_cards_and_histogram_with_truth(show, part):
    dom = show(truth=read_ground_truth(part), distances={"000013": 0.125, "000021": 0.75})
    assert titles(dom) == ["000013 → 000013", "000021 → 000034"]
    assert re.findall('class="badge( missed)?">(.*?)<', dom) == [
        *(("", "S1"), ("", "S2"), ("", "S3")),
        (" missed", "wrong item"),
    ]
    # The garment does not appear yet in frame 40 of 000021.
    assert [dom.count(f'<rect class="{kind}" x="') for kind in ("found", "truth")] == [4, 3]
    assert '<svg viewBox="0 0 64 96"' in dom
    assert '<rect class="found" x="10" y="20" width="30" height="60">' in dom
    bars = re.findall(r'<rect class="(right|wrong)" x="(.*?)%" y="(.*?)" width=".*?" height="(.*?)">', dom)
    assert [bar[0] for bar in bars] == ["right", "wrong"]
    assert float(bars[0][1]) < float(bars[1][1])
    assert bars[0][2:] == bars[1][2:] == ("18", "72")
    assert "Distances of 2 matches; the highest bar counts 1" in dom


def test_without_truth_and_distances_neither_levels_nor_a_histogram_are_shown(show):
    dom = show()
    assert titles(dom) == ["000013 → 000013", "000021 → 000034"]
    assert "badge" not in dom.split("</style>")[1]
    assert '<div id="histogram" class="strip" hidden="">' in dom
    assert 'id="kind"' not in dom
    assert dom.count('src="data:image/jpeg') == 4


@pytest.mark.parametrize("limit", [0.0, 4.5, math.inf])
def test_a_limit_outside_the_distances_is_marked_at_an_end(show, limit):
    dom = show(distances={"000013": -1e-7, "000021": min(limit, 4.0)}, limit=limit)
    assert f">limit {limit:g}</text>" in dom
    assert dom.count("<text") == (22 if limit else 2)  # 0.0, 0.2, ... 4.0 and the limit
    (x,) = re.findall(r'class="limit" x1="(.*?)%"', dom)
    assert float(x) == pytest.approx(1 + 98 / 1.05 if limit else 1, abs=0.01)


def test_names_are_shown_as_text(show):
    name = "</script><b id='broken'>&'\"<!--"
    dom = show({name: Answer(name, 0, (PAIR,))})
    assert "<b id" not in dom.split("</style>")[1]
    assert dom.count("&lt;/script&gt;&lt;b id='broken'&gt;&amp;'\"&lt;!-- → &lt;/script&gt;") == 1


def test_titles_are_links_and_can_be_searched(show, part, tmp_path):
    rows = [
        f'000013,{part}/image/000013/1.jpg,"<i>Red, long",https://shop.example/?a=1&b=2',
        f"000034,{part}/image/000034/1.jpg,Blue,javascript:alert(1)",
    ]
    (tmp_path / "photos.csv").write_text("\n".join(["item_id,path,title,url", *rows]))
    red = '<a class="title" href="https://shop.example/?a=1&amp;b=2" rel="noreferrer">&lt;i&gt;Red, long</a>'
    dom = show(images=tmp_path / "photos.csv")
    assert red in dom
    assert '<span class="title">Blue</span>' in dom
    dom = show(images=tmp_path / "photos.csv", script='$("search").value = "red"; showPage();')
    assert titles(dom) == ["000013 → 000013"]


def test_forty_thousand_matches_are_searched_sorted_and_shown_by_the_page(show):
    result = {f"{number:06d}": RESULT["000013"] for number in range(40_000)}
    rng = random.Random(0)
    distances = {video_id: rng.random() for video_id in result}
    nearest = sorted(result, key=distances.__getitem__)

    turn = 'document.querySelector(".next").click();'
    # Keep what the third page shows, since the steps below replace it.
    keep = 'document.body.append(make("pre", "", $("tools").textContent + $("cards").textContent));'
    farthest = '$("order").value = "farthest"; $("order").dispatchEvent(new Event("input"));'
    search = '$("search").value = " 0399 000013 "; $("search").dispatchEvent(new Event("input"));'
    script = turn * 2 + keep + farthest + search
    dom = show(result, distances=distances, num_pictured=0, script=script)

    third_page = dom.split("<pre>")[1]
    assert "49–72 of 40000" in third_page
    assert re.findall("([0-9]{6}) →", third_page) == nearest[48:72]
    found = [video_id for video_id in nearest[::-1] if "0399" in video_id]
    assert dom.count(f"</button><span>1–24 of {len(found)}</span>") == 2
    assert titles(dom) == [f"{video_id} → 000013" for video_id in found[:24]]
