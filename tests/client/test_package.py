import subprocess
import sys

import pytest

import livematch


def test_every_public_name_exists():
    for name in livematch.__all__:
        assert getattr(livematch, name).__name__ == name
    assert set(livematch.__all__) <= set(dir(livematch))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = livematch.no_such_name


def test_import_is_light():
    """It must not load what only some commands need; that is what keeps it under 0.3 s."""
    heavy = ("torch", "tritonclient", "grpc", "pyarrow", "av", "PIL", "numpy")
    code = f"import sys, livematch, livematch.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
