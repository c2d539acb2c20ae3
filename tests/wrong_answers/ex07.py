"""Wrong answers to exercise 7, and right ones in another style, laid over the solution."""

# wrong: the text's positions start from 0 again
def embed(prompt, tokens, wte, wpe):
    length = len(prompt) + tokens.shape[1]
    if length > len(wpe):
        raise ValueError(f"the prompt and the text have {length} positions together, and this "
                         f"model's context {len(wpe)}")
    prompts = prompt.expand(len(tokens), -1, -1)
    return torch.cat((prompts + wpe[:len(prompt)], wte[tokens] + wpe[:tokens.shape[1]]), dim=1)

# wrong: the prompt has no positions
def embed(prompt, tokens, wte, wpe):
    length = len(prompt) + tokens.shape[1]
    if length > len(wpe):
        raise ValueError(f"the prompt and the text have {length} positions together, and this "
                         f"model's context {len(wpe)}")
    prompts = prompt.expand(len(tokens), -1, -1)
    return torch.cat((prompts, wte[tokens] + wpe[len(prompt):length]), dim=1)

# wrong: the prompt stands behind the text
def embed(prompt, tokens, wte, wpe):
    length = len(prompt) + tokens.shape[1]
    if length > len(wpe):
        raise ValueError(f"the prompt and the text have {length} positions together, and this "
                         f"model's context {len(wpe)}")
    prompts = prompt.expand(len(tokens), -1, -1)
    return torch.cat((wte[tokens], prompts), dim=1) + wpe[:length]

# wrong: a text that just fits is refused
def embed(prompt, tokens, wte, wpe):
    length = len(prompt) + tokens.shape[1]
    if length >= len(wpe):
        raise ValueError(f"the prompt and the text have {length} positions together, and this "
                         f"model's context {len(wpe)}")
    prompts = prompt.expand(len(tokens), -1, -1)
    return torch.cat((prompts, wte[tokens]), dim=1) + wpe[:length]

# wrong: the prompt is forgotten in the length
def embed(prompt, tokens, wte, wpe):
    length = len(prompt) + tokens.shape[1]
    if tokens.shape[1] > len(wpe):
        raise ValueError(f"the prompt and the text have {length} positions together, and this "
                         f"model's context {len(wpe)}")
    prompts = prompt.expand(len(tokens), -1, -1)
    return torch.cat((prompts, wte[tokens]), dim=1) + wpe[:length]

# wrong: the last outputs are dropped
def kept(outputs, p):
    return outputs[:, :-p]

# wrong: the outputs are shifted by one
def kept(outputs, p):
    return outputs[:, p - 1:-1]

# wrong: a token may come twice
def initial(wte, p):
    return wte[torch.randint(len(wte), (p,))].clone()

# wrong: the prompt is random numbers
def initial(wte, p):
    return torch.randn(p, wte.shape[1], dtype=wte.dtype)

# wrong: only the first p tokens are shuffled
def initial(wte, p):
    return wte[torch.randperm(p)]

# wrong: half of the vocabulary is never drawn
def initial(wte, p):
    return wte[torch.randperm(max(p, len(wte) // 2))[:p]]

# wrong: the prompt is a slice of wte
def initial(wte, p):
    start = torch.randint(len(wte) - p + 1, ()).item()
    return wte[start:start + p]

# wrong: the prompt is neighbours in wte
def initial(wte, p):
    start = torch.randint(len(wte) - p + 1, ()).item()
    return wte[start:start + p].clone()

# wrong: the tokens are evenly spaced
def initial(wte, p):
    step = len(wte) // p
    start = torch.randint(step, ()).item()
    return wte[start::step][:p].clone()

# right: another style
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
