"""The `livematch` command."""

from livematch.cli.main import main

__all__ = ["main"]
