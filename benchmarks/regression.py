"""Check whether a stage of the pipeline has become slower, relative to its engine, than in a stored run.

    python -m benchmarks.regression            # measures for a minute and compares; exit code 3 if a stage is slower
    python -m benchmarks.regression --store    # measures, and stores the ratios for later runs

Times of different machines or days cannot be compared, so this compares ratios: a stage's time in the server, with one
request in flight, over the time of its engine alone in this process. Server and engines are measured alternately. A
stage counts as slower if the median of its ratios exceeds the stored one by more than the tolerance. A slower engine
alone does not show, since it slows the server as well; `benchmarks.models` measures engines.

The JSON has, for each of `stages`, its time in the server and in its engine in milliseconds per image, their `ratio`
(medians over the rounds) and the lowest and highest ratio; `slower` lists the stages that are slower.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness.engines import Engines
from benchmarks.harness.figures import Figures, alternate, each, rounded
from benchmarks.harness.options import add_number, add_path, new_parser
from benchmarks.harness.results import read_results
from benchmarks.harness.server import ServerUnderTest, run_on_server
from benchmarks.harness.stage_times import read_stages, subtract_stages
from benchmarks.harness.workload import add_workload_arguments, pipeline_of, run_workload
from livematch.cli.commands import EXIT_FAILURES
from livematch.errors import InputError

STORED = Path("benchmarks/results")


def caller_of(model: str) -> str:
    """Return the model that calls this one, or this one itself if it is a step of the ensemble."""
    return "crop_and_embed" if model == "crop" or model.startswith("embedder_") else model


def measure_ratios(server: ServerUnderTest, engines: Engines, *, num_rounds: int) -> Figures:
    """Measure each stage's milliseconds per image in the server and in its engine, and return medians and ratios.

    In each round, every image is sent to the server once and run through the engines once, one image at a time.
    """
    actions = {"server": partial(_server_ms, server), "engines": partial(_engines_ms, server, engines)}
    rounds = [alternate(turn, **actions) for turn in range(num_rounds)]
    ratios = {}
    for stage in rounds[0]["server"]:
        stage_ms, engine_ms = (np.array(each(rounds, side, stage)) for side in ("server", "engines"))
        ratios[stage] = {
            "server_ms": rounded(np.median(stage_ms)),
            "engine_ms": rounded(np.median(engine_ms)),
            "ratio": rounded(np.median(stage_ms / engine_ms)),
            "min_ratio": rounded((stage_ms / engine_ms).min()),
            "max_ratio": rounded((stage_ms / engine_ms).max()),
        }
    return ratios


def read_ratios(path: Path) -> Figures:
    """Read the ratios of a stored run; raise InputError if the file is from another benchmark."""
    results = read_results(path)
    if results.get("benchmark") != "regression":
        raise InputError(f"{path} is not a results file of benchmarks.regression")
    return dict(results["figures"]["stages"])


def slower_stages(ratios: Figures, stored: Figures, tolerance: float) -> list[str]:
    """Return one line for each stage whose ratio exceeds the stored one by more than the fraction `tolerance`.

    Raises InputError if the two runs have different stages.
    """
    if set(ratios) != set(stored):
        raise InputError(f"the stages differ from the stored ones: {sorted(set(ratios) ^ set(stored))}")
    return [
        f"{stage}: {figures['ratio']:g} times its engine, stored {stored[stage]['ratio']:g}"
        for stage, figures in ratios.items()
        if figures["ratio"] > stored[stage]["ratio"] * (1 + tolerance)
    ]


def _server_ms(server: ServerUnderTest) -> dict[str, float]:
    """Send every image, and return each stage's compute time per image, and the ensemble's total time."""
    before = read_stages(server.statistics)
    server.send_all()
    stages = subtract_stages(read_stages(server.statistics), before)
    ensemble = f"recognize_{server.kind}"
    return {
        stage: (times.total_ms if stage == ensemble else times.compute_ms) / len(server.images)
        for stage, times in sorted(stages.items())
    }


def _engines_ms(server: ServerUnderTest, engines: Engines) -> dict[str, float]:
    """Run every image through the engines, and return the time per image in each stage's, all for the ensemble."""
    total_ms: dict[str, float] = defaultdict(float)
    for pixels in server.images:
        for call in engines.recognize(server.kind, pixels):
            for stage in {call.model, caller_of(call.model), f"recognize_{server.kind}"}:
                total_ms[stage] += call.elapsed_s * 1e3
    return {stage: ms / len(server.images) for stage, ms in total_ms.items()}


def run(options: argparse.Namespace) -> int:
    stored_path = options.stored or STORED / f"{options.config}_regression.json"
    if options.store:
        options.output = stored_path
    stored = None if options.store else read_ratios(stored_path)
    slower: list[str] = []

    def compare(server: ServerUnderTest, options: argparse.Namespace) -> Figures:
        engines = Engines(options.repository, pipeline_of(options))
        _engines_ms(server, engines)  # warm-up
        stages = measure_ratios(server, engines, num_rounds=options.rounds)
        print(f"{'stage':16}{'server ms':>11}{'engine ms':>11}{'ratio':>8}{'stored':>8}")
        for stage, row in stages.items():
            before = f"{stored[stage]['ratio']:.2f}" if stored and stage in stored else ""
            print(f"{stage:16}{row['server_ms']:11.2f}{row['engine_ms']:11.2f}{row['ratio']:8.2f}{before:>8}")
        if stored is not None:
            slower.extend(slower_stages(stages, stored, options.tolerance))
        return {"rounds": options.rounds, "tolerance": options.tolerance, "slower": slower, "stages": stages}

    run_on_server(options, compare)
    for line in slower:
        print(f"slower: {line}")
    return EXIT_FAILURES if slower else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("regression", __doc__)
    add_workload_arguments(parser)
    add_number(parser, "--rounds", 5, "number of rounds")
    add_number(parser, "--tolerance", 0.5, "how far a ratio may exceed the stored one; 0.5 is 50 %%")
    add_path(parser, "--stored", None, "stored results file; default: benchmarks/results/CONFIG_regression.json")
    parser.add_argument("--store", action="store_true", help="write the stored file instead of comparing with it")
    parser.set_defaults(pictures=16)
    return run_workload(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
