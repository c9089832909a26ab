"""Make an HTML page with plots, and the Markdown table of benchmarks/README.md, from results files.

    python -m benchmarks.report --results benchmarks/results --output build/benchmarks/report

Writes report.html, the plots as PNG files beside it, and table.md. Every figure on the page comes from the files. Exit
code 2 if there are no results.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.harness.options import add_path, new_parser
from benchmarks.harness.results import read_json
from benchmarks.report.plots import write_plots
from benchmarks.report.sections import SECTIONS
from benchmarks.report.table import markdown_table
from livematch.cli.commands import run_command
from livematch.files import replace_file

Results = dict[str, Any]

TITLES = {"demo": "Demo networks", "production": "Production networks", None: "Matching"}

MAX_BUSY_FRACTION = 0.1
"""The page warns if other work used more than this fraction of the CPUs."""


def write_report(results: Sequence[Results], folder: Path) -> None:
    """Write report.html, its plots and table.md to `folder`.

    Args:
        results: contents of results files, each with its file name as "file", as `read_folder` returns them.
        folder: created if it is missing.

    Raises:
        ValueError: `results` is empty.
    """
    if not results:
        raise ValueError("no results to report")
    folder.mkdir(parents=True, exist_ok=True)
    order = list(SECTIONS)
    ranked = sorted(results, key=lambda result: order.index(result["benchmark"]))
    groups = [
        (TITLES[config], [_section(result, folder) for result in ranked if result["config"] == config])
        for config in dict.fromkeys(result["config"] for result in results)
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(groups=groups)
    for name, text in (("report.html", page), ("table.md", markdown_table(results))):
        with replace_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _section(result: Results, folder: Path) -> dict[str, Any]:
    """Return what the template shows of one results file, after writing its plots to `folder`."""
    benchmark, figures = result["benchmark"], result["figures"]
    description, blocks_of = SECTIONS[benchmark]
    return {
        "benchmark": benchmark,
        "description": description,
        "warning": _warning(result),
        "command": result["command"],
        "conditions": _conditions(result),
        "plots": write_plots(benchmark, figures, folder, Path(result["file"]).stem),
        "blocks": blocks_of(figures),
    }


def _warning(result: Results) -> str:
    """Return a warning if other work slowed the measurement, and otherwise an empty text."""
    before, after = result["machine"]["busy_share"], result["busy_share_after"]
    if max(before, after) <= MAX_BUSY_FRACTION:
        return ""
    return (
        f"Other work used {before:.0%} of the CPUs before this run and {after:.0%} after it: read the times as upper "
        "limits, and the ratios with care."
    )


def _conditions(result: Results) -> list[str]:
    machine, figures = result["machine"], result["figures"]
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    run = [f"commit {result['commit']}", result["started"], f"{result['elapsed_s']:.0f} s"]
    if result["seed"] is not None:
        run.append(f"seed {result['seed']}")
    if "precision" in figures:
        run.append(f"networks served in {figures['precision']}")
    if weights := _weights(result):
        run.append(f"weights: {weights}")
    if "server" in figures:
        run.append(f"server {figures['server']}: {figures['model_identity']}")
    lines = [
        f"{machine['cpu']}, {machine['num_cpus']} CPUs, {machine['memory_gib']} GiB, {gpus}; "
        f"other work used {machine['busy_share']:.0%} of the CPUs before, {result['busy_share_after']:.0%} after",
        ", ".join(run),
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    ]
    if boxes := figures.get("boxes"):
        size = " × ".join(map(str, figures["picture_size"][::-1]))
        counts = ", ".join(f"{num} × {count}" for count, num in boxes["pictures_by_num_boxes"].items())
        lines.append(
            f"{boxes['num_pictures']} {figures['kind']}s of {size} px, {boxes['mean']:.2f} boxes on average "
            f"(images × boxes: {counts})"
        )
    if result["models"]:
        lines.append("models " + ", ".join(f"{model} {digest[:8]}" for model, digest in result["models"].items()))
    return lines


def _weights(result: Results) -> str | None:
    """Return the weights as recorded; older files lack them, and for those return what the command implies."""
    names_others = any(option in result["command"] for option in ("--checkpoints", "--server"))
    is_random = result["config"] == "production" and not names_others
    weights: str | None = result["figures"].get("weights", "random" if is_random else None)
    return weights


def read_folder(folder: Path) -> list[Results]:
    """Return the results files of a folder, each with its file name as "file"; other JSON files are left out.

    Raises:
        ValueError: a file is not JSON.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if isinstance(content, dict) and content.get("benchmark") in SECTIONS:
            results.append({**content, "file": path.name})
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    add_path(parser, "--results", Path("benchmarks/results"), "folder of the results files")
    add_path(parser, "--output", Path("build/benchmarks/report"), "folder to write")
    options = parser.parse_args(argv)

    def report() -> int:
        results = read_folder(options.results)
        if not results:
            raise ValueError(f"no results in {options.results}")
        write_report(results, options.output)
        print((options.output / "table.md").read_text(encoding="utf-8"))
        print(f"written to {options.output / 'report.html'}")
        return 0

    return run_command("benchmarks.report", report)
