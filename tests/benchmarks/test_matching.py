import json

from benchmarks.matching import main


def test_one_line_of_json(capsys):
    assert main(["--queries", "20", "--gallery", "300", "--memory-mib", "400"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["num_queries"], figures["num_gallery"]) == (20, 300)
    assert figures["ratio"] > 0
    assert 50 < figures["peak_memory_mib"] <= 400
