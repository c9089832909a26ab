"""livematch: which product does a live clip show?

    client = livematch.Client("127.0.0.1:8001")
    recognition = client.recognize_image(livematch.read_image(path))
    matches = livematch.match(livematch.read_features(images), livematch.read_features(videos))

Names are imported when they are first used, so that `import livematch` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from livematch.client import Client, Recognition
    from livematch.connection import Tls
    from livematch.decoding import read_frames, read_image
    from livematch.errors import (
        ContractError,
        DecodeError,
        FeaturesError,
        FileFormatError,
        InputError,
        LivematchError,
        RequestError,
        ServerError,
        UnavailableError,
    )
    from livematch.evaluation import Score, evaluate
    from livematch.features import Features, StoredFeatures, open_features, read_features
    from livematch.matching import Match, Rule, match
    from livematch.results import read_result, write_result
    from livematch.server import LocalServer
    from livematch.truth import Truth, read_truth

__version__ = "0.1.0"

_MODULE_OF = {
    "Client": "client",
    "ContractError": "errors",
    "DecodeError": "errors",
    "Features": "features",
    "FeaturesError": "errors",
    "FileFormatError": "errors",
    "InputError": "errors",
    "LivematchError": "errors",
    "LocalServer": "server",
    "Match": "matching",
    "Recognition": "client",
    "RequestError": "errors",
    "Rule": "matching",
    "Score": "evaluation",
    "ServerError": "errors",
    "StoredFeatures": "features",
    "Tls": "connection",
    "Truth": "truth",
    "UnavailableError": "errors",
    "evaluate": "evaluation",
    "match": "matching",
    "open_features": "features",
    "read_features": "features",
    "read_frames": "decoding",
    "read_image": "decoding",
    "read_result": "results",
    "read_truth": "truth",
    "write_result": "results",
}

__all__ = [
    "Client",
    "ContractError",
    "DecodeError",
    "Features",
    "FeaturesError",
    "FileFormatError",
    "InputError",
    "LivematchError",
    "LocalServer",
    "Match",
    "Recognition",
    "RequestError",
    "Rule",
    "Score",
    "ServerError",
    "StoredFeatures",
    "Tls",
    "Truth",
    "UnavailableError",
    "evaluate",
    "match",
    "open_features",
    "read_features",
    "read_frames",
    "read_image",
    "read_result",
    "read_truth",
    "write_result",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'livematch' has no attribute {name!r}")
    return getattr(import_module(f"livematch.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
