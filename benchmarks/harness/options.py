"""Define the options of commands; imports only the standard library, as `benchmarks.gpu` needs."""

import argparse
from pathlib import Path


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Prints the command's docstring unchanged, and the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: %(default)s)"


def new_parser(benchmark: str, docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser for the command `python -m benchmarks.BENCHMARK`, whose options include `benchmark`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{benchmark}", description=docstring, formatter_class=_HelpFormatter
    )
    parser.set_defaults(benchmark=benchmark)
    return parser


def add_number(parser: argparse.ArgumentParser, name: str, default: int | float, help: str) -> None:
    """Add an option for a positive number of the default's type."""
    kind = positive if isinstance(default, int) else float
    parser.add_argument(name, type=kind, default=default, metavar="N", help=help)


def add_path(parser: argparse.ArgumentParser, name: str, default: Path | None, help: str) -> None:
    """Add an option for a file or folder; --output also gets the short name -o."""
    names = ["-o", name] if name == "--output" else [name]
    parser.add_argument(*names, type=Path, default=default, metavar="PATH", help=help)


def positive(text: str) -> int:
    """Parse an option's value; argparse reports a number below 1 as a wrong argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number
