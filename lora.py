"""Low-rank adaptation in one file: LoRA, LoRA+, LoRA-GA and the Riemannian preconditioner.

LoRA adds to each frozen weight W (d_out, d_in), as in nn.Linear, the product of two thin factors B (d_out, r)
and A (r, d_in), and trains only those. The others mend one thing each, and combine: LoRA+ the learning rates,
LoRA-GA the start, preconditioning the gradients.

    apply_lora(model, rank=8, rslora=True)       # LoRA: W = W0 + s·BA, in every layer called c_attn, ...
    lora_ga_init(model, batches, loss_fn)        # LoRA-GA (optional)
    groups = lora_plus_groups(model, lr=1e-3)    # LoRA+ (optional)
    optimizer = torch.optim.AdamW(groups)
    attach_preconditioner(optimizer, model)      # the preconditioner (optional)
"""
import torch
import torch.nn as nn


class LoRALinear(nn.Module):
    """LoRA (Hu et al., arXiv 2106.09685, eq. 3): a frozen layer plus a low-rank term, x W0ᵀ + b + s·x AᵀBᵀ.

    linear   the nn.Linear to wrap; it is frozen in place
    rank     r, from 1 to min(d_in, d_out), else ValueError
    alpha    s = alpha/rank; None means alpha = rank, so s is 1 (√rank with rslora)
    dropout  the share of the adapter's inputs to drop; the frozen layer always sees all of x
    rslora   s = alpha/√rank: with one alpha for all ranks, the output keeps its size (arXiv 2312.03732)
    """

    def __init__(self, linear, rank, alpha=None, dropout=0.0, rslora=False):
        super().__init__()
        d_out, d_in = linear.weight.shape
        _check_rank(rank, min(d_out, d_in), "this layer")
        self.dropout = nn.Dropout(dropout).train(linear.training)
        self.linear = linear.requires_grad_(False)
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)  # bfloat16 would lose small steps
        self.lora_A = nn.Parameter(linear.weight.new_empty(rank, d_in, dtype=dtype))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(d_out, rank, dtype=dtype))  # zero: it starts at W0
        nn.init.kaiming_uniform_(self.lora_A, a=5 ** 0.5)  # U(−1/√d_in, 1/√d_in), as in the authors' code
        self.rslora = rslora
        self.scale = (rank if alpha is None else alpha) / (rank ** 0.5 if rslora else rank)
        self.register_buffer("lora_A0", None)  # the factors that `start_from` took out of the weight
        self.register_buffer("lora_B0", None)
        self.register_parameter("unmerged_weight", None)

    def forward(self, x):
        """x (..., d_in) -> (..., d_out)."""
        if self.merged:
            return self.linear(x)
        rows = x.reshape(-1, x.shape[-1])  # (N, d_in)
        y = self.linear(rows)
        A, B = self.lora_A.to(x.dtype), self.lora_B.to(y.dtype)
        h = self.dropout(rows) @ A.T  # (N, r)
        # A copy of Bᵀ has autograd find B's gradient as hᵀ∇y, not the slow (∇y)ᵀh: 12 % of a step at 256 wide.
        y.addmm_(h, B.T.contiguous(), alpha=self.scale)
        return y.view(x.shape[:-1] + y.shape[-1:])

    def factors(self):
        """A and B such that delta = s·BA; after `start_from` they are [A; A0] and [B, −B0], of rank 2r."""
        if self.lora_A0 is None:
            return self.lora_A, self.lora_B
        return torch.cat((self.lora_A, self.lora_A0)), torch.cat((self.lora_B, -self.lora_B0), dim=1)

    def delta(self):
        """What the adapter adds to the original weight W0 -> (d_out, d_in)."""
        A, B = self.factors()
        return self.scale * (B @ A)

    @torch.no_grad()
    def start_from(self, A0, B0):
        """A = A0, B = B0 and linear.weight = W0 − s·B0A0: the same layer but for dropout and rounding."""
        self.lora_A0, self.lora_B0 = self.lora_A.copy_(A0).clone(), self.lora_B.copy_(B0).clone()
        self.linear.weight = self._weight_plus(-self.scale)

    merged = property(lambda self: self.unmerged_weight is not None)

    def merge(self):
        """Adds s·BA to the weight, so that the layer costs one plain linear; does nothing if merged."""
        if not self.merged:
            self.unmerged_weight = self.linear.weight  # kept: W + s·BA − s·BA is not exactly W
            self.linear.weight = self._weight_plus(self.scale)

    def unmerge(self):
        """Puts the unmerged weight back, bit for bit; does nothing if not merged."""
        if self.merged:
            self.linear.weight, self.unmerged_weight = self.unmerged_weight, None

    @torch.no_grad()
    def _weight_plus(self, scale):  # a new Parameter: a weight tied to the old one must not move with it
        weight = torch.addmm(self.linear.weight.to(self.lora_A.dtype), self.lora_B, self.lora_A, alpha=scale)
        return nn.Parameter(weight.to(self.linear.weight.dtype), requires_grad=False)


def _check_rank(rank, most, name):
    if not 1 <= rank <= most:
        raise ValueError(f"rank {rank} does not fit {name}: allowed are 1 to {most}")


def apply_lora(model, rank=8, alpha=None, targets=("c_attn", "c_proj", "c_fc"), dropout=0.0, rslora=False):
    """Wraps the linear layers called `targets` in LoRALinear, in place, and freezes everything else -> model.

    A target is the end of a layer's name: "c_proj", or "attn.c_proj". ValueError, with the model unchanged,
    if it carries LoRA already, a target matches no linear layer, or the rank does not fit one of the layers.
    """
    if layers := lora_layers(model):
        raise ValueError(f"apply_lora needs a model without LoRA: {next(iter(layers))} already carries it")
    linears, chosen = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}, {}
    for target in targets or [""]:  # "" matches nothing
        matches = {name: linear for name, linear in linears.items() if f".{name}".endswith(f".{target}")}
        if not matches:
            raise ValueError(f"target {target!r} matches no linear layer: allowed are "
                             + ", ".join(sorted({name.rpartition(".")[2] for name in linears})))
        chosen |= matches
    for name, linear in chosen.items():
        _check_rank(rank, min(linear.weight.shape), name)
    wrapped = {name: LoRALinear(linear, rank, alpha, dropout, rslora) for name, linear in chosen.items()}
    model.requires_grad_(False)
    for name, layer in wrapped.items():
        model.set_submodule(name, layer)
    return model


def lora_layers(model):
    """The model's LoRA layers by name -> dict[str, LoRALinear]."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def merge_lora(model):
    """Merges every LoRA layer, in place."""
    for layer in lora_layers(model).values():
        layer.merge()


def unmerge_lora(model):
    """Unmerges every LoRA layer, in place."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def lora_plus_groups(model, lr, ratio=16.0):
    """LoRA+ (Hayou et al., arXiv 2402.12354): optimizer groups with A at lr and B at ratio · lr.

    With one rate for both, what the model learns through B vanishes as it grows wider (the ratio, the paper's
    λ, is to grow as the width; 16 is what the authors found good). Ratio 1 is LoRA. Other trainable parameters
    form a third group, at lr. -> list[dict]
    """
    layers = lora_layers(model).values()
    A, B = [layer.lora_A for layer in layers], [layer.lora_B for layer in layers]
    others = [p for p in model.parameters() if p.requires_grad and p not in set(A + B)]
    groups = [{"params": A, "lr": lr}, {"params": B, "lr": ratio * lr}, {"params": others, "lr": lr}]
    return [group for group in groups if group["params"]]


def lora_ga_init(model, batches, loss_fn, gamma=16.0):
    """LoRA-GA (Wang et al., arXiv 2407.05000): starts A and B along the gradient, without changing the model.

    With G = ∂L/∂W0 = U S Vᵀ over all batches (Algorithm 1; their sum has their mean's singular vectors):
        A = c · V[:, :r]ᵀ    B = c · U[:, r:2r]    c = d_out^¼ / √gamma    W0 ← W0 − s·BA
    The first step η of gradient descent then moves W, to first order, by a multiple of the best rank-2r
    approximation of G (Theorem 3.1):    −η s² (G AᵀA + BBᵀ G) = −η s² c² Σ_{i≤2r} σᵢ uᵢ vᵢᵀ
    Call it once, after apply_lora(..., rslora=True): at this, the paper's scale, one alpha serves all ranks
    (Theorem 3.2). loss_fn(model, batch) -> a scalar tensor. With torch.distributed, every process calls it, on
    the bare model, with its share of each batch and loss. ValueError, with the model unchanged: no layers or
    batches, 2r > min(d_in, d_out), an adapter merged or trained, a gradient missing, zero or not finite.
    """
    layers, batches = lora_layers(model), list(batches)
    if not layers or not batches:
        raise ValueError("LoRA-GA needs a model with LoRA layers, and at least one batch")
    for name, layer in layers.items():
        if layer.lora_A0 is not None or layer.merged or layer.lora_B.any():
            raise ValueError(f"LoRA-GA needs a fresh adapter: {name} is initialised, trained or merged")
        _check_rank(len(layer.lora_A), min(layer.linear.weight.shape) // 2, f"{name} with LoRA-GA")
    svds = _gradient_svds(layers, model, batches, loss_fn)
    for name in layers:
        if name not in svds or not svds[name][1].any():
            raise ValueError(f"LoRA-GA needs a gradient that is finite and not zero: {name} has none")
    for name, layer in layers.items():
        U, _, V = svds[name]
        r, c = len(layer.lora_A), len(U) ** 0.25 / gamma ** 0.5
        layer.start_from(c * V[:, :r].T, c * U[:, r:2 * r])


def truncated_svd(G, k):
    """The k largest singular values of G, or all, and their vectors -> U (d_out, k), S (k,), V (d_in, k).

    Exact up to 512 wide; beyond, by a randomised sketch (Halko et al., arXiv 0909.4061), many times faster: it
    costs LoRA-GA's first step less than 1 % of its cosine (test_lora.py; 3 to 5 % for a gradient of white noise).
    """
    if min(G.shape) > max(512, 2 * k):
        U, S, V = torch.svd_lowrank(G, q=2 * k, niter=3)
    else:
        U, S, Vh = torch.linalg.svd(G, full_matrices=False)
        V = Vh.T
    U, S, V = U[:, :k], S[:k], V[:, :k]
    signs = V.gather(0, V.abs().argmax(dim=0, keepdim=True)).sign()  # (1, k); else rounding decides
    return U * signs, S, V * signs


def _gradient_svds(layers, model, batches, loss_fn):
    """Σ ∂L/∂W0 over the batches, as truncated SVDs; one gradient in memory at a time -> {name: (U, S, V)}."""
    weights, svds = {name: layer.linear.weight for name, layer in layers.items()}, {}

    def collect(name, W):  # called within backward, once a layer's gradient is there
        G, W.grad = W.grad.to(layers[name].lora_A.dtype), None  # (d_out, d_in)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(G)  # every process has its share of the batch
        if name in svds:
            U, S, V = svds[name]
            G.addmm_(U * S, V.T)
        if not G.sum().isfinite():  # many times faster than to ask each number
            raise ValueError(f"LoRA-GA needs a gradient that is finite and not zero: {name} has none")
        r = len(layers[name].lora_A)
        svds[name] = truncated_svd(G, 2 * r if count == len(batches) else 4 * r)  # more, while it is a sum

    try:
        for name, layer in layers.items():  # leaves of their own: G is without other uses of a tied weight
            layer.linear.weight = nn.Parameter(weights[name].detach())
            layer.linear.weight.register_post_accumulate_grad_hook(lambda W, name=name: collect(name, W))
        leaves = [layer.linear.weight for layer in layers.values()]
        with torch.enable_grad(), torch.random.fork_rng({W.device for W in leaves if W.is_cuda}):
            for count, batch in enumerate(batches, start=1):
                loss_fn(model, batch).backward(inputs=leaves)
    finally:
        for name, layer in layers.items():
            layer.linear.weight = weights[name]
    return svds


@torch.no_grad()
def precondition_gradients(model, damping=1e-6):
    """The Riemannian preconditioner (Zhang & Pilanci, arXiv 2402.02347, Algorithm 1) of every .grad:

        ∇A ← (BᵀB + δI)⁻¹ ∇A    ∇B ← ∇B (AAᵀ + δI)⁻¹    δ = damping > 0 (see inverse_grams)

    A small gradient step η then moves W, as δ → 0, by −η s² (P_col(B) G + G P_row(A)), however BA is split (P
    projects onto B's columns, A's rows). Both metrics predate the step; factors without .grad are skipped.
    """
    alike = {}
    for layer in lora_layers(model).values():
        A, B = layer.lora_A, layer.lora_B
        alike.setdefault((len(A), A.dtype, A.device), []).append((A, B))
    for (_, dtype, _), pairs in alike.items():
        inverses = inverse_grams([B.T for _, B in pairs] + [A for A, _ in pairs], damping).to(dtype)
        for (A, B), for_A, for_B in zip(pairs, *inverses.chunk(2)):
            if A.grad is not None:
                A.grad = for_A @ A.grad
            if B.grad is not None:
                B.grad = B.grad @ for_B


def inverse_grams(factors, damping):
    """(MMᵀ + δI)⁻¹ of n matrices M (r, d) -> (n, r, r); δ is `damping`, or MMᵀ's rounding error if larger."""
    factors = [M.float() if M.dtype.itemsize < 4 else M for M in factors]  # half precision is not enough
    grams = torch.stack([M @ M.T for M in factors])
    diagonals = grams.diagonal(dim1=1, dim2=2)  # (n, r), a view
    rounding = 4 * torch.finfo(grams.dtype).eps * diagonals.sum(dim=1, keepdim=True)  # for Cholesky
    diagonals += rounding.clamp(min=damping)
    return torch.cholesky_inverse(torch.linalg.cholesky(grams))


def attach_preconditioner(optimizer, model, damping=1e-6):
    """Preconditions before every optimizer.step(), after any clipping -> a handle; ValueError for closures."""
    def before_step(optimizer, args, kwargs):
        if any(argument is not None for argument in (*args[1:], *kwargs.values())):  # args[0]: the optimizer
            raise ValueError("the preconditioner needs an optimizer whose step takes no closure")
        precondition_gradients(model, damping)

    return optimizer.register_step_pre_hook(before_step)


def adapter_state_dict(model):
    """The adapter alone -> {"<layer>.lora_A", "<layer>.lora_B", "<layer>.scale": tensor}.

    Always relative to the untouched base model: after LoRA-GA the factors have rank 2r (LoRALinear.factors).
    """
    state = {}
    for name, layer in lora_layers(model).items():
        A, B = layer.factors()
        scale = torch.tensor(layer.scale, dtype=torch.float64)
        state |= {f"{name}.lora_A": A, f"{name}.lora_B": B, f"{name}.scale": scale}
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def load_adapter(model, state):
    """Puts a saved adapter on the untouched base model, in place, and freezes everything else -> model.

    LoRA layers already there are replaced. ValueError for an adapter that does not fit, or a changed base.
    """
    layers, adapters = lora_layers(model), {}
    if any(layer.merged or layer.lora_A0 is not None for layer in layers.values()):
        raise ValueError("load_adapter needs the untouched base model, not a merged one or one after LoRA-GA")
    for name in [key.removesuffix(".lora_A") for key in state if key.endswith(".lora_A")] or [""]:
        try:
            linear = layers[name].linear if name in layers else model.get_submodule(name)
            adapter = adapters[name] = LoRALinear(linear, rank=len(state[f"{name}.lora_A"]))
            adapter.load_state_dict({f: state[f"{name}.{f}"] for f in ("lora_A", "lora_B")}, strict=False)
            adapter.scale = float(state[f"{name}.scale"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the adapter does not fit the model at {name or 'any layer'}") from error
    model.requires_grad_(False)
    for name, module in ({name: layer.linear for name, layer in layers.items()} | adapters).items():
        model.set_submodule(name, module)
    return model
