"""Tests of Milvus galleries in files, without a server."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livematch import Features, FeaturesError, InputError, LivematchError, MatchOptions, match, open_features
from livematch.cli import main
from livematch.features.milvus import COLLECTION, MilvusGallery

pytest.importorskip("pymilvus", reason="needs livematch[milvus]")
pytest.importorskip("milvus_lite", reason="needs livematch[milvus]")

SIZE = 32


def write(path, sources, embeddings, identity="m", names=None):
    rng = np.random.default_rng(len(sources))
    num_rows = len(sources)
    content = {
        "source": sources,
        "name": names or [""] * num_rows,
        "frame_index": pa.array(range(num_rows), pa.int32()),
        "box": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(4 * num_rows, np.float32)), 4),
        "score": pa.array(rng.integers(90, 99, num_rows).astype(np.float32) / 100),
        "label": [f"class {k}" for k in rng.integers(0, 3, num_rows)],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.float32(embeddings).ravel()), SIZE),
    }
    pq.write_table(pa.table(content).replace_schema_metadata({"livematch:model_identity": identity}), path)
    return open_features([path])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Queries and a gallery in which many embeddings are equal or nearly equal."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(3)
    few = rng.normal(size=(20, SIZE))
    gallery = few[np.arange(400) // 10 % 20] + rng.choice([0, 1e-7, 0.3], 400)[:, np.newaxis] * rng.normal(size=SIZE)
    queries = few[np.arange(90) // 6] + rng.choice([0, 0.2], 90)[:, np.newaxis] * rng.normal(size=(90, SIZE))
    return (
        write(folder / "q", [f"i{k // 6}" for k in range(90)], queries, names=[str(k) for k in range(90)]),
        write(folder / "g", [f"v{k // 10}\"'ü" for k in range(400)], gallery),
    )


OPTIONS = MatchOptions(quantile=0.6, limit=4, num_pairs=3)


@pytest.mark.parametrize("same_label", [False, True])
def test_matches_are_those_of_the_features_files(world, tmp_path, same_label):
    queries, gallery = world
    options = replace(OPTIONS, same_label=same_label)
    expected = match(queries, gallery, options)
    assert len(expected) > 5
    assert (expected == match(queries, gallery, OPTIONS)) != same_label
    with MilvusGallery(f"milvus:{tmp_path / 'g.db'}") as milvus:
        milvus.load(gallery)
        assert match(queries, milvus, options) == expected
        milvus.load(gallery)  # replaces all rows
        assert match(queries, milvus, options) == expected
    with MilvusGallery(f"milvus:{tmp_path / 'g.db'}") as milvus:
        assert match(queries, milvus, options) == expected


def test_a_gallery_of_an_older_version_is_refused(world, tmp_path):
    with MilvusGallery(f"milvus:{tmp_path / 'g.db'}") as milvus:
        client, types = milvus._client, milvus._pymilvus.DataType
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", types.INT64, is_primary=True)
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=SIZE)
        client.create_collection(COLLECTION, schema=schema)
        for refused in (lambda: milvus.load(world[1]), lambda: match(world[0], milvus)):
            with pytest.raises(FeaturesError, match=r"g\.db: was made by an older version"):
                refused()


def test_a_gallery_without_labels_is_refused_where_labels_are_compared(world, tmp_path):
    queries, _ = world
    unlabelled = Features(
        sources=["v"], names=[""], frame_indices=[0], boxes=[[0, 0, 1, 1]], scores=[0.9], embeddings=np.eye(1, SIZE)
    )
    with MilvusGallery(f"milvus:{tmp_path}/g.db") as milvus:
        milvus.load(unlabelled)
        with pytest.raises(FeaturesError, match=r"g\.db: a box of v has no label to compare"):
            match(queries, milvus, replace(OPTIONS, same_label=True))


def test_several_processes_load_one_gallery(world, tmp_path):
    queries, gallery = world
    embeddings = next(gallery.blocks(400)).embeddings
    for name, rows in (("first", slice(0, 200)), ("second", slice(200, 400))):
        write(tmp_path / name, gallery.sources[rows], embeddings[rows])
        command = ["load", "--gallery", f"milvus:{tmp_path / 'g.db'}", "--features", tmp_path / name]
        subprocess.run([sys.executable, "-m", "livematch.cli", *map(str, command)], check=True)
    with MilvusGallery(f"milvus:{tmp_path / 'g.db'}") as milvus:
        found = match(queries, milvus, OPTIONS)
    assert found == match(queries, open_features([tmp_path / "first", tmp_path / "second"]), OPTIONS)


def test_clips_are_replaced_and_deleted(world, tmp_path):
    queries, gallery = world
    half = write(tmp_path / "half", gallery.sources[:200], next(gallery.blocks(400)).embeddings[:200])
    other = write(tmp_path / "other", gallery.sources[:50], np.roll(next(half.blocks(400)).embeddings[:50], 1))
    rest = write(tmp_path / "rest", gallery.sources[50:200], next(half.blocks(400)).embeddings[50:])
    with MilvusGallery(f"milvus:{tmp_path / 'g.db'}") as milvus:
        milvus.load(half)
        milvus.load(other)
        pq.write_table(pa.concat_tables([pq.read_table(tmp_path / name) for name in ("rest", "other")]), tmp_path / "f")
        expected = match(queries, open_features([tmp_path / "half"]), OPTIONS)
        replaced = match(queries, milvus, OPTIONS)
        assert [(m.video_id, m.item_id, m.distance) for m in replaced] != [
            (m.video_id, m.item_id, m.distance) for m in expected
        ]
        milvus.delete([*dict.fromkeys(other.sources), "unknown"])
        kept = match(queries, milvus, OPTIONS)
        assert {m.video_id for m in kept} <= set(rest.sources)
        assert [m.distance for m in kept] == [m.distance for m in match(queries, rest, OPTIONS)]
        milvus.delete(rest.sources)
        assert match(queries, milvus, OPTIONS) == []


def test_features_of_different_models_are_refused(world, tmp_path):
    queries, gallery = world
    other = write(tmp_path / "other", ["v"], np.ones((1, SIZE)), identity="n")
    with MilvusGallery(f"milvus:{tmp_path / 'g.db'}") as milvus:
        with pytest.raises(FeaturesError, match="holds no gallery"):
            match(queries, milvus)
        milvus.load(gallery)
        for refused in (lambda: milvus.load(other), lambda: match(other, milvus)):
            with pytest.raises(FeaturesError, match=r"other by n .*g\.db by m"):
                refused()


def test_a_malformed_address_is_refused():
    with pytest.raises(InputError, match=r"FILE\.db or milvus:URI, got milvus:gallery"):
        MilvusGallery("milvus:gallery")


def test_a_missing_gallery_is_named_and_not_created(world, tmp_path, capsys):
    address = f"milvus:{tmp_path / 'typo.db'}"
    options = ("--gallery", address)
    match_options = ("--rule", "contest", "--queries", world[0].origin, "-o", str(tmp_path / "result.json"))
    for command in (("delete", *options, "--sources", "v"), ("match", *options, *match_options)):
        assert main(command) == 2
        assert "typo.db: holds no gallery; make one with `livematch load`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with MilvusGallery(address) as empty, pytest.raises(FeaturesError, match="holds no gallery"):
        empty.delete(["v"])


def test_the_commands_load_match_and_delete(world, tmp_path, capsys):
    queries, gallery = (features.origin for features in world)
    address = f"milvus:{tmp_path / 'g.db'}"
    assert main(["load", "--gallery", address, "--features", gallery]) == 0
    for name, given in (("milvus", address), ("parquet", gallery)):
        options = [
            "--rule",
            "contest",
            "--quantile",
            "0.6",
            "-o",
            str(tmp_path / name),
            "--matches",
            str(tmp_path / f"{name}.matches"),
        ]
        assert main(["match", "--queries", queries, "--gallery", given, *options]) == 0
    for suffix in ("", ".matches"):
        written = [(tmp_path / f"{name}{suffix}").read_bytes() for name in ("milvus", "parquet")]
        assert written[0] == written[1]
    assert len(json.loads(written[0])["matches"]) > 5
    assert main(["delete", "--gallery", address, "--sources", *dict.fromkeys(world[1].sources)]) == 0
    command = ["match", "--queries", queries, "--gallery", address, "-o", str(tmp_path / "none")]
    assert main([*command, "--rule", "contest"]) == 4
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"num_matches": 0}
    assert main(command) == 2
    assert "a gallery in Milvus needs --rule contest" in capsys.readouterr().err


def test_a_missing_pymilvus_is_reported_in_one_line(tmp_path):
    code = (
        "import sys; sys.modules['pymilvus'] = None; from livematch.cli import main;"
        f"sys.exit(main(['delete', '--gallery', 'milvus:{tmp_path}/g.db', '--sources', 'v']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "needs pymilvus: pip install 'livematch[milvus]'" in done.stderr
    assert issubclass(InputError, LivematchError)
