"""Turns results files into one HTML page with plots, and into the README's table.

    python -m benchmarks.report --results benchmarks/results --output build/benchmarks/report

Writes report.html, the plots as PNG files beside it, and table.md. Every figure on the page comes from the files.
"""

import argparse
import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.results import read_results
from benchmarks.report.plots import PLOTS
from benchmarks.report.table import engine_speedups, is_stable_on_both_sides, markdown_table, rank

Results = dict[str, Any]

BUSY_SHARE = 0.1
"""Of the processors; a run beside other work that used more is marked as disturbed."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
table { border-collapse: collapse; font-size: .9em; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
th { background: #f3f3f0; font-weight: 600; white-space: normal; vertical-align: bottom; }
img { max-width: 100%; } .note { color: #555; font-size: .9em; } code { overflow-wrap: anywhere; }
"""


def write_report(results: Sequence[Results], folder: Path) -> None:
    """Raises ValueError if there is nothing to report."""
    if not results:
        raise ValueError("no results to report")
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["<h1>livematch: measurements</h1>", HOW]
    for config in dict.fromkeys(result["config"] for result in results):
        chosen = [result for result in results if result["config"] == config]
        parts.append(f"<h2>{_title(config)}</h2>")
        parts += [_section(result, folder) for result in sorted(chosen, key=lambda result: rank(result["benchmark"]))]
    page = '<!doctype html><html lang="en"><meta charset="utf-8"><title>livematch: measurements</title>'
    page += (
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><body>{"".join(parts)}</body></html>'
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "table.md").write_text(markdown_table(results), encoding="utf-8")


HOW = """<p>Every section names its command, commit, machine, seed and how busy the machine was with other work.
Warm-up is outside all figures. A closed loop keeps a number of requests in flight and runs windows, each as many
answers as whole passes over the pictures, until three in a row agree within 10 %; an open loop sends at Poisson times,
and latency counts from the moment a request was due. Where times of two things are compared, they ran in turns, and the
ratio was formed within each round, with its lowest and highest given. MLPerf's scenario names are not used: they ask
for 600 seconds.</p>"""


MEASURED = {
    "baseline": "The pipeline against the contest solution's way of working: eager PyTorch in float32, one picture at "
    "a time, each frame sought and decoded again for every box and network, JSON files in between. Same weights, same "
    "clips, in turns.",
    "detector": "The exported detector in ONNX Runtime against detectron2 with the same weights, one made-up picture, "
    "in turns.",
    "concurrency": "What `livematch embed` makes of the server, in turns: each clip decoded in one pass against every "
    "frame sought by itself, and several sources under way at once against one.",
    "throughput": "Pictures of the world sent to the ensemble over gRPC on loopback, a fixed number in flight. The "
    "client runs on the same machine.",
    "latency": "The same pictures at random times, at shares of the throughput with many in flight.",
    "models": "Each model alone, on the tensors it gets in the pipeline: its engine, eager PyTorch with the same "
    "weights, and the time its counted work would take at the rates measured here.",
    "perf_analyzer": "NVIDIA's program and our own loop in turns, on the same pictures.",
    "regression": "Each stage's time in the server over its engine's time alone, one request in flight.",
    "search": "Exact search over features from disk against a plain matrix product of the same size.",
}


def _busy_note(result: Results) -> str:
    """Says so where other work ran beside the measurement, since then times mean little."""
    shares = result["machine"]["busy_share"], result["busy_share_after"]
    if max(shares) <= BUSY_SHARE:
        return ""
    return (
        f"<p><strong>Other work used {shares[0]:.0%} of the processors before this run and {shares[1]:.0%} after it: "
        "read its times as upper limits, and its ratios with care.</strong></p>"
    )


def _section(result: Results, folder: Path) -> str:
    benchmark, figures = result["benchmark"], result["figures"]
    parts = [f"<h3>{benchmark}</h3><p>{MEASURED[benchmark]}</p>", _busy_note(result), _conditions(result)]
    for name, plot in PLOTS.get(benchmark, {}).items():
        path = folder / f"{Path(result['file']).stem}_{name}.png"
        plot(figures, path)
        parts.append(f'<p><img src="{path.name}" alt="{name} of {benchmark}"></p>')
    parts.append(TABLES[benchmark](figures) if benchmark in TABLES else "")
    return "".join(parts)


def _conditions(result: Results) -> str:
    machine, figures = result["machine"], result["figures"]
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    boxes = figures.get("boxes")
    lines = [
        f"<code>{html.escape(result['command'])}</code>",
        f"{html.escape(machine['cpu'])}, {machine['num_cpus']} processors, {machine['memory_gib']} GiB, {gpus}; "
        f"other work used {machine['busy_share']:.0%} of them before, {result['busy_share_after']:.0%} after",
        f"commit {result['commit']}, {result['started']}, {result['elapsed_s']:.0f} s"
        + ("" if result["seed"] is None else f", seed {result['seed']}")
        + (f", networks served in {figures['precision']}" if "precision" in figures else "")
        + (f", weights: {html.escape(weights)}" if (weights := _weights(result)) else "")
        + html.escape(f", server {figures['server']}: {figures['model_identity']}" if "server" in figures else "")
        + html.escape("; " + ", ".join(f"{name} {version}" for name, version in result["versions"].items())),
    ]
    if boxes:
        counts = ", ".join(f"{num} × {count}" for count, num in boxes["pictures_by_num_boxes"].items())
        lines.append(
            f"{boxes['num_pictures']} {figures['kind']}s of {' × '.join(map(str, figures['picture_size'][::-1]))} px, "
            f"{boxes['mean']:.2f} boxes on average (pictures × boxes: {counts})"
        )
    if result["models"]:
        lines.append("models " + ", ".join(f"{model} {digest[:8]}" for model, digest in result["models"].items()))
    return '<p class="note">' + "<br>".join(lines) + "</p>"


def _weights(result: Results) -> str | None:
    """As recorded. Older files say it by their command alone: production's are made up unless it names others."""
    names_others = any(option in result["command"] for option in ("--checkpoints", "--server"))
    is_made_up = result["config"] == "production" and not names_others
    return result["figures"].get("weights", "made up" if is_made_up else None)


def _throughput(figures: dict[str, Any]) -> str:
    rows = [
        (
            *(point["concurrency"], point["pictures_per_s"], point["crops_per_s"], point["crops_per_call"]),
            *(point["latency"].get(f"{name}_ms", "") for name in ("p50", "p90", "p95", "p99", "max")),
            *(point["latency"]["num_answered"], point["latency"]["num_failures"]),
            "yes" if point["is_stable"] else "no",
            *_usage(point["usage"]),
            *((point["gpu"] or {}).get(name, "") for name in ("mean_load_percent", "mean_power_w", "max_memory_mib")),
        )
        for point in figures["sweep"]
    ]
    head = "in flight,pictures/s,crops/s,crops/call,p50 ms,p90,p95,p99,max,answers,failures,stable"
    usage = "machine busy,server busy,MiB,GPU %,GPU W,GPU MiB"
    first = figures["sweep"][0]
    stages = [
        (
            *(model, row["calls_per_picture"], row["rows_per_call"]),
            *(row[f"{part}_ms"] for part in ("total", "queue", "input", "compute", "output")),
        )
        for model, row in sorted(first["stages"].items())
    ]
    note = (
        f"<p>Per picture, {first['concurrency']} in flight; crop_and_embed computes by calling crop and the embedders."
    )
    if first["overhead"] is not None:
        note += f" In {first['overhead']:.1%} of a request's time none of the ensemble's steps computed."
    return (
        _table(f"{head},{usage}", rows)
        + f"{note}</p>"
        + _table("model,calls,rows/call,total ms,queue,input,compute,output", stages)
    )


def _usage(usage: dict[str, Any] | None) -> tuple[object, ...]:
    """Nothing of a server that runs elsewhere."""
    if usage is None:
        return "", "", ""
    shares = (f"{usage[name]:.0%}" for name in ("machine_busy_share", "server_busy_share"))
    return *shares, usage["server_memory_mib"]


def _latency(figures: dict[str, Any]) -> str:
    rows = [
        (
            *(f"{load['share_of_peak']:.0%}", load["offered_per_s"], load["answered_per_s"]),
            *(load["latency"].get(f"{name}_ms", "") for name in ("p50", "p90", "p95", "p99", "max")),
            *(load["latency"]["num_answered"], load["latency"]["num_failures"], "yes" if load["is_stable"] else "no"),
        )
        for load in figures["load"]
    ]
    peak = figures["peak"]
    note = f"<p>Peak: {peak['pictures_per_s']} pictures/s with {peak['concurrency']} in flight.</p>"
    return note + _table("load,offered/s,answered/s,p50 ms,p90,p95,p99,max,answers,failures,stable", rows)


def _baseline(figures: dict[str, Any]) -> str:
    rows = [
        (
            *(position + 1, turn["baseline_s"], turn["pipeline_s"], turn["speedup"]),
            *(turn["baseline_steps"]["reading_s"], turn["speedup_unread"]),
            *(turn["baseline_cpu_s"], turn["pipeline_cpu_s"], turn["cpu_ratio"]),
            *(turn["agreement"][f"num_{name}_boxes"] for name in ("baseline", "pipeline", "same")),
            turn["agreement"]["min_cosine"],
        )
        for position, turn in enumerate(figures["rounds"])
    ]
    headline = (
        f"<p><strong>The pipeline is {figures['headline_speedup']:.3g} times as fast</strong>, "
        f"{figures['speedup_unread']:.3g} times if the baseline read its frames in no time (medians of "
        f"{len(rows)} rounds; clips: {figures['num_clips']}, frames of each: {figures['num_frames']}). Baseline: eager "
        f"PyTorch with {figures['threads']} threads on {figures['device']}, detector: {figures['eager_detector']}.</p>"
    )
    times = "round,baseline s,pipeline s,times as fast,of it reading frames s,times as fast without"
    times += ",baseline CPU s,pipeline CPU s,ratio"
    head = f"{times},baseline boxes,pipeline boxes,same boxes,lowest cosine"
    return headline + _table(head, rows)


def _concurrency(figures: dict[str, Any]) -> str:
    rows = []
    for position, turn in enumerate(figures["rounds"]):
        decoding, ways = turn["decoding"], (turn["serial"], turn["overlapped"])
        rows.append(
            (
                *(position + 1, decoding["sought_s"], decoding["one_pass_s"], decoding["speedup"]),
                *(way["frames_per_s"] for way in ways),
                *(turn["speedup"], *(way["computing"] for way in ways)),
                *(f"{way['usage']['machine_busy_share']:.0%}" for way in ways),
            )
        )
    note = (
        f"<p>Clips: {figures['num_clips']}. Computing: requests the server computes for at a time on average, with one "
        f"source under way (there it is the share of time in which the server is busy) and with "
        f"{figures['concurrency']}.</p>"
    )
    head = "round,frames sought s,one pass s,times as fast,frames/s one at a time,frames/s overlapped,times as fast"
    return note + _table(f"{head},computing one at a time,overlapped,machine busy one at a time,overlapped", rows)


def _models(figures: dict[str, Any]) -> str:
    counts = ("calls_per_picture", "rows_per_call", "engine_ms", "eager_ms", "eager_half_ms", "speedup")
    names = (*counts, "gflop_per_call", "mbyte_per_call", "bound_ms", "share_of_bound")
    rows = []
    for model, row in figures["models"].items():
        speedups = engine_speedups(figures, model)
        spread = f"{min(speedups):.3g} to {max(speedups):.3g}" if speedups else ""
        rows.append((model, *(row.get(name, "") for name in names), spread))
    rates = [(turn["gemm_gflop_per_s"], turn["memory_gbyte_per_s"]) for turn in figures["rounds"]]
    gemm, memory = ([min(values), max(values)] for values in zip(*rates, strict=True))
    cost = {model: row["calls_per_picture"] * row["engine_ms"] for model, row in figures["models"].items()}
    largest = max(cost, key=cost.__getitem__)
    note = (
        f"<p>Measured rates of this machine: matrix product {gemm[0]} to {gemm[1]} GFLOP/s, memory {memory[0]} to "
        f"{memory[1]} GB/s. What limits the ensemble: {largest} takes {cost[largest] / sum(cost.values()):.0%} of "
        "the engines' time per picture.</p>"
    )
    if share := figures.get("share_of_bound"):
        note += f"<p>The ensemble reaches {share['median']:.2f} ({share['min']:.2f} to {share['max']:.2f}) of what its "
        note += "engines reach alone.</p>"
    return note + _table(
        "model,calls/picture,rows/call,engine ms,eager ms,eager half ms,speed-up,GFLOP/call,MB/call,bound ms,"
        "share of bound,speed-up of the rounds",
        rows,
    )


def _perf_analyzer(figures: dict[str, Any]) -> str:
    rows = [
        (
            *(position + 1, turn["ours_per_s"], turn["perf_analyzer"]["inferences_per_s"], turn["ratio"]),
            "yes" if is_stable_on_both_sides(turn) else "no",
        )
        for position, turn in enumerate(figures["rounds"])
    ]
    names = ("inferences_per_s", "p50_ms", "p90_ms", "p95_ms", "p99_ms")
    models = [
        (model, *(row[name] for name in names), "yes" if row["is_stable"] else "no")
        for model, row in figures["models"].items()
    ]
    return (
        _table("round,ours pictures/s,perf_analyzer pictures/s,ratio,stable", rows)
        + "<p>perf_analyzer on each model by itself, one request in flight:</p>"
        + _table("model,per second,p50 ms,p90,p95,p99,stable", models)
    )


def _detector(figures: dict[str, Any]) -> str:
    height, width = figures["image_size"]
    names = ("detectron2_s", "onnxruntime_s", "speedup")
    rows = [(position + 1, *(turn[name] for name in names)) for position, turn in enumerate(figures["rounds"])]
    note = (
        f"<p>{width} × {height} px, {figures['threads']} threads each. Median: {figures['speedup']} times as fast.</p>"
    )
    return note + _table("round,detectron2 s,ONNX Runtime s,times as fast", rows)


def _regression(figures: dict[str, Any]) -> str:
    names = ("server_ms", "engine_ms", "ratio", "min_ratio", "max_ratio")
    rows = [(stage, *(row[name] for name in names)) for stage, row in figures["stages"].items()]
    return _table("stage,server ms,engine ms,ratio,lowest,highest", rows)


def _search(figures: dict[str, Any]) -> str:
    return _table("what,value", [(name, value) for name, value in figures.items() if not isinstance(value, list)])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "throughput": _throughput,
    "latency": _latency,
    "baseline": _baseline,
    "concurrency": _concurrency,
    "detector": _detector,
    "models": _models,
    "perf_analyzer": _perf_analyzer,
    "regression": _regression,
    "search": _search,
}


def _table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """Columns without any value, such as a GPU's where there is none, are left out."""
    columns = zip(head.split(","), *rows, strict=True)
    kept = [column for column in columns if any(value != "" for value in column[1:])]
    if not kept:
        return ""
    names, *lines = zip(*kept, strict=True)
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(value))}</td>' for value in line)}</tr>" for line in lines)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _title(config: str | None) -> str:
    return {"demo": "Demo networks", "production": "Production networks", None: "Matching"}[config]


def read_folder(folder: Path) -> list[Results]:
    """All results files of a folder, each with its own name as "file"; other JSON files are passed over."""
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            results.append({**read_results(path), "file": path.name})
        except ValueError:
            continue
    return [result for result in results if result["benchmark"] in TABLES]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/report"), metavar="DIR")
    options = parser.parse_args(argv)
    results = read_folder(options.results)
    if not results:
        parser.error(f"no results in {options.results}")
    write_report(results, options.output)
    print((options.output / "table.md").read_text(encoding="utf-8"))
    print(f"written to {options.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
