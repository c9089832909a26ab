"""Match product images to clips in one call: embed both, match, score and report."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livematch.evaluation.ground_truth import GroundTruth
from livematch.evaluation.results import best_matches, to_result, write_json, write_matches, write_result
from livematch.evaluation.scores import Score, evaluate
from livematch.features.table import Features, open_features
from livematch.matching.catalogue import CatalogueOptions, find_products
from livematch.matching.nearest import DEFAULT_MEMORY_BYTES, memory_left
from livematch.matching.vote import MatchOptions, match
from livematch.media.videos import DEFAULT_FRAMES
from livematch.pipeline.embed import EmbedOptions, EmbedSummary, embed_images, embed_videos
from livematch.pipeline.failures import write_failures
from livematch.report.report import write_report
from livematch.serving.client import Client
from livematch.types import Failure, Match


@dataclass(frozen=True)
class RunSummary:
    """Describes what a run did and found; `score` is None without ground truth."""

    images: EmbedSummary
    videos: EmbedSummary
    matches: list[Match]
    score: Score | None
    elapsed_s: float

    @property
    def failures(self) -> list[Failure]:
        """Sources that failed, of both folders."""
        return [*self.images.failures, *self.videos.failures]

    def to_json(self) -> dict[str, Any]:
        """Return the summary that `livematch run` prints."""
        summary: dict[str, Any] = {
            "images": self.images.to_json(),
            "videos": self.videos.to_json(),
            "num_matches": len(self.matches),
            "num_failures": len(self.failures),
        }
        if self.score is not None:
            summary["score"] = self.score.summary()
        return summary | {"elapsed_s": round(self.elapsed_s, 3)}


def run(
    client: Client,
    images: str | Path,
    videos: str | Path,
    output: str | Path,
    *,
    truth: GroundTruth | None = None,
    frames: range = DEFAULT_FRAMES,
    embed_options: EmbedOptions | None = None,
    match_options: MatchOptions | CatalogueOptions | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> RunSummary:
    """Find which item of `images` each video of `videos` shows.

    Writes to the folder `output`: features/images.parquet and features/videos.parquet, failures.parquet, result.json,
    matches.json, report.html and, with ground truth, score.json. If a run is interrupted, the next one resumes it.

    >>> with livematch.LocalServer("build/repository") as server, livematch.Client(server.url) as client:
    ...     summary = run(client, "images", "videos", "out")
    >>> {match.video_id: match.item_id for match in summary.matches}

    Args:
        images: folder of `<item_id>/<photo>`, or a CSV manifest: item_id,path[,title,url].
        videos: folder of `<video_id>.mp4`.
        truth: annotations of the same items and videos, to score the matches.
        frames: frames of each video to embed.
        match_options: of `find_products` or, if it is a `MatchOptions`, of `match`.
        memory_bytes: how much memory the whole process may use while it matches.

    Raises:
        InputError: `images` or `videos` holds nothing of that layout, or `memory_bytes` is too small.
        DecodeError, RequestError, UnavailableError, ContractError, FeaturesError: see `embed_images`.
    """
    start_s = time.monotonic()
    output = Path(output)
    match_options = match_options or CatalogueOptions()
    queries, gallery = output / "features" / "images.parquet", output / "features" / "videos.parquet"
    embedded_images = embed_images(client, images, queries, embed_options)
    embedded_videos = embed_videos(client, videos, gallery, embed_options, frames=frames)
    failures = [*embedded_images.failures, *embedded_videos.failures]
    write_failures(failures, output / "failures.parquet")
    features = open_features([queries]), open_features([gallery])
    matches = match_by(match_options, *features, memory_bytes=memory_left(memory_bytes))
    write_result(matches, output / "result.json")
    write_matches(matches, output / "matches.json")
    result = to_result(matches)
    score = None if truth is None else evaluate(result, truth)
    if score is not None:
        write_json(score.to_json(), output / "score.json")
    write_report(
        output / "report.html",
        result,
        images=Path(images),
        videos=Path(videos),
        distances={m.video_id: m.distance for m in best_matches(matches)},
        truth=truth,
        failures=failures,
        limit=match_options.limit,
    )
    return RunSummary(embedded_images, embedded_videos, matches, score, time.monotonic() - start_s)


def match_by(
    options: MatchOptions | CatalogueOptions, products: Features, clips: Features, *, memory_bytes: int
) -> list[Match]:
    """Match by the rule that the options are of; see `find_products` and `match`."""
    if isinstance(options, MatchOptions):
        return match(products, clips, options, memory_bytes=memory_bytes)
    return find_products(clips, products, options, memory_bytes=memory_bytes)
