"""The two vocabularies: 2048 byte-pair tokens for English prose, shipped, and GPT-2's.

In the shipped one each digit is a token. `python -m data.prepare vocabulary` trains it again.
"""
import base64
import hashlib
import json
import re
from pathlib import Path

import tiktoken

from data.files import InputError
from model import GPT2_NAMES

PATH = Path(__file__).with_name("tokenizer.tiktoken")
VOCAB_SIZE = 2048
SHA256 = "1f5c7b522ecdff88443880e294a31d10b98badaaa129a80b1355d5941d545f88"
# GPT-2's pattern, except that a digit never joins its neighbour or the space before it.
# Arithmetic is then a matter of digits, not of memorised two- and three-digit tokens.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def load(name="nanolora"):
    """A tiktoken.Encoding: "nanolora", the shipped one, or "gpt2", which tiktoken downloads."""
    if name == "gpt2":
        try:
            return tiktoken.get_encoding("gpt2")
        except OSError as error:
            reason = type(error).__name__
            raise InputError(f"GPT-2's vocabulary could not be downloaded ({reason}): without a "
                             "network, set TIKTOKEN_CACHE_DIR to a folder where tiktoken kept it")
    ranks = {}
    for line in read_shipped(PATH, SHA256).splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return tiktoken.Encoding("nanolora", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def read_shipped(path, sha256):
    """The bytes of a file of this repository; InputError if one of them has changed."""
    contents = path.read_bytes()
    if hashlib.sha256(contents).hexdigest() != sha256:
        raise InputError(f"{path} is damaged: `git checkout {path.name}` in its folder restores it")
    return contents


def load_for(init_from):
    """The Encoding of the model that a run starts from, train.py's --init_from."""
    if init_from in ("base", "scratch"):
        return load()
    if init_from in GPT2_NAMES:
        return load("gpt2")
    path = Path(init_from).expanduser()
    folder = path if path.is_dir() else path.parent
    # A run's model.pt has the vocabulary that the run itself began with.
    result = folder / "result.json"
    if path.name == "model.pt" and result.is_file():
        return load_for(json.loads(result.read_text(encoding="utf-8"))["settings"]["init_from"])
    # A Hugging Face model keeps its vocabulary beside its weights; GPT-2's has " the" as token 262.
    for file in (folder / "vocab.json", folder / "tokenizer.json"):
        if file.is_file():
            if not re.search(r'"(Ġ|\\u0120)the": ?262\b', file.read_text(encoding="utf-8")):
                raise InputError(f"--init_from {init_from}: {file} is not GPT-2's vocabulary, the "
                                 "only one that train.py can use with such weights")
    return load("gpt2")
