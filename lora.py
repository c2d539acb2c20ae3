"""Low-rank adaptation in one file: LoRA, LoRA+, LoRA-GA and the Riemannian preconditioner.

LoRA freezes a model. Beside some of its weights W0 (d_out, d_in) it trains two thin factors,
B (d_out, r) and A (r, d_in). These layers then compute with W0 + s·BA, where s is a constant.
Three later papers each improve one part: LoRA+ the learning rates, LoRA-GA the start, the
Riemannian preconditioner the gradients. The helpers that they use stand at the end of the file.
Start with LoRA alone:

    apply_lora(model, rank=8, targets=["q_proj", "v_proj"])   # the ends of the layers' names
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    ...                                                       # any training loop
    torch.save(adapter_state_dict(model), "adapter.pt")       # small; load_adapter reads it
"""
import contextlib
import functools
import warnings

import torch
import torch.nn as nn

# ==== LoRA ========================================================================================


class LoRALinear(nn.Module):
    """LoRA (Hu et al., arXiv 2106.09685, eq. 3): y = x W0ᵀ + b + s · (x Aᵀ) Bᵀ, W0 and b frozen.

    Write W = W0 + s·BA and G = ∂L/∂W. Then ∂L/∂A = s BᵀG and ∂L/∂B = s GAᵀ.
    A small step η of gradient descent therefore moves W by −η s² (BBᵀG + GAᵀA).

    linear   the nn.Linear to wrap; it is frozen in place
    rank     r, from 1 to min(d_in, d_out)
    alpha    s = alpha/rank, or alpha/√rank with rslora; None means alpha = rank
    dropout  probability with which an entry of x in x Aᵀ is zeroed in training
    rslora   at a fixed alpha a larger rank then does not learn more slowly (Kalajdzievski, arXiv
             2312.03732)
    Raises ValueError for a rank that does not fit, or a layer that is not a plain nn.Linear.
    """

    def __init__(self, linear, rank, alpha=None, dropout=0.0, rslora=False):
        super().__init__()
        check_linear(linear, rank, "the layer")
        self.dropout = nn.Dropout(dropout)
        self.linear = linear.requires_grad_(False)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        alpha = rank if alpha is None else alpha
        self.scale = alpha / rank**0.5 if rslora else alpha / rank

        # The factors are float32 also where W0 is bfloat16, which would lose small steps.
        W0 = linear.weight
        like_W0 = {"dtype": torch.promote_types(W0.dtype, torch.float32), "device": W0.device}
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, **like_W0))
        self.lora_B = nn.Parameter(torch.empty(linear.out_features, rank, **like_W0))

        # LoRA-GA's start, after which linear.weight is W0 − s·B0A0. Without LoRA-GA both are zero.
        self.register_buffer("lora_A0", torch.empty_like(self.lora_A))
        self.register_buffer("lora_B0", torch.empty_like(self.lora_B))
        self.unmerged_weight = None  # merge() keeps the old linear.weight here; .to() moves it too
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(load_base_weight)  # a base model's keys load too
        self.train(linear.training)  # a new module is in training mode

    @torch.no_grad()
    def reset_parameters(self):
        """A random as in the authors' code (their paper has a Gaussian), B zero, so that BA = 0.

        Not for use after LoRA-GA: linear.weight would stay W0 − s·B0A0.
        """
        # FSDP2 splits lora_A over the processes: draw all of A, then keep this process's part.
        # Without FSDP2 `whole` and `sharded_like` do nothing.
        A = torch.empty_like(whole(self.lora_A))
        nn.init.kaiming_uniform_(A, a=5**0.5)  # U(−1/√d_in, 1/√d_in)
        self.lora_A.copy_(sharded_like(self.lora_A, A))
        for zero in (self.lora_B, self.lora_A0, self.lora_B0):
            nn.init.zeros_(zero)

    def forward(self, x):
        """x (..., d_in) -> (..., d_out)."""
        y = self.linear(x)  # frozen; if merged, s·BA is in its weight
        if not self.merged:
            A, B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
            B_T = B.T.contiguous()  # a copy, for speed alone: 8 to 12 % of a step on a CPU
            y = y + self.scale * (self.dropout(x) @ A.T) @ B_T
        return y

    __jit_unused_properties__ = ["weight", "bias"]  # torch.jit.script cannot compile them

    @property
    def weight(self):
        """The effective weight W (d_out, d_in), for merge() and for nn.MultiheadAttention.

        It is computed when it is read. A and B train through it, without dropout. Writing into it
        is lost.
        """
        frozen = self.linear.weight
        if self.merged:
            return frozen
        with no_autocast(frozen):
            return (frozen + self.scale * self.lora_B @ self.lora_A).to(frozen.dtype)

    @property
    def bias(self):
        return self.linear.bias

    def delta(self):
        """What the adapter adds to the original weight, s·(BA − B0A0), (d_out, d_in)."""
        A, B = whole(self.lora_A), whole(self.lora_B)  # FSDP2 does not split buffers like A0 and B0
        with no_autocast(A):
            return self.scale * (B @ A - self.lora_B0 @ self.lora_A0)

    @property
    def merged(self):
        return self.unmerged_weight is not None

    def merge(self):
        """Puts the effective weight into `linear`; inference is then one layer. Idempotent.

        Unmerge before state_dict(), which would hold the merged weight and the factors as well.
        """
        if not self.merged:
            check_plain(self.linear.weight, "the layer")
            effective = nn.Parameter(self.weight, requires_grad=False)
            self.unmerged_weight = self.linear.weight  # kept, since (W0 + s·BA) − s·BA rounds
            self.linear.weight = effective

    def unmerge(self):
        """Puts the weight from before merge() back, bit for bit. Idempotent."""
        if self.merged:
            self.linear.weight = self.unmerged_weight
            self.unmerged_weight = None


# ==== LoRA+ =======================================================================================


def lora_plus_groups(model, lr, ratio=16.0):
    """LoRA+ (Hayou et al., arXiv 2402.12354): optimizer groups with B's rate at ratio · lr.

    A and everything else that trains get lr.
    Take one example x, with g = ∂L/∂y for the layer's output y. Then ∇A = s (Bᵀg) xᵀ and
    ∇B = s g (Ax)ᵀ, and a step moves the output by s (B ΔA x + ΔB A x). Adam moves each entry by
    about its learning rate η, against the sign of its gradient. So each entry of ΔA x is ±η Σ|xⱼ|,
    d_in terms of one sign, and each entry of ΔB (Ax) a sum of only r terms. To keep ΔA x of order
    1, a shared rate has to be of order 1/d_in. Then ΔB (Ax) vanishes in wide layers. Both learn if
    A's rate is of order 1/d_in and B's of order 1 (Theorem 1). A constant ratio does not cure this:
    B's update still vanishes, only at a larger width.

    ratio  1 is LoRA. The paper used 16 (the default here) where A starts at zero and B random.
           Where B starts at zero, as here, it found 4 to 8 on RoBERTa and 2 to 4 on Llama.
    """
    layers = lora_layers(model).values()
    A = [layer.lora_A for layer in layers]
    B = [layer.lora_B for layer in layers]
    factors = set(A + B)
    others = [p for p in model.parameters() if p.requires_grad and p not in factors]
    rates = [(A, lr), (B, ratio * lr), (others, lr)]
    return [{"params": params, "lr": rate} for params, rate in rates if params]


# ==== LoRA-GA =====================================================================================


def lora_ga_factors(G, rank, gamma=16.0):
    """LoRA-GA (Wang et al., arXiv 2407.05000, Algorithm 1): G = ∂L/∂W (d_out, d_in) -> A, B.

        G = U S Vᵀ    A = c·V[:, :r]ᵀ (r, d_in)    B = c·U[:, r:2r] (d_out, r)    c = d_out^¼/√gamma

    B takes the r directions after A's, so that a first step covers 2r of them (see lora_ga_init).
    With s = alpha/√r (rslora) the Frobenius norm of s·BA is alpha·√d_out/gamma at every rank.
    """
    U, V = top_singular_vectors(G, 2 * rank)
    c = G.shape[0] ** 0.25 / gamma**0.5
    return c * V[:, :rank].T, c * U[:, rank:]


def top_singular_vectors(G, k):
    """The singular vectors of G's k largest singular values -> U (d_out, k), V (d_in, k).

    Exact if G's smaller side is at most 512. Beyond, a randomised sketch with 2k columns (Halko et
    al., arXiv 0909.4061). Measured: the cosine of LoRA-GA's first step with −G is then 1 % below
    the best possible if G's singular values decay, and 2 to 7 % below it if G is white noise.
    """
    with no_autocast(G):
        if min(G.shape) <= max(512, 2 * k):
            U, _, Vh = torch.linalg.svd(G, full_matrices=False)
            V = Vh.T
        else:
            U, _, V = torch.svd_lowrank(G, q=2 * k, niter=3)
    U, V = U[:, :k], V[:, :k]

    # An SVD may return (−u, −v) for (u, v), on another machine for instance. BA pairs the u of one
    # triple with the v of another, so that would change it: make each v's largest entry positive.
    largest = V.abs().argmax(dim=0, keepdim=True)  # (1, k)
    signs = V.gather(0, largest).sign()
    return U * signs, V * signs


def lora_ga_init(model, batches, loss_fn, gamma=16.0):
    """LoRA-GA: starts A and B along the gradient; what the model computes stays, up to rounding.

    Call it once, after apply_lora(..., alpha=..., rslora=True). Train without weight decay: it
    would shrink BA to zero, and so W to W0 − s·B0A0.

    G is the sum of the gradients of the batches. A small first step of gradient descent, on these
    batches and with one rate η for A and B, moves W along the best rank-2r approximation of −G
    (Theorem 3.1), since AᵀA = c² Σ_{i≤r} vᵢvᵢᵀ and BBᵀ = c² Σ_{r<i≤2r} uᵢuᵢᵀ:

        −η s² (BBᵀG + GAᵀA) = −η s² c² Σ_{i≤2r} σᵢ uᵢ vᵢᵀ

    batches, loss_fn  an iterable, and loss_fn(model, batch) -> a scalar. With several processes
                      give each the same batches and the same random seed
    gamma             the larger, the smaller the factors
    A tied weight becomes two. Keep the other layer frozen: load_adapter would tie them again.
    Activation checkpointing needs use_reentrant=False.
    A layer without a gradient keeps LoRA's start, with a warning. Raises ValueError, with the model
    unchanged, if there is no LoRA layer; if 2r > min(d_in, d_out); if the adapter has been trained,
    started or merged; if the loss is no scalar; if the gradients are not finite or all zero.
    """
    layers = lora_layers(model)
    if not gamma > 0:
        raise ValueError(f"LoRA-GA needs a gamma above 0, not {gamma}")
    if not layers:
        raise ValueError("LoRA-GA needs a model with LoRA layers: call apply_lora first")
    for name, layer in layers.items():
        if layer.merged or layer.lora_B.any():
            raise ValueError(f"LoRA-GA needs a fresh adapter: {name} is trained, started or merged")
        check_plain(layer.linear.weight, name)
        rank, most = len(layer.lora_A), min(layer.linear.weight.shape) // 2
        if rank > most:
            raise ValueError(f"LoRA-GA needs 2 · rank directions: rank {rank} does not fit {name}, "
                             f"allowed are 1 to {most}")

    gradients = summed_gradients(model, batches, loss_fn)
    if not all(G.isfinite().all() for G in gradients.values()):
        raise ValueError("LoRA-GA needs finite gradients: check batches and loss_fn")
    if not any(G.any() for G in gradients.values()):
        raise ValueError("LoRA-GA needs a gradient that is not zero: check batches and loss_fn")

    for name, layer in layers.items():
        if name in gradients and gradients[name].any():
            G = gradients[name].to(layer.lora_A.device)
            start_from(layer, *lora_ga_factors(G, len(layer.lora_A), gamma))
        else:
            warnings.warn(f"LoRA-GA: {name} has no gradient and keeps LoRA's start")


@torch.no_grad()
def start_from(layer, A0, B0):
    """Starts a fresh layer at A0 and B0. linear.weight becomes W0 − s·B0A0, so that W stays."""
    layer.lora_A.copy_(A0)
    layer.lora_A0.copy_(A0)
    layer.lora_B.copy_(B0)
    layer.lora_B0.copy_(B0)
    W0 = layer.linear.weight
    with no_autocast(W0):
        moved = (W0 - layer.scale * layer.lora_B0 @ layer.lora_A0).to(W0.dtype)
    # A new parameter, since another layer may share the old one.
    layer.linear.weight = nn.Parameter(moved, requires_grad=W0.requires_grad)


def summed_gradients(model, batches, loss_fn):
    """G = Σ ∂L/∂W over the batches, for each LoRA layer -> {name: (d_out, d_in), on the CPU}.

    (1) Put a trainable twin in the place of each frozen weight, so that no .grad of the caller
    changes. (2) Backward; a hook moves each twin's gradient to the CPU as soon as it is there, so
    that the device never holds all of them. (3) Put the frozen weights back. All in evaluation
    mode: without dropout, and BatchNorm's statistics stay.
    """
    layers = lora_layers(model)
    frozen = {name: layer.linear.weight for name, layer in layers.items()}
    twins = {name: nn.Parameter(W.detach()) for name, W in frozen.items()}
    training = {module: module.training for module in model.modules()}
    gradients = {}

    def collect(name, twin):
        G = precise(twin.grad).to("cpu")
        gradients[name] = gradients.get(name, 0) + G
        twin.grad = None

    try:
        model.eval()
        for name, twin in twins.items():
            layers[name].linear.weight = twin
            twin.register_post_accumulate_grad_hook(functools.partial(collect, name))
        for batch in batches:
            with torch.enable_grad():
                loss = loss_fn(model, batch)
            if not torch.is_tensor(loss) or loss.numel() != 1 or not loss.requires_grad:
                raise ValueError("LoRA-GA needs a loss_fn that returns a scalar with a gradient")
            with no_autocast(loss):  # the caller's; PyTorch advises against it for backward
                loss.backward(inputs=list(twins.values()))  # nothing else gets a .grad
    finally:
        for name, layer in layers.items():
            layer.linear.weight = frozen[name]
        for module, mode in training.items():
            module.training = mode
    return gradients


# ==== The Riemannian preconditioner ===============================================================


@torch.no_grad()
def preconditioned(layer, damping=1e-6):
    """A layer's gradients, preconditioned (Zhang & Pilanci, arXiv 2402.02347, Alg. 1) -> (∇A, ∇B):

        (BᵀB + δI)⁻¹ ∇A    and    ∇B (AAᵀ + δI)⁻¹    both from the factors before the step

    A small step η of gradient descent then moves W, as δ → 0, by −η s² (P_col(B) G + G P_row(A)):
    G projected onto B's columns, plus G projected onto A's rows. (10B, A/10) and (B, A) make the
    same W. If A and B have full rank r, preconditioned gradient descent also takes the same step
    from both. AdamW does not.
    """
    A, B = precise(whole(layer.lora_A)), precise(whole(layer.lora_B))
    grad_A, grad_B = layer.lora_A.grad, layer.lora_B.grad
    with no_autocast(A):
        if grad_A is not None:
            new = damped_inverse(B.T @ B, damping) @ precise(whole(grad_A))
            grad_A = sharded_like(grad_A, new.to(grad_A.dtype))
        if grad_B is not None:
            new = precise(whole(grad_B)) @ damped_inverse(A @ A.T, damping)
            grad_B = sharded_like(grad_B, new.to(grad_B.dtype))
    return grad_A, grad_B


def damped_inverse(gram, damping):
    """(gram + δI)⁻¹ of a Gram matrix (r, r), with δ = max(damping, 4·eps·trace), above 0.

    A smaller δ would invert rounding errors where a factor does not have full rank; 4 is a margin.
    """
    numbers = torch.finfo(gram.dtype)
    delta = (4 * numbers.eps * gram.trace()).clamp(min=max(damping, numbers.tiny))
    I = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    L = torch.linalg.cholesky_ex(gram + delta * I).L  # _ex does not wait for the GPU to check
    return torch.cholesky_inverse(L)


def precondition_gradients(model, damping=1e-6):
    """Preconditions the .grad of every A and B, in place, once, between backward and step."""
    for layer in lora_layers(model).values():
        layer.lora_A.grad, layer.lora_B.grad = preconditioned(layer, damping)


def attach_preconditioner(optimizer, model, damping=1e-6):
    """Preconditions in every optimizer.step(), after any clipping -> a handle to remove() it by.

    Only the factors that this optimizer steps are touched. With AdamW give betas=(0.9, 0.95) or a
    larger damping (the authors tuned theirs from 1e-6 to 100). For a singular value σ of B and its
    left vector u, A's gradient has the part σ·s·uᵀG. Preconditioned it is σ/(σ² + δ)·s·uᵀG. While B
    is small, that factor can reach 1/(2√δ). AdamW divides by the root of a running mean of squared
    gradients. With the default β₂ = 0.999 it keeps these large ones for a thousand steps, and A
    hardly moves. On this project's addition task, with damping 1e-6, such a run learns 17 % of the
    sums; with β₂ = 0.95 it learns 94 %.

    step(closure) is refused: the closure computes new gradients, after this. LBFGS and Lightning's
    automatic optimization need one: call precondition_gradients at its end, or, with Lightning, in
    on_before_optimizer_step.
    """
    layers = list(lora_layers(model).values())

    def before_step(optimizer, args, kwargs):
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is not None:
            raise ValueError("the attached preconditioner does not work with step(closure): call "
                             "precondition_gradients(model) at the closure's end instead")
        stepped = {p for group in optimizer.param_groups for p in group["params"]}
        for layer in layers:
            grad_A, grad_B = preconditioned(layer, damping)
            if layer.lora_A in stepped:
                layer.lora_A.grad = grad_A
            if layer.lora_B in stepped:
                layer.lora_B.grad = grad_B

    return optimizer.register_step_pre_hook(before_step)


# ==== Putting it into a model =====================================================================


def apply_lora(model, rank=8, alpha=None, targets=("c_attn", "c_proj", "c_fc"), dropout=0.0,
               rslora=False):
    """Wraps linear layers in LoRALinear, in place, and freezes everything else -> model.

    targets  the end of a layer's name, or several: "c_proj", or "attn.c_proj"
    The other arguments are LoRALinear's. A new head that is to train in full:
    model.classifier.requires_grad_(True) afterwards; the adapter file holds it too.
    Raises ValueError, with the model unchanged, if it carries LoRA already, if a target matches no
    linear layer, or if the rank or the dropout does not fit.
    """
    if lora_layers(model):
        raise ValueError("apply_lora needs a model without LoRA: this one already carries it")
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen = find_linears(model, targets)
    for linear, name in chosen.items():
        check_linear(linear, rank, name)
    wrapped = {linear: LoRALinear(linear, rank, alpha, dropout, rslora) for linear in chosen}
    model.requires_grad_(False)  # not the factors, which are not in the model yet
    replace_modules(model, wrapped)

    # Mixture-of-experts models keep their experts in 3-D parameters, which are no layers.
    experts = [n for n, p in model.named_parameters() if p.ndim > 2 and n.endswith(targets)]
    if experts:
        warnings.warn(f"these are parameters, not linear layers, and stay frozen: {experts}")
    return model


def find_linears(model, targets):
    """The linear layers whose names end in a target -> {nn.Linear: its name}."""
    modules = dict(model.named_modules(remove_duplicate=False))
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    chosen = {}
    for target in targets:  # whole parts of a name: "proj" is not the end of "c_proj"
        names = [name for name in linears if f".{name}".endswith(f".{target}")]
        if not names:
            allowed = sorted({name.rpartition(".")[2] for name in linears if name})
            raise ValueError(f"target {target!r} matches no linear layer: allowed are "
                             f"{', '.join(allowed) or 'none'} (Hugging Face's Conv1D is not one)")
        chosen.update({linears[name]: name for name in names})
    if not chosen:
        raise ValueError("apply_lora needs at least one target")
    return chosen


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

    The keys are the base model's again. Weights stay frozen. A weight that was tied to
    another layer's is a tensor of its own now.
    Of a bare LoRALinear the nn.Linear is returned.
    """
    merge_lora(model)
    if isinstance(model, LoRALinear):
        return model.linear
    replace_modules(model, {layer: layer.linear for layer in lora_layers(model).values()})
    return model


# ==== Saving and loading ==========================================================================


def adapter_state_dict(model):
    """Everything that trains, for the untouched base model -> {key: tensor on the CPU}.

    "<layer>.lora_A" (r, d_in), "<layer>.lora_B" (d_out, r) and "<layer>.scale", a number. After
    LoRA-GA the factors are [A; A0] and [B, −B0] of rank 2r, whose product is BA − B0A0. Other
    parameters that train have the names that they have in the base model. Give it model.module of
    DDP, and model._orig_mod of torch.compile. Raises ValueError if nothing trains.
    """
    layers, state = lora_layers(model), {}
    for name, layer in layers.items():
        A, B = whole(layer.lora_A), whole(layer.lora_B)
        if layer.lora_B0.any():
            A = torch.cat([A, layer.lora_A0])
            B = torch.cat([B, -layer.lora_B0], dim=1)
        state[f"{name}.lora_A"] = A
        state[f"{name}.lora_B"] = B
        state[f"{name}.scale"] = torch.tensor(layer.scale, dtype=torch.float64)

    # What trains beside the factors: a new head, or a layer's bias (h.0.c_fc.linear.bias becomes
    # h.0.c_fc.bias, as in the base model).
    for name, p in model.named_parameters():
        owner, _, part = name.rpartition(".")
        if p.requires_grad and owner not in layers:
            wrapped = owner.removesuffix(".linear")
            in_base = f"{wrapped}.{part}" if wrapped in layers else name
            state[in_base] = whole(p)
            if wrapped in layers and part == "weight":  # W0, and not W0 − s·B0A0
                layer = layers[wrapped]
                state[in_base] = whole(p) + layer.scale * layer.lora_B0 @ layer.lora_A0
    if not state:
        raise ValueError("nothing in the model trains: save the adapter before merge_and_unload")
    return {key: value.detach().to("cpu", copy=True) for key, value in state.items()}


def load_adapter(model, state):
    """Puts what adapter_state_dict gave on the untouched base model, in place -> model.

    LoRA layers that the model carries already are taken out. What the state holds stays trainable,
    with dropout 0. The rest is frozen. After LoRA-GA the file's factors hold A0 and B0, which then
    train too: to go on with the same run, use model.state_dict(). Raises ValueError with the name
    of what does not fit; the model may then be partly changed.
    """
    present = lora_layers(model).values()
    if any(layer.merged or layer.lora_B0.any() for layer in present):
        raise ValueError("load_adapter needs the untouched base model, not a merged one and not "
                         "one that LoRA-GA has started")
    replace_modules(model, {layer: layer.linear for layer in present})
    model.requires_grad_(False)
    modules = dict(model.named_modules(remove_duplicate=False))  # by the names of the base model
    parameters = dict(model.named_parameters(remove_duplicate=False))

    # Wrap the layers whose factors the state holds.
    rest, wrapped = dict(state), {}
    for name, module in modules.items():
        if isinstance(module, nn.Linear) and f"{name}.lora_A" in state:
            A, B, scale = [rest.pop(f"{name}.{x}", None) for x in ("lora_A", "lora_B", "scale")]
            check_factors(module, A, B, scale, name)
            layer = LoRALinear(module, rank=len(A))
            layer.load_state_dict({"lora_A": A, "lora_B": B}, strict=False)
            layer.scale = scale.item()
            wrapped[module] = layer
    if not wrapped:
        raise ValueError("the adapter holds no layer that the model has: its first key is "
                         f"{next(iter(state), None)}")
    replace_modules(model, wrapped)

    # The rest trains in full.
    for key, value in rest.items():
        if key not in parameters or value.shape != parameters[key].shape:
            raise ValueError(f"the adapter does not fit the model at {key}")
        parameters[key].requires_grad_(True).data.copy_(value)
    return model


def load_base_weight(layer, state_dict, prefix, *_):
    """Runs before a layer loads: a base model's checkpoint has `weight`, not `linear.weight`."""
    for part in ("weight", "bias"):
        if prefix + part in state_dict:
            # A meta tensor has no values to read, and LoRA-GA cannot have started such a layer.
            started = not layer.lora_B0.is_meta and layer.lora_B0.any()
            if started or layer.merged:
                raise ValueError("load the base model before LoRA-GA's start and before merging")
            state_dict[f"{prefix}linear.{part}"] = state_dict.pop(prefix + part)


# ==== Helpers =====================================================================================


def no_autocast(tensor):
    """Turns autocast off in a `with` block: it would round what is done to the weights."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):  # the meta device has none
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def precise(tensor):
    """In float32, if it has fewer bits (after model.bfloat16(), for example)."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_linear(linear, rank, name):
    """Raises ValueError for a layer that LoRALinear cannot wrap, or a rank that does not fit it."""
    if type(linear).forward is not nn.Linear.forward:
        raise ValueError(f"{name} is a {type(linear).__name__}, whose forward is not that of "
                         "nn.Linear: LoRA here needs x Wᵀ + b")
    check_plain(linear.weight, name)
    if linear.weight.shape != (linear.out_features, linear.in_features):
        raise ValueError(f"{name} has a packed weight: LoRA here needs one of (d_out, d_in)")
    most = min(linear.weight.shape)
    if not 1 <= rank <= most:
        raise ValueError(f"rank {rank} does not fit {name}: allowed are 1 to {most}")


def check_plain(weight, name):
    """Raises ValueError for a weight that is not a plain parameter of 16 bits or more."""
    if hasattr(weight, "full_tensor"):
        raise ValueError(f"{name} is sharded: do this before fully_shard")
    if type(weight) is not nn.Parameter or weight.dtype.itemsize < 2:
        raise ValueError(f"{name} has a packed, quantised or computed weight: LoRA here needs a "
                         "plain parameter of 16 bits or more")


def check_factors(linear, A, B, scale, name):
    """Raises ValueError for an adapter's entries that do not fit a linear layer."""
    if [getattr(tensor, "ndim", None) for tensor in (A, B, scale)] != [2, 2, 0]:
        raise ValueError(f"the adapter needs two matrices and a number for {name}: lora_A, lora_B, "
                         "scale")
    if (len(B), A.shape[1]) != linear.weight.shape or B.shape[1] != len(A):
        raise ValueError(f"the adapter does not fit the model at {name}")
    check_linear(linear, len(A), name)


def replace_modules(model, replacements):
    """Puts replacements[module] in a module's place, under every name that the model has for it."""
    # remove_duplicate=False: a shared module is found under each of its names.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replacements:
            model.set_submodule(name, replacements[module])


def whole(tensor):
    """Under FSDP2 (fully_shard) a DTensor, gathered from all processes; otherwise the tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_like(parameter, tensor):
    """Under FSDP2 this process's part of a gathered tensor, as a DTensor; otherwise the tensor."""
    if not hasattr(parameter, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
