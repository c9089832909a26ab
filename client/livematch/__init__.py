"""livematch: which product does a live clip show?

    client = livematch.Client("127.0.0.1:8001")
    recognition = client.recognize_image(livematch.read_image(path))
    matches = livematch.match(livematch.read_features(images), livematch.read_features(videos))

Names are imported when they are first used, so that `import livematch` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from livematch.errors import (
        ContractError,
        DecodeError,
        FeaturesError,
        FileFormatError,
        InputError,
        LivematchError,
        LocalServerError,
        RequestError,
        UnavailableError,
    )
    from livematch.evaluation.ground_truth import GroundTruth, read_ground_truth
    from livematch.evaluation.results import read_result, write_result
    from livematch.evaluation.scores import Score, evaluate
    from livematch.features.milvus import MilvusGallery
    from livematch.features.table import Features, open_features, read_features
    from livematch.local.local_server import LocalServer
    from livematch.matching.vote import Match, MatchOptions, match
    from livematch.media.images import read_image
    from livematch.media.videos import read_frames
    from livematch.serving.client import Client
    from livematch.serving.connection import Tls
    from livematch.types import Recognition

__version__ = "0.1.0"

_MODULE_OF = {
    "Client": "serving.client",
    "ContractError": "errors",
    "DecodeError": "errors",
    "Features": "features.table",
    "FeaturesError": "errors",
    "FileFormatError": "errors",
    "InputError": "errors",
    "LivematchError": "errors",
    "LocalServer": "local.local_server",
    "Match": "matching.vote",
    "Recognition": "types",
    "RequestError": "errors",
    "MatchOptions": "matching.vote",
    "MilvusGallery": "features.milvus",
    "Score": "evaluation.scores",
    "LocalServerError": "errors",
    "Tls": "serving.connection",
    "GroundTruth": "evaluation.ground_truth",
    "UnavailableError": "errors",
    "evaluate": "evaluation.scores",
    "match": "matching.vote",
    "open_features": "features.table",
    "read_features": "features.table",
    "read_frames": "media.videos",
    "read_image": "media.images",
    "read_result": "evaluation.results",
    "read_ground_truth": "evaluation.ground_truth",
    "write_result": "evaluation.results",
}

__all__ = [
    "Client",
    "ContractError",
    "DecodeError",
    "Features",
    "FeaturesError",
    "FileFormatError",
    "GroundTruth",
    "InputError",
    "LivematchError",
    "LocalServer",
    "LocalServerError",
    "Match",
    "MatchOptions",
    "MilvusGallery",
    "Recognition",
    "RequestError",
    "Score",
    "Tls",
    "UnavailableError",
    "evaluate",
    "match",
    "open_features",
    "read_features",
    "read_frames",
    "read_ground_truth",
    "read_image",
    "read_result",
    "write_result",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'livematch' has no attribute {name!r}")
    return getattr(import_module(f"livematch.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
