import os

import pytest

from livematch import DecodeError, InputError, read_frames, read_image
from livematch.media.sources import list_images, list_videos


def touch(directory, *names):
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_images_in_numeric_order(tmp_path):
    touch(tmp_path, "000021/10.jpg", "000021/2.png", "000021/b.webp", "000013/0.JPEG", "000013/.hidden", "loose.jpg")
    sources, failures = list_images(tmp_path)
    assert [source.key for source in sources] == [("000013", "0"), ("000021", "b"), ("000021", "2"), ("000021", "10")]
    assert failures == []


def test_images_in_folders_below_the_item_s_folder(tmp_path):
    touch(tmp_path, "a/front/1.jpg", "a/front/2.v2.jpg", "a/back/1.jpg", "a/1.jpg", "a/.thumbs/1.jpg", "b/x/y/z/1.jpg")
    touch(tmp_path, "a/front/1.png")
    (tmp_path / "a" / "back" / "loop").symlink_to(tmp_path / "a")
    sources, failures = list_images(tmp_path)
    assert [(source.key, source.path.relative_to(tmp_path).as_posix()) for source in sources] == [
        (("a", "back/1"), "a/back/1.jpg"),
        (("a", "front/2.v2"), "a/front/2.v2.jpg"),
        (("a", "front/1"), "a/front/1.jpg"),
        (("a", "1"), "a/1.jpg"),
        (("b", "x/y/z/1"), "b/x/y/z/1.jpg"),
    ]
    reason = f"{tmp_path}/a/front/1.png: another file has the same name"
    assert [(f.source, f.name, f.stage, f.reason) for f in failures] == [("a", "front/1", "list", reason)]


@pytest.mark.parametrize(
    ("list_sources", "names", "found"),
    [
        (list_images, [], "nothing"),
        (list_images, ["1.jpg"], "1 file, but no item folders"),
        (list_images, ["1.jpg", "2.jpg", ".hidden/1.jpg"], "2 files, but no item folders"),
        (list_videos, ["a/1.mp4", "b/1.mp4"], "2 folders, but no files"),
    ],
)
def test_a_folder_without_sources_is_refused(tmp_path, list_sources, names, found):
    touch(tmp_path, *names)
    with pytest.raises(InputError) as caught:
        list_sources(tmp_path)
    layout = "<item_id>/<photo>, or a CSV manifest item_id,path[,title,url]"
    layout = layout if list_sources is list_images else "<video_id>.mp4"
    assert str(caught.value) == f"{tmp_path} holds {found}: expected {tmp_path}/{layout}"


def test_videos(tmp_path):
    touch(tmp_path, "000013.mp4", "000021.mov", ".DS_Store", "folder/000034.mp4")
    sources, failures = list_videos(tmp_path)
    assert [source.key for source in sources] == [("000013", ""), ("000021", "")]
    assert sources[0].path == tmp_path / "000013.mp4"
    assert failures == []


def test_names_that_occur_twice_fail(tmp_path):
    touch(tmp_path / "image", "a/0.jpg", "a/0.png")
    touch(tmp_path / "video", "a.mov", "a.mp4")
    for list_sources, folder, lost in ((list_images, "image", "0.png"), (list_videos, "video", "a.mp4")):
        sources, failures = list_sources(tmp_path / folder)
        assert len(sources) == 1
        assert [lost in failure.reason for failure in failures] == [True]


def test_an_empty_item_fails(tmp_path):
    touch(tmp_path, "b/0.jpg")
    (tmp_path / "a").mkdir()
    sources, failures = list_images(tmp_path)
    assert [source.key for source in sources] == [("b", "0")]
    assert [(failure.source, failure.name) for failure in failures] == [("a", "")]


def test_a_path_that_cannot_be_accessed_does_not_stop_the_others(tmp_path):
    touch(tmp_path, "image/a/0.jpg", "video/a.mp4")
    for link in ("image/b", "image/c/1.jpg", "video/b.mp4"):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to("x" * 300)  # longer than a name can be, which is an error even for root
    sources, failures = list_images(tmp_path / "image")
    assert [source.key for source in sources] == [("a", "0"), ("c", "1")]
    assert [(f.source, f.name, f.stage, f.reason) for f in failures] == [
        ("b", "", "list", f"{tmp_path}/image/b: File name too long")
    ]
    with pytest.raises(DecodeError, match=r"c/1\.jpg: File name too long"):
        read_image(sources[1].path)
    sources, failures = list_videos(tmp_path / "video")
    assert ([source.key for source in sources], failures) == ([("a", ""), ("b", "")], [])
    with pytest.raises(DecodeError, match=r"b\.mp4: File name too long"):
        next(read_frames(sources[1].path))


def test_names_that_are_not_utf8_fail(tmp_path):
    bad, shown = os.fsdecode(b"\xc9\xcc"), "\ufffd\ufffd"  # one character in GBK
    touch(tmp_path / "image", "a/0.jpg", f"a/{bad}.jpg", f"b/{bad}.jpg", f"{bad}/0.jpg")
    touch(tmp_path / "video", "v.mp4", f"{bad}.mp4")
    sources, failures = list_images(tmp_path / "image")
    assert [source.key for source in sources] == [("a", "0")]
    assert [(f.source, f.name, f.stage) for f in failures] == [
        ("a", shown, "list"),
        ("b", shown, "list"),
        (shown, "", "list"),
    ]
    assert failures[0].reason == f"{tmp_path}/image/a/{shown}.jpg: the name is not UTF-8"
    sources, failures = list_videos(tmp_path / "video")
    assert [source.key for source in sources] == [("v", "")]
    assert [(f.kind, f.source, f.reason) for f in failures] == [
        ("video", shown, f"{tmp_path}/video/{shown}.mp4: the name is not UTF-8")
    ]


@pytest.mark.parametrize(("list_sources", "or_file"), [(list_images, " or CSV file"), (list_videos, "")])
def test_a_missing_folder_is_named(tmp_path, list_sources, or_file):
    with pytest.raises(InputError, match=rf"no such folder{or_file}: .*nowhere"):
        list_sources(tmp_path / "nowhere")


MANIFEST = """\
item_id,path,title,url,price
13,13/0.jpg,,,9.90
21,photos/blue/1.jpg,"Shirt, ""blue"", long",https://shop.example/21?a=1&b=2,19.90
13,13/back/0.png,红色短裙,,9.90
,,,,
21, {folder}/elsewhere/1.jpg ,,https://shop.example/21?a=1&b=2,19.90
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_manifest(tmp_path, encoding, newline):
    text = MANIFEST.format(folder=tmp_path).replace("\n", newline)
    (tmp_path / "photos.csv").write_bytes(text.encode(encoding))
    sources, failures = list_images(tmp_path / "photos.csv")
    url = "https://shop.example/21?a=1&b=2"
    assert [(source.key, source.path, source.title, source.url) for source in sources] == [
        (("13", "0"), tmp_path / "13/0.jpg", "红色短裙", ""),
        (("13", "back/0"), tmp_path / "13/back/0.png", "红色短裙", ""),
        (("21", "photos/blue/1"), tmp_path / "photos/blue/1.jpg", 'Shirt, "blue", long', url),
        (("21", f"{tmp_path}/elsewhere/1"), tmp_path / "elsewhere/1.jpg", 'Shirt, "blue", long', url),
    ]
    assert failures == []


def test_a_manifest_of_item_folders_names_the_images_as_the_folders_do(tmp_path):
    touch(tmp_path, "a/front/1.v2.jpg", "a/2.png", "b/1.jpg")
    listed = list_images(tmp_path)[0]
    rows = [f"{source.source},{source.path.relative_to(tmp_path)}\n" for source in listed]
    (tmp_path / "photos.csv").write_text("".join(["item_id,path\n", *rows]))
    assert list_images(tmp_path / "photos.csv") == (listed, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "1: no column item_id, path: expected a header item_id,path[,title,url], got nothing"),
        ("13,a.jpg\n", "1: no column item_id, path: expected a header item_id,path[,title,url], got 13,a.jpg"),
        ("Item_ID,file\n", "1: no column path: expected a header item_id,path[,title,url], got item_id,file"),
        ("item_id;path\n", "1: no column item_id, path: expected a header item_id,path[,title,url], got item_id;path"),
        ("item_id,path,Path\n13,a.jpg,b.jpg\n", "1: repeats the column path; keep one of each"),
        ("path,item_id\na.jpg,13\nb.jpg, \n", "3: item_id is empty"),
        ("item_id,path\n13,\n", "2: path is empty"),
        ("item_id,path,title\n13,a.jpg,Shirt, red\n", "2: 4 values for 3 columns; a value with a comma must be in"),
        ("item_id,path,title\n13,a.jpg\n", "2: 2 values for 3 columns"),
        ("item_id,path\n13,a/1.jpg\n14,a/1.jpg\n13,./a/1.png\n", "4: item 13 already has an image a/1, in line 2"),
        ("item_id,path,title\n13,a.jpg,\n13,b.jpg,A\n13,c.jpg,B\n", "4: item 13 has the title 'B', but 'A' in line 3"),
        ("item_id,path,url\n13,a.jpg,x\n13,b.jpg,y\n", "3: item 13 has the url 'y', but 'x' in line 2"),
        ('item_id,path\n13,"a.jpg\n14,b.jpg\n', "3: not CSV: unexpected end of data"),
        (b"item_id,path,title\n13,a.jpg,Hut\n13,b.jpg,\xc9\xcc\n", "3: not UTF-8; save the file as CSV in UTF-8"),
        (b"\xef\xbb\xbfitem_id,path\n\xff", "2: not UTF-8"),
    ],
)
def test_a_mistake_in_a_manifest_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "photos.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        list_images(path)
    assert str(caught.value).startswith(f"{path}:{message}")
    assert "\n" not in str(caught.value)


def test_a_manifest_without_rows_is_refused(tmp_path):
    (tmp_path / "photos.csv").write_text("item_id,path\n")
    with pytest.raises(InputError, match=r"photos\.csv: no images below the header"):
        list_images(tmp_path / "photos.csv")
