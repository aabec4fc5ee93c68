"""The command line; `mpcompile/commands/` has a module per command. Imports nothing slow."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from mpcompile.commands import bench, build, calibrate, doctor, export, inspect, optimize, plan, predict, report, tune
from mpcompile.commands.output import show_what_the_console_can
from mpcompile.errors import MpcompileError

COMMANDS = (optimize, tune, predict, bench, inspect, report, plan, calibrate, export, build, doctor)
"""In the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 1 for an error that the user can fix, 130 for Ctrl-C."""
    if arguments is None and sys.getfilesystemencoding() == "ascii":
        # As with LC_ALL=C. Names that are no Unicode are more than the libraries below can open.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-m", __spec__.name, *sys.argv[1:]])
    show_what_the_console_can()
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except MpcompileError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written; the same command goes on where it was", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from mpcompile.store.scratch import is_of_disk

        if not is_of_disk(error):
            raise
        print(f"error: {error}: the disk takes no more; make room and run the same command again", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mpcompile", description="Compiles BERT-family classifiers to run faster.")
    parser.add_argument("--verbose", action="store_true", help="log what is done")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
