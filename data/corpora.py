"""Text corpora as token files: found on this machine, cut into tokens once, then memory-mapped.

    docs         the source domain, English prose: docstrings of Python's library, numpy and torch
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

from data.files import InputError, replace_file

NAMES = ("code", "docs", "shakespeare")
CACHE = Path(__file__).with_name("cache")
SHAKESPEARE = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
               "input.txt")
TRIPLE_QUOTED = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)
# A docstring or a comment line, to drop; or any other triple-quoted string, to step over.
NOT_CODE = re.compile(r'^[ \t]*(?:[rRuU]?("""|\'\'\').*?\1|#[^\n]*)[ \t]*\n|("""|\'\'\').*?\2',
                      re.DOTALL | re.MULTILINE)
PLAIN_WORD = re.compile(r"[(\"'`]*[A-Za-z][a-z'-]*[`)\"'.,;:?!]*")
NOT_LIBRARY = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3"}


def python_files(package):
    """(name, source) of a package's library files, without tests; names are alike everywhere."""
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
    """The paragraphs of `text` that read as English (three words in four are plain), one a line."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        plain = sum(bool(PLAIN_WORD.fullmatch(word)) for word in words)
        if ">>>" not in paragraph and len(words) >= 8 and plain >= 0.75 * len(words):
            yield " ".join(words) + "\n"


def docs():
    """(name, text): the prose of all triple-quoted strings, and the reference behind `help()`."""
    from pydoc_data.topics import topics
    for name, text in sorted(topics.items()):
        yield f"topics/{name}", "".join(prose(text))
    for package in ("python", "numpy", "torch"):
        for name, source in python_files(package):
            strings = ("".join(pair) for pair in TRIPLE_QUOTED.findall(source))
            yield name, "".join(line for string in strings for line in prose(string))


def code():
    """(name, text): the standard library's source with docstrings and comment lines removed."""
    for name, source in python_files("python"):
        yield name, without_comments(source)


def without_comments(source):
    return NOT_CODE.sub(lambda match: match[0] if match[2] else "", source)


def load(name, encoding, progress=print, val_data=None):
    """The tokens of a corpus -> (train, val): two memory-mapped uint16 arrays, cached on disk.

    name      "docs", "code", "shakespeare" or the path of a UTF-8 text file
    encoding  the `tiktoken.Encoding` that cuts the text
    val_data  the path of another text file; else the last tenth of the first is held out
    InputError for text that is not UTF-8, OSError for a file that cannot be read or downloaded.
    """
    if name in ("docs", "code"):
        source = [platform.python_version(), version("numpy"), version("torch"),
                  Path(__file__).read_bytes()]
        return [token_file(name, split, [source, split], encoding,
                           lambda: tokens_of(encoding, texts_of(name, split)), progress)
                for split in ("train", "val")]
    if name == "shakespeare":
        name = download_shakespeare()
    tokens = text_file(name, encoding, "--data", progress)
    if val_data:
        return tokens, text_file(val_data, encoding, "--val_data", progress)
    cut = int(0.9 * len(tokens))
    return tokens[:cut], tokens[cut:]


def text_file(path, encoding, flag, progress):
    """The tokens of a text file."""
    pieces = read_pieces(Path(path), flag)
    return cut_file(path, "text", encoding, lambda: tokens_of(encoding, pieces), flag, progress)


def tokens_of(encoding, texts):
    """(tokens, bytes) of each text."""
    return ((encoding.encode_ordinary(text), len(text.encode())) for text in texts)


def cut_file(path, kind, encoding, pieces, flag, progress):
    """The tokens that `pieces()` makes of a file of a kind; made again if the file changes."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{flag} {path} is neither a file nor one of math, {', '.join(NAMES)}")
    status = path.stat()
    key = [path.resolve(), status.st_size, status.st_mtime_ns]
    return token_file(path.stem, kind, [kind, *key], encoding, pieces, progress, status.st_size)


def texts_of(name, split):
    """The texts of docs or code that are in a split, "train" or "val"."""
    documents = docs() if name == "docs" else code()
    return (text for file, text in documents if held_out(file) == (split == "val"))


def held_out(file_name):
    """Whether a file is for validation, as 1 in 20 is: by its name's hash, alike everywhere."""
    return int(hashlib.sha256(file_name.encode()).hexdigest(), 16) % 20 == 0


def read_pieces(path, flag, size=1 << 16):
    """A text file in pieces of `size` characters: one larger than memory streams through, and no
    run of spaces is long enough to overflow tiktoken's stack."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            while piece := file.read(size):
                yield piece
    except UnicodeDecodeError as error:
        raise InputError(f"{flag} {path}: not UTF-8 text ({error.reason})") from None


def token_file(name, split, key, encoding, pieces, progress, size=None):
    """Memory-maps the tokens of `pieces()`, written first if no file has this key and vocabulary.

    A piece is (tokens, bytes); size, in bytes, is what all come to, if known, for the time left.
    """
    ranks = sorted(encoding._mergeable_ranks.items())
    digest = hashlib.sha256(repr((key, encoding._pat_str, ranks)).encode()).hexdigest()
    path = CACHE / f"{name}-{split}-{digest[:16]}.bin"
    if not path.exists():
        progress(f"cutting {name} ({split}) into tokens, once ...")
        write_tokens(path, pieces(), progress, size)
    contents = np.memmap(path, dtype=np.uint8, mode="r")
    checksum = 0
    end = len(contents) - 4  # the last 4 bytes are the checksum
    for start in range(0, end, 1 << 24):
        checksum = zlib.crc32(contents[start:min(start + (1 << 24), end)], checksum)
    if contents[end:].tobytes() != checksum.to_bytes(4, "little"):
        raise InputError(f"{path} is damaged: delete it, and the next run cuts the text anew")
    return contents[:end].view(np.uint16)


def write_tokens(path, pieces, progress, size):
    """Writes the tokens of pieces as uint16, and their CRC-32 behind them."""
    start = shown = time.perf_counter()
    done = checksum = 0
    with replace_file(path) as file:
        for tokens, bytes_read in pieces:
            piece = np.array(tokens, dtype=np.uint16).tobytes()
            checksum = zlib.crc32(piece, checksum)
            file.write(piece)
            done += bytes_read
            now = time.perf_counter()
            if now - shown > 5:
                left = f", {(now - start) * (size / done - 1):.0f} s left" if size else ""
                progress(f"  {file.tell() / 2e6:.1f} M tokens in {now - start:.0f} s{left}")
                shown = now
        file.write(checksum.to_bytes(4, "little"))


def download_shakespeare():
    """The path of tiny-shakespeare, fetched by torch.hub on first use."""
    path = CACHE / "shakespeare.txt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(SHAKESPEARE, str(path))
        except OSError as error:
            raise OSError(f"--data shakespeare: the download failed ({error}); without a network, "
                          "give any text file instead: --data path/to/file.txt") from None
    return path
