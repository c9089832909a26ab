import numpy as np

from livematch import Detection, Recognition


def recognition(num_detections: int) -> Recognition:
    boxes = np.array([[12.4, 30, 200, 410]] * num_detections, np.float32).reshape(-1, 4)
    scores = np.linspace(0.98, 0.5, num_detections, dtype=np.float32)
    return Recognition(boxes, scores, np.array(["shirt"] * num_detections), np.ones((num_detections, 2048), np.float32))


def test_it_iterates_over_detections():
    found = recognition(2)
    first, second = found
    assert isinstance(first, Detection)
    assert first.box == tuple(found.boxes[0].tolist())
    assert (first.score, second.score) == tuple(found.scores.tolist())
    assert first.label == "shirt"
    assert first.embedding.shape == (2048,)


def test_it_prints_boxes_and_scores_only():
    assert repr(recognition(0)) == "Recognition(0 detections)"
    assert repr(recognition(1)) == "Recognition(1 detection: 0.98 [12 30 200 410])"
    assert repr(recognition(2)) == "Recognition(2 detections: 0.98 [12 30 200 410], 0.50 [12 30 200 410])"
    assert repr(recognition(6)).endswith("0.60 [12 30 200 410], ...)")
    assert "embedding" not in repr(next(iter(recognition(1))))
