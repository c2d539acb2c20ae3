"""7. Prompt tuning (Lester et al., arXiv 2104.08691, §2).

A prompt of well-chosen words makes a frozen model do a task. But a model reads embeddings, not
words, and there are far more of those: so put p embeddings P before those of the text, and train
nothing but P.

    X = [P; E(tokens)] + wpe[0], wpe[1], ..., wpe[p + T − 1]

The text's T tokens stand behind the prompt, so their positions shift by p, and p + T may not exceed
the context. The model gives logits at p + T positions; those at the prompt's are dropped.

P (p, d), tokens (B, T), the token embeddings wte (V, d), the position embeddings wpe (context, d),
X (B, p + T, d). What trains is p·d numbers, and P starts as the embeddings of real tokens, drawn at
random. (The paper draws them from the most common ones. Its T5 has no absolute positions.)

To think about: P need not be the embeddings of any text. LoRA changes what each layer computes;
what can P change in a layer, and what not?
"""
import dataclasses
from types import MethodType

import torch
from torch import nn
from torch.nn import functional as F

TO_WRITE = ("initial", "embed", "kept")


def initial(wte, p):
    """wte (V, d) -> P (p, d), the embeddings of p different tokens, drawn at random in every call.

    Hint: torch.randint may draw a token twice.
    """
    raise NotImplementedError


def embed(prompt, tokens, wte, wpe):
    """P (p, d) and tokens (B, T) -> X (B, p + T, d). ValueError if p + T exceeds the context.

    Hint: all B sequences have the same prompt, and it has positions too.
    """
    raise NotImplementedError


def kept(outputs, p):
    """outputs (B, p + T, V) -> those at the text's T positions (B, T, V).

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
