"""Grades ex07_prompt_tuning.py."""
import pytest
import torch

from exercises.tests.checks import holds, same, tensor

VOCAB, D, CONTEXT, P, LENGTH = 11, 4, 9, 3, 5


@pytest.fixture
def model(draw):
    """wte (vocab, d), wpe (context, d)."""
    return draw(VOCAB, D), draw(CONTEXT, D)


def some_tokens(draw, *shape):
    return draw(*shape, VOCAB).argmax(dim=-1)


def logits_of(x, wte):
    """A causal model: each position sees the mean of the embeddings up to it."""
    counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
    return (x.cumsum(dim=1) / counts).tanh() @ wte.T


@pytest.mark.points(2)
def test_a_prompt_of_real_tokens_is_a_prefix(ex, model, draw):
    wte, wpe = model
    prefix, tokens = some_tokens(draw, P), some_tokens(draw, 2, LENGTH)
    x = tensor(ex.embed(wte[prefix], tokens, wte, wpe), (2, P + LENGTH, D), "x")
    for row, text in zip(x, tokens):
        expected = torch.stack([wte[token] + wpe[position]
                                for position, token in enumerate([*prefix, *text])])
        same(row, expected, "with the embeddings of real tokens as the prompt, x must be that of "
                            "the text with these tokens in front")


def test_positions_count_from_the_prompts_first(ex, model, draw):
    wte, wpe = model
    nothing = torch.zeros(P, D, dtype=wte.dtype)
    x = ex.embed(nothing, some_tokens(draw, 2, LENGTH), torch.zeros_like(wte), wpe)
    tensor(x, (2, P + LENGTH, D), "x")
    for row in x:
        same(row, wpe[:P + LENGTH],
             "where all token embeddings are zero, x must be the positions 0, 1, ...")


def test_the_context_is_not_exceeded(ex, model, draw):
    wte, wpe = model
    prompt, fits = draw(P, D), CONTEXT - P

    def error(length):
        try:
            x = ex.embed(prompt, some_tokens(draw, 2, length), wte, wpe)
        except pytest.fail.Exception as failed:
            return str(failed)
        tensor(x, (2, P + length, D), "x")
        return ""

    said = error(fits)
    holds("ValueError" not in said, f"{P} + {fits} positions must fit into a context of {CONTEXT}, "
                                    "and embed raised a ValueError")
    holds(not said, said)
    said = error(fits + 1)
    holds("ValueError" in said, f"{P} + {fits + 1} positions in a context of {CONTEXT} must raise "
                                f"a ValueError; instead: {said[:200] or 'no error'}")


def drawn(ex, wte, p):
    """Which tokens the prompt has."""
    prompt = tensor(ex.initial(wte, p), (p, wte.shape[1]), "the prompt")
    holds(0 not in ex.shares, "the prompt shares memory with wte: training it would change wte")
    holds(not ex.overlaps, "each entry of the prompt must have its own memory")
    matches = (prompt[:, None] == wte).all(dim=-1)  # (p, vocab)
    holds(bool(matches.any(dim=1).all()), "each row of the prompt must be a row of wte, exactly")
    return matches.int().argmax(dim=1).tolist()


@pytest.mark.points(2)
def test_the_start_is_embeddings_of_different_tokens(ex, draw):
    tokens = drawn(ex, draw(1000, D), 8)
    holds(len(set(tokens)) == 8, f"the prompt's tokens must be different: {tokens}")
    everything = drawn(ex, draw(20, D), 20)
    holds(sorted(everything) == list(range(20)), "with p = vocab, each token comes once")


def test_the_start_is_drawn_anew_from_the_whole_vocabulary(ex, draw):
    wte, calls, p = draw(40, D), 400, 4
    prompts = [drawn(ex, wte, p) for _ in range(calls)]
    mean, off = calls * p / 40, 6 * (calls * p / 40) ** 0.5  # by chance, once in 10⁸
    for token in range(40):
        count = sum(token in prompt for prompt in prompts)
        holds(abs(count - mean) < off, f"in {calls} prompts of {p} tokens out of 40, token {token} "
                                       f"must come about {mean:.0f} times, not {count}")
    choices = len({frozenset(prompt) for prompt in prompts})  # of 91390 that there are
    holds(choices > 0.95 * calls, f"the tokens must be drawn one by one: {calls} prompts have only "
                                  f"{choices} different choices of tokens")


def test_the_text_s_outputs_are_kept(ex, draw):
    outputs = draw(2, P + LENGTH, VOCAB)
    found = tensor(ex.kept(outputs, P), (2, LENGTH, VOCAB), "what is kept")
    for t in range(LENGTH):
        same(found[:, t], outputs[:, P + t], f"what is kept for token {t} of the text must be the "
                                             "output at its own position")


@pytest.mark.points(2)
def test_logits_are_those_of_the_prefixed_text(ex, model, draw):
    wte, wpe = model
    prefix, tokens = some_tokens(draw, P), some_tokens(draw, 2, LENGTH)
    whole = torch.cat((prefix.expand(2, P), tokens), dim=1)
    expected = logits_of(wte[whole] + wpe[:P + LENGTH], wte)[:, -LENGTH:]
    found = ex.kept(logits_of(ex.embed(wte[prefix], tokens, wte, wpe), wte), P)
    tensor(found, (2, LENGTH, VOCAB), "the logits")
    same(found, expected, "a prompt of real tokens must lead to the logits of the prefixed text")
