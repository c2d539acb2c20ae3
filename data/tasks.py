"""Tasks: what a run trains on and how it is evaluated.

    metric                     the name of the figure that a run is compared by
    checksum                   a hex string that changes with any token
    batch(seed, step, size)    -> idx (size, T), targets (size, K): the tokens that follow the last
                               K positions of idx, −1 where no loss is taken
    measure(model, whole=True) -> {name: figure} on held-out data; without `whole` from a quarter
                               of it, where that saves time
    format(name, figure)       -> the figure with its unit
    samples(model, count=3)    -> a few answers to look at

A batch is a pure function of (seed, step), so that a run resumes exactly.
"""
import codecs
import json
import math
import random
import time
import zlib
from pathlib import Path

import numpy as np
import torch

from data import tokenizer
from data.files import InputError, about_input
from model import eval_mode

DOCS_VAL = Path(__file__).with_name("docs_val.bin")
DOCS_VAL_SHA256 = "49881f5832e229851b29cdb659bb7d7d66af387cd02585fe625f2d4f8e6f5679"
MOST_HELD_OUT = 500  # pairs that are evaluated, evenly spread
FEW_HELD_OUT = 50    # with fewer a warning is printed
PIECE = 1 << 16      # characters; a longer run of spaces overflows tiktoken's stack
ROW_FORMS = ('a row has the strings "prompt" and "completion", or "messages" with an assistant\'s '
             'turn, or "instruction" and "output"')


def load(data, encoding, block_size, val_data=None):
    """The task that --data names: "math", a file of pairs or a text file.

    val_data  another such file to evaluate on; without it, the last tenth of the first is held out
    Raises InputError for a file that cannot be used.
    """
    if data == "math":
        if val_data:
            raise InputError("--val_data goes with a file, and --data math holds out its own sums")
        return load_math(encoding, block_size)
    text = read_text(data, "--data")
    val_text = read_text(val_data, "--val_data") if val_data else None
    of_pairs = holds_pairs(data, text)
    if val_data and holds_pairs(val_data, val_text) != of_pairs:
        kinds = ("pairs", "text") if of_pairs else ("text", "pairs")
        raise InputError(f"--data {data} holds {kinds[0]}, and --val_data {val_data} {kinds[1]}")

    if of_pairs:
        train = load_pairs(text, encoding, block_size, f"--data {data}")
        if val_data:
            val = load_pairs(val_text, encoding, block_size, f"--val_data {val_data}")
        elif len(train) < 2:
            raise InputError(f"--data {data} has one pair: two are needed, or --val_data")
        else:
            cut = min(int(0.9 * len(train)), len(train) - 1)
            train, val = train[:cut], train[cut:]
        if len(val) < FEW_HELD_OUT:
            print(f"only {len(val)} pairs are held out: their figures are rough "
                  f"(--val_data takes a file with {FEW_HELD_OUT} or more)", flush=True)
        return Pairs(encoding, block_size, train, val)

    train = tokenize(text, encoding)
    if val_data:
        val = tokenize(val_text, encoding)
    else:
        cut = int(0.9 * len(train))
        train, val = train[:cut], train[cut:]
    if min(len(train), len(val)) <= block_size:
        raise InputError(f"--data {data} is too short: {len(train)} tokens to train on and "
                         f"{len(val)} held out, and --block_size needs {block_size + 1} of each")
    return Text(encoding, block_size, train, val)


def load_source(encoding, block_size):
    """The held-out docs, on which a run shows what it forgets -> HeldOutText.

    docs_val.bin holds their tokens in the shipped vocabulary, uint16 and little-endian.
    """
    contents = tokenizer.read_shipped(DOCS_VAL, DOCS_VAL_SHA256)
    tokens = np.frombuffer(contents, dtype="<u2").astype(np.int32)
    if encoding.name != "nanolora":
        text = tokenizer.load().decode(tokens.tolist())
        tokens = np.array(encoding.encode_ordinary(text), dtype=np.int32)
    return HeldOutText(encoding, block_size, tokens)


# ---- Prompts with completions --------------------------------------------------------------------


class Pairs:
    """Prompts with completions. The loss is taken on the completion's tokens alone.

    train, val  lists of (prompt, completion), two lists of tokens; a completion ends in a newline
    metric      "loss", in nats per token, or "exact match", the fraction of right greedy answers
    """

    def __init__(self, encoding, block_size, train, val, metric="loss"):
        self.encoding = encoding
        self.block_size = block_size
        self.metric = metric
        self.train = train
        evenly = np.linspace(0, len(val) - 1, min(MOST_HELD_OUT, len(val))).astype(int)
        self.val = [val[i] for i in evenly]
        self.checksum = checksum(repr((train, val)).encode())
        lengths = np.array([total_length(pair) for pair in train])
        self.lengths = np.minimum(lengths, block_size)
        # Where lengths differ much, a batch is chosen among 16 whose rows have similar lengths.
        # That saves padding.
        uneven = self.lengths.max() > 1.5 * self.lengths.mean()
        self.candidates = 16 if uneven else 1

    def rows(self, pairs):
        """Tokens (n, T) and targets (n, K) of n pairs, padded where no loss is taken."""
        wholes = [(prompt + completion)[:self.block_size + 1] for prompt, completion in pairs]
        T = max(len(whole) for whole in wholes) - 1
        # Positions before the first completion of all rows predict nothing.
        skipped = min(len(prompt) for prompt, _ in pairs) - 1
        idx = np.zeros((len(pairs), T), dtype=np.int64)
        targets = np.full((len(pairs), T), -1)
        for row, (prompt, _) in enumerate(pairs):
            whole = wholes[row]
            idx[row, :len(whole) - 1] = whole[:-1]
            targets[row, len(prompt) - 1:len(whole) - 1] = whole[len(prompt):]
        return torch.from_numpy(idx), torch.from_numpy(targets[:, skipped:])

    def batch(self, seed, step, size):
        generator = np.random.default_rng((seed, step))
        chosen = generator.integers(len(self.train), size=self.candidates * size)
        if self.candidates > 1:
            chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
            chosen = chosen.reshape(self.candidates, size)[generator.integers(self.candidates)]
        return self.rows([self.train[i] for i in chosen])

    @torch.no_grad()
    def measure(self, model, whole=True):
        """The loss on the held-out completions, and the fraction of greedy answers that are right.

        One forward pass on the right answers finds both. The greedy answer is the right one if and
        only if, at each of its positions, the likeliest next token is the right one.
        """
        pairs = self.val if whole else self.val[::4]
        pairs = sorted(pairs, key=total_length)
        size = max(1, 4096 // min(total_length(pairs[-1]), self.block_size))  # about 4096 tokens
        right = 0
        tokens = 0
        total = 0.0
        with eval_mode(model):
            for first in range(0, len(pairs), size):
                idx, targets = self.rows(pairs[first:first + size])
                idx, targets = idx.to(device_of(model)), targets.to(device_of(model))
                logits, loss = model(idx, targets)  # (n, K, V)
                correct = (logits.argmax(dim=-1) == targets) | (targets == -1)
                right += correct.all(dim=1).sum().item()
                count = (targets != -1).sum().item()
                total += loss.item() * count
                tokens += count
        return {"exact match": right / len(pairs), "loss": total / tokens}

    def format(self, name, figure):
        return f"{figure:.1%}" if name == "exact match" else f"{figure:.3f} nats per token"

    def samples(self, model, count=3):
        """The first held-out prompts with the model's greedy answers."""
        lines = []
        for prompt, completion in self.val[:count]:
            prompt = prompt[:self.block_size]
            idx = torch.tensor([prompt], device=device_of(model))
            generated = model.generate(idx, len(completion), temperature=0)[0, len(prompt):]
            answer = decode(self.encoding, generated.tolist()).strip().partition("\n")[0]
            question = decode(self.encoding, prompt).strip()
            right = decode(self.encoding, completion).strip()
            lines.append(f"{question} {answer or '(nothing)'}   (right: {right})")
        return lines


def load_math(encoding, block_size):
    """All sums of two-digit numbers, as "What is 47 plus 86?" and " 133"; 500 are held out."""
    numbers = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(numbers)  # the same 500 are held out whatever the run's seed
    rows = [to_tokens(f"What is {a} plus {b}?", f" {a + b}", encoding) for a, b in numbers]
    longest = max(total_length(row) for row in rows) - 1
    if block_size < longest:
        raise InputError(f"--block_size {block_size} is too short for --data math: it needs "
                         f"{longest} or more")
    return Pairs(encoding, block_size, rows[500:], rows[:500], metric="exact match")


def load_pairs(text, encoding, block_size, source):
    """The tokens of the rows in a file's text; `source` names the file in messages."""
    pairs = []
    for place, row in json_rows(text, source):
        pair = to_pair(row)
        if pair is None:
            raise InputError(f"{place}: {ROW_FORMS}")
        prompt, completion = pair
        if not prompt or not completion.strip():
            raise InputError(f"{place}: the {'completion' if prompt else 'prompt'} is empty")
        pairs.append((place, prompt, completion.rstrip("\r\n")))

    rows = []
    shortened = 0
    for place, prompt, completion in show_progress(pairs):
        row = to_tokens(prompt, completion, encoding)
        if len(row[0]) > block_size:
            raise InputError(f"{place}: the prompt has {len(row[0])} tokens, and --block_size is "
                             f"{block_size}")
        shortened += total_length(row) - 1 > block_size
        rows.append(row)
    if not rows:
        raise InputError(f"{source} has no rows")
    if shortened:
        print(f"{source}: {shortened} of {len(rows)} completions lose their end, as --block_size "
              f"is {block_size}", flush=True)
    return rows


def holds_pairs(path, text):
    """Whether a file holds pairs: by the end of its name, or by the first row in it."""
    if Path(path).suffix.lower() in (".jsonl", ".json", ".ndjson"):
        return True
    try:
        _, row = next(json_rows(text, path))
    except (InputError, StopIteration):
        return False
    return to_pair(row) is not None


def json_rows(text, source):
    """(place, row) of each element of a JSON array, or of each line that is not blank."""
    if text.lstrip().startswith("["):
        for number, row in enumerate(parse_json(text, source, 1), start=1):
            yield f"{source}, row {number}", row
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{source}, line {number}", parse_json(line, source, number)


def parse_json(text, source, line):
    """The JSON value in `text`, which begins at this line of its file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source}, line {line + error.lineno - 1}: not JSON ({error.msg}); "
                         f"{ROW_FORMS}")


def to_pair(row):
    """A row in one of the three forms -> (prompt, completion); None for any other value."""
    if not isinstance(row, dict):
        return None
    if "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        is_text = isinstance(prompt, str) and isinstance(completion, str)
        return (prompt, completion) if is_text else None
    if "messages" in row:
        turns = chat_turns(row["messages"])
    else:
        names = ("instruction", "input", "output")
        turns = [(name, row.get(name)) for name in names if row.get(name) or name != "input"]
    if not turns or not all(isinstance(part, str) for turn in turns for part in turn):
        return None

    # Each turn before the answer is a line "name: text", and the answer's name ends the prompt.
    *before, (name, answer) = turns
    prompt = "".join(f"{speaker}: {text}\n" for speaker, text in before) + f"{name}:"
    return prompt if before else "", " " + answer


def chat_turns(messages):
    """(role, content) of a chat's messages up to the assistant's last; None for any other value."""
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        return None
    turns = [(turn.get("role"), turn.get("content")) for turn in messages]
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    return turns


def to_tokens(prompt, completion, encoding):
    """The two are tokenized apart, so that a completion's tokens do not depend on its prompt."""
    return encode(prompt, encoding), encode(completion + "\n", encoding)


def total_length(pair):
    prompt, completion = pair
    return len(prompt) + len(completion)


# ---- Text ----------------------------------------------------------------------------------------


class Text:
    """Continued pretraining on a text: random windows to train on, evenly spread ones held out.

    train, val  arrays of tokens
    """

    metric = "loss"

    def __init__(self, encoding, block_size, train, val):
        self.encoding = encoding
        self.block_size = block_size
        self.train = train
        self.val = HeldOutText(encoding, block_size, val)
        self.checksum = checksum(train.tobytes() + val.tobytes())

    def batch(self, seed, step, size):
        last = len(self.train) - self.block_size
        starts = np.random.default_rng((seed, step)).integers(last, size=size)
        return windows_at(starts, self.train, self.block_size)

    def measure(self, model, whole=True):
        loss = self.val.evaluate(model, windows=64)
        return {"loss": loss, "bits per byte": self.val.bits_per_byte(loss)}

    def format(self, name, figure):
        return f"{figure:.3f} nats per token" if name == "loss" else f"{figure:.3f}"

    def samples(self, model, count=3):
        """Continuations of held-out text."""
        tokens = self.val.tokens
        lines = []
        for start in np.linspace(0, len(tokens) - self.block_size - 1, count).astype(int):
            prompt = tokens[start:start + math.ceil(self.block_size / 4)].tolist()
            idx = torch.tensor([prompt], device=device_of(model))
            generated = model.generate(idx, 24, temperature=0)[0, len(prompt):].tolist()
            continuation = decode(self.encoding, generated).strip() or "(nothing)"
            # On one line, with single spaces.
            lines.append(" ".join(f"{decode(self.encoding, prompt)} ⟶ {continuation}".split()))
        return lines


class HeldOutText:
    """A text that no run trains on, as tokens."""

    def __init__(self, encoding, block_size, tokens):
        self.encoding = encoding
        self.block_size = block_size
        self.tokens = tokens

    @torch.no_grad()
    def evaluate(self, model, windows=32):
        """The mean loss, in nats per token, on at most `windows` evenly spread windows."""
        last = len(self.tokens) - self.block_size - 1
        starts = np.linspace(0, last, min(windows, 1 + last // self.block_size)).astype(int)
        groups = math.ceil(len(starts) * self.block_size / 4096)  # about 4096 tokens at a time
        total = 0.0
        with eval_mode(model):
            for group in np.array_split(starts, min(len(starts), groups)):
                idx, targets = windows_at(group, self.tokens, self.block_size)
                _, loss = model(idx.to(device_of(model)), targets.to(device_of(model)))
                total += loss.item() * len(group)
        return total / len(starts)

    def bits_per_byte(self, nats_per_token):
        """The same loss in a unit that does not depend on the vocabulary."""
        tokens = self.tokens[:1_000_000].tolist()
        return nats_per_token / math.log(2) * len(tokens) / len(self.encoding.decode_bytes(tokens))


def windows_at(starts, tokens, block_size):
    """The windows of block_size tokens that begin at `starts` -> idx and targets, (n, T) both."""
    windows = np.stack([tokens[start:start + block_size + 1] for start in starts])
    windows = torch.from_numpy(windows.astype(np.int64))
    return windows[:, :-1], windows[:, 1:]


def tokenize(text, encoding):
    """The tokens of a long text, as an array."""
    tokens = [np.array(encoding.encode_ordinary(piece), dtype=np.int32)
              for piece in show_progress(pieces_of(text))]
    return np.concatenate(tokens)


# ---- Both ----------------------------------------------------------------------------------------


def read_text(path, flag):
    """The text of a UTF-8 file, its lines ended by "\n" alone."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{flag} {path} is neither math nor a file: python -m data.prepare makes "
                         "files of docs, code, shakespeare and e2e")
    with about_input(f"{flag} {path}"):
        contents = path.read_bytes()
    if not contents.strip():
        raise InputError(f"{flag} {path} is empty")
    if contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{flag} {path} is UTF-16: save it as UTF-8")
    contents = contents.removeprefix(codecs.BOM_UTF8)
    try:
        text = contents.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + contents.count(b"\n", 0, error.start)
        raise InputError(f"{flag} {path}, line {line}: not UTF-8 ({error.reason}); save the file "
                         "as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def encode(text, encoding):
    """The tokens of a text, as a list."""
    tokens = []
    for piece in pieces_of(text):
        tokens += encoding.encode_ordinary(piece)
    return tokens


def pieces_of(text):
    return [text[start:start + PIECE] for start in range(0, len(text), PIECE)]


def show_progress(items):
    """Yields the items; after five seconds, and every five, prints the time that is left."""
    start = shown = time.perf_counter()
    for done, item in enumerate(items):
        now = time.perf_counter()
        if now - shown > 5:
            left = (now - start) * (len(items) - done) / done
            print(f"tokenized {done / len(items):.0%}, {left:.0f} s left", flush=True)
            shown = now
        yield item


def checksum(contents):
    return f"{zlib.crc32(contents):08x}"


def decode(encoding, tokens):
    """The text of tokens, without those that the vocabulary lacks (a model may have more)."""
    return encoding.decode([token for token in tokens if token < encoding.n_vocab])


def device_of(model):
    return next(model.parameters()).device
