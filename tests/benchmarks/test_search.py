import json

from benchmarks.harness.results import read_results
from benchmarks.search import main


def test_figures_are_printed_and_stored(capsys, tmp_path):
    output = tmp_path / "search.json"
    assert main(["--queries", "20", "--gallery", "300", "--memory-mib", "400", "--output", str(output)]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert read_results(output)["figures"] == figures
    assert (figures["num_queries"], figures["num_gallery"]) == (20, 300)
    assert figures["ratio"] > 0
    assert 50 < figures["peak_memory_mib"] <= 400
