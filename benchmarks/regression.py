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
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.engines import Engines
from benchmarks.harness.figures import rounded
from benchmarks.harness.options import add_number, add_path, new_parser
from benchmarks.harness.results import read_results
from benchmarks.harness.server import ServerUnderTest, run_on_server
from benchmarks.harness.stage_times import read_stages, subtract_stages
from benchmarks.harness.workload import add_workload_arguments, repository_path
from export.config import CONFIGS
from export.signature import EMBEDDERS
from livematch.cli.commands import EXIT_FAILURES, run_command
from livematch.errors import InputError

STORED = Path("benchmarks/results")
TOLERANCE = 0.5
PARTS = {"crop_and_embed": ("crop", *EMBEDDERS)}
"""The models that a stage calls to compute, for stages that call any."""

Ratios = dict[str, dict[str, float]]


def measure_ratios(server: ServerUnderTest, engines: Engines, *, num_rounds: int) -> Ratios:
    """Measure each stage's milliseconds per image in the server and in its engine, and return medians and ratios.

    In each round, every image is sent to the server once and run through the engines once, one image at a time.
    """
    rounds = []
    for turn in range(num_rounds):
        if turn % 2 == 0:
            server_ms, engines_ms = _server_ms(server), _engines_ms(server, engines)
        else:
            engines_ms, server_ms = _engines_ms(server, engines), _server_ms(server)
        rounds.append({stage: (ms, _engine_ms_of(stage, engines_ms)) for stage, ms in server_ms.items()})
    ratios = {}
    for stage in rounds[0]:
        stage_ms, engine_ms = np.array([times[stage] for times in rounds]).T
        ratios[stage] = {
            "server_ms": rounded(statistics.median(stage_ms)),
            "engine_ms": rounded(statistics.median(engine_ms)),
            "ratio": rounded(statistics.median(stage_ms / engine_ms)),
            "min_ratio": rounded((stage_ms / engine_ms).min()),
            "max_ratio": rounded((stage_ms / engine_ms).max()),
        }
    return ratios


def read_ratios(path: Path) -> Ratios:
    """Read the ratios of a stored run; raise InputError if the file is from another benchmark."""
    results = read_results(path)
    if results.get("benchmark") != "regression":
        raise InputError(f"{path} is not a results file of benchmarks.regression")
    ratios: Ratios = results["figures"]["stages"]
    return ratios


def slower_stages(ratios: Ratios, stored: Ratios, tolerance: float) -> list[str]:
    """Return one line for each stage whose ratio exceeds the stored one by more than the fraction `tolerance`.

    Raises:
        InputError: the two runs have different stages.
    """
    if set(ratios) != set(stored):
        raise InputError(f"the stages differ from the stored ones: {sorted(set(ratios) ^ set(stored))}")
    return [
        f"{stage}: {figures['ratio']:g} times its engine, stored {stored[stage]['ratio']:g}"
        for stage, figures in ratios.items()
        if figures["ratio"] > stored[stage]["ratio"] * (1 + tolerance)
    ]


def table(ratios: Ratios, stored: Ratios | None) -> str:
    lines = [f"{'stage':16}{'server ms':>11}{'engine ms':>11}{'ratio':>8}{'stored':>8}"]
    for stage, figures in ratios.items():
        before = f"{stored[stage]['ratio']:8.2f}" if stored and stage in stored else " " * 8
        ms = "".join(f"{figures[name]:11.2f}" for name in ("server_ms", "engine_ms"))
        lines.append(f"{stage:16}{ms}{figures['ratio']:8.2f}{before}")
    return "\n".join(lines)


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
    """Run every image through the engines, and return each engine's time per image."""
    total_ms: dict[str, float] = {}
    for pixels in server.images:
        for call in engines.recognize(server.kind, pixels):
            total_ms[call.model] = total_ms.get(call.model, 0.0) + call.elapsed_s * 1e3
    return {model: ms / len(server.images) for model, ms in total_ms.items()}


def _engine_ms_of(stage: str, engines_ms: dict[str, float]) -> float:
    """Return the time of the engines of a stage; for the ensemble, of all engines."""
    models = PARTS.get(stage, engines_ms if stage.startswith("recognize_") else (stage,))
    return sum(engines_ms[model] for model in models)


def run(options: argparse.Namespace, argv: Sequence[str] | None) -> int:
    stored_path = options.stored or STORED / f"{options.config}_regression.json"
    if options.store:
        options.output = stored_path
    stored = None if options.store else read_ratios(stored_path)
    slower: list[str] = []

    def compare(server: ServerUnderTest) -> dict[str, Any]:
        engines = Engines(repository_path(options), CONFIGS[options.config]())
        _engines_ms(server, engines)  # warm-up
        stages = measure_ratios(server, engines, num_rounds=options.rounds)
        print(table(stages, stored), flush=True)
        if stored is not None:
            slower.extend(slower_stages(stages, stored, options.tolerance))
        return {"rounds": options.rounds, "tolerance": options.tolerance, "slower": slower, "stages": stages}

    run_on_server(options, argv, compare)
    for line in slower:
        print(f"slower: {line}")
    return EXIT_FAILURES if slower else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    add_workload_arguments(parser, "regression")
    add_number(parser, "--rounds", 5, "number of rounds")
    add_number(parser, "--tolerance", TOLERANCE, "how far a ratio may exceed the stored one; 0.5 is 50 %%")
    add_path(parser, "--stored", None, "stored results file; default: benchmarks/results/CONFIG_regression.json")
    parser.add_argument("--store", action="store_true", help="write the stored file instead of comparing with it")
    parser.set_defaults(pictures=16)
    options = parser.parse_args(argv)
    return run_command("benchmarks.regression", lambda: run(options, argv))


if __name__ == "__main__":
    raise SystemExit(main())
