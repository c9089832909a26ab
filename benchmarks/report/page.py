"""Make an HTML page with plots, and the Markdown table of benchmarks/README.md, from results files.

    python -m benchmarks.report --results benchmarks/results --output build/benchmarks/report

Writes report.html, the plots as PNG files beside it, and table.md. Every figure on the page comes from the files. Exit
code 2 if there are no results.
"""

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.harness.options import add_path, new_parser
from benchmarks.harness.results import run_benchmark
from benchmarks.report.plots import write_plots
from benchmarks.report.sections import SECTIONS
from benchmarks.report.table import markdown_table
from livematch.files import replace_file
from livematch.media.annotations import read_json

Results = dict[str, Any]

TITLES = {"demo": "Demo networks", "production": "Production networks", None: "Matching"}


def write_report(results: Sequence[Results], folder: Path) -> None:
    """Write report.html, its plots and table.md to `folder`, which is created if it is missing.

    `results` are the contents of results files, each with its file name as "file", as `read_folder` returns them.
    """
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
    return {
        "result": result,
        "description": inspect.getdoc(SECTIONS[benchmark]),
        "plots": write_plots(benchmark, figures, folder, Path(result["file"]).stem),
        "blocks": SECTIONS[benchmark](figures),
    }


def read_folder(folder: Path) -> list[Results]:
    """Return the results files of a folder, each with its file name as "file"; other JSON files are left out."""
    results = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if isinstance(content, dict) and content.get("benchmark") in SECTIONS:
            results.append({**content, "file": path.name})
    return results


def run(options: argparse.Namespace) -> int:
    results = read_folder(options.results)
    if not results:
        raise ValueError(f"no results in {options.results}")
    write_report(results, options.output)
    print((options.output / "table.md").read_text(encoding="utf-8"))
    print(f"written to {options.output / 'report.html'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("report", __doc__)
    add_path(parser, "--results", Path("benchmarks/results"), "folder of the results files")
    add_path(parser, "--output", Path("build/benchmarks/report"), "folder to write")
    return run_benchmark(parser, argv, run)
