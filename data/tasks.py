"""Tasks: what a run trains on and how it is judged. Every batch is a pure function of (seed, step).

    batch(seed, step, size) -> (idx, targets)    two (size, T) int64 tensors, targets −1 where no loss looks
    evaluate(model) -> float                     the metric, without dropout; its name is in `metric`
    in_words(metric) -> str                      the metric with its unit
    samples(model) -> list[str]                  a few answers to look at
"""
import math
import random

import numpy as np
import torch

from data import corpora


class Addition:
    """"What is 47 plus 86? 133": all two-digit sums, 500 of them held out, the loss on the answer alone."""

    metric = "exact match"

    def __init__(self, encoding):
        self.encoding = encoding
        pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
        random.Random(0).shuffle(pairs)  # fixed: the same questions are held out whatever the run's seed
        self.train, self.val = (self._encode(part) for part in (pairs[500:], pairs[:500]))

    def _encode(self, pairs):
        """Tokens and targets, two (len(pairs), T) tensors; short rows are padded where no loss looks."""
        rows = [(self.encoding.encode_ordinary(f"What is {a} plus {b}?"),
                 self.encoding.encode_ordinary(f" {a + b}\n")) for a, b in pairs]
        T = max(len(question) + len(answer) for question, answer in rows) - 1
        idx, targets = torch.zeros(len(rows), T, dtype=torch.long), torch.full((len(rows), T), -1)
        for i, (question, answer) in enumerate(rows):
            tokens = torch.tensor(question + answer)
            idx[i, :len(tokens) - 1] = tokens[:-1]
            targets[i, len(question) - 1:len(tokens) - 1] = torch.tensor(answer)
        return idx, targets

    def batch(self, seed, step, size):
        rows = np.random.default_rng((seed, step)).integers(len(self.train[0]), size=size)
        return self.train[0][rows], self.train[1][rows]

    @torch.no_grad()
    def evaluate(self, model):
        """The share of held-out questions whose greedy answer is exactly right, up to and including its end.

        One forward pass decides it: the greedy answer equals the true one if and only if, fed the true answer,
        the model's likeliest token is right at each of its positions.
        """
        model.eval()
        idx, targets = (part.to(next(model.parameters()).device) for part in self.val)
        right = 0
        for i, t in zip(idx.split(100), targets.split(100)):
            looks = t != -1
            wrong = torch.zeros_like(looks).masked_scatter(looks, model(i, t)[0].argmax(-1) != t[looks])
            right += (~wrong.any(dim=1)).sum().item()
        return right / len(idx)

    def in_words(self, metric):
        return f"{metric:.1%}"

    def samples(self, model, count=3):
        """The first held-out questions with the model's greedy answers."""
        lines = []
        for idx, targets in zip(self.val[0][:count], self.val[1][:count]):
            question = idx[:(targets != -1).nonzero()[0, 0] + 1].to(next(model.parameters()).device)
            answer = model.generate(question[None], 5, temperature=0)[0, len(question):].tolist()
            true = self.encoding.decode(targets[targets != -1].tolist()).strip()
            lines.append(f"{self.encoding.decode(question.tolist())} "
                         f"{self.encoding.decode(answer).splitlines()[0].strip()}   (right: {true})")
        return lines


class Text:
    """Continued pretraining on a corpus: random windows to train on, evenly spread ones to judge by."""

    metric = "loss"

    def __init__(self, name, encoding, block_size, progress=print):
        self.encoding, self.block_size = encoding, block_size
        self.train, self.val = corpora.load(name, encoding, progress)
        if min(len(self.train), len(self.val)) <= block_size:
            raise ValueError(f"--data {name}: too short, its training and validation parts have {len(self.train)} "
                             f"and {len(self.val)} tokens, and one context needs {block_size + 1}")

    def _windows(self, tokens, starts):
        rows = torch.from_numpy(np.stack([tokens[s:s + self.block_size + 1] for s in starts]).astype(np.int64))
        return rows[:, :-1], rows[:, 1:]

    def batch(self, seed, step, size):
        starts = np.random.default_rng((seed, step)).integers(len(self.train) - self.block_size, size=size)
        return self._windows(self.train, starts)

    @torch.no_grad()
    def evaluate(self, model, windows=64):
        """The mean loss in nats per token over at most `windows` evenly spread validation windows."""
        model.eval()
        last = len(self.val) - self.block_size - 1
        starts = np.linspace(0, last, min(windows, 1 + last // self.block_size)).astype(int)
        device = next(model.parameters()).device
        groups = min(len(starts), math.ceil(len(starts) * self.block_size / 4096))  # 4096 tokens at a time
        losses = [model(*(part.to(device) for part in self._windows(self.val, group)))[1] * len(group)
                  for group in np.array_split(starts, groups)]
        return torch.stack(losses).sum().item() / len(starts)

    def bits_per_byte(self, nats_per_token):
        """The same loss in a unit that does not depend on the vocabulary."""
        tokens = self.val[:1_000_000].tolist()
        return nats_per_token / math.log(2) * len(tokens) / len(self.encoding.decode_bytes(tokens))

    def in_words(self, metric):
        return f"{metric:.3f}, {self.bits_per_byte(metric):.3f} bpb"

    def samples(self, model, count=3):
        """Three continuations of validation text."""
        device, lines = next(model.parameters()).device, []
        for start in np.linspace(0, len(self.val) - self.block_size - 1, count).astype(int):
            prompt = torch.from_numpy(self.val[start:start + self.block_size // 4].astype(np.int64)).to(device)
            text = model.generate(prompt[None], 24, temperature=0)[0].tolist()
            lines.append(" ".join((self.encoding.decode(text[:len(prompt)]) + " ⟶ "
                                   + self.encoding.decode(text[len(prompt):])).split()))
        return lines


def load(name, encoding, block_size, progress=print):
    """The task called `name`: "math", "docs", "code", "shakespeare", or a text file's path."""
    return Addition(encoding) if name == "math" else Text(name, encoding, block_size, progress)
