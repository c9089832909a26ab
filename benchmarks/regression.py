"""Regression guard: has a stage of the pipeline become slower than its engine, compared with a stored run?

    python -m benchmarks.regression            # measures for a minute, compares, exit code 1 if a stage is slower
    python -m benchmarks.regression --store    # measures, and stores the ratios for later runs

Times of two machines or two days say nothing about each other, so ratios are compared: what a stage takes in the server
over what its engine alone takes in this process, with one request in flight, both in turns in one run. A stage fails
when its ratio is above the stored one by more than the tolerance in the median of the rounds. A slower engine changes
no ratio; `benchmarks.models` shows that one.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.bench import Bench, run_on_bench
from benchmarks.harness.engines import Engines
from benchmarks.harness.results import read_results, rounded
from benchmarks.harness.stage_times import Stages, read_stages, subtract_stages
from benchmarks.harness.workload import add_workload_arguments
from export.config import CONFIGS
from export.signature import EMBEDDERS

STORED = Path("benchmarks/results")
TOLERANCE = 0.5
PARTS = {"crop_and_embed": ("crop", *EMBEDDERS)}
"""Stages whose engines are other models' too."""

Ratios = dict[str, dict[str, float]]


def measure_ratios(bench: Bench, engines: Engines, *, num_rounds: int) -> Ratios:
    """Per stage: milliseconds per picture in the server and in its engine, and their ratio; medians over the rounds.

    A round sends every picture once, one after another, and takes it through the engines once.
    """
    kind = bench.pictures[0].kind
    rounds = []
    for turn in range(num_rounds):
        ways = ("server", "engines") if turn % 2 == 0 else ("engines", "server")
        found = {way: _server_ms(bench, kind) if way == "server" else _engines_ms(bench, engines) for way in ways}
        rounds.append({stage: (ms, _engine_of(stage, kind, found["engines"])) for stage, ms in found["server"].items()})
    ratios = {}
    for stage in rounds[0]:
        server_ms, engine_ms = np.array([turn[stage] for turn in rounds]).T
        ratios[stage] = {
            "server_ms": rounded(statistics.median(server_ms)),
            "engine_ms": rounded(statistics.median(engine_ms)),
            "ratio": rounded(statistics.median(server_ms / engine_ms)),
            "min_ratio": rounded((server_ms / engine_ms).min()),
            "max_ratio": rounded((server_ms / engine_ms).max()),
        }
    return ratios


def slower_stages(found: Ratios, stored: Ratios, tolerance: float) -> list[str]:
    """One line for each stage whose ratio is above the stored one by more than `tolerance` (0.5: half as much again).

    Raises:
        ValueError: the two runs have other stages.
    """
    if set(found) != set(stored):
        raise ValueError(f"stages differ from those stored: {sorted(set(found) ^ set(stored))}")
    return [
        f"{stage}: {figures['ratio']:g} times its engine, stored {stored[stage]['ratio']:g}"
        for stage, figures in found.items()
        if figures["ratio"] > stored[stage]["ratio"] * (1 + tolerance)
    ]


def table(found: Ratios, stored: Ratios | None) -> str:
    lines = [f"{'stage':16}{'server ms':>11}{'engine ms':>11}{'ratio':>8}{'stored':>8}"]
    for stage, figures in found.items():
        before = f"{stored[stage]['ratio']:8.2f}" if stored and stage in stored else " " * 8
        ms = "".join(f"{figures[name]:11.2f}" for name in ("server_ms", "engine_ms"))
        lines.append(f"{stage:16}{ms}{figures['ratio']:8.2f}{before}")
    return "\n".join(lines)


def _server_ms(bench: Bench, kind: str) -> dict[str, float]:
    """Computing time per picture of each stage; of the ensemble the whole time."""
    before = read_stages(bench.observer)
    for picture in range(len(bench.pictures)):
        bench.send(picture)
    stages: Stages = subtract_stages(read_stages(bench.observer), before)
    ensemble = f"recognize_{kind}"
    return {
        stage: (times.total_ms if stage == ensemble else times.compute_ms) / len(bench.pictures)
        for stage, times in sorted(stages.items())
    }


def _engines_ms(bench: Bench, engines: Engines) -> dict[str, float]:
    """Time per picture in each engine."""
    total_ms: dict[str, float] = {}
    for picture in bench.pictures:
        for call in engines.recognize(picture.kind, picture.pixels):
            total_ms[call.model] = total_ms.get(call.model, 0.0) + call.elapsed_s * 1e3
    return {model: ms / len(bench.pictures) for model, ms in total_ms.items()}


def _engine_of(stage: str, kind: str, engines_ms: dict[str, float]) -> float:
    if stage == f"recognize_{kind}":
        return sum(engines_ms.values())
    return sum(engines_ms[model] for model in PARTS.get(stage, (stage,)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_arguments(parser, "regression")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, metavar="SHARE", help="default: %(default)s")
    parser.add_argument("--stored", type=Path, metavar="FILE", help="default: results/CONFIG_regression.json")
    parser.add_argument("--store", action="store_true", help="write the stored file instead of comparing with it")
    parser.set_defaults(pictures=16)
    options = parser.parse_args(argv)
    stored_path = options.stored or STORED / f"{options.config}_regression.json"
    if options.store:
        options.output = stored_path
    stored: Ratios | None = None if options.store else read_results(stored_path)["figures"]["stages"]
    slower: list[str] = []

    def compare(bench: Bench) -> dict[str, Any]:
        engines = Engines(bench.repository, CONFIGS[options.config]())
        for picture in bench.pictures:
            engines.recognize(picture.kind, picture.pixels)
        stages = measure_ratios(bench, engines, num_rounds=options.rounds)
        print(table(stages, stored), flush=True)
        if stored is not None:
            slower.extend(slower_stages(stages, stored, options.tolerance))
        return {"rounds": options.rounds, "tolerance": options.tolerance, "slower": slower, "stages": stages}

    run_on_bench(options, argv, compare)
    for line in slower:
        print(f"slower: {line}")
    return 1 if slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
