"""Tasks: what a run trains on and how it is judged. Every batch is a pure function of (seed, step).

    batch(seed, step, size) -> (idx, targets)  (size, T) and (size, K): the tokens that follow the
                                               last K positions of idx, −1 where no loss looks
    evaluate(model) -> float                   the metric, without dropout; its name is in `metric`
    in_words(metric) -> str                    the metric with its unit
    samples(model) -> list[str]                a few answers to look at
"""
import math
import random

import numpy as np
import torch

from data import corpora
from data.files import InputError
from model import eval_mode


def device_of(model):
    return next(model.parameters()).device


class Addition:
    """"What is 47 plus 86? 133": all two-digit sums, 500 held out, the loss on the answer alone."""

    metric = "exact match"

    def __init__(self, encoding):
        self.encoding = encoding
        pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
        random.Random(0).shuffle(pairs)  # fixed: the same are held out whatever the run's seed
        self.train = self._encode(pairs[500:])
        self.val = self._encode(pairs[:500])

    def _encode(self, pairs):
        """Tokens (n, T) and targets (n, K); short rows are padded where no loss looks."""
        questions = [self.encoding.encode_ordinary(f"What is {a} plus {b}?") for a, b in pairs]
        answers = [self.encoding.encode_ordinary(f" {a + b}\n") for a, b in pairs]
        Q = len(questions[0])  # every digit is a token, so that all questions have one length
        K = max(len(answer) for answer in answers)
        idx = torch.zeros(len(pairs), Q + K - 1, dtype=torch.long)
        targets = torch.full((len(pairs), K), -1)
        idx[:, :Q] = torch.tensor(questions)
        for row, answer in enumerate(answers):
            targets[row, :len(answer)] = torch.tensor(answer)
            idx[row, Q:Q + len(answer) - 1] = torch.tensor(answer[:-1])
        return idx, targets

    def batch(self, seed, step, size):
        idx, targets = self.train
        rows = np.random.default_rng((seed, step)).integers(len(idx), size=size)
        return idx[rows], targets[rows]

    @torch.no_grad()
    def evaluate(self, model):
        """The share of held-out questions whose greedy answer is exactly right, with its end.

        One forward pass decides it: the greedy answer is the true one if and only if, fed the true
        answer, the model's likeliest token is right at each of its positions.
        """
        idx, targets = (part.to(device_of(model)) for part in self.val)
        right = 0
        with eval_mode(model):
            for some_idx, some_targets in zip(idx.split(100), targets.split(100)):
                logits, _ = model(some_idx, some_targets)  # (100, K, V)
                as_told = (logits.argmax(dim=-1) == some_targets) | (some_targets == -1)
                right += as_told.all(dim=1).sum().item()
        return right / len(idx)

    def in_words(self, metric):
        return f"{metric:.1%}"

    def samples(self, model, count=3):
        """The first held-out questions with the model's greedy answers."""
        lines = []
        for idx, targets in zip(self.val[0][:count], self.val[1][:count]):
            question = idx[:len(idx) + 1 - len(targets)].to(device_of(model))
            told = model.generate(question[None], len(targets), temperature=0)[0, len(question):]
            answer = self.encoding.decode(told.tolist()).partition("\n")[0].strip()
            right = self.encoding.decode(targets[targets != -1].tolist()).strip()
            lines.append(f"{self.encoding.decode(question.tolist())} {answer}   (right: {right})")
        return lines


class Text:
    """Continued pretraining on a corpus: random windows to train on, even ones to judge by."""

    metric = "loss"

    def __init__(self, name, encoding, block_size, progress=print):
        self.encoding = encoding
        self.block_size = block_size
        self.train, self.val = corpora.load(name, encoding, progress)
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

    def in_words(self, metric):
        return f"{metric:.3f}, {self.bits_per_byte(metric):.3f} bpb"

    def samples(self, model, count=3):
        """Continuations of validation text."""
        lines = []
        for start in np.linspace(0, len(self.val) - self.block_size - 1, count).astype(int):
            prompt = self.val[start:start + self.block_size // 4].astype(np.int64)
            idx = torch.from_numpy(prompt).to(device_of(model))
            told = model.generate(idx[None], 24, temperature=0)[0, len(prompt):]
            given, continuation = (self.encoding.decode(part.tolist()) for part in (prompt, told))
            lines.append(" ".join(f"{given} ⟶ {continuation}".split()))
        return lines


def load(name, encoding, block_size, progress=print):
    """The task called `name`: "math", "docs", "code", "shakespeare", or a text file's path."""
    if name == "math":
        return Addition(encoding)
    return Text(name, encoding, block_size, progress)
