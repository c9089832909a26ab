"""Read the annotations of one part of the Watch and Buy dataset, in the files of `livematch.media.annotations`.

A video shows the item with the same id. Annotations with the same nonzero instance_id are the same garment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livematch.errors import InputError
from livematch.media.annotations import Annotation, read_image_annotations, read_video_annotations
from livematch.types import IntBox


@dataclass(frozen=True)
class GroundTruth:
    """Holds the annotated garments of one part of the dataset.

    images: garments by item id and image name.
    frames: garments by video id and frame index.
    """

    images: dict[str, dict[str, tuple[Annotation, ...]]]
    frames: dict[str, dict[int, tuple[Annotation, ...]]]

    def positive_frame_boxes(self, video_id: str, frame_index: int) -> list[IntBox]:
        """Return the boxes in an annotated frame whose garment also occurs in an image of the video's item."""
        item_instances = _instances(self.images.get(video_id, {}))
        return [g.box for g in self.frames[video_id][frame_index] if g.instance_id in item_instances]

    def positive_image_boxes(self, item_id: str, img_name: str) -> list[IntBox]:
        """Return the boxes in an image whose garment also occurs in an annotated frame of the item's video."""
        video_instances = _instances(self.frames.get(item_id, {}))
        garments = self.images.get(item_id, {}).get(img_name, ())
        return [g.box for g in garments if g.instance_id in video_instances]

    def positive_videos(self) -> list[str]:
        """Return the ids of the videos with at least one positive frame, which is a frame with a positive box."""
        return [v for v in self.frames if any(self.positive_frame_boxes(v, index) for index in self.frames[v])]

    def judged_frame(self, video_id: str, frame_index: int) -> int:
        """Return the index of the annotated frame nearest to a frame; of two equally near ones, the earlier."""
        return min(self.frames[video_id], key=lambda annotated: (abs(annotated - frame_index), annotated))


def read_ground_truth(directory: str | Path) -> GroundTruth:
    """Read the annotations of a part: `directory` contains image_annotation/ and video_annotation/.

    Raises:
        InputError: one of the two folders is missing.
        FileFormatError: an annotation file cannot be read; the message names it.
    """
    directory = Path(directory)
    for name in ("image_annotation", "video_annotation"):
        if not (directory / name).is_dir():
            raise InputError(f"{directory} is not an annotated part: it has no folder {name}")
    images: dict[str, dict[str, tuple[Annotation, ...]]] = {}
    for path in sorted((directory / "image_annotation").glob("*/*.json")):
        images.setdefault(path.parent.name, {})[path.stem] = read_image_annotations(path)
    videos = sorted((directory / "video_annotation").glob("*.json"))
    return GroundTruth(images, {path.stem: dict(read_video_annotations(path)) for path in videos})


def _instances(garments_of: Mapping[Any, tuple[Annotation, ...]]) -> set[int]:
    return {g.instance_id for garments in garments_of.values() for g in garments if g.instance_id}
