"""The options with which both trainings override their recipes."""

import argparse
from typing import Any

from livematch.errors import InputError
from training.checkpoint import OPTIONS


def add_override(
    parser: argparse.ArgumentParser, field: str, kind: type = int, help: str = "override the recipe"
) -> None:
    """Add the option that sets a field of a recipe."""
    parser.add_argument(OPTIONS[field], dest=field, type=kind, metavar="X" if kind is float else "N", help=help)


def overrides(arguments: argparse.Namespace, *fields: str) -> dict[str, Any]:
    """Return the given values of fields that `add_override` added. Raises InputError for one that is not positive."""
    given = {field: value for field in fields if (value := getattr(arguments, field)) is not None}
    for field, value in given.items():
        if not value > 0:
            raise InputError(f"{OPTIONS[field]} is {value}, not a positive number")
    return {field.removeprefix("model."): value for field, value in given.items()}
