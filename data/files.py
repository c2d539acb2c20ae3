"""What commands share: errors in one sentence, flags, CSVs, files that are whole or absent."""
import argparse
import contextlib
import csv
import io
import math
import os
import sys
from pathlib import Path


class InputError(ValueError):
    """What the user gave cannot be used: one sentence, which commands print without a traceback."""


@contextlib.contextmanager
def about_input(what):
    """Turns a ValueError or an OSError of the block into an InputError about `what` was given."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(f"{what}: {error}") from error


@contextlib.contextmanager
def replace_file(path):
    """Opens a temporary file for bytes; it becomes `path` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            # The bytes reach the disk before the name does, so that a power cut leaves no half.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path, columns, rows):
    """Writes rows, which are dicts, under a line with the columns' names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replace_file(path) as file:
        file.write(text.getvalue().encode())


def read_csv(path):
    """The rows of a CSV as dicts of strings."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def command_parser(description, name=None):
    """An argparse parser whose errors are one line with exit code 2.

    The description is the module's docstring; the name is needed for `python -m` alone.
    """
    parser = argparse.ArgumentParser(name, description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    return parser


def run_command(main):
    """Runs a command's main(): an InputError becomes one line and exit code 2."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except InputError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(f"{name}: stopped")


def number(kind, low, high=math.inf):
    """An argparse type: an int or a float that is at least `low` and below `high`."""
    def parse(text):
        value = kind(text)
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"{text} is not allowed: at least {low}, below {high}")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message about text that is no number
    return parse
