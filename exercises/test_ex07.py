"""Grades ex07_prompt_tuning.py."""
import pytest
import torch

from exercises.checks import holds, same, tensor, untouched

V, D, CONTEXT, P, T = 11, 4, 9, 3, 5


@pytest.fixture
def model(draw):
    """wte (V, d), wpe (context, d)."""
    return draw(V, D), draw(CONTEXT, D)


def some_tokens(draw, *shape):
    return draw(*shape, V).argmax(dim=-1)


def logits_of(x, wte):
    """A causal model: each position sees the mean of the embeddings up to it."""
    counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
    return (x.cumsum(dim=1) / counts).tanh() @ wte.T


@pytest.mark.points(2)
def test_a_prompt_of_real_tokens_is_a_prefix(ex, model, draw):
    wte, wpe = model
    prefix, tokens = some_tokens(draw, P), some_tokens(draw, 2, T)
    prompt = wte[prefix]
    x = untouched((prompt, tokens, wte, wpe), lambda: ex.embed(prompt, tokens, wte, wpe))
    tensor(x, (2, P + T, D), "X")
    for row, text in zip(x, tokens):
        expected = torch.stack([wte[token] + wpe[position]
                                for position, token in enumerate([*prefix, *text])])
        same(row, expected, "with the embeddings of real tokens as its prompt, X must be what the "
                            "text with these tokens before it has")


def test_positions_count_from_the_prompts_first(ex, model, draw):
    wte, wpe = model
    nothing = torch.zeros(P, D, dtype=wte.dtype)
    x = ex.embed(nothing, some_tokens(draw, 2, T), torch.zeros_like(wte), wpe)
    tensor(x, (2, P + T, D), "X")
    for row in x:
        same(row, wpe[:P + T], "where all token embeddings are zero, X is the positions 0, 1, ...")


def test_the_context_is_not_exceeded(ex, model, draw):
    wte, wpe = model
    prompt, fits = draw(P, D), CONTEXT - P
    tensor(ex.embed(prompt, some_tokens(draw, 2, fits), wte, wpe), (2, CONTEXT, D),
           "X of a text that just fits")
    try:
        ex.embed(prompt, some_tokens(draw, 2, fits + 1), wte, wpe)
        raised = "nothing"
    except pytest.fail.Exception as error:
        raised = str(error)
    holds("ValueError" in raised, f"{P} + {fits + 1} positions in a context of {CONTEXT} must "
                                  f"raise a ValueError, and raised {raised[:200]}")


@pytest.mark.points(2)
def test_the_start_is_embeddings_of_different_tokens(ex, draw):
    wte = draw(1000, D)
    prompt = tensor(untouched((wte,), lambda: ex.initial(wte, 8)), (8, D), "P, p·d numbers,")
    matches = (prompt[:, None] == wte).all(dim=-1)  # (8, 1000)
    holds(bool(matches.any(dim=1).all()), "each row of P must be a row of wte, to the last bit")
    tokens = matches.int().argmax(dim=1)
    holds(len(tokens.unique()) == 8, f"P's tokens must be different: {tokens.tolist()}")
    everything = ex.initial(wte[:20], 20)
    same(everything.sum(dim=0), wte[:20].sum(dim=0), "with p = V, each token comes once")


def test_the_start_is_drawn_anew(ex, draw):
    wte = draw(1000, D)
    holds(not torch.equal(ex.initial(wte, 8), ex.initial(wte, 8)),
          "two prompts of 8 tokens out of 1000 must differ")


def test_the_text_s_outputs_are_kept(ex, draw):
    outputs = draw(2, P + T, V)
    found = untouched((outputs,), lambda: ex.kept(outputs, P))
    tensor(found, (2, T, V), "what is kept")
    for t in range(T):
        same(found[:, t], outputs[:, P + t], f"what is kept for token {t} of the text is the "
                                             f"output at its own position")


@pytest.mark.points(2)
def test_logits_are_those_of_the_prefixed_text(ex, model, draw):
    wte, wpe = model
    prefix, tokens = some_tokens(draw, P), some_tokens(draw, 2, T)
    whole = torch.cat((prefix.expand(2, P), tokens), dim=1)
    expected = logits_of(wte[whole] + wpe[:P + T], wte)[:, -T:]
    found = ex.kept(logits_of(ex.embed(wte[prefix], tokens, wte, wpe), wte), P)
    tensor(found, (2, T, V), "the logits")
    same(found, expected, "a prompt of real tokens must give the logits of the prefixed text")
