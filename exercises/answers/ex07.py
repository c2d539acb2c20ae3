"""Answers to exercise 7 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the text's positions start from 0 again": (
        "torch.cat((prompts, wte[tokens]), dim=1) + wpe[:length]",
        "torch.cat((prompts + wpe[:len(prompt)], wte[tokens] + wpe[:tokens.shape[1]]), dim=1)"),
    "the prompt has no positions": (
        "torch.cat((prompts, wte[tokens]), dim=1) + wpe[:length]",
        "torch.cat((prompts, wte[tokens] + wpe[len(prompt):length]), dim=1)"),
    "the prompt stands behind the text": ("(prompts, wte[tokens])", "(wte[tokens], prompts)"),
    "a text that just fits is refused": ("if length > len(wpe)", "if length >= len(wpe)"),
    "the prompt is forgotten in the length": (
        "if length > len(wpe)", "if tokens.shape[1] > len(wpe)"),
    "the last outputs are dropped": ("return outputs[:, p:]", "return outputs[:, :-p]"),
    "the outputs are shifted by one": ("return outputs[:, p:]", "return outputs[:, p - 1:-1]"),
    "a token may come twice": (
        "torch.randperm(len(wte), device=wte.device)[:p]", "torch.randint(len(wte), (p,))"),
    "the prompt is random numbers": (
        "wte[torch.randperm(len(wte), device=wte.device)[:p]].clone()",
        "torch.randn(p, wte.shape[1], dtype=wte.dtype)"),
}

RIGHT = '''
import random

import torch


def initial(wte, p):
    return torch.stack([wte[token] for token in random.sample(range(len(wte)), p)])


def embed(prompt, tokens, wte, wpe):
    (p, d), (B, T) = prompt.shape, tokens.shape
    if p + T > wpe.shape[0]:
        raise ValueError("too long")
    x = wpe[None, :p + T].repeat(B, 1, 1)
    x[:, :p] += prompt
    x[:, p:] += torch.nn.functional.embedding(tokens, wte)
    return x


def kept(outputs, p):
    return outputs.narrow(1, p, outputs.shape[1] - p)
'''
