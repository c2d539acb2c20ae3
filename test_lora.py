"""The equations of lora.py, each checked against an independent formula, a section a paper.

W0 (d_out, d_in) is the frozen weight, A (r, d_in) and B (d_out, r) are the factors, s is the scale.
W = W0 + s·BA, and G = ∂L/∂W always comes from autograd through a plain weight, never from lora.py.
Almost everything is in float64, where both sides agree to about ten digits.
"""
import copy

import pytest
import torch
import torch.nn as nn

from lora import (LoRALinear, adapter_state_dict, apply_lora, attach_preconditioner,
                  damped_inverse, load_adapter, lora_ga_factors, lora_ga_init, lora_layers,
                  lora_plus_groups, merge_and_unload, merge_lora, precondition_gradients,
                  top_singular_vectors, unmerge_lora)
from model import GPT, GPTConfig

EXACT = {"rtol": 1e-10, "atol": 1e-10}


# ---- Small models and formulas that the tests share ----------------------------------------------


def gpt():
    """A GPT of two layers, the same at every call, without LoRA."""
    torch.manual_seed(0)
    config = GPTConfig(block_size=16, vocab_size=40, n_layer=2, n_head=2, n_embd=16)
    return GPT(config).double()


def tokens(seed=1):
    """A batch for gpt(): idx and targets, (4, 12) each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(40, (2, 4, 12), generator=generator)


def gpt_loss(model, batch):
    idx, targets = batch
    return model(idx, targets)[1]


def lora_ga_gpt(rank=3):
    """gpt() with LoRA layers that LoRA-GA has started."""
    model = apply_lora(gpt(), rank, rslora=True)
    lora_ga_init(model, [tokens()], gpt_loss)
    return model


def one_layer(d_out=12, d_in=10, rank=3, **options):
    """A model of one LoRA layer -> model, layer; B is still zero."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc": nn.Linear(d_in, d_out).double()})
    apply_lora(model, rank, targets="fc", **options)
    return model, model["fc"]


def randomise(model, seed=2):
    """Moves every factor by random numbers, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        for factor in (layer.lora_A, layer.lora_B):
            factor.data += 0.3 * torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
    return model


def trained_layer(**options):
    """A model of one LoRA layer with random factors -> model, layer."""
    model, layer = one_layer(**options)
    randomise(model)
    return model, layer


def some_data():
    """Inputs (7, 10) and outputs (7, 12) for one_layer()."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 10, generator=generator, dtype=torch.float64)
    y = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    return x, y


def backward(layer):
    """Fills A's and B's gradients for a loss on some_data() -> G of the same loss (d_out, d_in)."""
    x, y = some_data()
    (layer(x) - y).square().sum().backward()
    W = layer.linear.weight + layer.scale * layer.lora_B @ layer.lora_A
    W = W.detach().requires_grad_()
    (x @ W.T + layer.linear.bias - y).square().sum().backward()
    return W.grad


def gpt_gradients(batch):
    """G of every weight of gpt() -> {parameter's name: G}."""
    model = gpt()
    gpt_loss(model, batch).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def start_along(model, G, **options):
    """Starts one_layer()'s model with LoRA-GA, for a loss whose gradient is G."""
    lora_ga_init(model, [G], lambda model, G: (model["fc"].weight * G).sum(), **options)


def cosine(X, Y):
    return (X * Y).sum().item() / (X.norm() * Y.norm()).item()


def best_cosine(G, k):
    """The best cosine with G that a matrix of rank k can have (Eckart and Young)."""
    S = torch.linalg.svdvals(G)
    return (S[:k].square().sum() / S.square().sum()).sqrt().item()


def assert_equal_states(state, expected):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


# ==== LoRA, Hu et al., arXiv 2106.09685 ===========================================================


def test_lora_starts_as_the_base_model():
    """Section 4.1: B = 0, so that BA = 0, and A is random."""
    idx, _ = tokens()
    model = apply_lora(gpt(), rank=4)
    assert torch.equal(model(idx)[0], gpt()(idx)[0])
    for layer in lora_layers(model).values():
        assert not layer.lora_B.any()
        assert not layer.delta().any()
        assert layer.lora_A.all()


def test_lora_a_is_uniform_within_one_over_the_root_of_d_in():
    """The authors' code: Kaiming-uniform with a = √5, which is U(−1/√d_in, 1/√d_in)."""
    _, layer = one_layer(d_out=300, d_in=400, rank=64)
    bound = 1 / 400**0.5
    assert 0.99 * bound < layer.lora_A.max() <= bound
    assert -bound <= layer.lora_A.min() < -0.99 * bound
    # The standard deviation of U(−b, b) is b/√3.
    assert layer.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("shape", [(10,), (7, 10), (2, 3, 5, 10), (0, 10)])
def test_lora_forward_is_the_dense_weight_w0_plus_s_ba(shape):
    """Equation 3: y = x Wᵀ + b with W = W0 + s·BA, for inputs of any number of dimensions."""
    _, layer = trained_layer(alpha=5.0)
    x = torch.randn(shape, dtype=torch.float64)
    W = layer.linear.weight + 5 / 3 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), x @ W.T + layer.linear.bias, **EXACT)
    torch.testing.assert_close(layer.weight, W, **EXACT)
    torch.testing.assert_close(layer.delta(), W - layer.linear.weight, **EXACT)


@pytest.mark.parametrize("alpha, rslora, scale", [
    (None, False, 1.0), (6, False, 1.5), (0, False, 0.0), (None, True, 2.0), (6, True, 3.0)])
def test_lora_scale_is_alpha_over_r_and_with_rslora_over_its_root(alpha, rslora, scale):
    """Section 4.1, and Kalajdzievski (arXiv 2312.03732); alpha is r if it is not given."""
    _, layer = one_layer(rank=4, alpha=alpha, rslora=rslora)
    assert layer.scale == scale


def test_rslora_keeps_the_size_of_s_ba_as_the_rank_grows():
    """Kalajdzievski (arXiv 2312.03732): BA grows as √r, so that s = alpha/r would shrink s·BA."""
    sizes = {}
    for rslora in (False, True):
        for rank in (4, 64):
            _, layer = one_layer(d_out=200, d_in=200, rank=rank, alpha=8, rslora=rslora)
            nn.init.normal_(layer.lora_B)
            sizes[rslora, rank] = layer.delta().norm().item()
    assert sizes[True, 64] == pytest.approx(sizes[True, 4], rel=0.1)
    assert sizes[False, 64] == pytest.approx(sizes[False, 4] / 4, rel=0.1)


def test_lora_gradients_are_the_chain_rule_through_the_dense_weight():
    """The docstring of LoRALinear: ∂L/∂A = s·BᵀG and ∂L/∂B = s·GAᵀ."""
    _, layer = trained_layer(alpha=5.0)
    G = backward(layer)
    torch.testing.assert_close(layer.lora_A.grad, 5 / 3 * layer.lora_B.T @ G, **EXACT)
    torch.testing.assert_close(layer.lora_B.grad, 5 / 3 * G @ layer.lora_A.T, **EXACT)


def test_lora_gradients_agree_with_finite_differences():
    """Equation 3 again: with respect to the input x, to A and to B."""
    _, layer = trained_layer(d_out=4, d_in=3, rank=2)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def f(x, A, B):
        return torch.func.functional_call(layer, {"lora_A": A, "lora_B": B}, x)

    assert torch.autograd.gradcheck(f, (x, layer.lora_A, layer.lora_B))


def test_lora_step_moves_w_along_bbt_g_plus_g_ata():
    """The docstring of LoRALinear: a small step η moves W by −η s² (BBᵀG + GAᵀA)."""
    _, layer = trained_layer(alpha=5.0)
    A = layer.lora_A.detach().clone()
    B = layer.lora_B.detach().clone()
    before = layer.delta().detach()
    G = backward(layer)
    torch.optim.SGD([layer.lora_A, layer.lora_B], lr=1e-8).step()
    moved = layer.delta().detach() - before
    expected = -1e-8 * (5 / 3) ** 2 * (B @ B.T @ G + G @ A.T @ A)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-11)


def test_lora_gradients_flow_through_the_effective_weight():
    """A module that reads layer.weight trains A and B as one that calls the layer."""
    _, layer = trained_layer(alpha=5.0)
    G = backward(layer)
    layer.zero_grad()
    x, y = some_data()
    output = nn.functional.linear(x, layer.weight, layer.bias)
    (output - y).square().sum().backward()
    torch.testing.assert_close(layer.lora_A.grad, 5 / 3 * layer.lora_B.T @ G, **EXACT)
    torch.testing.assert_close(layer.lora_B.grad, 5 / 3 * G @ layer.lora_A.T, **EXACT)


def test_lora_trains_r_times_d_in_plus_d_out_numbers_a_layer():
    """Section 4.2: A and B alone train, r·(d_in + d_out) numbers."""
    model = apply_lora(gpt(), rank=4)
    trained = [p for p in model.parameters() if p.requires_grad]
    # c_attn, attention's c_proj, c_fc and the MLP's c_proj at n_embd = 16, in two blocks
    sides = [16 + 48, 16 + 16, 16 + 64, 64 + 16] * 2
    assert sum(p.numel() for p in trained) == 4 * sum(sides)


def test_lora_training_moves_the_factors_alone():
    """Section 4.1: W0 is frozen; so are the biases, norms and embeddings."""
    model = apply_lora(gpt(), rank=4)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        gpt_loss(model, tokens()).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        is_factor = name.endswith(("lora_A", "lora_B"))
        assert torch.equal(value, before[name]) != is_factor, name


def test_lora_dropout_zeroes_entries_of_the_factors_input_alone():
    """The authors' code: dropout on x in x Aᵀ, while x W0ᵀ sees all of x."""
    _, layer = trained_layer(dropout=0.5)
    x = torch.randn(2000, 10, dtype=torch.float64)
    torch.manual_seed(0)
    y = layer.train()(x)
    torch.manual_seed(0)
    mask = nn.functional.dropout(torch.ones_like(x), 0.5)
    low_rank = (x * mask) @ (layer.lora_B @ layer.lora_A).T
    torch.testing.assert_close(y, layer.linear(x) + low_rank, **EXACT)
    in_evaluation = layer.linear(x) + x @ (layer.lora_B @ layer.lora_A).T
    torch.testing.assert_close(layer.eval()(x), in_evaluation, **EXACT)


# ==== LoRA+, Hayou et al., arXiv 2402.12354 =======================================================


def test_lora_plus_groups_hold_every_trainable_parameter_once():
    """The paper's rule, η_B = λ·η_A: B's rate is ratio · lr, everything else has lr."""
    model = apply_lora(gpt(), rank=4)
    model.transformer.ln_f.requires_grad_(True)
    for_A, for_B, for_others = lora_plus_groups(model, lr=0.1, ratio=4)
    layers = lora_layers(model).values()
    assert for_A == {"params": [layer.lora_A for layer in layers], "lr": 0.1}
    assert for_B == {"params": [layer.lora_B for layer in layers], "lr": 0.4}
    assert for_others == {"params": list(model.transformer.ln_f.parameters()), "lr": 0.1}


def test_lora_plus_with_ratio_1_is_lora():
    """At λ = 1 a run is the same as with one group, bit for bit."""
    ends = []
    for plus in (False, True):
        model = apply_lora(gpt(), rank=4)
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = lora_plus_groups(model, lr=0.01, ratio=1) if plus else trained
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        for step in range(5):
            optimizer.zero_grad()
            gpt_loss(model, tokens(seed=step)).backward()
            optimizer.step()
        ends.append(model.state_dict())
    assert_equal_states(ends[0], ends[1])


def feature_updates(width, lr, ratio, seed):
    """Mean sizes of B·ΔA·x and ΔB·A·x in AdamW's second step, the first in which A moves."""
    torch.manual_seed(seed)
    linear = nn.utils.skip_init(nn.Linear, width, width, bias=False)
    nn.init.zeros_(linear.weight)
    layer = LoRALinear(linear, rank=4)
    optimizer = torch.optim.AdamW(lora_plus_groups(layer, lr, ratio), weight_decay=0)
    x = torch.randn(1, width)
    y = torch.randn(1, width)
    for _ in range(2):
        A = layer.lora_A.detach().clone()
        B = layer.lora_B.detach().clone()
        optimizer.zero_grad()
        (layer(x) - y).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        from_A = x @ (layer.lora_A - A).T @ B.T
        from_B = x @ A.T @ (layer.lora_B - B).T
    return torch.stack([from_A.abs().mean(), from_B.abs().mean()])


def fraction_from_B(width, lr, ratio):
    """How much of the layer's change is B's, over four draws."""
    updates = sum(feature_updates(width, lr, ratio, seed) for seed in range(4))
    from_A, from_B = updates.tolist()
    # The learning rates below keep the whole change near 1 at every width: none is larger by much.
    assert 0.4 < from_A + from_B < 4
    return from_B / (from_A + from_B)


def test_lora_plus_ratio_keeps_both_factors_learning_as_the_width_grows():
    """Theorem 1: with η_A = Θ(1/n), η_B = Θ(1) both learn; with a constant ratio B's part vanishes.

    With a constant ratio the largest stable rate is Θ(1/√n).
    """
    widths = [64, 512, 4096]
    growing = [fraction_from_B(n, lr=0.8 / n, ratio=n / 8) for n in widths]
    ratio_1 = [fraction_from_B(n, lr=0.4 / n**0.5, ratio=1) for n in widths]
    ratio_16 = [fraction_from_B(n, lr=0.1 / n**0.5, ratio=16) for n in widths]

    assert 0.2 < min(growing) and max(growing) < 0.8
    assert max(growing) < 1.5 * min(growing)
    # A constant ratio only delays the failure.
    for falling in (ratio_1, ratio_16):
        assert falling[0] > 1.4 * falling[1]
        assert falling[1] > 1.4 * falling[2]
    assert ratio_16[2] > ratio_1[2]


# ==== LoRA-GA, Wang et al., arXiv 2407.05000 ======================================================


def test_lora_ga_leaves_the_output_unchanged():
    """Algorithm 1: W0 ← W0 − s·BA, for the batch that it has seen and for another."""
    model = lora_ga_gpt()
    for seed in (1, 9):
        idx, _ = tokens(seed)
        torch.testing.assert_close(model(idx)[0], gpt()(idx)[0], **EXACT)
    for layer in lora_layers(model).values():
        assert not layer.delta().any()


@pytest.mark.parametrize("d_out, d_in, r", [(6, 9, 3), (40, 8, 2), (8, 40, 4), (300, 200, 8)])
def test_lora_ga_factors_are_singular_vectors_times_c(d_out, d_in, r):
    """Algorithm 1: A = c·V[:, :r]ᵀ, B = c·U[:, r:2r], c = d_out^¼/√γ, W0 ← W0 − s·BA."""
    model, layer = one_layer(d_out, d_in, r, alpha=7, rslora=True)
    W0 = layer.linear.weight.clone()
    G = torch.randn(d_out, d_in, dtype=torch.float64)
    start_along(model, G, gamma=9.0)

    # The signs of singular vectors are free, so that the projections are compared, and BA below.
    U, S, Vh = torch.linalg.svd(G)
    A = layer.lora_A.detach()
    B = layer.lora_B.detach()
    c = d_out**0.25 / 9**0.5
    torch.testing.assert_close(A.T @ A, c**2 * Vh[:r].T @ Vh[:r], **EXACT)
    torch.testing.assert_close(B @ B.T, c**2 * U[:, r:2 * r] @ U[:, r:2 * r].T, **EXACT)
    torch.testing.assert_close(A @ G.T @ U[:, :r] @ Vh[:r] @ A.T / c**2,
                               torch.diag(S[:r]), **EXACT)
    torch.testing.assert_close(layer.linear.weight, W0 - 7 / r**0.5 * B @ A, **EXACT)


@pytest.mark.parametrize("r", [1, 3])
def test_lora_ga_first_step_is_best_rank_2r(r):
    """Theorem 3.1: a first small step of SGD moves W along G's explicit SVD, cut off at rank 2r."""
    model = lora_ga_gpt(rank=r)
    gradients = gpt_gradients(tokens())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-7)
    gpt_loss(model, tokens()).backward()
    optimizer.step()
    for name, layer in lora_layers(model).items():
        U, S, Vh = torch.linalg.svd(gradients[f"{name}.weight"], full_matrices=False)
        best = (U[:, :2 * r] * S[:2 * r]) @ Vh[:2 * r]  # (d_out, d_in)
        # −η s² c² times it, with s = r/√r (alpha = r) and c² = √d_out/16
        expected = -1e-7 * r * layer.out_features**0.5 / 16 * best
        error = (layer.delta() - expected).norm() / expected.norm()
        assert error < 1e-5, name


def test_lora_ga_directions_beat_other_singular_directions():
    """Theorem 3.1: no other choice of r rows of Vᵀ and r columns of U comes closer to G."""
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(12, 10, generator=generator, dtype=torch.float64)
    A, B = lora_ga_factors(G, rank=3)
    achieved = cosine(B @ B.T @ G + G @ A.T @ A, G)
    assert achieved == pytest.approx(best_cosine(G, 6), rel=1e-10)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    for _ in range(200):
        rows = Vh[torch.randperm(10, generator=generator)[:3]]
        columns = U[:, torch.randperm(10, generator=generator)[:3]]
        other = cosine(columns @ columns.T @ G + G @ rows.T @ rows, G)
        assert other <= achieved + 1e-12


def test_lora_ga_takes_the_gradient_that_is_summed_over_the_batches():
    """Algorithm 1: A and B are those of G = Σ ∂L/∂W over the batches."""
    batches = [tokens(seed) for seed in (1, 2, 3, 4)]
    model = apply_lora(gpt(), rank=2, rslora=True)
    lora_ga_init(model, iter(batches), gpt_loss)
    gradients = [gpt_gradients(batch) for batch in batches]
    for name, layer in lora_layers(model).items():
        G = sum(of_batch[f"{name}.weight"] for of_batch in gradients)
        A, B = lora_ga_factors(G, rank=2)
        torch.testing.assert_close(layer.lora_A.detach(), A, **EXACT)
        torch.testing.assert_close(layer.lora_B.detach(), B, **EXACT)


@pytest.mark.parametrize("d_out, d_in, r", [(64, 64, 2), (64, 256, 16), (1024, 64, 2),
                                            (1024, 256, 64)])
def test_lora_ga_is_stable_in_any_shape(d_out, d_in, r):
    """Theorem 3.2: with s = α/√r the norm of s·BA is α·√d_out/γ, and an output's size is α/γ."""
    model, layer = one_layer(d_out, d_in, r, alpha=8, rslora=True)
    start_along(model, torch.randn(d_out, d_in, dtype=torch.float64), gamma=16.0)
    s_BA = layer.scale * layer.lora_B.detach() @ layer.lora_A.detach()
    assert s_BA.norm().item() == pytest.approx(8 * d_out**0.5 / 16, rel=1e-10)
    x = torch.randn(2000, d_in, dtype=torch.float64)
    assert (x @ s_BA.T).square().mean().sqrt().item() == pytest.approx(8 / 16, rel=0.1)


@pytest.mark.parametrize("shape, k", [((30, 20), 8), ((20, 30), 3), ((512, 520), 2)])
def test_singular_vectors_are_exact_up_to_512_and_their_signs_are_fixed(shape, k):
    """Where the SVD is exact, U S Vᵀ is G's best approximation; each v's largest entry is > 0."""
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(shape, generator=generator, dtype=torch.float64)
    U, V = top_singular_vectors(G, k)
    singular_values = torch.linalg.svdvals(G)[:k]
    torch.testing.assert_close(U.T @ U, torch.eye(k, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(V.T @ V, torch.eye(k, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(U.T @ G @ V, torch.diag(singular_values), **EXACT)
    for v in V.T:
        assert v[v.abs().argmax()] > 0


@pytest.mark.parametrize("decay, least", [("steep", 0.99), ("slow", 0.99), ("white noise", 0.93)])
def test_sketched_singular_vectors_come_close_to_the_best(decay, least):
    """Halko et al. (arXiv 0909.4061): the sketch keeps this much of the best cosine with G."""
    spectra = {"steep": 0.7 ** torch.arange(520.0), "slow": torch.arange(1.0, 521) ** -0.5}
    torch.manual_seed(0)
    G = torch.randn(600, 520, dtype=torch.float64)
    if decay in spectra:
        U, _, Vh = torch.linalg.svd(G, full_matrices=False)
        G = (U * spectra[decay]) @ Vh
    A, B = lora_ga_factors(G, rank=4)
    # c scales BBᵀG and GAᵀA alike.
    achieved = cosine(B @ B.T @ G + G @ A.T @ A, G)
    assert achieved > least * best_cosine(G, 8)


# ==== The Riemannian preconditioner, Zhang & Pilanci, arXiv 2402.02347 ============================


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_preconditioner_equals_the_explicit_inverse(rank):
    """Algorithm 1: (BᵀB + δI)⁻¹ ∇A and ∇B (AAᵀ + δI)⁻¹, both from the factors before the step."""
    model, layer = trained_layer(rank=rank)
    backward(layer)
    A = layer.lora_A.detach()
    B = layer.lora_B.detach()
    damping = 1e-3 * torch.eye(rank, dtype=torch.float64)
    expected_A = torch.linalg.inv(B.T @ B + damping) @ layer.lora_A.grad
    expected_B = layer.lora_B.grad @ torch.linalg.inv(A @ A.T + damping)
    precondition_gradients(model, damping=1e-3)
    torch.testing.assert_close(layer.lora_A.grad, expected_A, **EXACT)
    torch.testing.assert_close(layer.lora_B.grad, expected_B, **EXACT)


def test_preconditioner_uses_the_factors_before_the_step_inside_the_optimizer():
    """Algorithm 1: the new A must not precondition B's gradient; the rates of LoRA+ stay."""
    model, layer = trained_layer()
    backward(layer)
    A = layer.lora_A.detach().clone()
    B = layer.lora_B.detach().clone()
    damping = 1e-6 * torch.eye(3, dtype=torch.float64)
    step_A = torch.linalg.inv(B.T @ B + damping) @ layer.lora_A.grad
    step_B = layer.lora_B.grad @ torch.linalg.inv(A @ A.T + damping)
    optimizer = torch.optim.SGD(lora_plus_groups(model, lr=0.1, ratio=16))
    attach_preconditioner(optimizer, model)
    optimizer.step()
    torch.testing.assert_close(layer.lora_A.detach(), A - 0.1 * step_A, **EXACT)
    torch.testing.assert_close(layer.lora_B.detach(), B - 1.6 * step_B, **EXACT)


def test_preconditioned_step_is_the_sum_of_the_gradients_two_projections():
    """The docstring of preconditioned: W moves by −η s² (P_col(B) G + G P_row(A)) as δ → 0."""
    model, layer = trained_layer(alpha=5.0)
    A = layer.lora_A.detach()
    B = layer.lora_B.detach()
    G = backward(layer)
    onto_columns = torch.linalg.svd(B, full_matrices=False).U
    onto_rows = torch.linalg.svd(A, full_matrices=False).Vh
    precondition_gradients(model, damping=1e-14)
    # To first order, and with η = 1, W moves by −s (B ∇A + ∇B A).
    moved = -5 / 3 * (B @ layer.lora_A.grad + layer.lora_B.grad @ A)
    projected = onto_columns @ onto_columns.T @ G + G @ onto_rows.T @ onto_rows
    torch.testing.assert_close(moved, -(5 / 3) ** 2 * projected, rtol=1e-9, atol=1e-9)


def product_after_a_step(Q, preconditioned):
    """BA after a large step of gradient descent from (BQ, Q⁻¹A), B's rate twice A's."""
    model, layer = trained_layer()
    layer.lora_B.data = layer.lora_B.data @ Q
    layer.lora_A.data = torch.linalg.solve(Q, layer.lora_A.data)
    backward(layer)
    if preconditioned:
        precondition_gradients(model, damping=1e-14)
    A = layer.lora_A.detach() - 0.5 * layer.lora_A.grad
    B = layer.lora_B.detach() - 1.0 * layer.lora_B.grad
    return B @ A


def test_preconditioner_makes_the_step_invariant_to_how_ba_is_split():
    """The paper's metric: (BQ, Q⁻¹A) is the same W for any invertible Q, and takes the same step.

    Plain gradient descent takes different steps.
    """
    torch.manual_seed(5)
    I = torch.eye(3, dtype=torch.float64)
    Q = torch.randn(3, 3, dtype=torch.float64) + 2 * I
    expected = product_after_a_step(I, preconditioned=True)
    split_otherwise = product_after_a_step(Q, preconditioned=True)
    torch.testing.assert_close(split_otherwise, expected, rtol=1e-8, atol=1e-8)
    plain = product_after_a_step(I, preconditioned=False)
    plain_split_otherwise = product_after_a_step(Q, preconditioned=False)
    assert (plain - plain_split_otherwise).norm() > 0.1 * plain.norm()


def test_preconditioner_at_lora_gas_start_divides_by_c_squared_plus_the_damping():
    """AAᵀ = BᵀB = c²I there, with c² = √d_out/γ: all directions are scaled alike."""
    model = lora_ga_gpt()
    gpt_loss(model, tokens(seed=4)).backward()
    before = copy.deepcopy({name: p.grad for name, p in model.named_parameters()})
    precondition_gradients(model, damping=1e-3)
    for name, layer in lora_layers(model).items():
        divisor = layer.out_features**0.5 / 16 + 1e-3
        for factor in ("lora_A", "lora_B"):
            expected = before[f"{name}.{factor}"] / divisor
            torch.testing.assert_close(getattr(layer, factor).grad, expected, **EXACT)


def iterations(condition_number, preconditioned):
    """Steps of gradient descent from near Y, of rank 4, until ‖BA − Y‖ < 1e-6 ‖Y‖."""
    model, layer = one_layer(d_out=30, d_in=20, rank=4)
    U, _, Vh = torch.linalg.svd(torch.randn(30, 20, dtype=torch.float64), full_matrices=False)
    smallest = -torch.tensor(float(condition_number)).log10().item()
    S = torch.logspace(0, smallest, 4, dtype=torch.float64)
    Y = (U[:, :4] * S) @ Vh[:4]
    layer.lora_B.data = 0.9 * U[:, :4] * S.sqrt()
    layer.lora_A.data = 0.9 * S.sqrt()[:, None] * Vh[:4]
    optimizer = torch.optim.SGD([layer.lora_A, layer.lora_B], lr=0.3)
    for count in range(5000):
        error = layer.delta().detach() - Y
        if error.norm() < 1e-6 * Y.norm():
            return count
        # The gradients of ½‖BA − Y‖²
        layer.lora_A.grad = layer.lora_B.detach().T @ error
        layer.lora_B.grad = error @ layer.lora_A.detach().T
        if preconditioned:
            precondition_gradients(model, damping=1e-12)
        optimizer.step()
    raise AssertionError("did not converge")


def test_preconditioned_descent_does_not_slow_down_with_the_condition_number():
    """The paper's theorem, for a matrix that is to be factored: the number of steps stays."""
    preconditioned = [iterations(condition, True) for condition in (1, 10, 100)]
    plain = [iterations(condition, False) for condition in (1, 10, 100)]
    assert max(preconditioned) <= 1.2 * min(preconditioned)
    assert plain[0] < plain[1] < plain[2]
    assert plain[2] > 5 * plain[0]


def test_damping_is_raised_to_the_rounding_errors_of_each_gram_matrix():
    """The docstring of damped_inverse: δ = max(damping, 4·eps·trace), for each matrix alone."""
    small = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    # The Gram matrix of a large factor that has rank 2
    large = torch.tensor([1e12, 1e12, 0.0], dtype=torch.float64)
    rounding = 4 * torch.finfo(torch.float64).eps * 2e12
    assert rounding > 1e-4
    for values, delta in ((small, 1e-6), (large, rounding)):
        inverse = damped_inverse(values.diag(), damping=1e-6)
        torch.testing.assert_close(inverse, torch.diag(1 / (values + delta)), **EXACT)


# ==== Merging, saving and loading =================================================================


@pytest.mark.parametrize("make", [lambda: apply_lora(gpt(), rank=4, alpha=7), lora_ga_gpt],
                         ids=["lora", "loraga"])
def test_merged_layers_compute_the_same_and_unmerging_is_bit_for_bit(make):
    """LoRA, section 4.1: W0 + s·BA can be stored, so that inference takes no longer."""
    model = randomise(make())
    idx, _ = tokens()
    before = model(idx)[0]
    state = copy.deepcopy(model.state_dict())
    merge_lora(model)
    torch.testing.assert_close(model(idx)[0], before, **EXACT)
    for layer in lora_layers(model).values():
        x = torch.randn(3, layer.in_features, dtype=torch.float64)
        one_linear = nn.functional.linear(x, layer.linear.weight, layer.linear.bias)
        assert torch.equal(layer(x), one_linear)
    unmerge_lora(model)
    assert_equal_states(model.state_dict(), state)
    assert torch.equal(model(idx)[0], before)


def test_merge_and_unload_writes_w0_plus_delta_into_a_plain_model():
    """delta() is what the adapter adds to the original weight, after LoRA-GA's start too."""
    model = randomise(lora_ga_gpt())
    deltas = {f"{name}.weight": layer.delta() for name, layer in lora_layers(model).items()}
    base = gpt().state_dict()
    plain = merge_and_unload(model).state_dict()
    assert plain.keys() == base.keys()
    for name, W in plain.items():
        torch.testing.assert_close(W, base[name] + deltas.get(name, 0), **EXACT)


@pytest.mark.parametrize("make, rank", [(lambda: apply_lora(gpt(), rank=4, alpha=7), 4),
                                        (lora_ga_gpt, 6)], ids=["lora", "loraga"])
def test_adapter_gives_the_same_model_on_the_untouched_base(make, rank):
    """BA − B0A0 is one product of rank 2r, so that LoRA-GA's file needs no other base."""
    model = randomise(make())
    idx, _ = tokens()
    state = adapter_state_dict(model)
    loaded = load_adapter(gpt(), state)
    torch.testing.assert_close(loaded(idx)[0], model(idx)[0], **EXACT)
    for name, layer in lora_layers(model).items():
        assert len(state[f"{name}.lora_A"]) == rank
        torch.testing.assert_close(lora_layers(loaded)[name].delta(), layer.delta(), **EXACT)
