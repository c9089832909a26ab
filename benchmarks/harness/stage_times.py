"""Read from Triton's statistics what each model of a server did, and how long it took."""

from dataclasses import dataclass, fields

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from benchmarks.harness.figures import Figures, rounded
from livematch.errors import UnavailableError


@dataclass(frozen=True)
class StageTimes:
    """Totals of one model. A request holds a batch of rows (images or crops); one call may serve several requests.

    `crop_and_embed` computes by calling `crop` and the embedders, so its compute time includes theirs.
    """

    num_requests: float
    num_failures: float
    num_calls: float
    num_rows: float
    num_cache_hits: float
    total_ms: float
    queue_ms: float
    input_ms: float
    compute_ms: float
    output_ms: float

    def __sub__(self, earlier: "StageTimes") -> "StageTimes":
        return StageTimes(*(getattr(self, field.name) - getattr(earlier, field.name) for field in fields(self)))


Stages = dict[str, StageTimes]


def read_stages(client: triton.InferenceServerClient) -> Stages:
    """Return every model's totals since it was loaded; raise UnavailableError if they cannot be read."""
    try:
        statistics = client.get_inference_statistics()
    except InferenceServerException as error:
        raise UnavailableError(f"the server's statistics cannot be read: {error}") from error
    stages = {}
    for model in statistics.model_stats:
        times = model.inference_stats
        parts = (times.success, times.queue, times.compute_input, times.compute_infer, times.compute_output)
        requests, calls = (times.success.count, times.fail.count), (model.execution_count, model.inference_count)
        stages[model.name] = StageTimes(*requests, *calls, times.cache_hit.count, *(part.ns / 1e6 for part in parts))
    return stages


def subtract_stages(later: Stages, earlier: Stages) -> Stages:
    """Return the difference of two readings, for the models that had requests in between."""
    deltas = {model: later[model] - earlier[model] for model in later}
    return {model: delta for model, delta in deltas.items() if delta.num_requests or delta.num_failures}


def computing_ms(stages: Stages, kind: str) -> float:
    """Return the compute time of the ensemble's three steps, over all requests."""
    steps = (f"prepare_{kind}", "detector", "crop_and_embed")
    return sum(stages[step].compute_ms for step in steps if step in stages)


def overhead(stages: Stages, kind: str) -> float:
    """Return the fraction of a request's time in which no step of the ensemble computes: queues, copies, Triton itself.

    It means something only with one request in flight, since several requests wait for each other.
    """
    return 1 - computing_ms(stages, kind) / stages[f"recognize_{kind}"].total_ms


def crops_per_call(stages: Stages) -> float:
    """Return the mean number of crops per embedder call; 0 if there was no call."""
    embedder = next((stage for model, stage in stages.items() if model.startswith("embedder_")), None)
    return embedder.num_rows / embedder.num_calls if embedder else 0.0


def describe_stages(stages: Stages, num_images: float) -> dict[str, Figures]:
    """Return JSON by model: counts, and milliseconds per image sent to the ensemble."""
    return {
        model: {
            "num_requests": int(stage.num_requests),
            "num_failures": int(stage.num_failures),
            "num_cache_hits": int(stage.num_cache_hits),
            "calls_per_picture": rounded(stage.num_calls / num_images),
            "rows_per_call": rounded(stage.num_rows / max(stage.num_calls, 1)),
            **{
                f"{part}_ms": rounded(getattr(stage, f"{part}_ms") / num_images)
                for part in ("total", "queue", "input", "compute", "output")
            },
        }
        for model, stage in stages.items()
    }
