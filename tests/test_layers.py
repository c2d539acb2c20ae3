"""lora.py beside its equations: types, devices, refusals, what is left alone, adapter files.

The equations are in test_lora.py, other people's models in test_elsewhere.py.
"""
import copy
import inspect
import math
import re
import warnings

import pytest
import torch
import torch.nn as nn

import lora
from lora import (LoRALinear, adapter_state_dict, apply_lora, attach_preconditioner, load_adapter,
                  lora_ga_init, lora_layers, lora_plus_groups, precondition_gradients)
from model import GPT, GPTConfig

EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Net(nn.Module):
    """Two layers, a norm and a head."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(10, 12)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(12, 9)
        self.norm = nn.LayerNorm(9)
        self.head = nn.Linear(9, 4)
        self.double()

    def forward(self, x):
        return self.head(self.norm(self.second(self.dropout(self.first(x).tanh()))))


TARGETS = ["first", "second"]


def data(dtype=torch.float64):
    return torch.randn(7, 10, generator=torch.Generator().manual_seed(1), dtype=dtype)


def loss_fn(model, x):
    return model(x).square().sum()


def randomise(model, seed=2):
    """Moves every factor by random numbers, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        for factor in (layer.lora_A, layer.lora_B):
            factor.data += 0.3 * torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
    return model


def adapted(rank=3, targets=TARGETS, **options):
    """Net with LoRA; its factors are random."""
    return randomise(apply_lora(Net(), rank, targets=targets, **options))


def started(rank=3):
    """Net that LoRA-GA has started."""
    model = apply_lora(Net(), rank, targets=TARGETS, rslora=True)
    lora_ga_init(model, [data()], loss_fn)
    return model


def merged():
    model = adapted()
    lora.merge_lora(model)
    return model


def tied_gpt():
    """A GPT whose embedding and output layer are one parameter; the latter has LoRA."""
    torch.manual_seed(0)
    config = GPTConfig(block_size=8, vocab_size=40, n_layer=1, n_head=1, n_embd=16)
    return apply_lora(GPT(config).double(), rank=4, targets="lm_head", rslora=True)


def trained_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def factor_names(model):
    return {f"{name}.{factor}" for name in lora_layers(model) for factor in ("lora_A", "lora_B")}


def assert_same_state(model, before):
    state = model.state_dict()
    assert state.keys() == before.keys()
    for name, value in state.items():
        assert torch.equal(value, before[name]), name


# ---- The layer -----------------------------------------------------------------------------------


def test_public_defaults():
    """A contract: README and other people's code count on them."""
    defaults = {
        LoRALinear: {"alpha": None, "dropout": 0.0, "rslora": False},
        apply_lora: {"rank": 8, "alpha": None, "targets": ("c_attn", "c_proj", "c_fc"),
                     "dropout": 0.0, "rslora": False},
        lora_plus_groups: {"ratio": 16.0},
        lora_ga_init: {"gamma": 16.0},
        lora.lora_ga_factors: {"gamma": 16.0},
        lora.preconditioned: {"damping": 1e-6},
        precondition_gradients: {"damping": 1e-6},
        attach_preconditioner: {"damping": 1e-6}}
    for function, expected in defaults.items():
        parameters = inspect.signature(function).parameters.values()
        assert {p.name: p.default for p in parameters if p.default is not p.empty} == expected


def test_a_layer_has_the_attributes_of_the_linear_that_it_replaces():
    layer = adapted().first
    assert (layer.in_features, layer.out_features) == (10, 12)
    assert layer.bias is layer.linear.bias
    layer.merge()
    assert layer.weight is layer.linear.weight


def test_a_layer_works_alone_and_freezes_what_it_wraps():
    layer = LoRALinear(nn.Linear(10, 12).double(), rank=1)
    assert torch.equal(layer(data()), layer.linear(data()))
    assert trained_names(layer) == {"lora_A", "lora_B"}
    groups = lora_plus_groups(layer, lr=0.01, ratio=4)
    assert len(groups) == 2
    optimizer = torch.optim.SGD(groups)
    for _ in range(2):
        loss_fn(layer, data()).backward()
        optimizer.step()
    assert torch.linalg.matrix_rank(layer.delta()) == 1
    with pytest.raises(ValueError, match="rank 6 does not fit the layer: allowed are 1 to 5"):
        LoRALinear(nn.Linear(6, 5), rank=6)


def test_a_hook_on_the_frozen_linear_sees_its_output_without_the_adapters():
    layer = adapted().first
    seen = []
    layer.linear.register_forward_hook(lambda module, inputs, output: seen.append(output))
    layer(data())
    # After the call: the adapter's part must not be added to this tensor in place.
    torch.testing.assert_close(seen[0], layer.linear(data()), **EXACT)


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_is_in_the_mode_of_the_linear_that_it_replaces(training):
    model = apply_lora(Net().train(training), 3, targets=TARGETS, dropout=0.5)
    for layer in lora_layers(model).values():
        assert {module.training for module in layer.modules()} == {training}


def test_a_layer_compiles_without_a_graph_break():
    layer = adapted().first
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(data()), layer(data()), **EXACT)


@pytest.mark.parametrize("dtype, of_factors", [(torch.bfloat16, torch.float32),
                                               (torch.float16, torch.float32),
                                               (torch.float32, torch.float32),
                                               (torch.float64, torch.float64)])
def test_factors_are_at_least_float32_and_on_the_weights_device(dtype, of_factors):
    layer = LoRALinear(nn.Linear(6, 5, device="meta", dtype=dtype), 2)
    for factor in (layer.lora_A, layer.lora_B, layer.lora_A0, layer.lora_B0):
        assert factor.dtype == of_factors
        assert factor.device.type == "meta"
    assert LoRALinear(nn.Linear(6, 5, dtype=dtype), 2).weight.dtype == dtype


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_base_computes_in_bfloat16_and_gives_float32_gradients(autocast):
    layer = LoRALinear(nn.Linear(50, 60).bfloat16(), 4)
    layer.lora_B.data.normal_()
    x = torch.randn(30, 50, dtype=torch.float64)
    W = layer.linear.weight.double()
    low_rank = x @ (layer.lora_B.double() @ layer.lora_A.double()).T
    expected = x @ W.T + layer.linear.bias.double() + low_rank
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x.float() if autocast else x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() < 0.02 * low_rank.norm()
    y.sum().backward()
    assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32


def test_a_bfloat16_weight_is_rounded_once():
    layer = LoRALinear(nn.Linear(50, 60).bfloat16(), 4)
    W0 = layer.linear.weight.float()
    A = torch.randn(4, 50)
    B = torch.randn(60, 4)
    layer.lora_A.data = A
    layer.lora_B.data = B
    assert torch.equal(layer.weight, (W0 + B @ A).bfloat16())
    lora.start_from(layer, A, B)
    assert torch.equal(layer.linear.weight, (W0 - B @ A).bfloat16())


@pytest.mark.parametrize("autocast", [False, True])
def test_weights_are_not_rounded_to_bfloat16_whether_autocast_is_on_or_not(autocast):
    layer = adapted().first.float()
    W0 = layer.linear.weight.detach()
    A = layer.lora_A.detach()
    B = layer.lora_B.detach()
    BA = B @ A
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(layer.delta(), BA, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(layer.weight, W0 + BA, rtol=1e-6, atol=1e-6)
        lora.start_from(layer, A, B)
    torch.testing.assert_close(layer.linear.weight, W0 - BA, rtol=1e-6, atol=1e-6)


def test_a_model_from_the_meta_device_is_complete_after_reset_parameters():
    with torch.device("meta"):
        model = apply_lora(Net(), 3, targets=TARGETS)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(7.0)  # what uninitialised memory could hold
    for layer in lora_layers(model).values():
        layer.reset_parameters()
        bound = 1 / layer.in_features**0.5
        assert 0 < layer.lora_A.abs().min() and layer.lora_A.abs().max() <= bound
        assert layer.lora_A.unique().numel() == layer.lora_A.numel()
        for zero in (layer.lora_B, layer.lora_A0, layer.lora_B0, layer.delta()):
            assert not zero.any()
    randomise(model)
    model.load_state_dict(Net().state_dict(), strict=False)
    state = adapter_state_dict(model)
    assert state["first.lora_A"].shape == (3, 10)
    loaded = load_adapter(Net(), state)
    torch.testing.assert_close(loaded(data()), model(data()), **EXACT)


# ---- Merging -------------------------------------------------------------------------------------


def test_merging_twice_is_merging_once_and_switching_modes_does_not_unmerge():
    model = adapted()
    before = copy.deepcopy(model.state_dict())
    expected = model(data())
    for _ in range(2):
        lora.merge_lora(model)
        model.eval()
        model.train()
        assert all(layer.merged for layer in lora_layers(model).values())
        torch.testing.assert_close(model(data()), expected, **EXACT)
        assert trained_names(model) == factor_names(model)
    for _ in range(2):
        lora.unmerge_lora(model)
        assert_same_state(model, before)


def test_a_merged_bias_stays_and_the_merged_weight_holds_no_graph():
    layer = merged().first
    assert layer.bias.any()
    assert not layer.weight.requires_grad


def test_merging_or_starting_a_tied_layer_leaves_its_twin_as_it_was():
    idx = torch.arange(8)[None]
    model = tied_gpt()
    embedding = model.transformer.wte.weight.clone()
    before = model(idx)[0]
    lora_ga_init(model, [idx], lambda model, idx: model(idx, idx)[1])
    assert torch.equal(model.transformer.wte.weight, embedding)
    torch.testing.assert_close(model(idx)[0], before, **EXACT)

    model = randomise(tied_gpt())
    lora.merge_lora(model)
    assert torch.equal(model.transformer.wte.weight, embedding)
    lora.unmerge_lora(model)
    assert model.lm_head.linear.weight is model.transformer.wte.weight
    lora.merge_and_unload(model)
    assert torch.equal(model.transformer.wte.weight, embedding)
    assert model.lm_head.weight is not model.transformer.wte.weight


def test_merge_and_unload_gives_frozen_linear_layers():
    model = lora.merge_and_unload(adapted())
    assert type(model.first) is nn.Linear and type(model.second) is nn.Linear
    assert not trained_names(model)


# ---- apply_lora ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options, sentence", [
    ({"rank": 0}, "rank 0 does not fit first: allowed are 1 to 10"),
    ({"rank": 10}, "rank 10 does not fit second: allowed are 1 to 9"),
    ({"dropout": 1.5}, "between 0 and 1"),
    ({"targets": "query"}, "target 'query' matches no linear layer: allowed are first, head, sec"),
    ({"targets": ["first", "norm"]}, "target 'norm' matches no linear layer"),
    ({"targets": "irst"}, "target 'irst' matches no linear layer"),
    ({"targets": []}, "needs at least one target")])
def test_what_does_not_fit_is_refused_and_the_model_is_as_it_was(options, sentence):
    model = Net()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        apply_lora(model, **{"rank": 3, "targets": TARGETS, **options})
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_that_carries_lora_is_refused():
    with pytest.raises(ValueError, match="already carries"):
        apply_lora(adapted(), targets="head")


class Scaled(nn.Linear):
    """Computes something else than x Wᵀ + b."""

    def forward(self, x):
        return 2 * super().forward(x)


class LinearWithoutChange(nn.Linear):
    """Computes x Wᵀ + b: a subclass, which is fine."""


class Quantised(nn.Parameter):
    """Looks like the weight, in its type and shape, and is not."""


def linear_with(weight):
    linear = nn.Linear(8, 8)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def linear_with_a_subclass_of_parameter():
    linear = nn.Linear(8, 8)
    linear.weight = Quantised(torch.zeros(8, 8))
    return linear


@pytest.mark.parametrize("make, sentence", [
    (lambda: Scaled(8, 8), "fc is a Scaled, whose forward is not that of nn.Linear"),
    (lambda: linear_with(torch.zeros(32, 1)), "fc has a packed"),
    (lambda: linear_with(torch.zeros(64)), "fc has a packed"),
    (lambda: linear_with(torch.zeros(8, 8, dtype=torch.int8)), "fc has a packed, quantised"),
    (linear_with_a_subclass_of_parameter, "fc has a packed, quantised"),
    (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "quantised or computed")])
def test_a_layer_that_does_not_compute_with_a_plain_weight_is_refused(make, sentence):
    model = nn.ModuleDict({"plain": nn.Linear(8, 8), "fc": make()})
    with pytest.raises(ValueError, match=sentence):
        apply_lora(model, 2, targets=["plain", "fc"])
    assert not lora_layers(model)
    assert model["plain"].weight.requires_grad


def test_a_subclass_with_linears_own_forward_is_accepted():
    model = nn.ModuleDict({"fc": LinearWithoutChange(8, 8)})
    assert list(lora_layers(apply_lora(model, 2, targets="fc"))) == ["fc"]


@pytest.mark.parametrize("targets, names", [
    ("c_proj", ["attn.c_proj", "mlp.c_proj"]), (("attn.c_proj",), ["attn.c_proj"]),
    (["mlp.c_proj", "c_attn"], ["attn.c_attn", "mlp.c_proj"])])
def test_a_target_is_the_end_of_a_name(targets, names):
    config = GPTConfig(block_size=8, vocab_size=40, n_layer=1, n_head=1, n_embd=16)
    model = apply_lora(GPT(config), 2, targets=targets)
    assert list(lora_layers(model)) == [f"transformer.h.0.{name}" for name in names]


@pytest.mark.parametrize("target", ["a.0", "b.0", "0"])
def test_a_layer_with_two_names_is_wrapped_and_unwrapped_under_both(target):
    shared = nn.Linear(10, 10).double()
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    base = copy.deepcopy(model)
    apply_lora(model, 2, targets=target)
    randomise(model)
    assert model["a"][0] is model["b"][0]
    assert list(lora_layers(model)) == ["a.0"]
    load_adapter(base, adapter_state_dict(model))
    torch.testing.assert_close(base["b"](data()), model["a"](data()), **EXACT)
    lora.merge_and_unload(model)
    assert model["a"][0] is model["b"][0] is shared


class Experts(nn.Module):
    """As mixture-of-experts models keep them: one parameter for all, which is no layer."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.down_proj = nn.Parameter(torch.zeros(4, 8, 8))


def test_experts_that_are_3d_parameters_stay_frozen_with_a_warning():
    model = nn.ModuleDict({"experts": Experts(), "down_proj": nn.Linear(8, 8)})
    # No warning of this one, which has two dimensions.
    model["other"] = nn.ParameterDict({"down_proj": torch.zeros(8, 8)})
    with pytest.warns(UserWarning, match=r"stay frozen: \['experts.down_proj'\]"):
        apply_lora(model, 2, targets="down_proj")
    assert trained_names(model) == factor_names(model)
    # A name that is no target gives no warning.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_lora(nn.ModuleDict({"experts": Experts()}), 2, targets="router")


# ---- LoRA-GA -------------------------------------------------------------------------------------


def test_lora_ga_leaves_the_callers_gradients_flags_and_modes_as_they_were():
    model = apply_lora(Net(dropout=0.1), 3, targets=TARGETS)
    model.norm.requires_grad_(True)
    model.second.eval()
    loss_fn(model, data()).backward()
    before = {name: (p.requires_grad, copy.deepcopy(p.grad))
              for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        lora_ga_init(model, [data()], loss_fn)
    assert [module.training for module in model.modules()] == modes
    for name, p in model.named_parameters():
        requires_grad, grad = before[name]
        assert p.requires_grad == requires_grad, name
        if grad is None:
            assert p.grad is None, name
        else:
            assert torch.equal(p.grad, grad), name


def test_lora_ga_does_not_move_batchnorm_and_runs_without_dropout():
    def make(dropout):
        torch.manual_seed(0)
        layers = [nn.Linear(10, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(dropout),
                  nn.Linear(12, 9)]
        model = nn.Sequential(*layers).double()
        model[1].running_mean.normal_()
        return apply_lora(model, 3, targets=["0", "4"], rslora=True)

    model = make(dropout=0.5)
    statistics = copy.deepcopy(model[1].state_dict())
    # In evaluation mode, whose output depends on the running statistics
    expected = copy.deepcopy(model).eval()(data())
    lora_ga_init(model, [data(), data()], loss_fn)
    assert all(module.training for module in model.modules())
    assert_same_state(model[1], statistics)
    torch.testing.assert_close(model.eval()(data()), expected, **EXACT)

    without_dropout = make(dropout=0.0)
    lora_ga_init(without_dropout, [data(), data()], loss_fn)
    assert_same_state(model, without_dropout.state_dict())


def refused(model, loss, sentence, batches=None):
    """lora_ga_init fails with the sentence and leaves the model as it was."""
    before = copy.deepcopy(model.state_dict())
    trained = trained_names(model)
    weights = [layer.linear.weight for layer in lora_layers(model).values()]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        lora_ga_init(model, [data(), data()] if batches is None else batches, loss)
    assert_same_state(model, before)
    assert trained_names(model) == trained
    assert all(layer.linear.weight is W for layer, W in zip(lora_layers(model).values(), weights))


def test_lora_ga_refuses_a_model_that_is_not_fresh():
    refused(Net(), loss_fn, "needs a model with LoRA layers")
    refused(started(), loss_fn, "needs a fresh adapter: first")
    refused(adapted(), loss_fn, "needs a fresh adapter: first")
    fresh_but_merged = apply_lora(Net(), 3, targets=TARGETS)
    lora.merge_lora(fresh_but_merged)
    refused(fresh_but_merged, loss_fn, "needs a fresh adapter: first")
    one_trained = apply_lora(Net(), 3, targets=TARGETS)
    one_trained.second.lora_B.data[0, 0] = 1
    refused(one_trained, loss_fn, "needs a fresh adapter: second")
    too_wide = apply_lora(Net(), 5, targets=TARGETS)
    refused(too_wide, loss_fn, "rank 5 does not fit second, allowed are 1 to 4")


@pytest.mark.parametrize("factor, sentence", [(0.0, "needs a gradient that is not zero"),
                                              (math.nan, "needs finite gradients"),
                                              (math.inf, "needs finite gradients")])
def test_lora_ga_refuses_gradients_of_no_use(factor, sentence):
    model = apply_lora(Net(), 3, targets=TARGETS)
    refused(model, lambda model, x: factor * loss_fn(model, x), sentence)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_lora_ga_refuses_one_bad_entry_in_one_layer(bad):
    G = torch.ones(9, 12, dtype=torch.float64)
    G[3, 4] = bad

    def loss(model, x):
        return loss_fn(model.first, x) + (model.second.weight * G).sum()

    refused(apply_lora(Net(), 3, targets=TARGETS), loss, "needs finite gradients")


@pytest.mark.parametrize("loss", [lambda loss: (loss,), lambda loss: loss.item(), torch.detach,
                                  lambda loss: loss.expand(2), lambda loss: None])
def test_lora_ga_refuses_a_loss_that_is_no_scalar_with_a_gradient(loss):
    model = apply_lora(Net(), 3, targets=TARGETS)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="a loss_fn that returns a scalar with a gradient"):
        lora_ga_init(model, [data()], lambda model, x: loss(loss_fn(model, x)))
    assert_same_state(model, before)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan])
def test_lora_ga_refuses_a_gamma_that_is_not_positive(gamma):
    with pytest.raises(ValueError, match="gamma above 0"):
        lora_ga_init(apply_lora(Net(), 3, targets=TARGETS), [data()], loss_fn, gamma)


def test_a_wrapped_weight_that_trains_is_saved_as_the_base_model_has_it():
    model = apply_lora(Net(), 3, targets=TARGETS, rslora=True)
    model.second.linear.requires_grad_(True)
    lora_ga_init(model, [data()], loss_fn)
    assert model.second.linear.weight.requires_grad  # as before the start
    model.second.linear.weight.data += 0.1
    again = load_adapter(Net(), adapter_state_dict(randomise(model)))
    torch.testing.assert_close(again(data()), model(data()), **EXACT)


def test_the_state_of_a_model_in_which_nothing_trains_is_refused():
    with pytest.raises(ValueError, match="nothing in the model trains"):
        adapter_state_dict(lora.merge_and_unload(adapted()))


def test_the_effective_weight_is_there_on_the_meta_device():
    layer = LoRALinear(nn.Linear(10, 12, device="meta"), 2)
    assert layer.weight.shape == (12, 10) and layer.weight.is_meta


def test_lora_ga_refuses_no_batches():
    refused(apply_lora(Net(), 3, targets=TARGETS), loss_fn, "not zero", batches=iter([]))


def test_lora_ga_leaves_the_model_as_it_was_if_the_loss_raises():
    model = apply_lora(Net(), 3, targets=TARGETS)
    weights = [layer.linear.weight for layer in lora_layers(model).values()]

    def fail(model, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lora_ga_init(model, [data()], fail)
    assert all(layer.linear.weight is W for layer, W in zip(lora_layers(model).values(), weights))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("loss", [lambda model, x: loss_fn(model.first, x),
                                  lambda model, x: loss_fn(model.first, x) + 0 * loss_fn(model, x)],
                         ids=["unused", "zero"])
def test_lora_ga_warns_of_a_layer_without_a_gradient_which_keeps_loras_start(loss):
    model = apply_lora(Net(), 3, targets=TARGETS)
    before = copy.deepcopy(model.second.state_dict())
    with pytest.warns(UserWarning, match="second has no gradient") as caught:
        lora_ga_init(model, [data()], loss)
    assert len(caught) == 1
    assert_same_state(model.second, before)
    assert model.first.lora_B.any()


def test_lora_ga_uses_what_a_layer_got_from_any_of_the_batches():
    together = apply_lora(Net(), 3, targets=TARGETS)
    apart = copy.deepcopy(together)
    x = data()
    wide = torch.randn(7, 12, dtype=torch.float64)
    lora_ga_init(together, [x], lambda model, x: loss_fn(model.first, x)
                 + loss_fn(model.second, wide))
    batches = [("first", x), ("second", wide)]
    lora_ga_init(apart, batches, lambda model, batch: loss_fn(getattr(model, batch[0]), batch[1]))
    assert_same_state(apart, together.state_dict())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("d_out, d_in", [(30, 20), (600, 520)], ids=["SVD", "sketch"])
def test_lora_ga_computes_in_float32_whether_autocast_is_on_or_not(d_out, d_in, autocast):
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc": nn.Linear(d_in, d_out)})
    apply_lora(model, 2, targets="fc", rslora=True)
    x = torch.randn(8, d_in)
    y = torch.randn(8, d_out)

    # The loss is exact, so that only the backward pass and what follows it could be rounded.
    def loss(model, batch):
        with torch.autocast("cpu", enabled=False):
            return (y * model["fc"](x)).sum()

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        G = lora.summed_gradients(model, [None], loss)["fc"]
        lora_ga_init(model, [None], loss)
    exact = y.double().T @ x.double()
    torch.testing.assert_close(G.double(), exact, rtol=1e-4, atol=1e-4)
    # G has rank 8, as many directions as the sketch keeps, which is then exact.
    U, _, Vh = torch.linalg.svd(exact, full_matrices=False)
    c_squared = d_out**0.5 / 16
    A = model["fc"].lora_A.double()
    B = model["fc"].lora_B.double()
    torch.testing.assert_close(A.T @ A / c_squared, Vh[:2].T @ Vh[:2], rtol=0, atol=1e-4)
    torch.testing.assert_close(B @ B.T / c_squared, U[:, 2:4] @ U[:, 2:4].T, rtol=0, atol=1e-4)


def test_lora_ga_sums_in_float32_on_a_bfloat16_model():
    model = apply_lora(nn.ModuleDict({"fc": nn.Linear(20, 30)}).bfloat16(), 2, targets="fc")
    parts = [torch.randn(30, 20).bfloat16() for _ in range(5)]

    def loss(model, G):
        return (model["fc"].linear.weight * G).sum()

    G = lora.summed_gradients(model, parts, loss)["fc"]
    assert torch.equal(G, torch.stack(parts).float().sum(0))
    lora_ga_init(model, parts, loss)
    A = model["fc"].lora_A
    torch.testing.assert_close(A @ A.T, 30**0.5 / 16 * torch.eye(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lora_ga_starts_from_gradients_whose_squares_float32_cannot_hold(size):
    model = apply_lora(nn.ModuleDict({"fc": nn.Linear(9, 12)}), 2, targets="fc")
    G = size * torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    lora_ga_init(model, [G], lambda model, G: (model["fc"].linear.weight * G).sum())
    A = model["fc"].lora_A
    torch.testing.assert_close(A @ A.T, 12**0.5 / 16 * torch.eye(2), rtol=0, atol=1e-5)


# ---- The preconditioner --------------------------------------------------------------------------


def with_gradients():
    model = adapted()
    loss_fn(model, data()).backward()
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def preconditioned_gradients(damping=1e-6):
    model = with_gradients()
    precondition_gradients(model, damping)
    return gradients(model)


def assert_same_gradients(model, expected):
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert torch.equal(grad, expected[name]), name


def test_the_preconditioner_skips_missing_gradients_and_leaves_no_graph():
    expected = preconditioned_gradients()
    model = with_gradients()
    model.first.lora_A.grad = None
    model.second.lora_B.grad = None
    precondition_gradients(model)
    del expected["first.lora_A"], expected["second.lora_B"]
    assert_same_gradients(model, expected)
    assert not any(p.grad.requires_grad for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("ours", [
    lambda model: [[layer.lora_A for layer in lora_layers(model).values()],
                   [layer.lora_B for layer in lora_layers(model).values()]],
    lambda model: [[model.first.lora_A, model.first.lora_B],
                   [model.second.lora_A, model.second.lora_B]]], ids=["A and B", "halves"])
def test_two_optimizers_precondition_their_own_factors_alone(ours):
    model = with_gradients()
    plain = gradients(model)
    expected = preconditioned_gradients(damping=0.1)
    # At lr = 0 the second optimizer finds the factors that the first one found.
    optimizers = [torch.optim.SGD(factors, lr=0.0) for factors in ours(model)]
    names = {p: name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        attach_preconditioner(optimizer, model, damping=0.1)
    for optimizer in optimizers:
        optimizer.step()
        for p in optimizer.param_groups[0]["params"]:
            plain[names[p]] = expected[names[p]]
        assert_same_gradients(model, plain)


def test_an_attached_preconditioner_has_its_damping_and_can_be_removed():
    model = with_gradients()
    optimizer = torch.optim.SGD(lora_plus_groups(model, lr=0.0))
    handle = attach_preconditioner(optimizer, model, damping=10.0)
    optimizer.step()
    assert_same_gradients(model, preconditioned_gradients(damping=10.0))
    handle.remove()
    optimizer.step()
    assert_same_gradients(model, preconditioned_gradients(damping=10.0))


@pytest.mark.parametrize("call", [lambda step: step(lambda: 0.0),
                                  lambda step: step(closure=lambda: 0.0)])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.LBFGS])
def test_an_attached_preconditioner_refuses_a_closure(optimizer, call):
    model = with_gradients()
    before = gradients(model)
    optimizer = optimizer([p for p in model.parameters() if p.requires_grad], lr=0.1)
    attach_preconditioner(optimizer, model)
    with pytest.raises(ValueError, match="closure.* call precondition_gradients.* at the closure's end"):
        call(optimizer.step)
    assert_same_gradients(model, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_of_16_bits_are_preconditioned_in_float32(dtype):
    model = adapted().to(dtype)
    layer = model.first
    layer.lora_A.grad, layer.lora_B.grad = (torch.randn_like(p) for p in (layer.lora_A,
                                                                          layer.lora_B))
    A, B, grad_A, grad_B = (t.detach().double() for t in (
        layer.lora_A, layer.lora_B, layer.lora_A.grad, layer.lora_B.grad))
    I = 0.1 * torch.eye(3, dtype=torch.float64)
    expected = torch.linalg.inv(B.T @ B + I) @ grad_A, grad_B @ torch.linalg.inv(A @ A.T + I)
    precondition_gradients(model, damping=0.1)
    for p, grad in zip((layer.lora_A, layer.lora_B), expected):
        assert p.grad.dtype == dtype
        torch.testing.assert_close(p.grad.double(), grad, rtol=1e-2, atol=1e-2)


def test_without_damping_a_zero_factor_gives_no_error():
    model = apply_lora(Net(), 3, targets=TARGETS)
    loss_fn(model, data()).backward()
    precondition_gradients(model, damping=0.0)
    assert not model.first.lora_A.grad.any() and model.first.lora_B.grad.isfinite().all()


def test_a_closure_preconditions_at_its_end():
    model = adapted()

    def closure():
        loss = loss_fn(model, data())
        loss.backward()
        precondition_gradients(model)
        return loss

    factors = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(factors, lr=0.0).step(closure)
    assert_same_gradients(model, preconditioned_gradients())


def test_an_attached_preconditioner_takes_none_for_no_closure():
    model = with_gradients()
    optimizer = torch.optim.SGD(lora_plus_groups(model, lr=0.0))
    attach_preconditioner(optimizer, model)
    optimizer.step(None)
    assert_same_gradients(model, preconditioned_gradients())
    optimizer.step(closure=None)


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32])
def test_the_preconditioner_is_finite_at_b_0_and_on_a_bfloat16_base(base):
    model = apply_lora(Net().to(base), 3, targets=TARGETS)
    optimizer = torch.optim.AdamW(lora_plus_groups(model, 0.01))
    attach_preconditioner(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        loss_fn(model, data(base)).backward()
        optimizer.step()
    for p in model.parameters():
        if p.requires_grad:
            assert p.isfinite().all()
            assert p.dtype == torch.float32


def test_the_preconditioner_of_rank_deficient_factors_descends_whatever_the_draw():
    layer = LoRALinear(nn.Linear(100, 200), rank=8)
    for seed in range(20):
        torch.manual_seed(seed)
        layer.lora_B.data = 30 * torch.randn(200, 1) @ torch.randn(1, 8)
        layer.lora_A.data = 30 * torch.randn(8, 1) @ torch.randn(1, 100)
        layer.lora_A.grad = torch.randn(8, 100)
        layer.lora_B.grad = torch.randn(200, 8)
        grad_A, grad_B = lora.preconditioned(layer)
        assert (grad_A * layer.lora_A.grad).sum() > 0
        assert (grad_B * layer.lora_B.grad).sum() > 0
        # (BᵀB + δI)⁻¹ is at most 1/δ, and δ is at least 4·eps·trace(BᵀB).
        most = 1 / (4 * torch.finfo(torch.float32).eps * layer.lora_B.square().sum())
        assert grad_A.norm() < 2 * most * layer.lora_A.grad.norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_preconditioner_computes_in_float32_whether_autocast_is_on_or_not(autocast):
    exact = with_gradients()
    layers = copy.deepcopy(exact).float()
    for name, p in layers.named_parameters():
        if p.requires_grad:
            p.grad = exact.get_parameter(name).grad.float()
    precondition_gradients(exact, damping=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        precondition_gradients(layers, damping=0.1)
    expected = gradients(exact)
    for name, grad in gradients(layers).items():
        torch.testing.assert_close(grad.double(), expected[name], rtol=1e-4, atol=1e-4)


# ---- Adapter files -------------------------------------------------------------------------------


def test_an_adapters_state_is_a_copy_on_the_cpu_without_a_graph(tmp_path):
    model = adapted()
    model.norm.requires_grad_(True)
    state = adapter_state_dict(model)
    before = copy.deepcopy(state)
    for p in model.parameters():
        p.data += 1
    for key, value in state.items():
        assert torch.equal(value, before[key]), key
        assert not value.requires_grad
    torch.save(state, tmp_path / "adapter.pt")
    loaded = torch.load(tmp_path / "adapter.pt", weights_only=True)
    assert loaded.keys() == {"first.lora_A", "first.lora_B", "first.scale", "second.lora_A",
                             "second.lora_B", "second.scale", "norm.weight", "norm.bias"}


@pytest.mark.parametrize("make", [Net, lambda: adapted(rank=2, targets=["second", "head"])],
                         ids=["base", "with another adapter"])
def test_an_adapter_is_all_that_is_on_the_model_and_trains(make):
    model = adapted(targets=["first"], alpha=7)
    loaded = load_adapter(make(), adapter_state_dict(model))
    torch.testing.assert_close(loaded(data()), model(data()), **EXACT)
    assert list(lora_layers(loaded)) == ["first"]
    assert trained_names(loaded) == {"first.lora_A", "first.lora_B"}


class Gate(nn.Module):
    """Its parameters have the names of an adapter's."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(10, 10)
        self.lora_A = nn.Parameter(torch.ones(10))
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x):
        return self.scale * self.linear(x) * self.lora_A


def gated():
    torch.manual_seed(0)
    return nn.ModuleDict({"gate": Gate(), "fc": nn.Linear(10, 12),
                          "lora_head": nn.Linear(12, 3)}).double()


def gated_output(model):
    return model["lora_head"](model["fc"](model["gate"](data())))


def test_all_that_trains_travels_with_the_adapter():
    model = randomise(apply_lora(gated(), 2, targets=["gate.linear", "fc"]))
    model["fc"].bias.requires_grad_(True)
    model["lora_head"].requires_grad_(True)
    model["gate"].lora_A.requires_grad_(True)
    model["gate"].scale.requires_grad_(True)
    in_full = {"fc.bias", "lora_head.weight", "lora_head.bias", "gate.lora_A", "gate.scale"}
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1
    state = adapter_state_dict(model)
    assert in_full <= state.keys() and len(state) == 2 * 3 + len(in_full)
    loaded = load_adapter(gated(), state)
    torch.testing.assert_close(gated_output(loaded), gated_output(model), **EXACT)
    assert trained_names(loaded) == trained_names(model)
    for key, value in adapter_state_dict(loaded).items():
        assert torch.equal(value, state[key]), key


def change(**changes):
    """An adapter's state for Net with some entries replaced; None takes one out."""
    model = adapted()
    model.norm.requires_grad_(True)
    state = adapter_state_dict(model)
    for key, value in changes.items():
        state[key.replace("__", ".")] = value
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize("changes, key", [
    ({"first__lora_A": None}, "first.lora_B"),
    ({"first__lora_B": None}, "first"),
    ({"first__scale": None}, "first"),
    ({"first__lora_A": torch.zeros(3)}, "first"),
    ({"first__lora_A": 4}, "first"),
    ({"first__lora_B": torch.tensor(4.0)}, "first"),
    ({"first__scale": torch.ones(2)}, "first"),
    ({"first__scale": "1"}, "first"),
    ({"first__lora_A": torch.zeros(4, 10)}, "first"),
    ({"first__lora_A": torch.zeros(3, 11)}, "first"),
    ({"first__lora_B": torch.zeros(13, 3)}, "first"),
    ({"first__lora_A": torch.zeros(11, 10), "first__lora_B": torch.zeros(12, 11)}, "rank 11"),
    ({"third__lora_A": torch.zeros(3, 10)}, "third.lora_A"),
    ({"third__weight": torch.zeros(3)}, "third.weight"),
    ({"norm__weight": torch.zeros(8)}, "norm.weight")])
def test_an_adapter_that_does_not_fit_is_refused_with_its_key(changes, key):
    with pytest.raises(ValueError, match=re.escape(key)):
        load_adapter(Net(), change(**changes))


@pytest.mark.parametrize("state", [{}, {"head.weight": torch.zeros(4, 9)}])
def test_a_state_without_factors_is_refused(state):
    with pytest.raises(ValueError, match="holds no layer that the model has"):
        load_adapter(Net(), state)


@pytest.mark.parametrize("make", [merged, started])
def test_an_adapter_is_not_put_on_a_base_that_has_changed(make):
    with pytest.raises(ValueError, match="needs the untouched base model"):
        load_adapter(make(), adapter_state_dict(adapted()))


def test_a_state_dict_after_lora_ga_loads_into_a_model_without_it():
    model = randomise(started())
    resumed = apply_lora(Net(), 3, targets=TARGETS, rslora=True)
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed(data()), model(data()))
    for name, value in adapter_state_dict(model).items():
        assert torch.equal(value, adapter_state_dict(resumed)[name]), name


def test_a_base_models_state_dict_loads_into_an_adapted_model():
    other = Net()
    for p in other.parameters():
        p.data *= 1.1
    model = adapted()
    deltas = {name: layer.delta() for name, layer in lora_layers(model).items()}
    state = other.state_dict()
    keys = list(state)
    left = model.load_state_dict(state, strict=False)
    assert list(state) == keys
    assert not left.unexpected_keys
    assert all(".lora_" in key for key in left.missing_keys)
    for name, delta in deltas.items():
        other.get_submodule(name).weight.data += delta
    torch.testing.assert_close(model(data()), other(data()), **EXACT)


@pytest.mark.parametrize("make", [merged, started])
def test_a_base_models_state_dict_is_refused_once_the_weights_have_changed(make):
    with pytest.raises(ValueError, match="before LoRA-GA's start and before merging"):
        make().load_state_dict(Net().state_dict(), strict=False)
