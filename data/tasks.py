"""Tasks: what a run trains on and how it is judged. Every batch is a pure function of (seed, step).

    batch(seed, step, size) -> (idx, targets)  (size, T) and (size, K): the tokens that follow the
                                               last K positions of idx, −1 where the loss ignores it
    measure(model, whole) -> dict              figures by name, without dropout; where that is
                                               slow beside training, from a quarter unless `whole`
    evaluate(model) -> float                   the one of them that `metric` names
    in_words(name, figure) -> str              a figure with its unit
    samples(model) -> list[str]                a few answers to look at
"""
import math
import random

import numpy as np
import torch

from data import corpora, pairs
from data.files import InputError
from model import eval_mode

JUDGED = 500  # held-out pairs that are looked at, evenly spread


def device_of(model):
    return next(model.parameters()).device


def sum_of_lengths(pair):
    return len(pair[0]) + len(pair[1])


class Pairs:
    """Prompts with completions: the loss on the completion, with the end of its line, alone.

    train, val  pairs.Rows
    metric      "loss", in nats per token, or "exact match", the share of right greedy answers
    """

    def __init__(self, encoding, block_size, train, val, metric="loss"):
        self.encoding = encoding
        self.block_size = block_size
        self.train = train
        self.lengths = np.minimum(train.lengths(), block_size)
        uneven = self.lengths.max() > 1.5 * self.lengths.mean()
        self.candidates = 16 if uneven else 1  # batches of like lengths, of which one is taken
        self.val = [val[i] for i in np.linspace(0, len(val) - 1, min(JUDGED, len(val))).astype(int)]
        self.metric = metric

    def rows(self, chosen):
        """Tokens (n, T) and targets (n, K) of n pairs, padded where no loss looks."""
        starts = [len(prompt) for prompt, _ in chosen]
        whole = [(prompt + completion)[:self.block_size + 1] for prompt, completion in chosen]
        T = max(len(tokens) for tokens in whole) - 1
        before = min(starts) - 1  # positions whose next token no row is to learn
        idx = np.zeros((len(chosen), T), dtype=np.int64)
        targets = np.full((len(chosen), T), -1)
        for row, (start, tokens) in enumerate(zip(starts, whole)):
            idx[row, :len(tokens) - 1] = tokens[:-1]
            targets[row, start - 1:len(tokens) - 1] = tokens[start:]
        return torch.from_numpy(idx), torch.from_numpy(targets[:, before:])

    def batch(self, seed, step, size):
        """Rows drawn at random; where their lengths differ much, rows of about one length."""
        generator = np.random.default_rng((seed, step))
        chosen = generator.integers(len(self.train), size=self.candidates * size)
        if self.candidates > 1:
            chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
            chosen = chosen.reshape(self.candidates, size)[generator.integers(self.candidates)]
        return self.rows([self.train[i] for i in chosen])

    @torch.no_grad()
    def measure(self, model, whole=True):
        """The held-out completions' loss, and the share of greedy answers that are exactly right.

        One forward pass decides the latter: the greedy answer is the true one if and only if, fed
        the true answer, the model's likeliest token is right at each of its positions, to its end.
        """
        by_length = sorted(self.val if whole else self.val[::4], key=sum_of_lengths)
        size = max(1, 4096 // min(sum_of_lengths(by_length[-1]), self.block_size))
        right = tokens = 0
        loss = 0.0
        with eval_mode(model):
            for first in range(0, len(by_length), size):
                idx, targets = self.rows(by_length[first:first + size])
                idx, targets = idx.to(device_of(model)), targets.to(device_of(model))
                logits, mean = model(idx, targets)  # (n, K, V)
                as_told = (logits.argmax(dim=-1) == targets) | (targets == -1)
                right += as_told.all(dim=1).sum().item()
                count = (targets != -1).sum().item()
                loss += mean.item() * count
                tokens += count
        return {"exact match": right / len(by_length), "loss": loss / tokens}

    def evaluate(self, model):
        return self.measure(model)[self.metric]

    def in_words(self, name, figure):
        return f"{figure:.1%}" if name == "exact match" else f"{figure:.3f} nats per token"

    def samples(self, model, count=3):
        """The first held-out prompts with the model's greedy answers."""
        lines = []
        for prompt, completion in self.val[:count]:
            prompt = prompt[:self.block_size]
            idx = torch.tensor([prompt], device=device_of(model))
            told = model.generate(idx, len(completion), temperature=0)[0, len(prompt):].tolist()
            given, right = decode(self.encoding, prompt), decode(self.encoding, completion)
            answer = decode(self.encoding, told).strip().partition("\n")[0]
            lines.append(f"{given.strip()} {answer}   (right: {right.strip()})")
        return lines


def decode(encoding, tokens):
    """The text of tokens; those that the vocabulary lacks (a model may have more) are left out."""
    return encoding.decode([token for token in tokens if token < encoding.n_vocab])


def sums(encoding):
    """All two-digit sums, as "What is 47 plus 86?" and " 133" -> Rows (train, val), 500 in val."""
    numbers = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(numbers)  # fixed: the same are held out whatever the run's seed
    texts = [(f"What is {a} plus {b}?", f" {a + b}") for a, b in numbers]
    rows = pairs.in_memory(texts, encoding)
    return rows.part(500, len(rows)), rows.part(0, 500)


class Text:
    """Continued pretraining on a corpus: random windows to train on, even ones to judge by."""

    metric = "loss"

    def __init__(self, name, encoding, block_size, progress=print, val_data=None):
        self.encoding = encoding
        self.block_size = block_size
        self.train, self.val = corpora.load(name, encoding, progress, val_data)
        if min(len(self.train), len(self.val)) <= block_size:
            raise InputError(f"--data {name}: too short, its training and validation parts have "
                             f"{len(self.train)} and {len(self.val)} tokens, and one context needs "
                             f"{block_size + 1}")

    def _windows(self, tokens, starts):
        windows = np.stack([tokens[start:start + self.block_size + 1] for start in starts])
        rows = torch.from_numpy(windows.astype(np.int64))
        return rows[:, :-1], rows[:, 1:]

    def batch(self, seed, step, size):
        last = len(self.train) - self.block_size
        starts = np.random.default_rng((seed, step)).integers(last, size=size)
        return self._windows(self.train, starts)

    @torch.no_grad()
    def evaluate(self, model, windows=64):
        """The mean loss in nats per token over at most `windows` evenly spread held-out windows."""
        last = len(self.val) - self.block_size - 1
        starts = np.linspace(0, last, min(windows, 1 + last // self.block_size)).astype(int)
        groups = math.ceil(len(starts) * self.block_size / 4096)  # about 4096 tokens at a time
        total = 0.0
        with eval_mode(model):
            for group in np.array_split(starts, min(len(starts), groups)):
                idx, targets = self._windows(self.val, group)
                _, loss = model(idx.to(device_of(model)), targets.to(device_of(model)))
                total += loss.item() * len(group)
        return total / len(starts)

    def bits_per_byte(self, nats_per_token):
        """The same loss in a unit that does not depend on the vocabulary."""
        tokens = self.val[:1_000_000].tolist()
        return nats_per_token / math.log(2) * len(tokens) / len(self.encoding.decode_bytes(tokens))

    def measure(self, model, whole=True):
        loss = self.evaluate(model)
        return {"loss": loss, "bits per byte": self.bits_per_byte(loss)}

    def in_words(self, name, figure):
        return f"{figure:.3f}" + " nats per token" * (name == "loss")

    def samples(self, model, count=3):
        """Continuations of validation text."""
        lines = []
        for start in np.linspace(0, len(self.val) - self.block_size - 1, count).astype(int):
            prompt = self.val[start:start + math.ceil(self.block_size / 4)].astype(np.int64)
            idx = torch.from_numpy(prompt).to(device_of(model))
            told = model.generate(idx[None], 24, temperature=0)[0, len(prompt):]
            given, continuation = (decode(self.encoding, part.tolist()) for part in (prompt, told))
            lines.append(" ".join(f"{given} ⟶ {continuation}".split()))
        return lines


def load(name, encoding, block_size, progress=print, val_data=None):
    """The task called `name`: "math", "docs", "code", "shakespeare", or a file, .jsonl for pairs.

    val_data is the path of another such file, to judge by; else the last tenth of the first is.
    """
    if val_data and (name == "math" or name in corpora.NAMES):
        raise InputError(f"--val_data goes with a file, and --data {name} has its own")
    if name == "math":
        train, val = sums(encoding)
        longest = int(train.lengths().max()) - 1
        if block_size < longest:
            raise InputError(f"--block_size {block_size} cuts the answers of --data math: at least "
                             f"{longest}")
        return Pairs(encoding, block_size, train, val, metric="exact match")
    if not name.endswith(".jsonl"):
        return Text(name, encoding, block_size, progress, val_data)
    rows = pairs.load(name, encoding, block_size, "--data", progress)
    if val_data:
        val = pairs.load(val_data, encoding, block_size, "--val_data", progress)
        return Pairs(encoding, block_size, rows, val)
    if len(rows) < 2:
        raise InputError(f"--data {name} has one pair: two are needed, or --val_data")
    cut = min(int(0.9 * len(rows)), len(rows) - 1)
    return Pairs(encoding, block_size, rows.part(0, cut), rows.part(cut, len(rows)))
