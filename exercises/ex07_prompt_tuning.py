"""7. Prompt tuning (Lester et al., arXiv 2104.08691, §2).

A prompt of well-chosen words makes a frozen model do a task. But a model reads embeddings, not
words, and there are far more of those: so put p embeddings, the prompt, before those of the text,
and train nothing but the prompt.

    x = [prompt; wte[tokens]] + wpe[0], wpe[1], ..., wpe[p + length − 1]

The text's tokens stand behind the prompt, so their positions shift by p, and p + length may not
exceed the context. A text that fills the context exactly still fits. The model makes logits at
p + length positions; those at the prompt's positions are dropped.

prompt (p, d), tokens (batch, length), the token embeddings wte (vocab, d), the position embeddings
wpe (context, d), x (batch, p + length, d). Only p·d numbers train, and the prompt starts as the
embeddings of real tokens, drawn at random. (The paper draws them from the most common ones. Its T5
has no absolute positions.)

To think about: the prompt need not be the embeddings of any text. LoRA changes what each layer
computes; what can a prompt change in a layer, and what not?
"""
import dataclasses
from types import MethodType

import torch
from torch import nn
from torch.nn import functional as F


def initial(wte, p):
    """wte (vocab, d) -> prompt (p, d), the embeddings of p different tokens.

    Every call draws them anew from the whole vocabulary, each token as likely as any other. The
    prompt will train, so it has its own memory: wte must stay as it is.
    Hint: torch.randint may draw a token twice.
    """
    raise NotImplementedError


def embed(prompt, tokens, wte, wpe):
    """prompt (p, d) and tokens (batch, length) -> x (batch, p + length, d).

    ValueError if p + length exceeds the context.
    Hint: all sequences have the same prompt, and it has positions too.
    """
    raise NotImplementedError


def kept(outputs, p):
    """outputs (batch, p + length, vocab) -> those at the text's positions (batch, length, vocab).

    Hint: the model is causal, and the last of these predicts the token after the text.
    """
    raise NotImplementedError


# How it trains: all is frozen but model.prompt, of p = 2 · rank embeddings. The text's share of the
# context is model.config.block_size, p less than before: 112 with rank 8, so give --block_size 96.
# So few numbers need large steps: give --lr 0.1.

def adapt(model, rank):
    model.requires_grad_(False)
    model.prompt = nn.Parameter(initial(model.transformer.wte.weight.detach(), 2 * rank))
    left = model.config.block_size - 2 * rank
    model.config = dataclasses.replace(model.config, block_size=left)
    model.forward = MethodType(forward, model)


def forward(model, idx, targets=None):
    """As GPT.forward."""
    gpt = model.transformer
    x = gpt.drop(embed(model.prompt, idx, gpt.wte.weight, gpt.wpe.weight))
    for block in gpt.h:
        x = block(x)
    x = kept(gpt.ln_f(x), len(model.prompt))
    if targets is None:
        return model.lm_head(x), None
    logits = model.lm_head(x[:, -targets.shape[1]:])
    return logits, F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1)
