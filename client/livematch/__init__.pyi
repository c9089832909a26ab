# The public names, read by type checkers and, through lazy_loader, by __init__.py.

from .errors import ContractError as ContractError
from .errors import DecodeError as DecodeError
from .errors import FeaturesError as FeaturesError
from .errors import FileFormatError as FileFormatError
from .errors import InputError as InputError
from .errors import LivematchError as LivematchError
from .errors import LocalServerError as LocalServerError
from .errors import RequestError as RequestError
from .errors import UnavailableError as UnavailableError
from .evaluation.ground_truth import GroundTruth as GroundTruth
from .evaluation.ground_truth import read_ground_truth as read_ground_truth
from .evaluation.results import read_result as read_result
from .evaluation.results import write_result as write_result
from .evaluation.scores import Score as Score
from .evaluation.scores import evaluate as evaluate
from .features.milvus import MilvusGallery as MilvusGallery
from .features.table import Features as Features
from .features.table import open_features as open_features
from .features.table import read_features as read_features
from .local.local_server import LocalServer as LocalServer
from .matching.catalogue import CatalogueOptions as CatalogueOptions
from .matching.catalogue import find_products as find_products
from .matching.vote import MatchOptions as MatchOptions
from .matching.vote import match as match
from .media.images import read_image as read_image
from .media.videos import read_frames as read_frames
from .media.videos import read_stream as read_stream
from .pipeline.embed import EmbedOptions as EmbedOptions
from .pipeline.embed import EmbedSummary as EmbedSummary
from .pipeline.embed import embed_images as embed_images
from .pipeline.embed import embed_videos as embed_videos
from .pipeline.run import RunSummary as RunSummary
from .pipeline.run import run as run
from .pipeline.watch import Decision as Decision
from .pipeline.watch import watch as watch
from .report.report import write_report as write_report
from .serving.async_client import AsyncClient as AsyncClient
from .serving.client import Client as Client
from .serving.settings import Tls as Tls
from .types import Detection as Detection
from .types import Failure as Failure
from .types import Match as Match
from .types import Recognition as Recognition
from .types import Segment as Segment

__version__: str
