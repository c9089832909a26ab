from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from benchmarks.report.page import main, read_folder, write_report
from benchmarks.report.table import markdown_table
from livematch.cli.commands import EXIT_ERROR

ROOT = Path(__file__).parents[3]

HEAD = {
    "command": "python -m benchmarks.x --a <b>",
    "commit": "abc",
    "started": "2026-01-01T00:00:00+00:00",
    "elapsed_s": 3.0,
    "seed": 0,
    "config": "demo",
    "machine": {"cpu": "a CPU", "num_cpus": 2, "memory_gib": 8.0, "gpus": [], "busy_share": 0.02},
    "versions": {"python": "3.11"},
    "models": {"detector": "0123456789"},
    "busy_share_after": 0.05,
}
LATENCY = {
    "num_answered": 9,
    "num_failures": 1,
    "p50_ms": 10.0,
    "p90_ms": 12.0,
    "p95_ms": 13.0,
    "p99_ms": 14.0,
    "max_ms": 15.0,
}
STAGE = {
    "calls_per_picture": 1.0,
    "rows_per_call": 1.0,
    "total_ms": 5.0,
    "queue_ms": 1.0,
    "input_ms": 1.0,
    "compute_ms": 2.0,
    "output_ms": 1.0,
}
USAGE = {"machine_busy_share": 0.9, "server_busy_share": 0.8, "server_memory_mib": 700}
BOXES = {"num_pictures": 3, "mean": 1.0, "pictures_by_num_boxes": {"0": 1, "1": 1, "2": 1}}


def point(concurrency: int, rate: float) -> dict[str, Any]:
    return {
        "concurrency": concurrency,
        "is_stable": concurrency > 1,
        "pictures_per_s": rate,
        "crops_per_s": 2 * rate,
        "crops_per_call": 1.5,
        "overhead": 0.034 if concurrency == 1 else None,
        "latency": LATENCY,
        "usage": USAGE,
        "gpu": {"mean_load_percent": 87.0, "mean_power_w": 300.0, "max_memory_mib": 4321.0}
        if concurrency > 1
        else None,
        "stages": {"detector": STAGE, "crop_and_embed": STAGE},
    }


FIGURES: dict[str, dict[str, Any]] = {
    "throughput": {
        "kind": "frame",
        "precision": "fp16",
        "picture_size": [960, 540],
        "boxes": BOXES,
        "sweep": [point(1, 5.0), point(4, 8.0)],
    },
    "latency": {
        "peak": {"pictures_per_s": 8.0, "concurrency": 4},
        "load": [
            {
                "share_of_peak": share,
                "offered_per_s": 4.0,
                "answered_per_s": 4.0,
                "is_stable": share < 0.9,
                "latency": LATENCY,
                "samples": [[0.0, 9.0, 1], [0.1, 11.0, 2]],
            }
            for share in (0.5, 0.9)
        ],
    },
    "baseline": {
        "headline_speedup": 4.2,
        "cpu_ratio": 3.0,
        "speedup_unread": 2.1,
        "num_clips": 1,
        "num_frames": 4,
        "threads": 2,
        "device": "cpu",
        "eager_detector": "graph",
        "rounds": [
            {
                "pipeline_s": 1.0,
                "baseline_s": ratio,
                "speedup": ratio,
                "speedup_unread": ratio / 2,
                "baseline_steps": {"reading_s": ratio / 2},
                "baseline_cpu_s": 3.0,
                "pipeline_cpu_s": 1.0,
                "cpu_ratio": 3.0,
                "agreement": {
                    "num_baseline_boxes": 2,
                    "num_pipeline_boxes": 2,
                    "num_same_boxes": 2,
                    "min_cosine": 0.999,
                },
            }
            for ratio in (4.0, 4.2, 4.4)
        ],
    },
    "concurrency": {
        "num_clips": 6,
        "concurrency": 4,
        "decoding_speedup": 4.5,
        "speedup": 1.6,
        "computing": 1.9,
        "rounds": [
            {
                "decoding": {"sought_s": 9.0, "one_pass_s": 2.0, "speedup": 4.5},
                "serial": {"frames_per_s": 5.0, "computing": 0.8, "usage": USAGE},
                "overlapped": {"frames_per_s": 8.0, "computing": 1.9, "usage": USAGE},
                "speedup": 1.6,
            }
        ],
    },
    "models": {
        "share_of_bound": {"median": 0.8, "min": 0.7, "max": 0.9},
        "models": {
            "crop": {"calls_per_picture": 1.0, "rows_per_call": 1.0, "engine_ms": 0.2},
            "detector": {
                "calls_per_picture": 1.0,
                "rows_per_call": 1.0,
                "engine_ms": 10.0,
                "eager_ms": 20.0,
                "speedup": 2.0,
                "bound_ms": 5.0,
                "share_of_bound": 0.5,
            },
        },
        "rounds": [
            {
                "gemm_gflop_per_s": 100.0,
                "memory_gbyte_per_s": 10.0,
                "engine_ms": {"crop": 0.2, "detector": engine_ms},
                "eager_ms": {"detector": 20.0},
                "share_of_bound": 0.8,
            }
            for engine_ms in (8.0, 10.0, 16.0)
        ],
    },
    "detector": {
        "image_size": [608, 1080],
        "threads": 2,
        "speedup": 2.5,
        "rounds": [{"detectron2_s": 5.0, "onnxruntime_s": 2.0, "speedup": 2.5}],
    },
    "perf_analyzer": {
        "median_ratio": 1.01,
        "rounds": [
            {
                "ours_per_s": 8.0,
                "ours_is_stable": True,
                "perf_analyzer": {"is_stable": True, "inferences_per_s": 8.1},
                "ratio": 1.01,
            }
        ],
        "models": {},
    },
    "search": {"ratio": 0.8, "ratios": [0.7, 0.8, 0.9], "num_queries": 4000, "num_gallery": 50000},
}


def without(figures: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key != name}


@pytest.fixture
def results() -> list[dict[str, Any]]:
    return [
        {**HEAD, "benchmark": name, "figures": figures, "file": f"demo_{name}.json"}
        for name, figures in FIGURES.items()
    ]


def test_the_page_has_conditions_tables_and_plots(results: list[dict[str, Any]], tmp_path: Path) -> None:
    write_report(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for text in (
        "--a &lt;b&gt;",
        "a CPU, 2 CPUs",
        "other work used 2% of the CPUs before, 5% after",
        "1 × 0, 1 × 1, 1 × 2",
        "networks served in fp16",
        "<td>87.0</td><td>300.0</td><td>4321.0</td>",
        "<td>1.25 to 2.5</td>",
    ):
        assert text in page
    assert "4.2 times as fast as the baseline" in page and "detector 01234567" in page
    assert "<td>1</td><td>9.0</td><td>2.0</td><td>4.5</td><td>5.0</td><td>8.0</td><td>1.6</td><td>0.8</td>" in page
    plots = sorted(path.name for path in tmp_path.glob("*.png"))
    assert plots == [
        f"demo_{name}.png"
        for name in (
            *("baseline_baseline", "latency_latency", "models_models"),
            *("throughput_stages", "throughput_throughput"),
        )
    ]
    assert all(f'src="{name}"' in page for name in plots)


def test_the_table_has_every_figure_with_its_file(results: list[dict[str, Any]]) -> None:
    lines = markdown_table(results).splitlines()
    assert lines[2] == "| demo | pipeline over the baseline, CPU | 4.2× | 4 to 4.4 (3) | `demo_baseline.json` |"
    engine = "2.00×, and 0.50 of the bound that its arithmetic sets | 1.25 to 2.5 (3)"
    assert f"| demo | engine of detector over eager PyTorch | {engine} | `demo_models.json` |" in lines
    assert "| demo | throughput, 4 in flight | 8 images/s, 16 crops/s |  | `demo_throughput.json` |" in lines
    assert "| demo | embedding, 4 sources in flight over one | 1.60× |  | `demo_concurrency.json` |" in lines
    assert sum("Poisson" in line for line in lines) == 1  # the load that was not stable is left out


@pytest.mark.parametrize(
    ("benchmark", "changes"),
    [
        ("perf_analyzer", {"ours_is_stable": False}),
        ("perf_analyzer", {"perf_analyzer": {"is_stable": False, "inferences_per_s": 8.1}}),
        ("models", {"ensemble_is_stable": False}),
    ],
)
def test_a_ratio_of_unstable_measurements_is_marked(
    results: list[dict[str, Any]], tmp_path: Path, benchmark: str, changes: dict[str, Any]
) -> None:
    (result,) = [result for result in results if result["benchmark"] == benchmark]
    assert "not stable" not in markdown_table([result])
    rounds = result["figures"]["rounds"]
    result = {**result, "figures": {**result["figures"], "rounds": [*rounds, {**rounds[-1], **changes}]}}
    assert markdown_table([result]).count(", not stable |") == 1
    write_report([result], tmp_path)
    if benchmark == "perf_analyzer":
        assert "<td>8.0</td><td>8.1</td><td>1.01</td><td>no</td>" in (tmp_path / "report.html").read_text()


def test_engines_on_a_gpu_are_not_compared_with_the_ensemble(results: list[dict[str, Any]], tmp_path: Path) -> None:
    (models,) = [result for result in results if result["benchmark"] == "models"]
    figures = without(models["figures"], "share_of_bound")
    figures["rounds"] = [without(turn, "share_of_bound") for turn in figures["rounds"]]
    assert "engine of detector" in (table := markdown_table([{**models, "figures": figures}]))
    assert "ensemble" not in table
    write_report([{**models, "figures": figures}], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "What limits the ensemble: detector" in page and "The ensemble reaches" not in page


def test_rates_of_a_thousand_are_written_out(results: list[dict[str, Any]]) -> None:
    figures = results[0]["figures"]
    fast = {**figures["sweep"][1], "pictures_per_s": 1234.0, "crops_per_s": 0.2428}
    table = markdown_table([{**results[0], "figures": {**figures, "sweep": [figures["sweep"][0], fast]}}])
    assert "| 1230 images/s, 0.243 crops/s |" in table


def test_failures_are_shown(results: list[dict[str, Any]], tmp_path: Path) -> None:
    """The table counts them beside the latency of the responses; a point without any response is reported, too."""
    throughput = results[0]["figures"]
    none = {"num_answered": 0, "num_failures": 7}
    unstable = {**throughput["sweep"][1], "concurrency": 8, "pictures_per_s": 99.0, "is_stable": False}
    throughput = {
        **throughput,
        "sweep": [{**throughput["sweep"][0], "latency": none}, throughput["sweep"][1], unstable],
    }
    results[0] = {**results[0], "figures": throughput}
    lines = markdown_table(results).splitlines()
    assert any("p50 10 ms, p99 14 ms (9 requests, 1 more failed)" in line for line in lines)
    assert any("latency, 1 in flight | no response (0 requests, 7 more failed)" in line for line in lines)
    assert any("throughput, 4 in flight | 8 images/s" in line for line in lines)  # the faster point is not stable
    write_report(results, tmp_path)


def test_a_server_elsewhere_is_named_and_has_no_usage(results: list[dict[str, Any]], tmp_path: Path) -> None:
    figures = results[0]["figures"]
    sweep = [{**figures["sweep"][0], "usage": None}]
    served = {"server": "gpu-box:8001", "model_identity": "production-0123"}
    figures = {**without(figures, "precision"), **served, "sweep": sweep}
    write_report([{**results[0], "figures": figures}], tmp_path)
    assert ", server gpu-box:8001: production-0123</li>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "recorded", "shown"),
    [
        ("", {"weights": "a <folder>"}, "weights: a &lt;folder&gt;"),
        ("--checkpoints DIR", {"weights": "DIR"}, "weights: DIR"),
        ("", {}, "weights: random"),
        ("--checkpoints DIR", {}, None),
        ("--server gpu-box:8001", {}, None),
    ],
)
def test_weights_are_named_as_far_as_they_are_known(
    results: list[dict[str, Any]], tmp_path: Path, arguments: str, recorded: dict[str, str], shown: str | None
) -> None:
    """In files of older runs, only the command tells."""
    (result,) = [result for result in results if result["benchmark"] == "baseline"]
    command = f"python -m benchmarks.baseline --config production {arguments}"
    figures = {**result["figures"], **recorded}
    write_report([{**result, "config": "production", "command": command, "figures": figures}], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Production networks</h2>" in page
    assert shown in page if shown else "weights" not in page.split("<h3>")[1].split('class="conditions"')[1]


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text("[1]")
    assert read_folder(tmp_path) == []
    assert main(["--results", str(tmp_path), "--output", str(tmp_path)]) == EXIT_ERROR
    assert capsys.readouterr().err == f"benchmarks.report: no results in {tmp_path}\n"


def test_a_damaged_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo_search.json").write_text('{"benchmark": ')
    assert main(["--results", str(tmp_path), "--output", str(tmp_path)]) == EXIT_ERROR
    assert f"{tmp_path / 'demo_search.json'}: cannot be read" in capsys.readouterr().err


def test_a_run_on_a_busy_machine_says_so(results: list[dict[str, Any]], tmp_path: Path) -> None:
    write_report(results, tmp_path)
    assert "Other work used" not in (tmp_path / "report.html").read_text()
    results[0] = {**results[0], "machine": {**results[0]["machine"], "busy_share": 0.4}}
    write_report(results, tmp_path)
    assert (tmp_path / "report.html").read_text().count("Other work used") == 1


def test_the_readme_has_the_table_of_the_results_in_git() -> None:
    results = read_folder(ROOT / "benchmarks" / "results")
    assert markdown_table(results) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
