"""Read the annotations of the Watch and Buy (WAB) data set.

The data set comes in parts. A part is a folder:

    image/<item_id>/<k>.jpg               product photos
    image_annotation/<item_id>/<k>.json   {"annotations": [{label, viewpoint, display, instance_id, box}]}
    video/<id>.mp4                        live clips; a clip and the item it shows have the same id
    video_annotation/<id>.json            {"frames": [{"frame_index", "annotations": [...]}]}

The detector learns all kinds of garment as one class.
"""

from collections.abc import Sequence
from pathlib import Path

from livematch.media.annotations import Annotation, read_image_annotations, read_video_annotations
from training.datasets.images import AnnotatedImage, BoxAnnotation

LABELS: tuple[str, ...] = (
    "短袖上衣",
    "长袖上衣",
    "短袖衬衫",
    "长袖衬衫",
    "背心上衣",
    "吊带上衣",
    "无袖上衣",
    "短外套",
    "短马甲",
    "长袖连衣裙",
    "短袖连衣裙",
    "无袖连衣裙",
    "长马甲",
    "长外套",
    "连体衣",
    "古风",
    "短裙",
    "中等半身裙",
    "长半身裙",
    "短裤",
    "中裤",
    "长裤",
    "背带裤",
)
"""The 23 garment kinds; the id of a kind is its index here."""

ANNOTATION_FOLDERS = ("image_annotation", "video_annotation")

FRAMES = range(80, 361, 40)
"""The annotated frames that embedders are trained on."""


def read_part(directory: Path, bad: list[str] | None = None) -> list[AnnotatedImage]:
    """Return the photos, then the annotated frames of one part, each sorted by item and number.

    Args:
        directory: the part.
        bad: if given, an unusable annotation file is skipped, and the reason appended to it instead of raised.

    Raises:
        FileNotFoundError: there is no annotation folder, or the photo or clip of an annotation is missing.
        ValueError: an annotation file is malformed; the message names it.
    """
    images = []
    for folder, pattern, read in zip(ANNOTATION_FOLDERS, ("*/*.json", "*.json"), (_photo, _frames), strict=True):
        for path in _annotation_files(directory / folder, pattern):
            try:
                images += read(directory, path)
            except (FileNotFoundError, ValueError) as error:
                if bad is None:
                    raise
                bad.append(str(error))
    return images


def _photo(directory: Path, path: Path) -> list[AnnotatedImage]:
    photo = _existing(directory / "image" / path.parent.name / f"{path.stem}.jpg", path)
    boxes = _boxes(read_image_annotations(path))
    return [AnnotatedImage(path.parent.name, path.stem, photo, None, boxes, str(path))]


def _frames(directory: Path, path: Path) -> list[AnnotatedImage]:
    video = _existing(directory / "video" / f"{path.stem}.mp4", path)
    return [
        AnnotatedImage(path.stem, f"f{index}", video, index, _boxes(annotations), f"{path}: frame {index}")
        for index, annotations in read_video_annotations(path)
    ]


def _boxes(annotations: Sequence[Annotation]) -> tuple[BoxAnnotation, ...]:
    return tuple(BoxAnnotation(annotation.box, instance_id=annotation.instance_id) for annotation in annotations)


def _annotation_files(directory: Path, pattern: str) -> list[Path]:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder; {directory.parent} is not a part of the data set")
    return sorted(directory.glob(pattern), key=lambda path: (path.parent.name, len(path.stem), path.stem))


def _existing(path: Path, annotation: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but {annotation} describes it")
    return path
