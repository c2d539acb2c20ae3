"""The shipped vocabulary: 2048 byte-pair tokens for English prose, each digit a token of its own.

`python -m data.tokenizer` trains it anew on this machine's `docs`, with tiktoken's own trainer.
"""
import base64
import hashlib
import re
from pathlib import Path

import tiktoken

from data.files import InputError, replace_file

PATH = Path(__file__).with_name("tokenizer.tiktoken")
VOCAB_SIZE = 2048
SHA256 = "1f5c7b522ecdff88443880e294a31d10b98badaaa129a80b1355d5941d545f88"
# As GPT-2 splits text, except that a digit never joins its neighbour or the space before it:
# arithmetic is then a matter of digits, not of memorised two- and three-digit tokens.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def load(name="nanolora"):
    """A tiktoken.Encoding: "nanolora", the shipped one, or "gpt2", which tiktoken downloads.

    InputError for a damaged file, OSError if the download fails.
    """
    if name == "gpt2":
        try:
            return tiktoken.get_encoding("gpt2")
        except OSError as error:
            raise OSError(f"GPT-2's vocabulary could not be downloaded ({type(error).__name__}): "
                          "without a network, set TIKTOKEN_CACHE_DIR to a folder where tiktoken "
                          "has cached it elsewhere") from None
    contents = PATH.read_bytes()
    if hashlib.sha256(contents).hexdigest() != SHA256:
        raise InputError(f"{PATH} is damaged or another vocabulary than the base model's")
    lines = (line.split() for line in contents.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding("nanolora", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def load_for(init_from):
    """The vocabulary of the model that a run starts from: the shipped base, if None, or a GPT-2."""
    if not init_from:
        return load()
    check_gpt2s(init_from)
    return load("gpt2")


def check_gpt2s(checkpoint):
    """InputError if a tokenizer's file lies by a checkpoint and is of another than GPT-2's own."""
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
    for path in (folder / "vocab.json", folder / "tokenizer.json"):
        if path.is_file():
            the = re.search(r'"(Ġ|\\u0120)the": ?262\b', path.read_text(encoding="utf-8"))
            if not the:  # token 262, " the", as these files write it
                raise InputError(f"{path} is not GPT-2's vocabulary, the only one that "
                                 "--init_from reads text with")


def train(text):
    """Trains the vocabulary on `text` and writes it; this trainer takes minutes per 100 kB."""
    from tiktoken._educational import bpe_train
    ranks = bpe_train(text, VOCAB_SIZE, PATTERN, visualise=None)
    with replace_file(PATH) as file:
        file.writelines(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


if __name__ == "__main__":
    from data.corpora import docs  # only the trainer needs it
    paragraphs = "\n".join(text for name, text in docs()).split("\n")
    sample = "\n".join(paragraphs[::18])  # evenly spread, about 400 kB
    print(f"training {VOCAB_SIZE} tokens on {len(sample) / 1e3:.0f} kB of docs: about 6 minutes")
    train(sample)
    print(f"wrote {PATH}: set SHA256 to {hashlib.sha256(PATH.read_bytes()).hexdigest()}")
