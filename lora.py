"""Low-rank adaptation in one file: LoRA, LoRA+, LoRA-GA and the Riemannian preconditioner.

LoRA freezes a model and trains, beside some of its weights W0 (d_out, d_in), two thin factors, B
(d_out, r) and A (r, d_in), so that these layers compute with W0 + s·BA; s is a constant. The others
mend one thing each: LoRA+ the learning rates, LoRA-GA the start, the preconditioner the gradients.

    apply_lora(model, rank=8, alpha=8, rslora=True)      # LoRA, in every layer called c_attn, ...
    lora_ga_init(model, batches, loss_fn)                # LoRA-GA (optional)
    groups = lora_plus_groups(model, lr=3e-4, ratio=4)   # LoRA+ (optional)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    attach_preconditioner(optimizer, model)              # the preconditioner (optional; β₂ < 0.99)
    torch.save(adapter_state_dict(model), "adapter.pt")  # small, for the untouched base model
"""
import warnings

import torch
import torch.nn as nn


class LoRALinear(nn.Module):
    """LoRA (Hu et al., arXiv 2106.09685, eq. 3): y = x W0ᵀ + b + s · (x Aᵀ) Bᵀ, W0 and b frozen.

    With W = W0 + s·BA, the effective weight, and G = ∂L/∂W: ∂L/∂A = s BᵀG and ∂L/∂B = s GAᵀ.
    A small step η of gradient descent thus moves W by −η s² (BBᵀG + GAᵀA).
    linear   the nn.Linear to wrap; it is frozen in place
    rank     r, from 1 to min(d_in, d_out), else ValueError
    alpha    s = alpha/rank; None means alpha = rank, so that s = 1 (with rslora √rank: give alpha)
    dropout  the probability that an entry of the adapter's input, x in x Aᵀ, is zeroed in training
    rslora   s = alpha/√rank: with a given alpha, stable as the rank grows (arXiv 2312.03732)
    """

    def __init__(self, linear, rank, alpha=None, dropout=0.0, rslora=False):
        super().__init__()
        _check_fit(linear, rank, "this layer")
        alpha = rank if alpha is None else alpha
        self.scale = alpha / rank ** 0.5 if rslora else alpha / rank
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dropout = nn.Dropout(dropout)
        self.linear = linear.requires_grad_(False)
        W0 = linear.weight
        dtype = torch.promote_types(W0.dtype, torch.float32)  # bfloat16 would lose small steps
        A = torch.empty(rank, self.in_features, dtype=dtype, device=W0.device)
        B = torch.zeros(self.out_features, rank, dtype=dtype, device=W0.device)  # BA = 0 at first
        nn.init.kaiming_uniform_(A, a=5 ** 0.5)  # U(±1/√d_in), as their code; paper: Gaussian
        self.lora_A, self.lora_B = nn.Parameter(A), nn.Parameter(B)
        self.register_buffer("lora_A0", torch.zeros_like(A))  # LoRA-GA's start; else zero
        self.register_buffer("lora_B0", torch.zeros_like(B))
        self.register_parameter("unmerged_weight", None)  # linear's own, while merged
        self.train(linear.training)  # a new module starts in training mode: follow linear's instead

    def forward(self, x):
        """x (..., d_in) -> (..., d_out)."""
        if self.merged:
            return self.linear(x)
        A, B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        B_T = B.T.contiguous()  # for speed alone: 8 to 12 % of a step at width 256
        h = self.scale * (self.dropout(x) @ A.T)  # (..., r)
        return self.linear(x) + h @ B_T

    def delta(self):
        """What the adapter adds to the weight it was put on, s·(BA − B0A0) -> (d_out, d_in)."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return self.scale * (self.lora_B @ self.lora_A - self.lora_B0 @ self.lora_A0)

    @property
    def weight(self):
        """The effective weight W (d_out, d_in); unless merged, A and B train through it."""
        frozen = self.linear.weight
        if self.merged:
            return frozen
        with torch.autocast(frozen.device.type, enabled=False):  # it would round BA to bfloat16
            return (frozen + self.scale * self.lora_B @ self.lora_A).to(frozen.dtype)

    @property
    def bias(self):
        return self.linear.bias

    @torch.no_grad()
    def start_from(self, A0, B0):
        """For a fresh layer: A ← A0, B ← B0, and linear.weight ← W0 − s·B0A0, so that W stays."""
        W0 = self.linear.weight
        with torch.autocast(W0.device.type, enabled=False):
            moved = (W0 - self.scale * B0 @ A0).to(W0.dtype)
        self.linear.weight = nn.Parameter(moved, requires_grad=False)  # a tied twin stays W0
        factors = {"lora_A": A0, "lora_B": B0, "lora_A0": A0, "lora_B0": B0}
        self.load_state_dict(factors, strict=False)

    @property
    def merged(self):
        return self.unmerged_weight is not None

    def merge(self):
        """For inference: puts the effective weight into `linear`, whose own is kept. Idempotent."""
        if not self.merged:
            effective = nn.Parameter(self.weight, requires_grad=False)
            self.unmerged_weight = self.linear.weight  # kept: (W0 + s·BA) − s·BA rounds
            self.linear.weight = effective

    def unmerge(self):
        """Puts the unmerged weight back, bit for bit. Idempotent."""
        if self.merged:
            self.linear.weight = self.unmerged_weight
            self.unmerged_weight = None


def _check_fit(linear, rank, name, times=1):  # LoRA-GA needs `times` 2: directions for A, and for B
    W = linear.weight
    plain = type(W) is nn.Parameter and W.dtype.itemsize >= 2  # a quantised one may be a subclass
    if not plain or W.shape != (linear.out_features, linear.in_features):
        raise ValueError(f"{name} has a packed or quantised weight, or computes it: LoRA here "
                         "needs a plain parameter, of 16 bits or more")
    most = min(W.shape) // times
    if not 1 <= rank <= most:
        raise ValueError(f"rank {rank} does not fit {name}: allowed are 1 to {most}")


def apply_lora(model, rank=8, alpha=None, targets=("c_attn", "c_proj", "c_fc"), dropout=0.0,
               rslora=False, also_train=()):
    """Wraps the linear layers called `targets` in LoRALinear, in place, freezes the rest -> model.

    targets     the end of a layer's name, or several: "c_proj", or "attn.c_proj"
    also_train  modules, named likewise, to train in full (but for targets, and their tied twins)
    The other arguments are those of LoRALinear. ValueError, with the model unchanged, if it carries
    LoRA already, a name matches nothing, there is no target, or the rank or dropout does not fit.
    """
    if lora_layers(model):
        raise ValueError("apply_lora needs a model without LoRA: this one already carries it")
    modules = dict(model.named_modules(remove_duplicate=False))
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    chosen = _called(targets, linears, "target {!r} matches no linear layer: allowed are {} "
                     "(for GPT-2's Conv1D: huggingface.load_gpt2 loads it as linear layers)")
    in_full = _called(also_train, modules, "also_train {!r} matches no module: allowed are {}")
    if not chosen:
        raise ValueError("apply_lora needs at least one target")
    for linear, name in chosen.items():
        _check_fit(linear, rank, name)
    nn.Dropout(dropout)  # ValueError for what is no probability
    model.requires_grad_(False)
    for module in in_full:
        module.requires_grad_(True)
    _replace(model, {linear: LoRALinear(linear, rank, alpha, dropout, rslora) for linear in chosen})
    return model


def _called(ends, modules, otherwise):
    """Those of `modules` whose names end in one of `ends` -> {module: its name}."""
    found = {}
    for end in [ends] if isinstance(ends, str) else ends:
        names = [name for name in modules if name and f".{name}".endswith(f".{end}")]
        if not names:
            allowed = sorted({name.rpartition(".")[2] for name in modules if name})
            raise ValueError(otherwise.format(end, ", ".join(allowed)))
        found.update({modules[name]: name for name in names})
    return found


def _replace(model, replacements):
    """Puts replacements[module] in a module's place, under every name that the model has for it."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replacements:
            model.set_submodule(name, replacements[module])


def lora_layers(model):
    """The model's LoRA layers by name -> dict[str, LoRALinear]."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def merge_lora(model):
    """Merges every LoRA layer, in place."""
    for layer in lora_layers(model).values():
        layer.merge()


def unmerge_lora(model):
    """Unmerges every LoRA layer, in place."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def merge_and_unload(model):
    """Makes every LoRA layer a plain nn.Linear with the effective weight, in place -> model.

    Its keys are the base model's again. Weights stay frozen; one that was tied is separate now.
    """
    merge_lora(model)
    _replace(model, {layer: layer.linear for layer in lora_layers(model).values()})
    return model


def lora_plus_groups(model, lr, ratio=16.0):
    """LoRA+ (Hayou et al., arXiv 2402.12354): optimizer groups, B's at ratio · lr, all else at lr.

    A step of Adam moves each entry by about its rate. As ∇A follows x, ΔA·x adds up n = d_in terms;
    ΔB·(Ax) has only r. For both to learn as n grows, η_A = Θ(1/n) and η_B = Θ(1) (Theorem 1): no
    shared rate does, a constant ratio only delays the failure. The default 16 is the paper's for
    A = 0 and random B; for B = 0, as here, it found 4 to 8 (§5.3; 2 to 4 with Llama). 1 is LoRA.
    """
    layers = lora_layers(model).values()
    A = [layer.lora_A for layer in layers]
    B = [layer.lora_B for layer in layers]
    factors = set(A + B)
    others = [p for p in model.parameters() if p.requires_grad and p not in factors]
    rates = [(A, lr), (B, ratio * lr), (others, lr)]
    return [{"params": params, "lr": rate} for params, rate in rates if params]


def lora_ga_factors(G, rank, gamma=16.0):
    """LoRA-GA (Wang et al., arXiv 2407.05000, Algorithm 1): G = ∂L/∂W (d_out, d_in) -> A, B.

    G = U S Vᵀ    A = c·V[:, :r]ᵀ (r, d_in)    B = c·U[:, r:2r] (d_out, r)    c = d_out^¼ / √gamma
    B takes the next r directions, not A's, so that a first step covers 2r (see `lora_ga_init`); c,
    with s = α/√r (rslora), makes the norm ‖s·BA‖_F = α·√d_out/gamma at every rank.
    """
    U, V = top_singular_vectors(G, 2 * rank)
    c = len(G) ** 0.25 / gamma ** 0.5
    return c * V[:, :rank].T, c * U[:, rank:]


def lora_ga_init(model, batches, loss_fn, gamma=16.0):
    """LoRA-GA: starts A and B along the gradient; the outputs stay, but for dropout and rounding.

    G sums the gradients of the batches, any iterable; loss_fn(model, batch) -> a scalar tensor.
    Each layer starts from `lora_ga_factors`, with s·BA taken out of its frozen weight. A small
    first gradient step on these batches moves W along G's best rank-2r approximation (Theorem 3.1):
        −η s² (BBᵀG + GAᵀA) = −η s² c² Σ_{i≤2r} σᵢ uᵢ vᵢᵀ        with one rate η for A and B
    Call it once, after apply_lora(..., rslora=True), and train without weight decay, which would
    pull W away from W0. A layer without a gradient keeps LoRA's start, with a warning. ValueError,
    the model unchanged: no LoRA layer, G zero or not finite, 2r > min(d_in, d_out), B ≠ 0, merged.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("LoRA-GA needs a model with LoRA layers")
    for name, layer in layers.items():
        if layer.merged or layer.lora_B.any():
            raise ValueError(f"LoRA-GA needs a fresh adapter: {name} is trained, started or merged")
        _check_fit(layer.linear, len(layer.lora_A), f"{name} with LoRA-GA", times=2)
    gradients = _summed_gradients(layers, model, batches, loss_fn)
    largest = {name: G.abs().max().item() for name, G in gradients.items()}
    if not all(size < float("inf") for size in largest.values()) or not any(largest.values()):
        raise ValueError("LoRA-GA needs finite gradients, not all zero: see batches, loss_fn")
    for name, layer in layers.items():
        if largest.get(name, 0) > 0:
            G = gradients[name].to(layer.lora_A.device)
            layer.start_from(*lora_ga_factors(G, len(layer.lora_A), gamma))
        else:
            warnings.warn(f"LoRA-GA: {name} has no gradient, and keeps LoRA's start")


def _summed_gradients(layers, model, batches, loss_fn):
    """G = Σ ∂L/∂W over the batches, in the CPU's memory -> {name: G (d_out, d_in)}."""
    weights = {name: layer.linear.weight for name, layer in layers.items()}
    leaves = {nn.Parameter(W.detach()): name for name, W in weights.items()}  # apart from tied ones
    gradients = {}
    def add(W):  # within backward, so that the device holds one layer's gradient at a time
        G = W.grad.to("cpu", torch.promote_types(W.dtype, torch.float32))
        gradients[leaves[W]] = G.add_(gradients.get(leaves[W], 0))
        W.grad = None

    try:
        for W, name in leaves.items():
            layers[name].linear.weight = W
            W.register_post_accumulate_grad_hook(add)
        for batch in batches:
            with torch.enable_grad():
                loss = loss_fn(model, batch)
            with torch.autocast(loss.device.type, enabled=False):
                loss.backward(inputs=list(leaves))
    finally:
        for name, layer in layers.items():
            layer.linear.weight = weights[name]
    return gradients


def top_singular_vectors(G, k):
    """The singular vectors of G's k largest singular values -> U (d_out, k), V (d_in, k).

    Exact if G's smaller side is at most 512. Beyond, a randomised sketch (Halko et al., arXiv
    0909.4061): LoRA-GA's first step keeps 0.99 of the best cosine with G; on white noise, 0.96.
    """
    with torch.autocast(G.device.type, enabled=False):
        if min(G.shape) <= max(512, 2 * k):
            U, _, Vh = torch.linalg.svd(G, full_matrices=False)
            V = Vh.T
        else:
            U, _, V = torch.svd_lowrank(G, q=2 * k, niter=3)
    U, V = U[:, :k], V[:, :k]
    largest = V.abs().argmax(dim=0, keepdim=True)  # (1, k)
    signs = V.gather(0, largest).sign()  # free in an SVD, but BA pairs uᵣ₊ᵢ with vᵢ: fix them
    return U * signs, V * signs


def precondition(grads_A, grads_B, factors_A, factors_B, damping=1e-6):
    """The Riemannian preconditioner (Zhang & Pilanci, arXiv 2402.02347, Algorithm 1):

        ∇A ← (BᵀB + δI)⁻¹ ∇A    ∇B ← ∇B (AAᵀ + δI)⁻¹    δ = max(damping, 4·eps·trace)

    A small step η of gradient descent then moves W, as δ → 0, by −η s² (P_col(B) G + G P_row(A)):
    G projected onto B's columns, plus G projected onto A's rows. 10B and A/10 make the same BA, and
    now take the same step (if their rank is r), however large; plain descent's steps differ.
    Lists for n layers of one rank: A's (r, d_in), B's (d_out, r), a gradient or None -> new lists.
    """
    grams = torch.stack([B.T @ B for B in factors_B] + [A @ A.T for A in factors_A])  # (2n, r, r)
    trace = grams.diagonal(dim1=1, dim2=2).sum(dim=1)  # (2n,)
    rounding = 4 * torch.finfo(grams.dtype).eps * trace  # 4: a margin; less inverts noise
    delta = rounding.clamp(min=damping)[:, None, None]
    I = torch.eye(grams.shape[1], dtype=grams.dtype, device=grams.device)
    L = torch.linalg.cholesky_ex(grams + delta * I).L  # _ex: a GPU need not wait for its verdict
    for_A, for_B = torch.cholesky_inverse(L).chunk(2)  # (n, r, r) each
    new_A = [None if grad is None else inverse @ grad for inverse, grad in zip(for_A, grads_A)]
    new_B = [None if grad is None else grad @ inverse for inverse, grad in zip(for_B, grads_B)]
    return new_A, new_B


@torch.no_grad()
def precondition_gradients(model, damping=1e-6):
    """`precondition` for every .grad of a LoRA layer, in one call for all layers of one rank."""
    alike = {}
    for layer in lora_layers(model).values():
        A, B = layer.lora_A, layer.lora_B
        alike.setdefault((len(A), A.dtype, A.device), []).append((A, B))
    for pairs in alike.values():
        As, Bs = zip(*pairs)
        with torch.autocast(As[0].device.type, enabled=False):
            new_A, new_B = precondition([A.grad for A in As], [B.grad for B in Bs], As, Bs, damping)
        for factor, grad in zip(As + Bs, new_A + new_B):
            factor.grad = grad


def attach_preconditioner(optimizer, model, damping=1e-6):
    """Preconditions in every optimizer.step(), after any clipping -> a handle to remove() it by."""
    def before_step(optimizer, args, kwargs):
        if any(argument is not None for argument in (*args[1:], *kwargs.values())):
            raise ValueError("the preconditioner needs optimizer.step() without a closure")
        precondition_gradients(model, damping)

    return optimizer.register_step_pre_hook(before_step)


def adapter_state_dict(model):
    """What trains, to be put on the untouched base model -> {key: tensor on the CPU}.

    "<layer>.lora_A" (r, d_in), "<layer>.lora_B" (d_out, r), "<layer>.scale", and others by their
    names. After LoRA-GA the factors are [A; A0] and [B, −B0] of rank 2r, with product BA − B0A0.
    """
    state = {}
    for name, layer in lora_layers(model).items():
        A, B = layer.lora_A, layer.lora_B
        if layer.lora_B0.any():
            A = torch.cat((A, layer.lora_A0))
            B = torch.cat((B, -layer.lora_B0), dim=1)
        state[f"{name}.lora_A"] = A
        state[f"{name}.lora_B"] = B
        state[f"{name}.scale"] = torch.tensor(layer.scale, dtype=torch.float64)
    for name, p in model.named_parameters():
        if p.requires_grad and not name.endswith((".lora_A", ".lora_B")):
            state[name] = p
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def load_adapter(model, state):
    """Puts what adapter_state_dict gave on the untouched base model, in place -> model.

    LoRA layers already there go. What the file holds can train on, without dropout; the rest is
    frozen. ValueError, the model unchanged: no fit, or LoRA layers are merged or LoRA-GA's.
    """
    present = lora_layers(model).values()
    if any(layer.merged or layer.lora_B0.any() for layer in present):
        raise ValueError("load_adapter needs the untouched base, not merged and not after LoRA-GA")
    adapters, in_full = {}, {}
    for key, value in state.items():
        name, _, part = key.rpartition(".")
        try:
            module = model.get_submodule(name)
            base = module.linear if isinstance(module, LoRALinear) else module
            if f"{name}.lora_A" in state and part in ("lora_A", "lora_B", "scale"):
                A, B = state[f"{name}.lora_A"], state[f"{name}.lora_B"]
                adapters[module] = base, A, B, state[f"{name}.scale"].item()
                fits = (len(B), A.shape[1]) == base.weight.shape and B.shape[1] == len(A)
                _check_fit(base, len(A), name)
            else:
                in_full[key] = base.get_parameter(part)
                fits = value.shape == in_full[key].shape
        except (AttributeError, KeyError, IndexError, RuntimeError, TypeError):
            fits = False
        if not fits:
            raise ValueError(f"the adapter does not fit the model at {key}")
    if not adapters:
        raise ValueError("the adapter does not fit the model: it has no LoRA layer")
    model.requires_grad_(False)
    replacements = {layer: layer.linear for layer in present}
    for module, (linear, A, B, scale) in adapters.items():
        layer = LoRALinear(linear, rank=len(A))
        layer.load_state_dict({"lora_A": A, "lora_B": B}, strict=False)
        layer.scale = scale
        replacements[module] = layer
    _replace(model, replacements)
    for key, parameter in in_full.items():
        parameter.requires_grad_(True).data.copy_(state[key])
    return model
