"""Files that are whole or absent: written beside their place and renamed, read with a sentence for damage."""
import contextlib
import os
import warnings
import zipfile
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows: runs do not notice each other there
    fcntl = None

RANK = int(os.environ.get("RANK", 0))  # this process's number, by torchrun; 0 alone writes
PROCESSES = int(os.environ.get("WORLD_SIZE", 1))
warnings.filterwarnings("ignore", "Detected pickle protocol")  # load_file says what there is to say


@contextlib.contextmanager
def replace_file(path):
    """Opens a temporary file beside `path` for writing bytes; renamed to `path` only if the block succeeds."""
    path = Path(path)
    if RANK:
        with open(os.devnull, "wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path, value):
    """Writes tensors and plain data in PyTorch's format."""
    try:
        with replace_file(path) as file:
            torch.save(value, file)
    except RuntimeError as error:  # what torch.save makes of a write that failed
        raise OSError(f"{path} could not be written: is the disk full? ({str(error).splitlines()[0]})") from None


def load_file(path):
    """The dict that `save` wrote; ValueError if it cannot be read or holds more than plain data."""
    try:
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():  # torch.load looks at no checksum
            raise ValueError
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # torch raises many kinds, of many lines, for a damaged file
        raise ValueError(f"{path} is missing, damaged or not a checkpoint") from None


def lock(directory):
    """Keeps other runs out of a directory until the file that it returns is closed, or this process has died."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    file = open(Path(directory) / ".lock", "w")
    try:
        if fcntl and not RANK:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"--out_dir {directory} is in use by another run") from None
    for leftover in Path(directory).glob("*.tmp") if not RANK else ():  # of a run that was killed while it wrote
        leftover.unlink()
    return file
