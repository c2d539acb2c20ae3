"""Writes the files that runs train on into the folder data/.

    python -m data.prepare docs         docs.txt and docs_val.txt: English prose, the docstrings of
                                        Python's standard library, numpy and torch
    python -m data.prepare code         code.txt and code_val.txt: the standard library's source
                                        without docstrings and comment lines
    python -m data.prepare shakespeare  shakespeare.txt: tiny-shakespeare, downloaded
    python -m data.prepare e2e          e2e_train.jsonl and e2e_val.jsonl: E2E NLG, the task of
                                        LoRA's paper, downloaded

docs and code come from this machine, so they depend on its versions of Python, numpy and torch.
Two more names write shipped files again and print the hash to put into the code:

    python -m data.prepare docs_val     docs_val.bin: the tokens of docs_val.txt
    python -m data.prepare vocabulary   tokenizer.tiktoken: trained on a part of docs
"""
import base64
import hashlib
import importlib.util
import json
import re
import sysconfig
from pathlib import Path

import numpy as np
import torch

from data import tasks, tokenizer
from data.files import InputError, command_parser, replace_file, run_command

FOLDER = Path(__file__).parent
SHAKESPEARE = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
               "input.txt")
E2E = "https://raw.githubusercontent.com/microsoft/LoRA/main/examples/NLG/data/e2e/{}.txt"
TRIPLE_QUOTED = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)
# A docstring or a comment line, to drop; or any other triple-quoted string, to step over.
NOT_CODE = re.compile(r'^[ \t]*(?:[rRuU]?("""|\'\'\').*?\1|#[^\n]*)[ \t]*\n|("""|\'\'\').*?\2',
                      re.DOTALL | re.MULTILINE)
PLAIN_WORD = re.compile(r"[(\"'`]*[A-Za-z][a-z'-]*[`)\"'.,;:?!]*")
NOT_LIBRARY = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3"}


# ---- From this machine's Python ------------------------------------------------------------------


def python_files(package):
    """(name, source) of a package's library files, without its tests."""
    if package == "python":
        root = Path(sysconfig.get_paths()["stdlib"])
    else:
        root = Path(importlib.util.find_spec(package).origin).parent
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if NOT_LIBRARY & set(relative.parts):
            continue
        try:
            source = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        yield f"{package}/{relative.as_posix()}", source


def docs():
    """(name, text): the reference behind `help()`, and the prose of all triple-quoted strings."""
    from pydoc_data.topics import topics
    for name, text in sorted(topics.items()):
        yield f"topics/{name}", "".join(prose(text))
    for package in ("python", "numpy", "torch"):
        for name, source in python_files(package):
            strings = ["".join(groups) for groups in TRIPLE_QUOTED.findall(source)]
            yield name, "".join(line for string in strings for line in prose(string))


def prose(text):
    """The paragraphs that read as English, in which three of four words are plain; one a line."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        plain = sum(bool(PLAIN_WORD.fullmatch(word)) for word in words)
        if ">>>" not in paragraph and len(words) >= 8 and plain >= 0.75 * len(words):
            yield " ".join(words) + "\n"


def code():
    """(name, text): the standard library's source without docstrings and comment lines."""
    for name, source in python_files("python"):
        yield name, without_comments(source)


def without_comments(source):
    return NOT_CODE.sub(lambda match: match[0] if match[2] else "", source)


def held_out(name):
    """Whether a file is for validation, as 1 in 20 is: the hash of its name decides."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20 == 0


def split(documents):
    """(name, text) of documents -> the text to train on, the held-out text."""
    train = []
    val = []
    for name, text in documents:
        if held_out(name):
            val.append(text)
        else:
            train.append(text)
    return "".join(train), "".join(val)


def prepare_docs():
    train, val = split(docs())
    write("docs.txt", train)
    write("docs_val.txt", val)


def prepare_code():
    train, val = split(code())
    write("code.txt", train)
    write("code_val.txt", val)


# ---- Downloads -----------------------------------------------------------------------------------


def download(url, path):
    """The text of a file that is downloaded once."""
    if not path.exists():
        try:
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            raise InputError(f"the download of {url} failed ({error}): save it as {path} and run "
                             "this command again")
    print(f"{path} is there")
    return path.read_text(encoding="utf-8")


def prepare_shakespeare():
    download(SHAKESPEARE, FOLDER / "shakespeare.txt")


def prepare_e2e():
    train = e2e_rows(download(E2E.format("train"), FOLDER / "e2e_train.txt"))
    val = e2e_rows(download(E2E.format("test"), FOLDER / "e2e_test.txt"))
    write("e2e_train.jsonl", json_lines(train))
    write("e2e_val.jsonl", json_lines(with_references(val)))


def e2e_rows(text):
    """The rows of "name : Aromi | food : Indian||Aromi is a pub ." lines, as dicts."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        meaning, bars, sentence = line.partition("||")
        if bars:
            rows.append({"prompt": meaning.strip() + " ->", "completion": " " + sentence.strip()})
        elif line.strip():
            raise InputError(f'E2E\'s file, line {number}: there is no "||", so it is another file')
    return rows


def with_references(rows):
    """One row for each prompt, its first, with the sentences of all of them as references."""
    merged = {}
    for row in rows:
        first = merged.setdefault(row["prompt"], {**row, "references": []})
        first["references"].append(row["completion"].strip())
    return list(merged.values())


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---- Shipped files -------------------------------------------------------------------------------


def prepare_docs_val():
    """The shipped file was made with Python 3.11.7, numpy 2.4.6 and torch 2.13.0."""
    _, val = split(docs())
    tokens = tokenizer.load().encode_ordinary(val)
    write_bytes(tasks.DOCS_VAL, np.array(tokens, dtype="<u2").tobytes())
    print_hash("tasks.DOCS_VAL_SHA256", tasks.DOCS_VAL)


def prepare_vocabulary():
    """tiktoken's trainer is simple and slow: minutes for each 100 kB."""
    from tiktoken._educational import bpe_train
    paragraphs = "\n".join(text for _, text in docs()).split("\n")
    sample = "\n".join(paragraphs[::18])  # evenly spread, about 400 kB
    print(f"training {tokenizer.VOCAB_SIZE} tokens on {len(sample) / 1e3:.0f} kB: about 6 minutes")
    ranks = bpe_train(sample, tokenizer.VOCAB_SIZE, tokenizer.PATTERN, visualise=None)
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    write_bytes(tokenizer.PATH, b"".join(lines))
    print_hash("tokenizer.SHA256", tokenizer.PATH)


def write(name, text):
    write_bytes(FOLDER / name, text.encode())


def write_bytes(path, contents):
    with replace_file(path) as file:
        file.write(contents)
    print(f"wrote {path}, {len(contents) / 1e6:.1f} MB")


def print_hash(name, path):
    print(f"set {name} to {hashlib.sha256(path.read_bytes()).hexdigest()}")


PREPARE = {"docs": prepare_docs, "code": prepare_code, "shakespeare": prepare_shakespeare,
           "e2e": prepare_e2e, "docs_val": prepare_docs_val, "vocabulary": prepare_vocabulary}


def main():
    parser = command_parser(__doc__, "python -m data.prepare")
    parser.add_argument("name", choices=PREPARE, help="what to write")
    PREPARE[parser.parse_args().name]()


if __name__ == "__main__":
    run_command(main)
