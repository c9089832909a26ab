import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from training.datasets.images import AnnotatedImage, BoxAnnotation
from training.datasets.wab import read_part
from training.embedder import evaluate
from training.embedder.crops import prepare_crops
from training.embedder.evaluate import (
    embed_crops,
    fuse,
    main,
    replace_boxes_by_detections,
    retrieval_in_both_directions,
    retrieval_metrics,
)
from training.embedder.model import DEMO, Embedder, load_embedder, save_embedder


def test_retrieval_by_hand() -> None:
    queries = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    gallery = np.array([[0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    result = retrieval_metrics(queries, np.array([5, 6, 9]), gallery, np.array([6, 5, 6]))
    # query 5: ranks 6, 5 -> precision 1/2; query 6: ranks 6, 5, 6 -> (1 + 2/3) / 2; query 9 has no counterpart
    assert result == {"r1": 0.5, "r5": 1.0, "map": round((0.5 + 5 / 6) / 2, 4)}


def test_retrieval_in_blocks_is_that_at_once_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((2, 1000, 8)).astype(np.float32)
    query_ids, gallery_ids = rng.integers(0, 40, (2, 1000))
    at_once = retrieval_metrics(queries, query_ids, gallery, gallery_ids)
    monkeypatch.setattr(evaluate, "PAIRS_AT_A_TIME", 70_000, raising=False)  # the last block has 20 queries
    tracemalloc.start()
    assert retrieval_metrics(queries, query_ids, gallery, gallery_ids) == at_once
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4e6  # of 25e6 for all pairs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_embeddings_on_a_gpu_are_those_on_the_cpu(demo_world: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Embedder(DEMO["b5a"]).eval()
    crops = prepare_crops([demo_world], tmp_path, max_side_px=60)
    expected = embed_crops(model, crops)
    np.testing.assert_allclose(embed_crops(model.cuda(), crops), expected, atol=0.01)  # TF32


def test_fused_vectors_have_unit_length_and_the_mean_cosine() -> None:
    first, second = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.6, 0.8], [0.6, 0.8]])
    fused = fuse([first, second])
    assert fused @ fused.T == pytest.approx(np.array([[1.0, 0.5], [0.5, 1.0]]))


def test_a_garment_gets_the_detection_that_shows_it() -> None:
    def garment(instance_id: int, box: tuple[int, int, int, int]) -> BoxAnnotation:
        return BoxAnnotation(box, instance_id=instance_id)

    left, right, missed = garment(1, (0, 0, 100, 100)), garment(2, (100, 0, 200, 100)), garment(3, (300, 0, 400, 100))
    picture = AnnotatedImage("1", "0", Path("0.jpg"), None, (left, right, missed))
    boxes = np.array([[110.7, 3.2, 195.9, 99.9], [0, 0, 100, 60], [1, 1, 99.5, 98], [340, 0, 480, 100]], np.float32)
    found = replace_boxes_by_detections(picture, boxes).annotations
    assert [(a.instance_id, a.box) for a in found] == [(1, (1, 1, 99, 98)), (2, (110, 3, 195, 99))]
    assert replace_boxes_by_detections(picture, boxes[:0]).annotations == ()


def test_command_on_true_and_on_detected_boxes(
    demo_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Detections that are the annotations, but for one picture in five, must give what the annotations give there."""
    torch.manual_seed(0)
    for name in ("b5a", "b5b", "b6"):
        save_embedder(Embedder(DEMO[name]), tmp_path / f"embedder_{name}.pth")
    rows = [
        {
            "source": picture.item_id,
            "name": picture.name if picture.frame_index is None else "",
            "frame_index": -1 if picture.frame_index is None else picture.frame_index,
            "box": [float(edge) for edge in annotation.box],
        }
        for number, picture in enumerate(read_part(demo_world))
        if number % 5
        for annotation in picture.annotations
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "detections.parquet")
    command = ["--checkpoints", str(tmp_path), "--cache", str(tmp_path / "cache"), "--data", str(demo_world)]
    assert main(command) == 0
    true = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = ["embedder_b5a", "embedder_b5b", "embedder_b6"]
    pairs = [names[:2], names[::2], names[1:]]
    assert [line["models"] for line in true] == [[name] for name in names] + pairs + [names]
    assert main([*command, "--detections", str(tmp_path / "detections.parquet")]) == 0
    detected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    crops = prepare_crops([demo_world], tmp_path / "cache", max_side_px=240)
    seen = {(row["source"], row["name"] or f"f{row['frame_index']}") for row in rows}
    crops = [crop for crop in crops if (crop.item_id, crop.path.stem.rsplit("_", 1)[0]) in seen]
    assert 0 < len(crops) < true[0]["crops"]
    embeddings = {name: embed_crops(load_embedder(tmp_path / f"{name}.pth"), crops) for name in names}
    assert detected == [
        {
            "models": line["models"],
            "crops": len(crops),
            "found": round(len(crops) / line["crops"], 4),
            **retrieval_in_both_directions(fuse([embeddings[name] for name in line["models"]]), crops),
        }
        for line in true
    ]
    assert main([*command, str(tmp_path), "--detections", str(tmp_path / "detections.parquet")]) == 2
    assert "--detections needs a single part" in capsys.readouterr().err


def test_unusable_checkpoints_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("empty", "a", "b"):
        (tmp_path / folder).mkdir()
    files = [str(tmp_path / folder / "embedder_b6.pth") for folder in ("a", "b")]
    save_embedder(Embedder(DEMO["b6"]), tmp_path / "damaged.pth")
    (tmp_path / "damaged.pth").write_bytes(b"half")
    for checkpoints, message in (
        ([str(tmp_path / "empty")], "empty holds no embedder_*.pth"),
        (files, "embedder_b6;"),
        ([str(tmp_path / "missing.pth")], "missing.json"),
        ([str(tmp_path / "damaged.pth")], "damaged.pth is not a readable checkpoint"),
    ):
        assert main(["--checkpoints", *checkpoints, "--data", "nowhere", "--cache", "nowhere"]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith("training.embedder.evaluate: ") and message in error
