"""Text corpora as token files: found on this machine, cut into tokens once, memory-mapped afterwards.

    docs         English prose: the docstrings of Python's standard library, numpy and torch (the source domain)
    code         the standard library's source without docstrings and comment lines
    shakespeare  tiny-shakespeare, downloaded
    a path       any UTF-8 text file
"""
import contextlib
import hashlib
import importlib.util
import platform
import re
import sysconfig
import time
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from data.files import replace_file

CACHE = Path(__file__).with_name("cache")
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TRIPLE_QUOTED = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)
# A docstring or a comment line, to drop; or any other triple-quoted string, to step over with what it holds.
NOT_CODE = re.compile(r'^[ \t]*(?:[rRuU]?("""|\'\'\').*?\1|#[^\n]*)[ \t]*\n|("""|\'\'\').*?\2',
                      re.DOTALL | re.MULTILINE)
PLAIN_WORD = re.compile(r"[(\"'`]*[A-Za-z][a-z'-]*[`)\"'.,;:?!]*")
NOT_LIBRARY = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3"}


def python_files(package):
    """(name, source) of every library file of `package`, tests excluded; name is the same on every machine."""
    if package == "python":
        root = Path(sysconfig.get_paths()["stdlib"])
    else:
        root = Path(importlib.util.find_spec(package).origin).parent
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not NOT_LIBRARY & set(relative.parts):
            with contextlib.suppress(UnicodeDecodeError):
                yield f"{package}/{relative.as_posix()}", path.read_text("utf-8")


def prose(text):
    """The paragraphs of `text` that read as English (three words in four are plain words), one a line."""
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if ">>>" not in p)
    for paragraph in paragraphs:
        words = paragraph.split(" ")
        if len(words) >= 8 and sum(bool(PLAIN_WORD.fullmatch(w)) for w in words) >= 0.75 * len(words):
            yield paragraph + "\n"


def docs():
    """(name, text): the prose of all triple-quoted strings, and the language reference behind `help()`."""
    from pydoc_data.topics import topics
    for name, text in sorted(topics.items()):
        yield f"topics/{name}", "".join(prose(text))
    for package in ("python", "numpy", "torch"):
        for name, source in python_files(package):
            yield name, "".join(line for pair in TRIPLE_QUOTED.findall(source) for line in prose("".join(pair)))


def code():
    """(name, text): the standard library's source with docstrings and comment lines removed."""
    for name, source in python_files("python"):
        yield name, without_comments(source)


def without_comments(source):
    return NOT_CODE.sub(lambda match: match[0] if match[2] else "", source)


def load(name, encoding, progress=print):
    """The tokens of a corpus -> (train, val): two memory-mapped uint16 arrays, made once and cached on disk.

    name      "docs", "code", "shakespeare" or the path of a UTF-8 text file
    encoding  the `tiktoken.Encoding` that cuts the text
    Raises ValueError for text that is not UTF-8, OSError for a file that cannot be read or downloaded.
    """
    if name in ("docs", "code"):
        documents = {"docs": docs, "code": code}[name]
        source = [platform.python_version(), version("numpy"), version("torch"), Path(__file__).read_bytes()]
        return [token_file(name, split, [source, split], encoding, lambda: (
            text for file, text in documents() if (split == "val") == held_out(file)), progress)
            for split in ("train", "val")]
    path = download_shakespeare() if name == "shakespeare" else Path(name)
    if not path.is_file():
        raise ValueError(f"--data {name} is neither math, code, docs or shakespeare nor a file")
    status = path.stat()
    tokens = token_file(path.stem, "all", [path.resolve(), status.st_size, status.st_mtime_ns], encoding,
                        lambda: read_pieces(path), progress, status.st_size)
    cut = int(0.9 * len(tokens))  # the last tenth of the file is held out
    return tokens[:cut], tokens[cut:]


def held_out(file_name):
    """Whether a file is in the validation split: by its name's hash, hence alike on every machine; 1 in 20."""
    return int(hashlib.sha256(file_name.encode()).hexdigest(), 16) % 20 == 0


def read_pieces(path, size=1 << 22):
    """A text file in pieces of `size` characters, so that a file larger than memory streams through."""
    try:
        with open(path, encoding="utf-8") as file:
            while piece := file.read(size):
                yield piece
    except UnicodeDecodeError as error:
        raise ValueError(f"--data {path}: not UTF-8 text ({error.reason})") from None


def token_file(name, split, key, encoding, texts, progress, size=None):
    """Memory-maps the tokens of `texts()`, writing them first if no file of this key and vocabulary is there.

    size, in bytes, is what all the texts come to, if it is known: then the time left is shown.
    """
    ranks = repr((key, encoding._pat_str, sorted(encoding._mergeable_ranks.items())))
    path = CACHE / f"{name}-{split}-{hashlib.sha256(ranks.encode()).hexdigest()[:16]}.bin"
    if not path.exists():
        progress(f"cutting {name} ({split}) into tokens, once ...")
        start, shown, done = time.perf_counter(), time.perf_counter(), 0
        with replace_file(path) as file:
            checksum = 0
            for text in texts():
                piece = np.array(encoding.encode_ordinary(text), dtype=np.uint16).tobytes()
                checksum = zlib.crc32(piece, checksum)
                file.write(piece)
                now, done = time.perf_counter(), done + len(text.encode())
                if now - shown > 5:
                    left = f", {(now - start) * (size / done - 1):.0f} s left" if size else ""
                    progress(f"  {file.tell() / 2e6:.1f} M tokens in {now - start:.0f} s{left}")
                    shown = now
            file.write(checksum.to_bytes(4, "little"))
    contents, checksum = np.memmap(path, dtype=np.uint8, mode="r"), 0  # the last 4 bytes are the checksum
    for start in range(0, len(contents) - 4, 1 << 24):
        checksum = zlib.crc32(contents[start:min(start + (1 << 24), len(contents) - 4)], checksum)
    if contents[-4:].tobytes() != checksum.to_bytes(4, "little"):
        raise ValueError(f"{path} is damaged: delete it, and the next run cuts the text anew")
    return contents[:-4].view(np.uint16)


def download_shakespeare():
    """The path of tiny-shakespeare, fetched by torch.hub on first use."""
    path = CACHE / "shakespeare.txt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(SHAKESPEARE, str(path))
        except OSError as error:
            raise OSError(f"--data shakespeare: the download failed ({error}); without a network, give any "
                          f"text file instead: --data path/to/file.txt") from None
    return path
