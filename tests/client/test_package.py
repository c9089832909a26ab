import subprocess
import sys

import pytest

import livematch
import livematch.errors


def test_every_public_name_exists():
    assert {"AsyncClient", "Client", "Detection", "embed_images", "match", "watch", "write_report"} <= set(
        livematch.__all__
    )
    for name in livematch.__all__:
        assert getattr(livematch, name).__name__ == name
    assert set(livematch.__all__) <= set(dir(livematch))


def test_every_error_is_public():
    errors = {name for name, value in vars(livematch.errors).items() if isinstance(value, type)}
    assert errors <= set(livematch.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = livematch.no_such_name


def test_import_is_light():
    """What only some commands need must not be loaded; this keeps the import under 0.3 s."""
    heavy = ("torch", "tritonclient", "grpc", "pyarrow", "av", "PIL", "numpy")
    code = f"import sys, livematch, livematch.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
