"""The mathematics of lora.py against independent formulas, and the promises of train.py. `pytest` runs it all.

G is always ∂L/∂W0 from autograd through a plain weight, never from lora.py's own code.
"""
import copy
import math
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn as nn

import lora
import train
from data import base, corpora, tasks, tokenizer
from data.files import replace_file
from lora import LoRALinear, apply_lora, lora_ga_init, lora_layers, lora_plus_groups, precondition_gradients
from model import GPT, GPTConfig

ROOT = Path(__file__).parent
EXACT = dict(rtol=1e-10, atol=1e-10)


def gpt(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**dict(block_size=16, vocab_size=40, n_layer=2, n_head=2, n_embd=16), **changes})).to(dtype)


def tokens(rows=4, seed=1):
    return torch.randint(40, (2, rows, 12), generator=torch.Generator().manual_seed(seed)).unbind()


def gpt_loss(model, batch):
    return model(*batch)[1]


def randomise(model, seed=2):
    """Gives every adapter non-zero factors, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        for factor in (layer.lora_A, layer.lora_B):
            factor.data += 0.3 * torch.randn(factor.shape, generator=generator, dtype=torch.float64).to(factor.dtype)
    return model


def layer_of(d_out=12, d_in=10, rank=3, seed=0, **options):
    """A LoRALinear in float64 inside a model, with random factors."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"fc": nn.Linear(d_in, d_out).double()})
    apply_lora(model, rank, targets=["fc"], **options)
    randomise(model, seed)
    return model, model["fc"]


def dense_gradients(model, batch):
    """∂L/∂W for the adapted layers of a model without LoRA, by autograd through W itself."""
    model = copy.deepcopy(model).requires_grad_(True)
    gpt_loss(model, batch).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def cosine(X, Y):
    return (X * Y).sum().item() / (X.norm() * Y.norm()).item()


# LoRA, Hu et al. 2106.09685

def test_lora_delta_is_zero_at_the_start():
    model, (idx, _) = gpt(), tokens()
    before = model(idx)[0]
    apply_lora(model, rank=4)
    assert torch.equal(model(idx)[0], before)
    assert all(not layer.delta().any() and layer.lora_A.any() for layer in lora_layers(model).values())


@pytest.mark.parametrize("shape", [(10,), (7, 10), (2, 3, 5, 10), (0, 10)])
def test_lora_forward_is_the_dense_weight_w0_plus_s_ba(shape):
    _, layer = layer_of(alpha=5.0)
    x = torch.randn(shape, dtype=torch.float64)
    W = layer.linear.weight + 5 / 3 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), x @ W.T + layer.linear.bias, **EXACT)
    torch.testing.assert_close(layer.delta(), W - layer.linear.weight, **EXACT)


def test_lora_gradients_are_the_chain_rule_through_the_dense_weight():
    _, layer = layer_of(alpha=5.0)
    x, y = torch.randn(7, 10, dtype=torch.float64), torch.randn(7, 12, dtype=torch.float64)
    W = (layer.linear.weight + layer.scale * layer.lora_B @ layer.lora_A).detach().requires_grad_()
    (x @ W.T + layer.linear.bias - y).pow(2).mean().backward()
    (layer(x) - y).pow(2).mean().backward()
    torch.testing.assert_close(layer.lora_A.grad, layer.scale * layer.lora_B.T @ W.grad, **EXACT)
    torch.testing.assert_close(layer.lora_B.grad, layer.scale * W.grad @ layer.lora_A.T, **EXACT)


def test_lora_gradcheck():
    _, layer = layer_of(d_out=4, d_in=3, rank=2)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def f(x, A, B):
        return torch.func.functional_call(layer, {"lora_A": A, "lora_B": B}, x)

    assert torch.autograd.gradcheck(f, (x, layer.lora_A, layer.lora_B))


def test_lora_merge_keeps_the_output_and_unmerge_restores_the_weight():
    model, (idx, _) = randomise(apply_lora(gpt(), rank=4)), tokens()
    before, weights = model(idx)[0], copy.deepcopy(model.state_dict())
    for _ in range(2):
        lora.merge_lora(model)
        torch.testing.assert_close(model(idx)[0], before, **EXACT)
    for layer in lora_layers(model).values():
        x = torch.randn(3, layer.linear.in_features, dtype=torch.float64)
        assert torch.equal(layer(x), nn.functional.linear(x, layer.linear.weight, layer.linear.bias))
    model.eval(), model.train()
    assert all(layer.merged for layer in lora_layers(model).values())
    for _ in range(2):
        lora.unmerge_lora(model)
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_lora_trains_a_and_b_alone_r_times_d_in_plus_d_out_numbers():
    model, plain = apply_lora(gpt(), rank=4), gpt()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith(("lora_A", "lora_B")) for name in trained)
    linears = [m for name, m in plain.named_modules() if name.endswith(("c_attn", "c_proj", "c_fc"))]
    assert sum(p.numel() for p in trained.values()) == 4 * sum(m.in_features + m.out_features for m in linears)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_lora_frozen_weights_do_not_move_in_training():
    model = apply_lora(gpt(), rank=4)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        gpt_loss(model, tokens()).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == ("lora_" not in name)


def test_lora_layer_freezes_what_it_wraps_and_scales_by_alpha_over_r_or_root_r():
    linear = nn.Linear(8, 8)
    assert LoRALinear(linear, 4).scale == 1 and not linear.weight.requires_grad and not linear.bias.requires_grad
    assert LoRALinear(linear, 4, alpha=6).scale == 1.5
    assert LoRALinear(linear, 4, alpha=6, rslora=True).scale == 3  # Kalajdzievski 2312.03732
    bound = LoRALinear(nn.Linear(400, 400), 64).lora_A.abs().max().item()
    assert 0.049 < bound <= 0.05  # Kaiming-uniform with a = √5: U(−1/√d_in, 1/√d_in)


def test_lora_adapter_saved_and_loaded_on_a_fresh_base_gives_the_same_logits(tmp_path):
    model, (idx, _) = randomise(apply_lora(gpt(), rank=4, alpha=7)), tokens()
    torch.save(lora.adapter_state_dict(model), tmp_path / "adapter.pt")
    state = torch.load(tmp_path / "adapter.pt", weights_only=True)
    for fresh in (gpt(), apply_lora(gpt(), rank=2, targets=["c_fc"])):
        lora.load_adapter(fresh, state)
        torch.testing.assert_close(fresh(idx)[0], model(idx)[0], **EXACT)
    assert all(p.requires_grad == ("lora_" in name) for name, p in fresh.named_parameters())


def test_lora_adapter_that_does_not_fit_is_refused():
    state = lora.adapter_state_dict(apply_lora(gpt(), rank=4))
    incomplete = {key: value for key, value in state.items() if not key.endswith("scale")}
    for model, wrong in ((gpt(n_embd=32), state), (gpt(n_layer=1), state), (gpt(), {}), (gpt(), incomplete)):
        with pytest.raises(ValueError, match="does not fit the model"):
            lora.load_adapter(model, wrong)
        assert not lora_layers(model)
    merged = apply_lora(gpt(), rank=4)
    lora.merge_lora(merged)
    with pytest.raises(ValueError, match="untouched base"):
        lora.load_adapter(merged, state)


@pytest.mark.parametrize("options, sentence", [
    ({"rank": 0}, "rank 0 does not fit transformer.h.0.attn.c_attn: allowed are 1 to 16"),
    ({"rank": 17}, "rank 17 does not fit transformer.h.0.attn.c_attn: allowed are 1 to 16"),
    ({"targets": ["query"]}, "target 'query' matches no linear layer: allowed are c_attn, c_fc, c_proj, lm_head"),
    ({"targets": ["attn"]}, "target 'attn' matches no"),
    ({"targets": []}, "matches no linear layer"),
])
def test_lora_refuses_what_does_not_fit_and_leaves_the_model_alone(options, sentence):
    model = gpt()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        apply_lora(model, **options)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


def test_lora_refuses_a_model_that_already_carries_it():
    with pytest.raises(ValueError, match="already carries"):
        apply_lora(apply_lora(gpt()))


def test_lora_dropout_is_on_the_adapters_input_only():
    _, layer = layer_of(dropout=0.5)
    x = torch.randn(2000, 10, dtype=torch.float64)
    base = nn.functional.linear(x, layer.linear.weight, layer.linear.bias)
    torch.manual_seed(0)
    y = layer.train()(x)
    torch.manual_seed(0)
    mask = nn.functional.dropout(torch.ones_like(x), 0.5)
    torch.testing.assert_close(y - base, layer.scale * (x * mask) @ layer.lora_A.T @ layer.lora_B.T, **EXACT)
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("autocast", [False, True])
def test_lora_factors_stay_float32_on_a_bf16_base_and_work_under_autocast(autocast):
    _, reference = layer_of(d_out=60, d_in=50, rank=4)
    model = apply_lora(nn.ModuleDict({"fc": copy.deepcopy(reference.linear).bfloat16()}), 4, targets=["fc"])
    layer, x = model["fc"], torch.randn(30, 50, dtype=torch.float64)
    layer.lora_A.data, layer.lora_B.data = reference.lora_A.data.float(), reference.lora_B.data.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x.float() if autocast else x.bfloat16())
    low_rank = reference.scale * x @ reference.lora_A.T @ reference.lora_B.T
    error = (y - reference(x)).norm() / low_rank.norm()
    assert y.dtype == torch.bfloat16 and error < 0.02
    y.sum().backward()
    assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32


def test_lora_compiles_without_a_graph_break():
    _, layer = layer_of()
    x = torch.randn(5, 10, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x), **EXACT)


def test_lora_merging_a_tied_layer_leaves_its_twin_alone():
    model = randomise(apply_lora(gpt(), rank=4, targets=["lm_head"]))
    embedding = model.transformer.wte.weight.clone()
    lora.merge_lora(model)
    assert torch.equal(model.transformer.wte.weight, embedding)
    lora.unmerge_lora(model)
    assert model.lm_head.linear.weight is model.transformer.wte.weight


# LoRA+, Hayou et al. 2402.12354

def test_lora_plus_keeps_bs_rate_16_times_as_through_warmup_and_decay():
    args = train.parse_args(["--method", "loraplus", "--steps", "12", "--warmup", "4"])
    model = apply_lora(gpt(), rank=4)
    optimizer, seen = train.build_optimizer(args, model), []
    for step in range(args.steps):
        train.train_step(args, model, optimizer, *tokens(), step)
        a, b = (group["lr"] for group in optimizer.param_groups)
        assert b == 16 * a
        seen.append(a)
    assert seen[3] == args.lr and seen[0] == args.lr / 4 and seen == sorted(seen[:4]) + sorted(seen[4:], reverse=True)


def test_lora_plus_groups_hold_every_trainable_parameter_once():
    model = apply_lora(gpt(), rank=4)
    model.transformer.ln_f.requires_grad_(True)
    A, B, others = lora_plus_groups(model, lr=0.1, ratio=4)
    assert (A["lr"], B["lr"], others["lr"]) == (0.1, 0.4, 0.1)
    assert {len(p) for p in A["params"]} == {4} and {p.shape[1] for p in B["params"]} == {4}
    assert set(others["params"]) == set(model.transformer.ln_f.parameters())
    assert all(set(group) == {"params", "lr"} for group in (A, B, others))  # the rest is the optimizer's


def test_lora_plus_with_ratio_1_is_lora_bit_for_bit():
    ends = []
    for plus in (False, True):
        model = apply_lora(gpt(), rank=4)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(lora_plus_groups(model, 0.01, ratio=1) if plus else parameters, lr=0.01)
        for step in range(5):
            optimizer.zero_grad()
            gpt_loss(model, tokens(seed=step)).backward()
            optimizer.step()
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def feature_update(width, lr, ratio, seed):
    """The mean sizes of B·ΔA·x and ΔB·A·x in AdamW's second step, the first in which A moves (§3.2)."""
    torch.manual_seed(seed)
    fc = nn.utils.skip_init(nn.Linear, width, width, bias=False)
    model = apply_lora(nn.ModuleDict({"fc": fc}), rank=4, targets=["fc"])
    layer, x, y = model["fc"], torch.randn(1, width), torch.randn(1, width)
    layer.linear.weight.zero_()
    optimizer = torch.optim.AdamW(lora_plus_groups(model, lr, ratio), weight_decay=0)
    for _ in range(2):
        A, B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
        optimizer.zero_grad()
        (layer(x) - y).pow(2).sum().backward()
        optimizer.step()
    with torch.no_grad():
        from_A, from_B = x @ (layer.lora_A - A).T @ B.T, x @ A.T @ (layer.lora_B - B).T
    return torch.stack((from_A.abs().mean(), from_B.abs().mean()))


def test_lora_plus_ratio_keeps_both_factors_learning_as_the_width_grows():
    """§3.2: with one rate, a share vanishes or the update does; with η_A = Θ(1/n), η_B = Θ(1) neither does."""
    share = {}
    for width in (64, 512, 4096):
        # The largest stable shared rate is Θ(1/√n): it keeps the whole update, which comes from A, at Θ(1).
        for name, lr, ratio in (("shared", 0.4 / width ** 0.5, 1.0), ("plus", 0.8 / width, width / 8)):
            from_A, from_B = sum(feature_update(width, lr, ratio, seed) for seed in range(4)).tolist()
            share[name, width] = from_B / (from_A + from_B)
            assert 0.5 < from_A + from_B < 4
    assert share["shared", 4096] < share["shared", 512] / 1.7 < share["shared", 64] / 3
    plus = [share["plus", width] for width in (64, 512, 4096)]
    assert 0.2 < min(plus) and max(plus) < 0.8 and max(plus) < 1.5 * min(plus)


# LoRA-GA, Wang et al. 2407.05000

def ga_gpt(rank=3, dtype=torch.float64, batches=None, **options):
    model = apply_lora(gpt(dtype), rank=rank, rslora=True, **options)
    lora_ga_init(model, batches or [tokens()], gpt_loss)
    return model


def test_lora_ga_leaves_the_output_unchanged():
    for idx, _ in (tokens(), tokens(seed=9)):
        torch.testing.assert_close(ga_gpt()(idx)[0], gpt()(idx)[0], **EXACT)


def test_lora_ga_first_step_is_best_rank_2r():
    """Theorem 3.1. The first SGD step's ΔW against the explicit SVD of G, and against other directions."""
    r, model, gradients = 3, ga_gpt(rank=3), dense_gradients(gpt(), tokens())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-7)
    gpt_loss(model, tokens()).backward()
    optimizer.step()
    generator = torch.Generator().manual_seed(0)
    for name, layer in lora_layers(model).items():
        G = gradients[f"{name}.weight"]
        U, S, Vh = torch.linalg.svd(G, full_matrices=False)
        best = (S[:2 * r].square().sum() / S.square().sum()).sqrt().item()
        achieved = cosine(layer.delta(), -G)
        assert abs(achieved - best) < 1e-6
        assert abs(cosine(layer.delta(), -(U[:, :2 * r] * S[:2 * r]) @ Vh[:2 * r]) - 1) < 1e-6
        for _ in range(100):
            rows, columns = (torch.randperm(len(S), generator=generator)[:r] for _ in range(2))
            A, B = Vh[rows], U[:, columns]
            assert cosine(G @ A.T @ A + B @ B.T @ G, G) <= achieved + 1e-9


@pytest.mark.parametrize("d_out, d_in, r", [(6, 9, 3), (40, 8, 2), (8, 40, 4), (300, 200, 8)])
def test_lora_ga_factors_have_the_stated_norms_and_singular_directions(d_out, d_in, r):
    """Algorithm 1: A = c·V[:, :r]ᵀ, B = c·U[:, r:2r] with c = d_out^¼/√γ, and W0 ← W0 − s·BA."""
    torch.manual_seed(0)
    fc = nn.Linear(d_in, d_out, bias=False).double()
    W0, G = fc.weight.detach().clone(), torch.randn(d_out, d_in, dtype=torch.float64)
    model = apply_lora(nn.ModuleDict({"fc": fc}), r, targets=["fc"], rslora=True)
    lora_ga_init(model, [G], lambda m, G: (m["fc"].linear.weight * G).sum(), gamma=9.0)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    layer, c = model["fc"], d_out ** 0.25 / 3
    flip_A, flip_B = (Vh[:r] * layer.lora_A).sum(1) < 0, (U[:, r:2 * r] * layer.lora_B).sum(0) < 0  # signs are free
    torch.testing.assert_close(layer.lora_A, c * Vh[:r] * (1.0 - 2.0 * flip_A)[:, None], rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.lora_B, c * U[:, r:2 * r] * (1.0 - 2.0 * flip_B), rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.linear.weight, W0 - layer.scale * layer.lora_B @ layer.lora_A, **EXACT)
    assert not layer.delta().abs().max() > 1e-14


@pytest.mark.parametrize("spectrum", [0.7 ** torch.arange(520.0), torch.arange(1.0, 521) ** -0.5], ids=["steep", "slow"])
@pytest.mark.parametrize("batches", [1, 4])
def test_lora_ga_in_wide_layers_is_within_1_percent_of_the_best_alignment(spectrum, batches, monkeypatch):
    """Above 512 a sketch serves, and several batches' sum is kept as a sketch: for a gradient of slow decay too."""
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(d, 520, dtype=torch.float64))[0] for d in (600, 520))
    noise = [0.3 * torch.randn(520, dtype=torch.float64) for _ in range(batches)]
    parts = [(U * spectrum * (1 + z)) @ V.T for z in noise]
    model = apply_lora(nn.ModuleDict({"fc": nn.Linear(520, 600, bias=False).double()}), 4, targets=["fc"], rslora=True)
    shapes, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda X, **options: shapes.append(X.shape) or svd(X, **options))
    lora_ga_init(model, parts, lambda m, G: (m["fc"].linear.weight * G).sum())
    assert shapes and (600, 520) not in shapes
    A, B, G = model["fc"].lora_A, model["fc"].lora_B, sum(parts)
    S = torch.svd(G).S
    assert cosine(G @ A.T @ A + B @ B.T @ G, G) > 0.99 * (S[:8].square().sum() / S.square().sum()).sqrt()


def test_lora_ga_scale_is_stable_the_output_does_not_grow_with_d_out_or_r():
    """Theorem 3.2: with s = α/√r and c = d_out^¼/√γ, the adapter's output has magnitude α/γ whatever the shape."""
    for d_out, d_in, r in ((64, 64, 2), (64, 256, 16), (1024, 64, 2), (1024, 256, 64)):
        torch.manual_seed(0)
        fc = nn.Linear(d_in, d_out, bias=False).double()
        model = apply_lora(nn.ModuleDict({"fc": fc}), r, alpha=16, targets=["fc"], rslora=True)
        G = torch.randn(d_out, d_in, dtype=torch.float64)
        lora_ga_init(model, [G], lambda m, G: (m["fc"].linear.weight * G).sum(), gamma=16)
        layer, x = model["fc"], torch.randn(2000, d_in, dtype=torch.float64)
        output = layer.scale * x @ layer.lora_A.T @ layer.lora_B.T
        assert 0.9 < output.square().mean().sqrt() < 1.1


def test_lora_ga_several_batches_are_one_concatenated_batch():
    pieces = [tokens(seed=seed) for seed in (1, 2, 3)]
    whole = tuple(torch.cat(parts) for parts in zip(*pieces))
    several, one = ga_gpt(batches=pieces), ga_gpt(batches=[whole])
    for name, layer in lora_layers(several).items():
        other = lora_layers(one)[name]  # singular vectors have a free sign: compare the projections
        torch.testing.assert_close(layer.lora_A.T @ layer.lora_A, other.lora_A.T @ other.lora_A, rtol=0, atol=1e-8)
        torch.testing.assert_close(layer.lora_B @ layer.lora_B.T, other.lora_B @ other.lora_B.T, rtol=0, atol=1e-8)


def test_lora_ga_adapter_applies_to_the_untouched_base():
    model, (idx, _) = randomise(ga_gpt(rank=3)), tokens()
    state, fresh = lora.adapter_state_dict(model), gpt()
    assert {value.shape[0] for name, value in state.items() if name.endswith("lora_A")} == {6}  # rank 2r
    base = {name: p.clone() for name, p in fresh.named_parameters()}
    lora.load_adapter(fresh, state)
    torch.testing.assert_close(fresh(idx)[0], model(idx)[0], **EXACT)
    for name, layer in lora_layers(model).items():
        torch.testing.assert_close(base[f"{name}.weight"] + layer.delta(),
                                   layer.linear.weight + layer.scale * layer.lora_B @ layer.lora_A, **EXACT)
    lora.merge_lora(model)
    torch.testing.assert_close(fresh(idx)[0], model(idx)[0], **EXACT)


def test_lora_ga_leaves_the_callers_state_alone():
    model = apply_lora(gpt(dropout=0.1), rank=3)
    model.transformer.ln_f.requires_grad_(True)
    model.transformer.h[0].eval()
    gpt_loss(model, tokens()).backward()
    before = [(name, p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()]
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    with torch.no_grad():
        lora_ga_init(model, [tokens()], gpt_loss)
    assert torch.equal(torch.get_rng_state(), random) and [m.training for m in model.modules()] == modes
    for (name, flag, grad), (_, p) in zip(before, model.named_parameters()):
        assert p.requires_grad == flag and (p.grad is None) == (grad is None), name
        assert grad is None or torch.equal(p.grad, grad), name


def test_lora_ga_computes_in_float32_on_a_bf16_model():
    model = ga_gpt(dtype=torch.bfloat16)
    for layer in lora_layers(model).values():
        r, c = 3, layer.linear.out_features ** 0.25 / 4
        torch.testing.assert_close(layer.lora_A @ layer.lora_A.T, c * c * torch.eye(r), rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.lora_B.T @ layer.lora_B, c * c * torch.eye(r), rtol=0, atol=1e-5)


def test_lora_ga_refuses_with_a_sentence_and_leaves_the_model_alone():
    def trained(model):
        lora_layers(model)["transformer.h.1.mlp.c_fc"].lora_B.data += 1
        return model

    first = "transformer.h.0.attn.c_attn"
    cases = [(apply_lora(gpt(), rank=9), gpt_loss, f"rank 9 does not fit {first} with LoRA-GA: allowed are 1 to 8"),
             (ga_gpt(), gpt_loss, f"fresh adapter: {first}"),
             (trained(apply_lora(gpt(), rank=3)), gpt_loss, "fresh adapter: transformer.h.1.mlp.c_fc"),
             (apply_lora(gpt(), rank=3), lambda m, b: 0 * gpt_loss(m, b), f"finite and not zero: {first}"),
             (apply_lora(gpt(), rank=3), lambda m, b: math.nan * gpt_loss(m, b), "finite and not zero"),
             (apply_lora(gpt(), rank=3), lambda m, b: m.transformer.h[0].attn(m.transformer.wte(b[0])).sum(),
              "finite and not zero: transformer.h.0.mlp.c_fc")]
    for model, loss, sentence in cases:
        before = copy.deepcopy(model.state_dict())
        flags = [p.requires_grad for p in model.parameters()]
        with pytest.raises(ValueError, match=re.escape(sentence)):
            lora_ga_init(model, [tokens()], loss)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert flags == [p.requires_grad for p in model.parameters()]


# The Riemannian preconditioner, Zhang & Pilanci 2402.02347

def with_gradients(**options):
    model, layer = layer_of(**options)
    x, y = torch.randn(7, 10, dtype=torch.float64), torch.randn(7, 12, dtype=torch.float64)
    W = (layer.linear.weight + layer.scale * layer.lora_B @ layer.lora_A).detach().requires_grad_()
    for output in (x @ W.T + layer.linear.bias, layer(x)):
        (output - y).pow(2).sum().backward()
    return model, layer, W.grad


def test_preconditioner_equals_the_explicit_inverse():
    """Both from the factors before the step, for layers of several ranks at once."""
    layers = [with_gradients(rank=rank, seed=rank)[1] for rank in (2, 3, 3, 5)]
    expected = []
    for layer in layers:
        A, B, I = layer.lora_A.detach(), layer.lora_B.detach(), torch.eye(len(layer.lora_A), dtype=torch.float64)
        expected.append((torch.linalg.inv(B.T @ B + 1e-3 * I) @ layer.lora_A.grad,
                         layer.lora_B.grad @ torch.linalg.inv(A @ A.T + 1e-3 * I)))
    precondition_gradients(nn.ModuleList(layers), damping=1e-3)
    for layer, (grad_A, grad_B) in zip(layers, expected):
        torch.testing.assert_close(layer.lora_A.grad, grad_A, **EXACT)
        torch.testing.assert_close(layer.lora_B.grad, grad_B, **EXACT)


def test_preconditioned_step_is_the_projected_gradient():
    """As δ → 0, W moves by −lr·s²·[G·P_row(A) + P_col(B)·G], the projections from explicit SVDs."""
    model, layer, G = with_gradients(alpha=5.0)
    A, B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    row, column = torch.linalg.svd(A, full_matrices=False)[2], torch.linalg.svd(B, full_matrices=False)[0]
    precondition_gradients(model, damping=1e-14)
    change = -layer.scale * (B @ layer.lora_A.grad + layer.lora_B.grad @ A)  # of W, to first order, at lr 1
    expected = -layer.scale ** 2 * (G @ row.T @ row + column @ column.T @ G)
    torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-9)


def change_of_w(model, layer, Q, preconditioned):
    """The first-order change of W from the factors (BQ, Q⁻¹A)."""
    model = copy.deepcopy(model)
    layer = model["fc"]
    layer.lora_B.data, layer.lora_A.data = layer.lora_B.data @ Q, torch.linalg.solve(Q, layer.lora_A.data)
    torch.manual_seed(3)
    layer(torch.randn(7, 10, dtype=torch.float64)).pow(3).sum().backward()
    if preconditioned:
        precondition_gradients(model, damping=1e-14)
    return layer.lora_B.detach() @ layer.lora_A.grad + layer.lora_B.grad @ layer.lora_A.detach()


def test_preconditioner_makes_the_step_invariant_to_how_ba_is_split():
    """§3: (BQ, Q⁻¹A) is the same W for any invertible Q; plain gradient descent steps differently."""
    model, layer = layer_of()
    torch.manual_seed(5)
    Q, I = torch.randn(3, 3, dtype=torch.float64) + 2 * torch.eye(3, dtype=torch.float64), torch.eye(3).double()
    same = [change_of_w(model, layer, q, preconditioned=True) for q in (I, Q)]
    plain = [change_of_w(model, layer, q, preconditioned=False) for q in (I, Q)]
    torch.testing.assert_close(*same, rtol=1e-8, atol=1e-8)
    assert (plain[0] - plain[1]).norm() > 0.1 * plain[0].norm()


def test_preconditioner_uses_the_factors_before_the_step_inside_the_optimizer():
    model, layer, _ = with_gradients()
    A, B, I = layer.lora_A.detach().clone(), layer.lora_B.detach().clone(), torch.eye(3, dtype=torch.float64)
    expected_A = A - 0.1 * torch.linalg.inv(B.T @ B + 1e-6 * I) @ layer.lora_A.grad
    expected_B = B - 1.6 * layer.lora_B.grad @ torch.linalg.inv(A @ A.T + 1e-6 * I)
    optimizer = torch.optim.SGD(lora_plus_groups(model, lr=0.1, ratio=16))
    handle = lora.attach_preconditioner(optimizer, model)
    optimizer.step()
    torch.testing.assert_close(layer.lora_A.detach(), expected_A, **EXACT)
    torch.testing.assert_close(layer.lora_B.detach(), expected_B, **EXACT)
    handle.remove()
    gradient = layer.lora_A.grad.clone()
    optimizer.step()
    assert torch.equal(layer.lora_A.grad, gradient)


def test_preconditioner_at_lora_gas_start_is_a_multiple_of_the_identity():
    """AAᵀ = BᵀB = c²I there, so it divides every gradient by c² + δ."""
    model = ga_gpt(rank=3)
    gpt_loss(model, tokens(seed=4)).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    precondition_gradients(model, damping=1e-6)
    for name, layer in lora_layers(model).items():
        c = layer.linear.out_features ** 0.25 / 4
        for factor in ("lora_A", "lora_B"):
            torch.testing.assert_close(getattr(layer, factor).grad, before[f"{name}.{factor}"] / (c * c + 1e-6), **EXACT)


def iterations(condition, preconditioned):
    """Gradient steps until ‖BA − Y‖ < 1e-6 ‖Y‖, from near the solution; Y of rank 4, condition number given."""
    torch.manual_seed(0)
    model = apply_lora(nn.ModuleDict({"fc": nn.Linear(20, 30, bias=False).double()}), rank=4, targets=["fc"])
    layer = model["fc"]
    U, V = (torch.linalg.qr(torch.randn(d, 4, dtype=torch.float64))[0] for d in (30, 20))
    S = torch.logspace(0, -math.log10(condition), 4, dtype=torch.float64)
    Y = (U * S) @ V.T
    layer.lora_B.data, layer.lora_A.data = 0.9 * U * S.sqrt(), 0.9 * S.sqrt()[:, None] * V.T
    for count in range(20000):
        error = layer.delta() - Y
        if error.norm() < 1e-6 * Y.norm():
            return count
        layer.lora_A.grad, layer.lora_B.grad = layer.lora_B.T @ error, error @ layer.lora_A.T
        with torch.no_grad():
            if preconditioned:
                precondition_gradients(model, damping=1e-12)
            for factor in (layer.lora_A, layer.lora_B):
                factor -= 0.3 * factor.grad
    raise AssertionError("did not converge")


def test_preconditioned_descent_does_not_slow_down_with_the_condition_number():
    with_it, without = ([iterations(kappa, p) for kappa in (1, 10, 100)] for p in (True, False))
    assert max(with_it) <= 1.2 * with_it[0]
    assert without[2] > 5 * without[0] and without[1] > without[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_preconditioner_is_finite_at_b_0_and_with_bf16_factors(dtype):
    model = apply_lora(gpt(), rank=4).to(dtype)
    optimizer = torch.optim.AdamW(lora_plus_groups(model, 0.01))
    lora.attach_preconditioner(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        gpt_loss(model, tokens()).backward()
        optimizer.step()
    assert all(p.isfinite().all() and p.dtype == dtype for p in model.parameters())


def test_preconditioner_survives_a_large_rank_deficient_factor_in_float32():
    _, layer = layer_of(d_out=200, d_in=100, rank=8)
    layer = layer.float()
    layer.lora_B.data = 30 * torch.randn(200, 1) @ torch.randn(1, 8)
    layer.lora_A.grad, layer.lora_B.grad = torch.randn(8, 100), torch.randn(200, 8)
    precondition_gradients(nn.ModuleList([layer]))
    assert layer.lora_A.grad.isfinite().all()


def test_preconditioner_skips_missing_gradients():
    model, layer, _ = with_gradients()
    expected = layer.lora_B.grad @ torch.linalg.inv(layer.lora_A @ layer.lora_A.T + 1e-6 * torch.eye(3).double())
    layer.lora_A.grad = None
    precondition_gradients(model)
    torch.testing.assert_close(layer.lora_B.grad, expected.detach(), **EXACT)
    layer.lora_B.grad = None
    precondition_gradients(model)
    assert layer.lora_A.grad is None and layer.lora_B.grad is None


def test_preconditioner_refuses_optimizers_with_a_closure():
    model, layer, _ = with_gradients()
    before = layer.lora_A.grad.clone()
    for optimizer in (torch.optim.LBFGS([layer.lora_A]), torch.optim.SGD(lora_plus_groups(model, 0.1))):
        lora.attach_preconditioner(optimizer, model)
        with pytest.raises(ValueError, match="closure"):
            optimizer.step(lambda: 0.0)
        assert torch.equal(layer.lora_A.grad, before)


# The model

def test_gpt_has_hugging_faces_gpt2_parameter_names_and_tied_embeddings():
    model = gpt(n_layer=1)
    block = [f"transformer.h.0.{name}.{kind}" for name in
             ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj") for kind in ("weight", "bias")]
    assert [name for name, _ in model.named_parameters()] == [
        "transformer.wte.weight", "transformer.wpe.weight", *block, "transformer.ln_f.weight", "transformer.ln_f.bias"]
    assert model.lm_head.weight is model.transformer.wte.weight


def test_gpt_is_causal_ignores_targets_of_minus_1_and_names_its_limit():
    model, (idx, targets) = gpt(), tokens()
    logits, loss = model(idx)[0], model(idx, targets)[1]
    torch.testing.assert_close(model(idx[:, :5])[0], logits[:, :5], **EXACT)
    explicit = -torch.log_softmax(logits, -1).gather(2, targets[:, :, None])[:, :, 0]
    torch.testing.assert_close(loss, explicit.mean(), **EXACT)
    targets = targets.clone()
    targets[:, :7] = -1
    looked_at, loss = model(idx, targets)
    torch.testing.assert_close(loss, explicit[:, 7:].mean(), **EXACT)
    torch.testing.assert_close(looked_at, logits[:, 7:].flatten(0, 1), **EXACT)  # where the loss looks, row by row
    with pytest.raises(ValueError, match="17 tokens.*block_size allows 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_gpt_generate_is_greedy_at_0_seeded_and_leaves_other_randomness_alone():
    model, (idx, _) = gpt(dropout=0.5), tokens()
    state = torch.get_rng_state()
    samples = [model.generate(idx, 9, temperature=5.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
    greedy = model.generate(idx, 3, temperature=0)
    assert torch.equal(greedy, model.generate(idx, 3, top_k=1))
    model.eval()
    assert torch.equal(greedy[:, 12], model(idx)[0][:, -1].argmax(-1)) and greedy.shape == (4, 15)


# Data

def test_tokenizer_has_2048_tokens_and_every_digit_is_its_own():
    encoding = tokenizer.load()
    assert encoding.n_vocab == 2048
    text = "What is 47 plus 86? 133\n  naïve ∂L/∂W — 1234567890"
    pieces = [encoding.decode_single_token_bytes(token) for token in encoding.encode_ordinary(text)]
    assert b"".join(pieces) == text.encode()
    assert all(piece.isdigit() <= (len(piece) == 1) for piece in pieces) and sum(p.isdigit() for p in pieces) == 17


def test_math_holds_out_500_questions_that_never_occur_in_training():
    task = tasks.load("math", tokenizer.load(), 128)
    text = [{task.encoding.decode(row[:10 + 5].tolist()).split("?")[0] for row in part[0]} for part in (task.train, task.val)]
    assert len(text[1]) == 500 and not text[0] & text[1] and len(text[0]) + 500 == 8100
    idx, targets = task.batch(0, 3, 64)
    for row, target in zip(idx.tolist(), targets.tolist()):  # the loss looks at the answer and its end, nothing else
        question, answer = task.encoding.decode(row).split("?")[0], [token for token in target if token != -1]
        a, b = (int(word) for word in question.split() if word.isdigit())
        assert task.encoding.decode(answer) == f" {a + b}\n"
    again, other, next_step = task.batch(0, 3, 64)[0], task.batch(1, 3, 64)[0], task.batch(0, 4, 64)[0]
    assert torch.equal(idx, again) and not torch.equal(idx, other) and not torch.equal(idx, next_step)


class Table(GPT):
    """A model that answers every second question of a task right, from a table, and the others with 7."""

    def __init__(self, task):
        super().__init__(GPTConfig(128, 2048, 1, 1, 1))
        self.rows = []
        for i, (idx, targets) in enumerate(zip(*task.val)):
            looks = (targets != -1).nonzero()[:, 0].tolist()
            question, answer = idx[:looks[0] + 1].tolist(), targets[looks].tolist()
            self.rows.append((question, question + (answer if i % 2 else task.encoding.encode(" 7\n"))))

    def forward(self, idx, targets=None):
        logits = torch.zeros(*idx.shape, 2048)
        for row, tokens in zip(logits, idx.tolist()):
            said = next(said for question, said in self.rows if tokens[:len(question)] == question)
            for position in range(len(tokens)):
                row[position, said[position + 1] if position + 1 < len(said) else 0] = 1
        return logits if targets is None else logits[targets != -1], None


def test_math_exact_match_is_that_of_the_generated_answers():
    task = tasks.load("math", tokenizer.load(), 128)
    task.val = tuple(part[:40] for part in task.val)
    model, right = Table(task), 0
    for question, _ in model.rows:
        text = task.encoding.decode(model.generate(torch.tensor([question]), 5, temperature=0)[0].tolist())
        a, b, answer = re.match(r"What is (\d+) plus (\d+)\? (\d+)\n", text).groups()
        right += int(a) + int(b) == int(answer)
    assert task.evaluate(model) == right / 40 == 0.5


def test_text_file_is_cut_into_train_and_validation_and_bits_per_byte_is_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CACHE", tmp_path / "cache")
    (tmp_path / "notes.txt").write_text("".join(f"Line {i}: naïve words.\n" for i in range(400)), encoding="utf-8")
    task, messages = None, []
    for _ in range(2):
        task = tasks.load(str(tmp_path / "notes.txt"), tokenizer.load(), 16, messages.append)
    assert len(messages) == 1  # cut once, cached afterwards
    whole = list(task.train) + list(task.val)
    assert task.encoding.decode(whole) == (tmp_path / "notes.txt").read_text(encoding="utf-8")
    size = len(task.encoding.decode_bytes(task.val.tolist()))
    assert math.isclose(task.bits_per_byte(math.log(2) * size / len(task.val)), 1.0)
    idx, targets = task.batch(0, 0, 5)
    assert idx.shape == (5, 16) and torch.equal(idx[:, 1:], targets[:, :-1])


def test_docs_and_code_are_split_by_file_and_docs_hold_no_code():
    names = [name for name, _ in corpora.docs()]
    held = [name for name in names if corpora.held_out(name)]
    assert len(names) == len(set(names)) and 0.02 < len(held) / len(names) < 0.08
    sentence = "This adds one to the only argument that it is given."
    assert list(corpora.prose(f"x\n\n{sentence}\n\n>>> add(1)\n2\n\na = b + c(d, e) * f[g] - h.i(j=k, l=m)")) == [sentence + "\n"]
    source = 'def f():\n    """Doc."""\n    # why\n    return "# kept"  # kept\n\nx = """\n# kept\n"""\nimport kept\n"""gone"""\n'
    assert corpora.without_comments(source) == 'def f():\n    return "# kept"  # kept\n\nx = """\n# kept\n"""\nimport kept\n'


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), replace_file(tmp_path / "file") as file:
        file.write(b"new")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


# Training

@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A function that runs train.train on a tiny base model in a directory of its own."""
    model = gpt(torch.float32, block_size=32, vocab_size=2048, n_embd=32)
    train.save(tmp_path / "base.pt", base.contents(model))
    monkeypatch.setattr(base, "PATH", tmp_path / "base.pt")
    monkeypatch.chdir(tmp_path)
    load = tasks.load

    def short(*args):  # 8 validation windows and 20 questions, to be quick
        task = load(*args)
        task.val = tuple(part[:20] for part in task.val) if args[0] == "math" else task.val[:300]
        return task

    monkeypatch.setattr(tasks, "load", short)

    def run(*flags, interrupted=threading.Event()):
        return train.train(train.parse_args(["--rank", "4", "--batch_size", "8", "--warmup", "2", "--block_size", "32",
                                             "--device", "cpu", *flags]),
                           interrupted)

    return run


METHODS = [["--method", "full"], ["--method", "lora"], ["--method", "loraplus"], ["--method", "loraga"],
           ["--method", "riemannian"], ["--method", "pretrain", "--batch_size", "2"],
           ["--method", "loraga", "--precondition", "--lr_ratio", "4", "--dropout", "0.1", "--grad_accum", "2",
            "--weight_decay", "0.1", "--dtype", "bfloat16"]]


@pytest.mark.parametrize("flags", METHODS, ids=lambda flags: flags[1] + " and more" * (len(flags) > 4))
def test_20_steps_lower_the_loss_and_leave_the_promised_files(tiny, tmp_path, flags):
    result = tiny(*flags, "--steps", "20", "--eval_interval", "10", "--lr", "3e-3", "--out_dir", "o")
    rows = [row.split(",") for row in (tmp_path / "o" / "log.csv").read_text().splitlines()]
    losses = [float(row[1]) for row in rows[1:]]
    assert len(losses) == 20 and sum(losses[-5:]) < 0.99 * sum(losses[:5])
    assert {"method", "task", "rank", "seed", "steps", "metric_name", "metric_before", "metric_after", "versions", "settings",
            "source_loss_before", "source_loss_after", "trainable_params", "seconds"} <= result.keys()
    weights = "model.pt" if flags[1] in ("full", "pretrain") else "adapter.pt"
    assert {path.name for path in (tmp_path / "o").glob("[!.]*")} == {"log.csv", "result.json", "ckpt.pt", weights}
    if weights == "adapter.pt":  # the adapter file, on the untouched base, is the trained model
        args = train.parse_args(["--method", "full"])
        model = train.build_model(args, "cpu")
        lora.load_adapter(model, torch.load(tmp_path / "o" / "adapter.pt", weights_only=True))
        assert abs(tasks.load("docs", tokenizer.load(), 32).evaluate(model, 32) - result["source_loss_after"]) < 1e-4


class StopAfter(threading.Event):
    """Set once it has been asked `count` times: a Ctrl-C at a step of our choice."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def is_set(self):
        self.count -= 1
        return self.count == 0


@pytest.mark.parametrize("flags", [METHODS[0], METHODS[-1][:-2]], ids=["full", "all toggles"])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tiny, tmp_path, monkeypatch, flags):
    flags = [*flags, "--steps", "12", "--eval_interval", "4", "--lr", "3e-3"]
    tiny(*flags, "--out_dir", "whole")
    with pytest.raises(KeyboardInterrupt, match="--resume continues"):
        tiny(*flags, "--out_dir", "parts", interrupted=StopAfter(6))
    step = train.train_step

    def die(*args):  # as kill -9 would, between two checkpoints
        if args[-1] == 10:
            raise SystemError("killed")
        return step(*args)

    monkeypatch.setattr(train, "train_step", die)
    with pytest.raises(SystemError):
        tiny(*flags, "--out_dir", "parts", "--resume")
    monkeypatch.setattr(train, "train_step", step)
    torch.manual_seed(12345)
    tiny(*flags, "--out_dir", "parts", "--resume")
    whole, parts = (train.load_file(tmp_path / name / "ckpt.pt") for name in ("whole", "parts"))
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    assert [row[:3] for row in whole["progress"]["log"]] == [row[:3] for row in parts["progress"]["log"]]


def test_grad_accumulation_gives_the_gradient_of_the_whole_batch():
    args = train.parse_args(["--method", "full", "--lr", "1", "--warmup", "0", "--grad_clip", "0"])
    idx, targets = tokens(rows=8)
    targets = targets.clone()
    targets[0, :11] = -1  # parts with different numbers of targets
    ends = []
    for args.grad_accum in (1, 4):
        model = gpt()
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "peak_lr": 1.0}], lr=1.0)
        loss = train.train_step(args, model, optimizer, idx, targets, 0)
        ends.append((loss, model.lm_head.weight.detach().clone()))
    assert math.isclose(ends[0][0], ends[1][0], rel_tol=1e-12)
    torch.testing.assert_close(ends[0][1], ends[1][1], **EXACT)


def test_a_diverging_run_stops_with_a_sentence_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    with pytest.raises(ValueError, match="no longer finite .* try an --lr below 1e[+]30"):
        tiny("--method", "full", "--lr", "1e30", "--steps", "9", "--eval_interval", "1", "--out_dir", "o")
    checkpoint = train.load_file(tmp_path / "o" / "ckpt.pt")
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_another_experiment_is_not_overwritten_without_the_flag(tiny, tmp_path):
    tiny("--steps", "2", "--out_dir", "o")
    before = (tmp_path / "o" / "ckpt.pt").read_bytes()
    for flags in (["--steps", "3"], ["--steps", "3", "--resume"], ["--steps", "2", "--lr", "0.5"]):
        with pytest.raises(ValueError, match="holds another experiment"):
            tiny(*flags, "--out_dir", "o")
    assert (tmp_path / "o" / "ckpt.pt").read_bytes() == before
    assert tiny("--steps", "2", "--out_dir", "o")["steps"] == 2  # the same experiment may run again
    assert tiny("--steps", "3", "--out_dir", "o", "--overwrite")["steps"] == 3


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_bad_input_is_one_sentence_exit_code_2_and_nothing_changed_on_disk(tmp_path, monkeypatch, capsys):
    good, cut, shape, evil = (tmp_path / name for name in ("good", "cut", "shape", "evil"))
    for directory in (good, cut, shape, evil):
        directory.mkdir()
    args = train.parse_args(["--method", "lora", "--out_dir", str(shape)])
    checkpoint = {"settings": train.experiment(args), "model": {"transformer.h.0.lora_A": torch.zeros(3)}}
    torch.save(checkpoint, shape / "ckpt.pt")
    (cut / "ckpt.pt").write_bytes((shape / "ckpt.pt").read_bytes()[:-300])
    (evil / "ckpt.pt").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    torch.save({"settings": Payload(tmp_path / "executed")}, good / "ckpt.pt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 5000)
    (tmp_path / "short.txt").write_text("too short")
    listed = {  # in the words: unknown method, rank 0 or too large, negative lr, files, checkpoints, device
        "--method adam": "argument --method: invalid choice: 'adam'",
        "--rank 0": "argument --rank: 0 is not allowed: at least 1 and below inf",
        "--rank 257": "rank 257 does not fit transformer.h.0.attn.c_attn: allowed are 1 to 256",
        "--lr -1": "argument --lr: -1 is not allowed: at least 1e-12",
        "--data nowhere.txt": "--data nowhere.txt is neither",
        f"--data {tmp_path}/latin.txt": "not UTF-8",
        "--device cuda:77": "--device cuda:77 is not on this machine",
        f"--resume --out_dir {cut}": "ckpt.pt is missing, damaged or not a checkpoint",
        f"--resume --out_dir {shape}": "ckpt.pt does not fit the model of these flags",
        f"--resume --out_dir {evil}": "ckpt.pt is missing, damaged or not a checkpoint",
    }
    more = {
        "--method loraga --rank 129": "allowed are 1 to 128", "--lr abc": "argument --lr: invalid float value: 'abc'",
        "--dropout 1": "1 is not allowed: at least 0 and below 1", "--device abacus": "--device abacus is not",
        "--method full --precondition": "--precondition needs an adapter, which --method full does not have",
        "--grad_accum 3": "--batch_size 32 must be a multiple of --grad_accum 3",
        f"--data {tmp_path}/short.txt": "too short", f"--data {tmp_path}": "is neither",
        "--targets q_proj": "target 'q_proj' matches no linear layer: allowed are c_attn, c_fc, c_proj, lm_head",
        f"--resume --out_dir {tmp_path}/none": f"{tmp_path}/none/ckpt.pt is missing, damaged or not",
        f"--resume --out_dir {good}": "ckpt.pt is missing, damaged or not a checkpoint",
    }
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    running = [subprocess.Popen([sys.executable, ROOT / "train.py", *flags.split()], cwd=tmp_path, text=True,
                                stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for flags in listed]
    monkeypatch.chdir(tmp_path)
    for flags, sentence in more.items():
        monkeypatch.setattr(sys, "argv", ["train.py", *flags.split()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train.main()
        error = capsys.readouterr().err
        assert stop.value.code == 2 and sentence in error and error.count("\n") == 1, (sentence, error)
    for sentence, process in zip(listed.values(), running):
        error = process.communicate()[1]
        assert process.returncode == 2 and sentence in error and error.count("\n") == 1, (sentence, error)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # nor was a payload executed


# The README

def test_readme_example_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(code, names)
    x = torch.randn(5, 64)
    torch.testing.assert_close(names["fresh"](x), names["model"](x), rtol=1e-4, atol=1e-5)
    assert any(layer.delta().abs().max() > 1e-4 for layer in lora_layers(names["fresh"]).values())


def test_readme_links_point_at_the_definitions_they_name():
    links = re.findall(r"\[`(\w+)`\]\((\w+\.py)#L(\d+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) >= 10
    for name, file, line in links:
        found = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.match(rf"(def|class) {name}\b", found), f"{name} is not at line {line} of {file}"
