"""The mathematics of lora.py against independent formulas, and the model; needs these two alone.

G is always ∂L/∂W0 from autograd through a plain weight, never from lora.py's own code.
"""
import copy
import inspect
import math
import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn as nn

import lora
from lora import (LoRALinear, apply_lora, lora_ga_init, lora_layers, lora_plus_groups,
                  precondition_gradients)
from model import GPT, GPTConfig

ROOT = Path(__file__).parent
EXACT = dict(rtol=1e-10, atol=1e-10)


def gpt(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    shape = dict(block_size=16, vocab_size=40, n_layer=2, n_head=2, n_embd=16)
    return GPT(GPTConfig(**{**shape, **changes})).to(dtype)


def tokens(rows=4, seed=1):
    return torch.randint(40, (2, rows, 12), generator=torch.Generator().manual_seed(seed)).unbind()


def gpt_loss(model, batch):
    return model(*batch)[1]


def randomise(model, seed=2):
    """Gives every adapter non-zero factors, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        for factor in (layer.lora_A, layer.lora_B):
            noise = torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            factor.data += 0.3 * noise.to(factor.dtype)
    return model


def layer_of(d_out=12, d_in=10, rank=3, seed=0, **options):
    """A LoRALinear in float64 inside a model, with random factors."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"fc": nn.Linear(d_in, d_out).double()})
    apply_lora(model, rank, targets=["fc"], **options)
    randomise(model, seed)
    return model, model["fc"]


def trained_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


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
    for layer in lora_layers(model).values():
        assert not layer.delta().any() and layer.lora_A.any()


@pytest.mark.parametrize("shape", [(10,), (7, 10), (2, 3, 5, 10), (0, 10)])
def test_lora_forward_is_the_dense_weight_w0_plus_s_ba(shape):
    _, layer = layer_of(alpha=5.0)
    x = torch.randn(shape, dtype=torch.float64)
    W = layer.linear.weight + 5 / 3 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), x @ W.T + layer.linear.bias, **EXACT)
    torch.testing.assert_close(layer.delta(), W - layer.linear.weight, **EXACT)


def test_lora_gradients_are_the_chain_rule_through_the_dense_weight():
    _, layer = layer_of(alpha=5.0)
    A, B, s = layer.lora_A, layer.lora_B, layer.scale
    x = torch.randn(7, 10, dtype=torch.float64)
    y = torch.randn(7, 12, dtype=torch.float64)
    W = (layer.linear.weight + s * B @ A).detach().requires_grad_()
    (x @ W.T + layer.linear.bias - y).pow(2).mean().backward()
    (layer(x) - y).pow(2).mean().backward()
    torch.testing.assert_close(A.grad, s * B.T @ W.grad, **EXACT)
    torch.testing.assert_close(B.grad, s * W.grad @ A.T, **EXACT)


def test_lora_layer_has_the_attributes_of_the_linear_that_it_replaces():
    _, layer = layer_of(alpha=5.0)
    assert (layer.in_features, layer.out_features) == (10, 12)
    assert layer.bias is layer.linear.bias
    W = layer.linear.weight + 5 / 3 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer.weight, W, **EXACT)
    layer.merge()
    assert layer.weight is layer.linear.weight
    half = nn.Linear(10, 12, bias=False).bfloat16()
    assert LoRALinear(half, 3).weight.dtype == torch.bfloat16


def test_lora_gradients_flow_through_the_effective_weight():
    """What reads .weight instead of calling the layer trains A and B as the layer itself does."""
    _, layer = layer_of(alpha=5.0)
    x = torch.randn(7, 10, dtype=torch.float64)
    layer(x).pow(3).sum().backward()
    called = [layer.lora_A.grad, layer.lora_B.grad]
    layer.zero_grad()
    nn.functional.linear(x, layer.weight, layer.bias).pow(3).sum().backward()
    for one, other in zip(called, (layer.lora_A.grad, layer.lora_B.grad)):
        torch.testing.assert_close(one, other, **EXACT)


def test_lora_leaves_the_frozen_layers_own_output_alone():
    _, layer = layer_of()
    seen = []
    layer.linear.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(7, 10, dtype=torch.float64)
    layer(x)
    torch.testing.assert_close(seen[0], x @ layer.linear.weight.T + layer.linear.bias, **EXACT)


def test_lora_layer_works_alone_without_apply_lora():
    layer = LoRALinear(nn.Linear(6, 5).double(), rank=1)
    x = torch.randn(9, 6, dtype=torch.float64)
    assert torch.equal(layer(x), layer.linear(x)) and layer.scale == 1
    trained = [name for name, p in layer.named_parameters() if p.requires_grad]
    assert trained == ["lora_A", "lora_B"]
    optimizer = torch.optim.SGD(lora_plus_groups(layer, lr=0.01, ratio=4))
    for _ in range(2):
        layer(x).sum().backward()
        optimizer.step()
    assert torch.linalg.matrix_rank(layer.delta()) == 1
    with pytest.raises(ValueError, match="rank 6 does not fit this layer: allowed are 1 to 5"):
        LoRALinear(nn.Linear(6, 5), rank=6)


def test_lora_refuses_packed_and_quantised_weights():
    packed, int8 = nn.Linear(8, 8), nn.Linear(8, 8)
    packed.weight = nn.Parameter(torch.zeros(32, 1))
    int8.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    class Quantised(nn.Parameter):
        """As torchao's: it looks like the weight, in its type and shape, and is not."""

    hidden = nn.Linear(8, 8)
    hidden.weight = Quantised(torch.zeros(8, 8))
    for linear in (packed, int8, hidden):
        with pytest.raises(ValueError, match="0 has a packed or quantised weight"):
            apply_lora(nn.Sequential(linear, nn.Linear(8, 8)), 2, targets=["0", "1"])
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="0 has a packed or quantised weight, or computes it"):
        apply_lora(nn.Sequential(computed), 2, targets=["0"])


def test_public_defaults():
    """A contract: README and other people's code count on them."""
    defaults = {
        LoRALinear: dict(alpha=None, dropout=0.0, rslora=False),
        apply_lora: dict(rank=8, alpha=None, targets=("c_attn", "c_proj", "c_fc"),
                         dropout=0.0, rslora=False, also_train=()),
        lora_plus_groups: dict(ratio=16.0),
        lora_ga_init: dict(gamma=16.0),
        lora.lora_ga_factors: dict(gamma=16.0),
        lora.precondition: dict(damping=1e-6),
        precondition_gradients: dict(damping=1e-6),
        lora.attach_preconditioner: dict(damping=1e-6)}
    for function, expected in defaults.items():
        parameters = inspect.signature(function).parameters.values()
        assert {p.name: p.default for p in parameters if p.default is not p.empty} == expected


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
        merged = nn.functional.linear(x, layer.linear.weight, layer.linear.bias)
        assert torch.equal(layer(x), merged)
    model.eval()
    model.train()
    assert all(layer.merged for layer in lora_layers(model).values())
    for _ in range(2):
        lora.unmerge_lora(model)
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_lora_trains_a_and_b_alone_r_times_d_in_plus_d_out_numbers():
    model, plain = apply_lora(gpt(), rank=4), gpt()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith(("lora_A", "lora_B")) for name in trained)
    targets = ("c_attn", "c_proj", "c_fc")
    linears = [m for name, m in plain.named_modules() if name.endswith(targets)]
    count = sum(p.numel() for p in trained.values())
    assert count == 4 * sum(m.in_features + m.out_features for m in linears)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_lora_frozen_weights_do_not_move_in_training():
    model = apply_lora(gpt(), rank=4)
    before = copy.deepcopy(model.state_dict())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    for _ in range(3):
        gpt_loss(model, tokens()).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.endswith(("lora_A", "lora_B")), name


def test_lora_layer_freezes_what_it_wraps_and_scales_by_alpha_over_r_or_root_r():
    linear = nn.Linear(8, 8)
    assert LoRALinear(linear, 4).scale == 1
    assert not linear.weight.requires_grad and not linear.bias.requires_grad
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


def test_lora_adapter_that_does_not_fit_is_refused_and_the_model_left_alone():
    state = lora.adapter_state_dict(apply_lora(gpt(), rank=4))
    first = "transformer.h.0.attn.c_attn"

    def but(**changes):
        changed = {**state, **{f"{first}.{part}": value for part, value in changes.items()}}
        return {key: value for key, value in changed.items() if value is not None}

    wide = {"lora_A": torch.zeros(17, 16), "lora_B": torch.zeros(48, 17)}
    states = [{}, {f"{first}.scale": state[f"{first}.scale"]},
              but(lora_A=None), but(lora_B=None), but(scale=None), but(scale="1"),
              but(lora_A=torch.zeros(3, 16)), but(**wide),
              {**state, "head.weight": wide},
              {**state, "transformer.ln_f.weight": torch.zeros(3)}]
    cases = [(gpt(), wrong) for wrong in states]
    cases += [(gpt(n_embd=32), state), (gpt(n_layer=1), state)]
    for model, wrong in cases:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=f"does not fit (the model|{first}:)"):
            lora.load_adapter(model, wrong)
        assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    merged = apply_lora(gpt(), rank=4)
    lora.merge_lora(merged)
    for moved in (merged, ga_gpt()):
        with pytest.raises(ValueError, match="untouched base"):
            lora.load_adapter(moved, state)


def test_lora_adapter_on_a_plain_model_trains_alone():
    model = lora.load_adapter(gpt(), lora.adapter_state_dict(apply_lora(gpt(), rank=4)))
    factors = {f"{name}.{part}" for name in lora_layers(model) for part in ("lora_A", "lora_B")}
    assert trained_names(model) == factors


def test_lora_also_trains_a_head_in_full_and_keeps_it_in_the_adapter():
    model = apply_lora(gpt(), rank=4, also_train="ln_f", targets=["c_fc"])
    trained = {name for name in trained_names(model) if "lora_" not in name}
    assert trained == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    optimizer = torch.optim.AdamW(lora_plus_groups(model, lr=0.1))
    gpt_loss(model, tokens()).backward()
    optimizer.step()
    state = lora.adapter_state_dict(model)
    assert trained <= state.keys() and len(state) == 2 * 3 + 2
    for fresh in (gpt(), apply_lora(gpt(), rank=2)):
        lora.load_adapter(fresh, state)
        torch.testing.assert_close(fresh(tokens()[0])[0], model(tokens()[0])[0], **EXACT)
        assert trained_names(fresh) == trained_names(model)


def test_lora_targets_inside_a_module_that_also_trains_stay_targets():
    model = apply_lora(gpt(), rank=4, targets=["c_fc"], also_train=["mlp"])
    trained = trained_names(model)
    mlp = "transformer.h.0.mlp"
    assert {f"{mlp}.c_proj.weight", f"{mlp}.c_proj.bias", f"{mlp}.c_fc.lora_A"} <= trained
    assert not {f"{mlp}.c_fc.linear.weight", f"{mlp}.c_fc.linear.bias"} & trained


@pytest.mark.parametrize("started", [False, True], ids=["lora", "loraga"])
def test_lora_merge_and_unload_is_a_plain_model_with_the_old_keys(started):
    model = ga_gpt() if started else apply_lora(gpt(), rank=4, targets=["c_attn", "lm_head"])
    randomise(model)
    expected = model(tokens()[0])[0]
    assert lora.merge_and_unload(model) is model
    torch.testing.assert_close(model(tokens()[0])[0], expected, **EXACT)
    assert model.state_dict().keys() == gpt().state_dict().keys() and not lora_layers(model)
    assert type(model.transformer.h[1].attn.c_attn) is nn.Linear
    assert torch.equal(model.transformer.wte.weight, gpt().transformer.wte.weight)
    assert (model.lm_head.weight is model.transformer.wte.weight) == started  # untied as a target


@pytest.mark.parametrize("name", ["a.0", "b.0", "0"])
def test_lora_wraps_a_linear_under_each_of_its_names(name):
    shared = nn.Linear(6, 6)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    apply_lora(model, 2, targets=[name])
    assert model["a"][0] is model["b"][0] and list(lora_layers(model)) == ["a.0"]
    randomise(model)
    fresh = nn.ModuleDict({"a": nn.Sequential(copy.deepcopy(shared))})
    fresh["b"] = fresh["a"]
    lora.load_adapter(fresh, lora.adapter_state_dict(model))
    x = torch.randn(3, 6)
    torch.testing.assert_close(fresh["b"](x), model["a"](x))
    lora.merge_and_unload(model)
    assert model["a"][0] is model["b"][0] is shared


def test_lora_state_dict_of_a_lora_ga_model_fits_one_without_it():
    """Strictly; and from then on delta and the adapter file are those of the LoRA-GA model."""
    model, resumed = randomise(ga_gpt()), apply_lora(gpt(), rank=3, rslora=True)
    resumed.load_state_dict(model.state_dict())
    torch.testing.assert_close(resumed(tokens()[0])[0], model(tokens()[0])[0], **EXACT)
    for name, value in lora.adapter_state_dict(model).items():
        assert torch.equal(value, lora.adapter_state_dict(resumed)[name])


@pytest.mark.parametrize("options, sentence", [
    ({"rank": 0}, "rank 0 does not fit transformer.h.0.attn.c_attn: allowed are 1 to 16"),
    ({"rank": 17}, "rank 17 does not fit transformer.h.0.attn.c_attn: allowed are 1 to 16"),
    ({"targets": ["query"]},
     "target 'query' matches no linear layer: allowed are c_attn, c_fc, c_proj, lm_head"),
    ({"targets": ["attn"]}, "target 'attn' matches no"),
    ({"targets": []}, "needs at least one target"),
    ({"also_train": ["head"]}, "also_train 'head' matches no module: allowed are 0, 1, attn"),
    ({"targets": ["c_attn", "query"]}, "target 'query' matches no linear layer"),
    ({"also_train": ["ln_f", "head"]}, "also_train 'head' matches no module"),
    ({"also_train": ""}, "also_train '' matches no module"),
    ({"dropout": 1.5}, "between 0 and 1"),
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
    low_rank = layer.scale * (x * mask) @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(y - base, low_rank, **EXACT)
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("autocast", [False, True])
def test_lora_factors_stay_float32_on_a_bf16_base_and_work_under_autocast(autocast):
    _, reference = layer_of(d_out=60, d_in=50, rank=4)
    fc = copy.deepcopy(reference.linear).bfloat16()
    model = apply_lora(nn.ModuleDict({"fc": fc}), 4, targets=["fc"])
    layer, x = model["fc"], torch.randn(30, 50, dtype=torch.float64)
    layer.lora_A.data = reference.lora_A.data.float()
    layer.lora_B.data = reference.lora_B.data.float()
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
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x), **EXACT)


def test_lora_merging_a_tied_layer_leaves_its_twin_alone():
    model = randomise(apply_lora(gpt(), rank=4, targets=["lm_head"]))
    embedding = model.transformer.wte.weight.clone()
    lora.merge_lora(model)
    assert torch.equal(model.transformer.wte.weight, embedding)
    lora.unmerge_lora(model)
    assert model.lm_head.linear.weight is model.transformer.wte.weight


# LoRA+, Hayou et al. 2402.12354

def test_lora_plus_groups_hold_every_trainable_parameter_once():
    model = apply_lora(gpt(), rank=4)
    model.transformer.ln_f.requires_grad_(True)
    A, B, others = lora_plus_groups(model, lr=0.1, ratio=4)
    assert (A["lr"], B["lr"], others["lr"]) == (0.1, 0.4, 0.1)
    assert {len(p) for p in A["params"]} == {4}
    assert {p.shape[1] for p in B["params"]} == {4}
    assert set(others["params"]) == set(model.transformer.ln_f.parameters())
    for group in (A, B, others):
        assert set(group) == {"params", "lr"}  # the rest is the optimizer's


def test_lora_plus_with_ratio_1_is_lora_bit_for_bit():
    ends = []
    for plus in (False, True):
        model = apply_lora(gpt(), rank=4)
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = lora_plus_groups(model, 0.01, ratio=1) if plus else trained
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        for step in range(5):
            optimizer.zero_grad()
            gpt_loss(model, tokens(seed=step)).backward()
            optimizer.step()
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def feature_update(width, lr, ratio, seed):
    """Mean sizes of B·ΔA·x and ΔB·A·x in AdamW's second step, the first in which A moves (§3.2)."""
    torch.manual_seed(seed)
    fc = nn.utils.skip_init(nn.Linear, width, width, bias=False)
    model = apply_lora(nn.ModuleDict({"fc": fc}), rank=4, targets=["fc"])
    x, y = torch.randn(1, width), torch.randn(1, width)
    layer = model["fc"]
    layer.linear.weight.zero_()
    optimizer = torch.optim.AdamW(lora_plus_groups(model, lr, ratio), weight_decay=0)
    for _ in range(2):
        A, B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
        optimizer.zero_grad()
        (layer(x) - y).pow(2).sum().backward()
        optimizer.step()
    with torch.no_grad():
        from_A = x @ (layer.lora_A - A).T @ B.T
        from_B = x @ A.T @ (layer.lora_B - B).T
    return torch.stack((from_A.abs().mean(), from_B.abs().mean()))


def test_lora_plus_ratio_keeps_both_factors_learning_as_the_width_grows():
    """§3.2: with one rate a share or the update vanishes; with η_A = Θ(1/n), η_B = Θ(1) neither."""
    shares = {"shared": [], "plus": []}  # B's part of the update
    for width in (64, 512, 4096):
        # The largest stable shared rate is Θ(1/√n): the whole update, from A, stays at Θ(1).
        rates = {"shared": (0.4 / width ** 0.5, 1.0), "plus": (0.8 / width, width / 8)}
        for name, (lr, ratio) in rates.items():
            updates = [feature_update(width, lr, ratio, seed) for seed in range(4)]
            from_A, from_B = sum(updates).tolist()
            shares[name].append(from_B / (from_A + from_B))
            assert 0.5 < from_A + from_B < 4
    shared, plus = shares["shared"], shares["plus"]
    assert shared[2] < shared[1] / 1.7 < shared[0] / 3
    assert 0.2 < min(plus) and max(plus) < 0.8
    assert max(plus) < 1.5 * min(plus)


# LoRA-GA, Wang et al. 2407.05000

def ga_gpt(rank=3, dtype=torch.float64, batches=None, **options):
    model = apply_lora(gpt(dtype), rank=rank, rslora=True, **options)
    lora_ga_init(model, batches or [tokens()], gpt_loss)
    return model


def test_lora_ga_leaves_the_output_unchanged():
    for idx, _ in (tokens(), tokens(seed=9)):
        torch.testing.assert_close(ga_gpt()(idx)[0], gpt()(idx)[0], **EXACT)


@pytest.mark.parametrize("r", [1, 3])
def test_lora_ga_first_step_is_best_rank_2r(r):
    """Theorem 3.1. The first SGD step's ΔW against the explicit SVD of G, and other directions."""
    model, gradients = ga_gpt(rank=r), dense_gradients(gpt(), tokens())
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
        truncated = (U[:, :2 * r] * S[:2 * r]) @ Vh[:2 * r]
        assert abs(cosine(layer.delta(), -truncated) - 1) < 1e-6
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
    A, B = layer.lora_A, layer.lora_B
    sign_A = 1.0 - 2.0 * ((Vh[:r] * A).sum(1) < 0)  # the signs of singular vectors are free
    sign_B = 1.0 - 2.0 * ((U[:, r:2 * r] * B).sum(0) < 0)
    torch.testing.assert_close(A, c * Vh[:r] * sign_A[:, None], rtol=0, atol=1e-10)
    torch.testing.assert_close(B, c * U[:, r:2 * r] * sign_B, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.linear.weight, W0 - layer.scale * B @ A, **EXACT)
    assert not layer.delta().abs().max() > 1e-14


@pytest.mark.parametrize("spectrum", [0.7 ** torch.arange(520.0), torch.arange(1.0, 521) ** -0.5],
                         ids=["steep", "slow"])
@pytest.mark.parametrize("batches", [1, 4])
def test_lora_ga_in_wide_layers_aligns_within_1_percent_of_the_best(spectrum, batches, monkeypatch):
    """Above 512 a sketch serves, and keeps several batches' sum: for a slowly decaying G too."""
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(d, 520, dtype=torch.float64))[0] for d in (600, 520))
    noise = [0.3 * torch.randn(520, dtype=torch.float64) for _ in range(batches)]
    parts = [(U * spectrum * (1 + z)) @ V.T for z in noise]
    fc = nn.Linear(520, 600, bias=False).double()
    model = apply_lora(nn.ModuleDict({"fc": fc}), 4, targets=["fc"], rslora=True)
    shapes, svd = [], torch.linalg.svd

    def noted_svd(X, **options):
        shapes.append(X.shape)
        return svd(X, **options)

    monkeypatch.setattr(torch.linalg, "svd", noted_svd)
    lora_ga_init(model, parts, lambda m, G: (m["fc"].linear.weight * G).sum())
    assert shapes and (600, 520) not in shapes
    A, B, G = model["fc"].lora_A, model["fc"].lora_B, sum(parts)
    S = torch.svd(G).S
    best = (S[:8].square().sum() / S.square().sum()).sqrt()
    assert cosine(G @ A.T @ A + B @ B.T @ G, G) > 0.99 * best


def test_lora_ga_scale_is_stable_the_output_does_not_grow_with_d_out_or_r():
    """Theorem 3.2: with s = α/√r, c = d_out^¼/√γ the adapter's output has size α/γ in any shape."""
    for d_out, d_in, r in ((64, 64, 2), (64, 256, 16), (1024, 64, 2), (1024, 256, 64)):
        torch.manual_seed(0)
        fc = nn.Linear(d_in, d_out, bias=False).double()
        model = apply_lora(nn.ModuleDict({"fc": fc}), r, alpha=16, targets=["fc"], rslora=True)
        G = torch.randn(d_out, d_in, dtype=torch.float64)
        lora_ga_init(model, [G], lambda m, G: (m["fc"].linear.weight * G).sum(), gamma=16)
        layer, x = model["fc"], torch.randn(2000, d_in, dtype=torch.float64)
        output = layer.scale * x @ layer.lora_A.T @ layer.lora_B.T
        assert 0.9 < output.square().mean().sqrt() < 1.1


def test_lora_ga_is_exact_for_several_batches():
    """G is their sum: A and B are those of one concatenated batch, at a rank that cuts G down."""
    pieces = [tokens(seed=seed) for seed in (1, 2, 3, 4)]
    gradients = [dense_gradients(gpt(), piece) for piece in pieces]
    for name, layer in lora_layers(ga_gpt(rank=2, batches=iter(pieces))).items():
        G = sum(gradient[f"{name}.weight"] for gradient in gradients)
        U, _, Vh = torch.linalg.svd(G, full_matrices=False)
        c_squared = layer.out_features ** 0.5 / 16
        A, B = layer.lora_A, layer.lora_B
        torch.testing.assert_close(A.T @ A, c_squared * Vh[:2].T @ Vh[:2], **EXACT)
        torch.testing.assert_close(B @ B.T, c_squared * U[:, 2:4] @ U[:, 2:4].T, **EXACT)


def test_lora_ga_adapter_applies_to_the_untouched_base():
    model, (idx, _) = randomise(ga_gpt(rank=3)), tokens()
    state, fresh = lora.adapter_state_dict(model), gpt()
    ranks = {len(value) for name, value in state.items() if name.endswith("lora_A")}
    assert ranks == {6}  # 2r
    base = {name: p.clone() for name, p in fresh.named_parameters()}
    lora.load_adapter(fresh, state)
    torch.testing.assert_close(fresh(idx)[0], model(idx)[0], **EXACT)
    for name, layer in lora_layers(model).items():
        W = layer.linear.weight + layer.scale * layer.lora_B @ layer.lora_A
        torch.testing.assert_close(base[f"{name}.weight"] + layer.delta(), W, **EXACT)
    lora.merge_lora(model)
    torch.testing.assert_close(fresh(idx)[0], model(idx)[0], **EXACT)


def test_lora_ga_is_exact_inside_autocast_if_the_loss_is():
    def precise_loss(model, batch):
        with torch.autocast("cpu", enabled=False):
            return gpt_loss(model, batch)

    expected = ga_gpt(dtype=torch.float32)
    model = apply_lora(gpt(torch.float32), rank=3, rslora=True)
    with torch.autocast("cpu", torch.bfloat16):
        lora_ga_init(model, [tokens()], precise_loss)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name


def test_lora_ga_leaves_the_callers_state_alone():
    model = apply_lora(gpt(dropout=0.1), rank=3)
    model.transformer.ln_f.requires_grad_(True)
    model.transformer.h[0].eval()
    gpt_loss(model, tokens()).backward()
    before = [(name, p.requires_grad, None if p.grad is None else p.grad.clone())
              for name, p in model.named_parameters()]
    modes = [m.training for m in model.modules()]
    with torch.no_grad():
        lora_ga_init(model, [tokens()], gpt_loss)
    assert [m.training for m in model.modules()] == modes
    for (name, flag, grad), (_, p) in zip(before, model.named_parameters()):
        assert p.requires_grad == flag and (p.grad is None) == (grad is None), name
        assert grad is None or torch.equal(p.grad, grad), name


def test_lora_ga_computes_in_float32_on_a_bf16_model():
    model = ga_gpt(dtype=torch.bfloat16)
    for layer in lora_layers(model).values():
        r, c = 3, layer.linear.out_features ** 0.25 / 4
        A, B = layer.lora_A, layer.lora_B
        torch.testing.assert_close(A @ A.T, c * c * torch.eye(r), rtol=0, atol=1e-5)
        torch.testing.assert_close(B.T @ B, c * c * torch.eye(r), rtol=0, atol=1e-5)


def test_lora_ga_refuses_with_a_sentence_and_leaves_the_model_alone():
    def fresh():
        return apply_lora(gpt(), rank=3)

    def trained(model):
        lora_layers(model)["transformer.h.1.mlp.c_fc"].lora_B.data += 1
        return model

    first = "transformer.h.0.attn.c_attn"
    useless = "needs finite gradients, not all zero"
    cases = [(gpt(), gpt_loss, "needs a model with LoRA layers"),
             (apply_lora(gpt(), rank=9), gpt_loss,
              f"rank 9 does not fit {first} with LoRA-GA: allowed are 1 to 8"),
             (ga_gpt(), gpt_loss, f"fresh adapter: {first}"),
             (trained(fresh()), gpt_loss, "fresh adapter: transformer.h.1.mlp.c_fc"),
             (fresh(), lambda m, b: 0 * gpt_loss(m, b), useless),
             (fresh(), lambda m, b: math.nan * gpt_loss(m, b), useless)]
    for model, loss, sentence in cases:
        before = copy.deepcopy(model.state_dict())
        flags = [p.requires_grad for p in model.parameters()]
        for batches in ([tokens()], [tokens(), tokens(seed=4)]):
            with pytest.raises(ValueError, match=re.escape(sentence)):
                lora_ga_init(model, batches, loss)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert flags == [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=useless):
        lora_ga_init(fresh(), iter([]), gpt_loss)


def test_lora_ga_factors_are_a_pure_function_of_the_gradient_its_sign_included():
    G = torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A, B = lora.lora_ga_factors(G, 4, gamma=9.0)
    assert (A.shape, B.shape) == ((4, 20), (30, 4))
    U, V = lora.top_singular_vectors(G, 8)
    torch.testing.assert_close(U.T @ G @ V, torch.diag(torch.linalg.svdvals(G)[:8]), **EXACT)
    largest = V.gather(0, V.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()  # so that machines agree
    for X, Y in ((A, V[:, :4].T), (B, U[:, 4:])):
        torch.testing.assert_close(X, 30 ** 0.25 / 3 * Y, **EXACT)


def test_lora_ga_leaves_a_layer_without_a_gradient_as_lora_starts_it_and_warns():
    model = apply_lora(gpt(), rank=3)
    unused = lora_layers(model)["transformer.h.1.mlp.c_proj"]
    before = copy.deepcopy(unused.state_dict())

    def loss_of_the_rest(model, batch):
        first, second = model.transformer.h
        x = first(model.transformer.wte(batch[0]))
        return second.attn(x).pow(2).sum() + second.mlp.c_fc(x).sum()

    with pytest.warns(UserWarning, match="transformer.h.1.mlp.c_proj has no gradient") as warned:
        lora_ga_init(model, [tokens()], loss_of_the_rest)
    assert len(warned) == 1
    assert all(torch.equal(value, before[name]) for name, value in unused.state_dict().items())
    used = [layer for layer in lora_layers(model).values() if layer is not unused]
    assert all(layer.lora_B.any() for layer in used)


def test_lora_ga_uses_what_a_layer_got_from_any_of_the_batches():
    torch.manual_seed(0)
    linears = {name: nn.Linear(9, 12, bias=False).double() for name in "ab"}
    model = apply_lora(nn.ModuleDict(linears), 2, targets=["a", "b"], rslora=True)
    gradients = {name: torch.randn(12, 9, dtype=torch.float64) for name in "ab"}

    def loss_of_one(model, name):
        return (model[name].linear.weight * gradients[name]).sum()

    lora_ga_init(model, ["a", "b"], loss_of_one)
    c_squared = 12 ** 0.5 / 16  # √d_out/γ
    for name, G in gradients.items():
        A, Vh = model[name].lora_A, torch.linalg.svd(G).Vh[:2]
        torch.testing.assert_close(A.T @ A / c_squared, Vh.T @ Vh, rtol=0, atol=1e-10)


# The Riemannian preconditioner, Zhang & Pilanci 2402.02347

def test_precondition_is_algorithm_1_with_explicit_inverses():
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    layers = [[randn(3, d_in), randn(d_out, 3), randn(3, d_in), randn(d_out, 3)]
              for d_out, d_in in ((12, 10), (5, 7))]
    new_A, new_B = lora.precondition(*zip(*layers), damping=0.1)
    I = 0.1 * torch.eye(3, dtype=torch.float64)
    for (grad_A, grad_B, A, B), got_A, got_B in zip(layers, new_A, new_B):
        torch.testing.assert_close(got_A, torch.linalg.inv(B.T @ B + I) @ grad_A, **EXACT)
        torch.testing.assert_close(got_B, grad_B @ torch.linalg.inv(A @ A.T + I), **EXACT)


def with_gradients(**options):
    """A layer, its model and ∂L/∂W, with lora_A.grad and lora_B.grad of the same loss."""
    model, layer = layer_of(**options)
    x = torch.randn(7, 10, dtype=torch.float64)
    y = torch.randn(7, 12, dtype=torch.float64)
    W = layer.linear.weight + layer.scale * layer.lora_B @ layer.lora_A
    W = W.detach().requires_grad_()
    for output in (x @ W.T + layer.linear.bias, layer(x)):
        (output - y).pow(2).sum().backward()
    return model, layer, W.grad


def test_preconditioner_equals_the_explicit_inverse():
    """Both from the factors before the step, for layers of several ranks and types at once."""
    layers = [with_gradients(rank=rank, seed=rank)[1] for rank in (1, 3, 3, 5, 3)]
    layers[-1].float()
    expected = []
    for layer in layers:
        A, B = layer.lora_A.detach(), layer.lora_B.detach()
        I = torch.eye(len(A), dtype=A.dtype)
        expected.append((torch.linalg.inv(B.T @ B + 1e-3 * I) @ layer.lora_A.grad,
                         layer.lora_B.grad @ torch.linalg.inv(A @ A.T + 1e-3 * I)))
    precondition_gradients(nn.ModuleList(layers), damping=1e-3)
    for layer, (grad_A, grad_B) in zip(layers, expected):
        exact = EXACT if grad_A.dtype == torch.float64 else dict(rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.lora_A.grad, grad_A, **exact)
        torch.testing.assert_close(layer.lora_B.grad, grad_B, **exact)


def test_preconditioned_step_is_the_sum_of_the_gradients_two_projections():
    """As δ → 0, W moves by −lr·s²·[G·P_row(A) + P_col(B)·G], the projections from explicit SVDs."""
    model, layer, G = with_gradients(alpha=5.0)
    A, B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    row = torch.linalg.svd(A, full_matrices=False).Vh
    column = torch.linalg.svd(B, full_matrices=False).U
    precondition_gradients(model, damping=1e-14)
    # The change of W to first order, at lr 1:
    change = -layer.scale * (B @ layer.lora_A.grad + layer.lora_B.grad @ A)
    expected = -layer.scale ** 2 * (G @ row.T @ row + column @ column.T @ G)
    torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-9)


def stepped(model, Q, preconditioned):
    """BA after a large step of gradient descent from (BQ, Q⁻¹A), B's rate twice A's."""
    model = copy.deepcopy(model)
    layer = model["fc"]
    layer.lora_B.data = layer.lora_B.data @ Q
    layer.lora_A.data = torch.linalg.solve(Q, layer.lora_A.data)
    torch.manual_seed(3)
    layer(torch.randn(7, 10, dtype=torch.float64)).pow(3).sum().backward()
    if preconditioned:
        precondition_gradients(model, damping=1e-14)
    A = layer.lora_A.detach() - 0.5 * layer.lora_A.grad
    B = layer.lora_B.detach() - 1.0 * layer.lora_B.grad
    return B @ A


def test_preconditioner_makes_the_step_invariant_to_how_ba_is_split():
    """§3: (BQ, Q⁻¹A) is the same W for any invertible Q, and so is a step of any size from there:
    A moves by Q⁻¹ and B by Q of what they moved by. Plain gradient descent's steps differ."""
    model, layer = layer_of()
    torch.manual_seed(5)
    I = torch.eye(3, dtype=torch.float64)
    Q = torch.randn(3, 3, dtype=torch.float64) + 2 * I
    same = [stepped(model, q, preconditioned=True) for q in (I, Q)]
    plain = [stepped(model, q, preconditioned=False) for q in (I, Q)]
    torch.testing.assert_close(*same, rtol=1e-8, atol=1e-8)
    assert (plain[0] - plain[1]).norm() > 0.1 * plain[0].norm()


def test_preconditioner_uses_the_factors_before_the_step_inside_the_optimizer():
    model, layer, _ = with_gradients()
    A, B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    I = torch.eye(3, dtype=torch.float64)
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
            expected = before[f"{name}.{factor}"] / (c * c + 1e-6)
            torch.testing.assert_close(getattr(layer, factor).grad, expected, **EXACT)


def iterations(condition, preconditioned):
    """Gradient steps from near Y, of rank 4 and this condition, until ‖BA − Y‖ < 1e-6 ‖Y‖."""
    torch.manual_seed(0)
    fc = nn.Linear(20, 30, bias=False).double()
    model = apply_lora(nn.ModuleDict({"fc": fc}), rank=4, targets=["fc"])
    layer = model["fc"]
    U, V = (torch.linalg.qr(torch.randn(d, 4, dtype=torch.float64))[0] for d in (30, 20))
    S = torch.logspace(0, -math.log10(condition), 4, dtype=torch.float64)
    Y = (U * S) @ V.T
    layer.lora_B.data = 0.9 * U * S.sqrt()
    layer.lora_A.data = 0.9 * S.sqrt()[:, None] * V.T
    for count in range(20000):
        error = layer.delta() - Y
        if error.norm() < 1e-6 * Y.norm():
            return count
        layer.lora_A.grad = layer.lora_B.T @ error
        layer.lora_B.grad = error @ layer.lora_A.T
        with torch.no_grad():
            if preconditioned:
                precondition_gradients(model, damping=1e-12)
            for factor in (layer.lora_A, layer.lora_B):
                factor -= 0.3 * factor.grad
    raise AssertionError("did not converge")


def test_preconditioned_descent_does_not_slow_down_with_the_condition_number():
    with_it = [iterations(kappa, preconditioned=True) for kappa in (1, 10, 100)]
    without = [iterations(kappa, preconditioned=False) for kappa in (1, 10, 100)]
    assert max(with_it) <= 1.2 * with_it[0]
    assert without[2] > 5 * without[0] and without[1] > without[0]


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32])
def test_preconditioner_is_finite_at_b_0_and_on_a_bf16_base(base):
    model = apply_lora(gpt(base), rank=4)
    optimizer = torch.optim.AdamW(lora_plus_groups(model, 0.01))
    lora.attach_preconditioner(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        gpt_loss(model, tokens()).backward()
        optimizer.step()
    factors = [p for p in model.parameters() if p.requires_grad]
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in factors)


def test_preconditioner_survives_a_large_rank_deficient_factor_in_float32():
    _, layer = layer_of(d_out=200, d_in=100, rank=8)
    layer = layer.float()
    layer.lora_B.data = 30 * torch.randn(200, 1) @ torch.randn(1, 8)
    layer.lora_A.grad, layer.lora_B.grad = torch.randn(8, 100), torch.randn(200, 8)
    precondition_gradients(nn.ModuleList([layer]))
    assert layer.lora_A.grad.isfinite().all()


def test_preconditioner_skips_missing_gradients():
    model, layer, _ = with_gradients()
    metric = layer.lora_A @ layer.lora_A.T + 1e-6 * torch.eye(3).double()
    expected = layer.lora_B.grad @ torch.linalg.inv(metric)
    layer.lora_A.grad = None
    precondition_gradients(model)
    torch.testing.assert_close(layer.lora_B.grad, expected.detach(), **EXACT)
    layer.lora_B.grad = None
    precondition_gradients(model)
    assert layer.lora_A.grad is None and layer.lora_B.grad is None


def test_preconditioner_refuses_optimizers_with_a_closure():
    model, layer, _ = with_gradients()
    before = layer.lora_A.grad.clone()
    lbfgs = torch.optim.LBFGS([layer.lora_A])
    sgd = torch.optim.SGD(lora_plus_groups(model, 0.1))
    for optimizer in (lbfgs, sgd):
        lora.attach_preconditioner(optimizer, model)
        with pytest.raises(ValueError, match="closure"):
            optimizer.step(lambda: 0.0)
        assert torch.equal(layer.lora_A.grad, before)


# What a careless change would break

def test_lora_scale_without_alpha_and_at_alpha_0():
    linear = nn.Linear(8, 8)
    assert LoRALinear(linear, 4, rslora=True).scale == 2  # alpha = rank: √rank
    assert LoRALinear(linear, 4, alpha=0).scale == 0


def test_lora_factors_are_on_the_weights_device():
    layer = LoRALinear(nn.Linear(6, 5, device="meta"), 2)
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {"meta"}


def test_lora_merged_layer_keeps_its_bias_and_trains_nothing_of_the_base():
    _, layer = layer_of()  # with a bias that is not zero
    x = torch.randn(7, 10, dtype=torch.float64)
    before = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), before, **EXACT)
    assert not layer.weight.requires_grad


def test_lora_delta_is_not_rounded_by_autocast():
    _, layer = layer_of()
    expected = layer.float().delta()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.delta(), expected)


def test_lora_bf16_weight_is_rounded_once_and_stays_bf16():
    layer = LoRALinear(nn.Linear(50, 60).bfloat16(), 4)
    W0, (A, B) = layer.linear.weight.float(), (torch.randn(4, 50), torch.randn(60, 4))
    layer.lora_A.data, layer.lora_B.data = A, B
    assert torch.equal(layer.weight, (W0 + B @ A).bfloat16())
    layer.start_from(A, B)
    assert torch.equal(layer.linear.weight, (W0 - B @ A).bfloat16())


def test_lora_ga_of_a_tied_layer_leaves_its_twin_alone():
    model, (idx, _) = apply_lora(gpt(), rank=3, targets=["lm_head"], rslora=True), tokens()
    lora_ga_init(model, [tokens()], gpt_loss)
    assert torch.equal(model.transformer.wte.weight, gpt().transformer.wte.weight)
    torch.testing.assert_close(model(idx)[0], gpt()(idx)[0], **EXACT)


def test_lora_refuses_a_flattened_weight():
    flat = nn.Linear(8, 8)
    flat.weight = nn.Parameter(torch.zeros(64))  # as sharding leaves it
    with pytest.raises(ValueError, match="0 has a packed or quantised weight"):
        apply_lora(nn.Sequential(flat), 2, targets=["0"])


def test_lora_merge_and_unload_leaves_the_weights_frozen():
    model = lora.merge_and_unload(apply_lora(gpt(), rank=4))
    assert not any(p.requires_grad for p in model.parameters())


def test_lora_ga_refuses_a_merged_adapter():
    model = apply_lora(gpt(), rank=3)
    lora.merge_lora(model)
    with pytest.raises(ValueError, match="fresh adapter"):
        lora_ga_init(model, [tokens()], gpt_loss)


def two_layers():
    torch.manual_seed(0)
    linears = {name: nn.Linear(9, 12, bias=False).double() for name in "ab"}
    return apply_lora(nn.ModuleDict(linears), 2, targets=["a", "b"], rslora=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_lora_ga_refuses_a_gradient_that_is_not_finite_in_one_layer_alone(bad):
    model = two_layers()
    before = copy.deepcopy(model.state_dict())
    loss = lambda m, x: sum((m[name].linear.weight * x[name]).sum() for name in "ab")
    batch = {"a": torch.ones(12, 9), "b": torch.ones(12, 9)}
    batch["b"][3, 4] = bad
    with pytest.raises(ValueError, match="needs finite gradients"):
        lora_ga_init(model, [batch], loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lora_ga_starts_from_gradients_whose_squares_float32_cannot_hold(size):
    model = apply_lora(nn.ModuleDict({"fc": nn.Linear(9, 12)}), 2, targets="fc", rslora=True)
    G = size * torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    lora_ga_init(model, [G], lambda m, G: (m["fc"].linear.weight * G).sum())
    A = model["fc"].lora_A
    torch.testing.assert_close(A @ A.T, 12 ** 0.5 / 16 * torch.eye(2), rtol=0, atol=1e-5)


def test_lora_ga_leaves_a_layer_whose_gradient_is_zero_alone_and_warns():
    model = two_layers()
    before = copy.deepcopy(model["b"].state_dict())
    with pytest.warns(UserWarning, match="b has no gradient"):
        lora_ga_init(model, [torch.randn(12, 9)],
                     lambda m, G: (m["a"].linear.weight * G).sum() + 0 * m["b"].linear.weight.sum())
    assert model["a"].lora_B.any()
    assert all(torch.equal(value, before[name]) for name, value in model["b"].state_dict().items())


def test_lora_ga_leaves_the_model_alone_if_the_loss_raises():
    model = apply_lora(gpt(), rank=3)
    weights = [layer.linear.weight for layer in lora_layers(model).values()]

    def fail(model, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lora_ga_init(model, [tokens()], fail)
    assert all(layer.linear.weight is W for layer, W in zip(lora_layers(model).values(), weights))


@pytest.mark.parametrize("shape, k", [((512, 520), 2)])
def test_singular_vectors_are_exact_up_to_512(shape, k):
    G = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    U, V = lora.top_singular_vectors(G, k)
    everything = torch.linalg.svd(G)
    S = everything.S[:k]
    best = (everything.U[:, :k] * S) @ everything.Vh[:k]
    torch.testing.assert_close((U * S) @ V.T, best, **EXACT)


def test_preconditioned_gradients_hold_no_graph():
    model, layer, _ = with_gradients()
    precondition_gradients(model)
    assert not layer.lora_A.grad.requires_grad and not layer.lora_B.grad.requires_grad


def test_attached_preconditioner_takes_the_damping_that_it_is_given():
    model, layer, _ = with_gradients()
    B, I = layer.lora_B.detach(), torch.eye(3, dtype=torch.float64)
    expected = torch.linalg.inv(B.T @ B + 10 * I) @ layer.lora_A.grad
    optimizer = torch.optim.SGD(lora_plus_groups(model, lr=0.1))
    lora.attach_preconditioner(optimizer, model, damping=10)
    optimizer.step()
    torch.testing.assert_close(layer.lora_A.grad, expected, **EXACT)


def test_preconditioner_takes_no_closure_by_name_and_takes_none_for_none():
    model, layer, _ = with_gradients()
    optimizer = torch.optim.SGD(lora_plus_groups(model, 0.1))
    lora.attach_preconditioner(optimizer, model)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(closure=lambda: 0.0)
    optimizer.step(closure=None)
    optimizer.step(None)


def test_adapter_state_is_a_copy_without_a_graph():
    model = apply_lora(gpt(), rank=4, also_train="ln_f")
    state = lora.adapter_state_dict(model)
    before = copy.deepcopy(state)
    for p in model.parameters():
        p.data += 1
    assert all(torch.equal(value, before[key]) for key, value in state.items())
    assert not any(value.requires_grad for value in state.values())


def test_load_adapter_takes_away_a_layer_that_the_file_does_not_hold():
    state = lora.adapter_state_dict(randomise(apply_lora(gpt(), rank=4, targets=["c_fc"])))
    model = lora.load_adapter(randomise(apply_lora(gpt(), rank=2), seed=5), state)
    fresh = lora.load_adapter(gpt(), state)
    torch.testing.assert_close(model(tokens()[0])[0], fresh(tokens()[0])[0], **EXACT)
    assert {name.rpartition(".")[2] for name in lora_layers(model)} == {"c_fc"}


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 6), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.scale * self.linear(x)


def test_lora_adapter_holds_a_parameter_called_scale_that_also_trains():
    model = apply_lora(nn.Sequential(Scaled()), 2, targets="linear", also_train="0")
    model[0].scale.data += 1
    fresh = nn.Sequential(Scaled())
    fresh.load_state_dict(nn.Sequential(Scaled()).state_dict())
    lora.load_adapter(fresh, lora.adapter_state_dict(model))
    assert torch.equal(fresh[0].scale, model[0].scale) and fresh[0].scale.requires_grad


@pytest.mark.parametrize("part, value", [("lora_A", torch.zeros(4)), ("lora_A", torch.tensor(4.0)),
                                         ("lora_A", 4), ("lora_B", torch.tensor(4.0)),
                                         ("scale", torch.ones(2))])
def test_load_adapter_refuses_tensors_of_another_kind(part, value):
    first, state = "transformer.h.0.attn.c_attn", lora.adapter_state_dict(apply_lora(gpt(), rank=4))
    with pytest.raises(ValueError, match="does not fit the model at"):
        lora.load_adapter(gpt(), {**state, f"{first}.{part}": value})


def test_lora_ga_sketch_keeps_96_percent_of_the_best_cosine_on_white_noise():
    for seed in range(3):
        torch.manual_seed(seed)
        G = torch.randn(600, 520, dtype=torch.float64)
        A, B = lora.lora_ga_factors(G, 4)
        S = torch.linalg.svdvals(G)
        best = (S[:8].square().sum() / S.square().sum()).sqrt()
        assert cosine(G @ A.T @ A + B @ B.T @ G, G) > 0.95 * best


def test_preconditioner_of_rank_deficient_factors_is_finite_whatever_the_draw():
    for seed in range(20):
        torch.manual_seed(seed)
        B = 30 * torch.randn(200, 1) @ torch.randn(1, 8)
        A = 30 * torch.randn(8, 1) @ torch.randn(1, 100)
        for new in lora.precondition([torch.randn(8, 100)], [torch.randn(200, 8)], [A], [B]):
            assert new[0].isfinite().all()


def test_preconditioner_damps_each_layer_by_its_own_rounding():
    """A large layer beside a small one leaves the small one's damping alone."""
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(s, generator=generator) for s in ((3, 10), (12, 3)))
    alone = lora.precondition([A], [B], [A], [B])
    beside = lora.precondition([A, A], [B, B], [A, 1e4 * A], [B, 1e4 * B])
    for one, both in zip(alone, beside):
        torch.testing.assert_close(one[0], both[0], rtol=1e-4, atol=1e-5)


def test_adapter_holds_a_head_whose_name_has_lora_in_it():
    model = nn.ModuleDict({"fc": nn.Linear(6, 6), "lora_head": nn.Linear(6, 2)})
    apply_lora(model, 2, targets="fc", also_train="lora_head")
    assert "lora_head.weight" in lora.adapter_state_dict(model)


# The model

def test_gpt_has_hugging_faces_gpt2_parameter_names_and_tied_embeddings():
    model = gpt(n_layer=1)
    layers = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    block = [f"transformer.h.0.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert [name for name, _ in model.named_parameters()] == [
        "transformer.wte.weight", "transformer.wpe.weight", *block,
        "transformer.ln_f.weight", "transformer.ln_f.bias"]
    assert model.lm_head.weight is model.transformer.wte.weight


def test_gpt_is_causal_ignores_targets_of_minus_1_and_names_its_limit():
    model, (idx, targets) = gpt(), tokens()
    logits, loss = model(idx)[0], model(idx, targets)[1]
    torch.testing.assert_close(model(idx[:, :5])[0], logits[:, :5], **EXACT)
    explicit = -torch.log_softmax(logits, -1).gather(2, targets[:, :, None])[:, :, 0]
    torch.testing.assert_close(loss, explicit.mean(), **EXACT)
    targets = targets.clone()
    targets[:, :7] = -1
    assert model(idx, targets)[0].shape == (4, 12, 40)
    for some in (targets, targets[:, 7:], targets[:, 5:]):  # of the last 12, 5 or 7 positions
        looked_at, loss = model(idx, some)
        torch.testing.assert_close(loss, explicit[:, 7:].mean(), **EXACT)
        torch.testing.assert_close(looked_at, logits[:, -some.shape[1]:], **EXACT)
    with pytest.raises(ValueError, match="17 tokens.*block_size allows 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_gpt_compiles_without_a_graph_break():
    model, (idx, targets) = gpt(), tokens()
    targets = targets[:, 7:].masked_fill(targets[:, 7:] < 5, -1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(idx, targets)[1], model(idx, targets)[1], **EXACT)


def test_gpt_generate_leaves_each_submodules_mode_alone():
    model, (idx, _) = gpt(dropout=0.5), tokens()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    greedy, cold = (model.generate(idx, 3, temperature=T) for T in (0, 1e-40))
    assert torch.equal(greedy, cold)
    assert [module.training for module in model.modules()] == modes


def test_gpt_generate_is_greedy_at_0_seeded_and_leaves_other_randomness_alone():
    model, (idx, _) = gpt(dropout=0.5), tokens()
    state = torch.get_rng_state()
    samples = [model.generate(idx, 9, temperature=5.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
    greedy = model.generate(idx, 3, temperature=0)
    assert torch.equal(greedy, model.generate(idx, 3, top_k=1))
    model.eval()
    for T in (12, 13, 14):
        assert torch.equal(greedy[:, T], model(greedy[:, :T])[0][:, -1].argmax(-1))
    assert torch.equal(greedy[:, :12], idx) and greedy.shape == (4, 15)


# The README

def test_readme_example_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [snippet] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    batches = [tokens()]
    known = {"torch": torch, "model": gpt(), "batches": batches, "loss_fn": gpt_loss}
    exec(snippet, known)
    gpt_loss(known["model"], batches[0]).backward()
    known["optimizer"].step()
    names = runpy.run_path(str(ROOT / "example.py"))
    x = torch.randn(5, 64)
    torch.testing.assert_close(names["loaded"](x), names["model"](x), rtol=1e-4, atol=1e-5)
    layers = lora_layers(names["loaded"]).values()
    assert any(layer.delta().abs().max() > 1e-4 for layer in layers)
    assert names["loss"] < 0.9


def test_readme_links_name_functions_that_are_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\[`(\w+)`\]\((\w+\.py)\)", readme)
    assert len(links) >= 10
    for name, file in links:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{file} has no {name}"
