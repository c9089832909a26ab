import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.color_histogram import NUM_BINS, color_histogram, main


def plain(color: tuple[int, int, int]) -> np.ndarray:
    return np.full((20, 30, 3), color, np.uint8)


def test_a_histogram_has_unit_length():
    noise = np.random.default_rng(0).integers(0, 256, size=(33, 47, 3), dtype=np.uint8)
    histogram = color_histogram(noise)
    assert (histogram.shape, histogram.dtype) == ((np.prod(NUM_BINS),), np.float32)
    assert np.linalg.norm(histogram) == pytest.approx(1, abs=1e-6)


def test_a_plain_colour_falls_into_its_bins():
    """Hue 0 lies between the last bin and the first; saturation and value 255/256 are past their last centres."""
    histogram = color_histogram(plain((255, 0, 0))).reshape(NUM_BINS)
    assert histogram[0, -1, -1] ** 2 == pytest.approx(0.5)
    assert histogram[-1, -1, -1] ** 2 == pytest.approx(0.5)


def test_close_colours_are_nearer_than_others():
    red, dark_red, blue = (color_histogram(plain(color)) for color in ((220, 30, 30), (190, 30, 30), (30, 30, 220)))
    assert red @ dark_red > 0.5 > 0.1 > red @ blue


def write_part(directory, drawn):
    """Items `drawn`: id to colour; each with four images and one clip's annotated frames of that colour."""
    import av

    box = [8, 8, 40, 56]
    annotations = [{"label": "短裙", "viewpoint": 0, "display": 1, "instance_id": 7, "box": box}]
    for folder in ("video", "video_annotation"):
        (directory / folder).mkdir(parents=True)
    for item_id, color in drawn.items():
        for folder in ("image", "image_annotation"):
            (directory / folder / item_id).mkdir(parents=True)
        image = np.full((64, 48, 3), 255, np.uint8)
        for k in range(4):
            image[8:56, 8:40] = np.array(color) + 3 * k
            Image.fromarray(image).save(directory / "image" / item_id / f"{k}.jpg", quality=95)
            content = json.dumps({"annotations": annotations})
            (directory / "image_annotation" / item_id / f"{k}.json").write_text(content)
        with av.open(str(directory / "video" / f"{item_id}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "10"})
            stream.width, stream.height, stream.pix_fmt = 48, 64, "yuv420p"
            for _ in range(121):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        frames = [{"frame_index": index, "annotations": annotations} for index in (0, 40, 80, 120)]
        (directory / "video_annotation" / f"{item_id}.json").write_text(json.dumps({"frames": frames}))


def test_items_of_different_colours_are_found(tmp_path, capsys):
    write_part(tmp_path, {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200)})
    assert main(["--data", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    summary = json.loads(line)
    assert (summary["s1_f1"], summary["final"]) == (1.0, pytest.approx(1.0))
    assert (summary["num_items"], summary["num_image_boxes"], summary["num_frame_boxes"]) == (3, 12, 6)


def test_items_of_one_colour_are_not_told_apart(tmp_path, capsys):
    write_part(tmp_path, {"a": (200, 30, 30), "b": (200, 30, 30), "c": (200, 30, 30)})
    main(["--data", str(tmp_path)])
    assert json.loads(capsys.readouterr().out)["s1_f1"] <= 0.5
