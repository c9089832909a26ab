"""Read what the option --data names, and extract the annotated frames of its clips.

    a folder with image_annotation or video_annotation    a part of the Watch and Buy data set (`wab`)
    FILE.json or FILE.json:IMAGES                         COCO, with its images in the folder IMAGES (`coco`)
    FILE.csv                                              a row per image of a known identity (`identities`)
    any other folder                                      a folder per identity (`identities`)

The detector is trained on boxes with classes (`read_boxes`), an embedder on boxes of known identity
(`read_identities`); only parts of WAB have both.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from livematch.errors import FileFormatError, InputError
from training.datasets.coco import read_coco
from training.datasets.frames import cache_frames
from training.datasets.identities import read_csv, read_folders
from training.datasets.images import AnnotatedImage
from training.datasets.wab import ANNOTATION_FOLDERS, FRAMES, read_part

BOXES_HELP = "parts of the WAB data set, or COCO: FILE.json, or FILE.json:IMAGES with the folder of its images"
IDENTITIES_HELP = "parts of the WAB data set, folders that hold a folder per identity, or CSV files"


def read_boxes(
    sources: Sequence[Path], cache_directory: Path, bad: list[str]
) -> tuple[list[list[AnnotatedImage]], tuple[str, ...]]:
    """Return the images of each source, with their frames extracted to `cache_directory/frames`, and the class names.

    The names are empty for parts of WAB, which have one class.

    Args:
        sources: parts of WAB, or COCO files.
        cache_directory: several processes may fill it at the same time.
        bad: receives a line for each annotation file, image, frame or box that is unusable and therefore left out.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a source is given twice, cannot be read, or has other classes than the first.
    """
    images: list[list[AnnotatedImage]] = []
    names: list[tuple[str, ...]] = []
    for source, kind in _kinds(sources):
        if kind == "part":
            images.append(cache_frames(read_part(source, bad), cache_directory / "frames", bad=bad))
            names.append(())
        elif kind == "coco":
            of_source, class_names = read_coco(*_coco_paths(source), bad)
            images.append(of_source)
            names.append(class_names)
        else:
            raise InputError(f"{source} has no classes of boxes: a detector is trained on {BOXES_HELP}")
        if names[-1] != names[0]:
            raise FileFormatError(
                f"{source} has the classes {_listed(names[-1])}, {sources[0]} has {_listed(names[0])}"
            )
    return images, names[0]


def read_identities(
    sources: Sequence[Path], cache_directory: Path, bad: list[str], *, split: str | None = None
) -> list[list[AnnotatedImage]]:
    """Return the images of each source, with their frames extracted to `cache_directory/frames`.

    An object is identified by its source, `item_id` and `instance_id`. Of a part of WAB, only FRAMES are used.

    Args:
        sources: parts of WAB, folders with a folder per identity, CSV files.
        cache_directory: see `read_boxes`, as for `bad` and the errors.
        bad: likewise.
        split: "train" or "test", the rows of CSV files to read; None for all.
    """
    images = []
    for source, kind in _kinds(sources):
        if kind == "part":
            of_source = [image for image in read_part(source, bad) if image.frame_index in (None, *FRAMES)]
        elif kind == "folders":
            of_source = read_folders(source)
        elif kind == "csv":
            of_source = read_csv(source, bad, split=split)
        else:
            raise InputError(f"{source} has no identities: an embedder is trained on {IDENTITIES_HELP}")
        images.append(cache_frames(of_source, cache_directory / "frames", bad=bad))
    return images


def is_part(source: Path) -> bool:
    """Return whether a folder is a part of WAB."""
    return any((source / folder).is_dir() for folder in ANNOTATION_FOLDERS)


def _kinds(sources: Sequence[Path]) -> list[tuple[Path, Literal["part", "coco", "csv", "folders"]]]:
    if len({source.resolve() for source in sources}) < len(sources):
        raise InputError(f"--data names a file or folder twice: {' '.join(map(str, sources))}")
    return [(source, _kind(source)) for source in sources]


def _kind(source: Path) -> Literal["part", "coco", "csv", "folders"]:
    if source.is_dir():
        return "part" if is_part(source) else "folders"
    path, images = _coco_paths(source)
    for existing in (path, images):
        if not existing.exists():
            raise FileNotFoundError(f"{existing}: no such file or folder")
    if path.suffix == ".json":
        return "coco"
    if path.suffix == ".csv":
        return "csv"
    raise InputError(f"{source} is no folder, and its name does not end in .json or .csv")


def _coco_paths(source: Path) -> tuple[Path, Path]:
    """Return the paths of the JSON file and of its images."""
    if match := re.fullmatch(r"(.+\.json):(.+)", str(source)):
        return Path(match[1]), Path(match[2])
    return source, source.parent


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "of WAB"
