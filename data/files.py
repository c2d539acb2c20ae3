"""Files that are whole or absent, and the error for what a user can mend."""
import contextlib
import csv
import io
import os
import warnings
import zipfile
from pathlib import Path

import torch

TEMPORARY = ".nanolora-tmp"  # the end of the name of a file that is being written
warnings.filterwarnings("ignore", "Detected pickle protocol")  # load_file says what there is to say


class InputError(ValueError):
    """What the user gave cannot be used: a sentence, which commands print without a traceback."""


@contextlib.contextmanager
def replace_file(path):
    """Opens a temporary file beside `path` for bytes; it becomes `path` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path, value):
    """Writes tensors and plain data in PyTorch's format; OSError if that fails."""
    try:
        with replace_file(path) as file:
            torch.save(value, file)
    except RuntimeError as error:  # what torch.save makes of a write that failed
        reason = str(error).splitlines()[0]
        raise OSError(f"{path} could not be written: is the disk full? ({reason})") from None


def write_csv(path, columns, rows):
    """Writes rows, dicts, under a line with their columns' names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replace_file(path) as file:
        file.write(text.getvalue().encode())


def load_file(path):
    """The dict that `save` wrote; InputError if it cannot be read or holds more than plain data."""
    try:
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
            raise InputError  # torch.load looks at no checksum
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except MemoryError:
        raise
    except Exception:  # torch raises many kinds, of many lines, for a damaged file
        raise InputError(f"{path} is missing, damaged or not a checkpoint") from None


@contextlib.contextmanager
def about_input(what):
    """Within the block, a ValueError of a library is about `what` the user gave: an InputError."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{what}: {error}") from error
