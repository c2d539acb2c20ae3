"""Prompts with completions as token files: the lines of a .jsonl file, cut into tokens once.

A line is a JSON object, {"prompt": "...", "completion": "..."}, in UTF-8. In the token file a row
is ROW, the prompt's tokens, COMPLETION, the completion's tokens and a line's end. Rows are read
from the disk as they are needed, so that a file may be larger than memory.
"""
import json

import numpy as np

from data import corpora
from data.files import InputError

ROW, COMPLETION = 65535, 65534  # above every token


class Rows:
    """The rows of a token file: rows[i] is (prompt, completion), two lists of tokens."""

    def __init__(self, tokens, starts, middles):
        self.tokens = tokens
        self.starts = starts  # (n + 1,) where rows start; the last is where they end
        self.middles = middles  # (n,) where their completions start

    def __len__(self):
        return len(self.middles)

    def __getitem__(self, i):
        prompt = self.tokens[self.starts[i] + 1:self.middles[i]]
        completion = self.tokens[self.middles[i] + 1:self.starts[i + 1]]
        return prompt.tolist(), completion.tolist()

    def part(self, first, last):
        return Rows(self.tokens, self.starts[first:last + 1], self.middles[first:last])

    def lengths(self):
        return np.diff(self.starts) - 2


def in_memory(texts, encoding):
    """The Rows of (prompt, completion), two texts each."""
    return rows_of(np.concatenate([np.array(marked(*pair, encoding)) for pair in texts]))


def marked(prompt, completion, encoding):
    """A pair's tokens as they are kept, the end of the completion's line included."""
    return [ROW, *encoding.encode_ordinary(prompt),
            COMPLETION, *encoding.encode_ordinary(completion + "\n")]


def rows_of(tokens):
    starts, middles = where(tokens, ROW), where(tokens, COMPLETION)
    return Rows(tokens, np.append(starts, len(tokens)), middles)


def load(path, encoding, block_size, flag, progress=print):
    """The Rows of a .jsonl file; InputError, with the line's number, for a line that is no pair.

    A context of block_size tokens cuts longer rows at their end; how many is told.
    """
    def pieces():
        return read(path, encoding, flag)

    rows = rows_of(corpora.cut_file(path, "pairs", encoding, pieces, flag, progress))
    prompts = rows.middles - rows.starts[:-1] - 1
    if prompts.max() > block_size:
        line = int(np.argmax(prompts > block_size)) + 1
        raise InputError(f"{flag} {path}, line {line}: the prompt has {prompts[line - 1]} tokens, "
                         f"and a context has {block_size} (--block_size)")
    cut = int((rows.lengths() - 1 > block_size).sum())
    if cut:
        progress(f"{cut} of {len(rows)} completions in {path} end early: a context has "
                 f"{block_size} tokens (--block_size)")
    return rows


def where(tokens, mark, size=1 << 24):
    """The places of a mark, found piece by piece: the tokens may be more than memory holds."""
    return np.concatenate([np.flatnonzero(tokens[start:start + size] == mark) + start
                           for start in range(0, len(tokens), size)])


def read(path, encoding, flag):
    """(tokens, bytes) of each line."""
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors begin a file with a mark
            for number, line in enumerate(file, start=1):
                prompt, completion = parse(line, f"{flag} {path}, line {number}")
                yield marked(prompt, completion, encoding), len(line.encode())
    except UnicodeDecodeError as error:
        raise InputError(f"{flag} {path}, after line {number}: not UTF-8 ({error.reason})") \
            from None
    if not number:
        raise InputError(f"{flag} {path} is empty")


def parse(line, where):
    """A line's prompt and completion, without the line's end that the latter may have."""
    try:
        row = json.loads(line)
        prompt, completion = row["prompt"], row["completion"].rstrip("\n")
        fits = isinstance(prompt, str)
    except (ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise InputError(f'{where}: not an object with the strings "prompt" and "completion"')
    if not prompt or not completion:
        raise InputError(f"{where}: the {'completion' if prompt else 'prompt'} is empty")
    return prompt, completion
