"""train.py with what only experiments need: other starts, other frozen parts, other optimizers.

    python -m experiments.variant --start orthonormal --method loraga
    python -m experiments.variant --optimizer sgd --method riemannian --lr 0.3
    python -m experiments.variant --optimizer preconditioned-steps --method riemannian --lr 3e-4
    python -m experiments.variant --freeze A --method lora --lr 2e-2
    python -m experiments.variant --freeze embeddings --method full
    python -m experiments.variant --gradient_batches 1 --method loraga
"""
import functools

import torch

import lora
import train
from data.files import InputError, command_parser, number, run_command

# ==== Starts of the factors =======================================================================

STARTS = ("orthonormal", "gaussian", "small", "aligned-A", "aligned-B", "large-A")


def factors(name, G, rank, gamma=16.0):
    """The start called `name` for a gradient G (d_out, d_in) -> A (rank, d_in), B (d_out, rank).

    Each factor has the norm that LoRA-GA gives it, ‖A‖_F = ‖B‖_F = c√r, or is zero, except that in
    "small" both are as large as LoRA's own A.
    """
    d_out, d_in = G.shape
    A, B = lora.lora_ga_factors(G, rank, gamma)
    c = d_out ** 0.25 / gamma ** 0.5
    if name == "orthonormal":  # the size without the directions
        return c * orthonormal(d_in, rank).T, c * orthonormal(d_out, rank)
    if name == "gaussian":
        A = torch.randn(rank, d_in) / d_in ** 0.5
        B = torch.randn(d_out, rank) / d_out ** 0.5
        return c * A, c * B
    if name == "small":  # the directions without the size
        return A / c / 3 ** 0.5, B / c / 3 ** 0.5
    if name == "aligned-A":
        return A, torch.zeros_like(B)
    if name == "aligned-B":
        U, _ = lora.top_singular_vectors(G, rank)
        return torch.zeros_like(A), c * U
    return c * orthonormal(d_in, rank).T, torch.zeros_like(B)  # "large-A"


def orthonormal(rows, columns):
    return torch.linalg.qr(torch.randn(rows, columns))[0]


def start_with(name, batches, args, model, micro_batches):
    """In place of train.start_lora_ga: so many batches, and the factors called `name`."""
    first = [each for step in range(batches) for each in micro_batches(step)]
    if name is None:
        lora.lora_ga_init(model, first, train.weighted_loss, args.gamma)
        return
    gradients = lora.summed_gradients(model, first, train.weighted_loss)
    for layer_name, layer in lora.lora_layers(model).items():
        G = gradients[layer_name]
        A0, B0 = factors(name, G, len(layer.lora_A), args.gamma)
        lora.start_from(layer, A0.to(layer.lora_A.device), B0.to(layer.lora_B.device))


# ==== Optimizers ==================================================================================


def sgd(args, model):
    """In place of train.build_optimizer: gradient descent without momentum and weight decay."""
    optimizer = torch.optim.SGD(lora.lora_plus_groups(model, args.lr, args.lr_ratio))
    if args.precondition:
        lora.attach_preconditioner(optimizer, model, args.damping)
    return optimizer


class PreconditionedSteps(torch.optim.AdamW):
    """AdamW whose steps on A and B are preconditioned, and not their gradients.

    The proof of the Riemannian preconditioner's theorem 4.1 preconditions what Adam makes of the
    gradients; its algorithm 1 preconditions the gradients.
    """

    def __init__(self, params, model, damping, **settings):
        super().__init__(params, **settings)
        self.model, self.damping = model, damping

    @torch.no_grad()
    def step(self):
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in parameters]
        super().step()

        # Take the step back, precondition it with the factors from before it, and make it.
        for p, old in zip(parameters, before):
            p.grad = p - old
            p.copy_(old)
        lora.precondition_gradients(self.model, self.damping)
        for p in parameters:
            p += p.grad


def preconditioned_steps(args, model):
    groups = lora.lora_plus_groups(model, args.lr, args.lr_ratio)
    return PreconditionedSteps(groups, model, args.damping, betas=tuple(args.betas),
                               weight_decay=args.weight_decay)


OPTIMIZERS = {"adamw": train.build_optimizer, "sgd": sgd,
              "preconditioned-steps": preconditioned_steps}

# ==== Frozen parts ================================================================================


def without_A(args, device):
    """A model whose factors A stay as they start, as in LoRA-FA (arXiv 2308.03303)."""
    model = train.build_model(args, device)
    for layer in lora.lora_layers(model).values():
        layer.lora_A.requires_grad_(False)
    return model


def without_embeddings(args, device):
    """A model in which only the weights train that LoRA adapts: no embedding and no norm."""
    model = train.build_model(args, device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")))
    return model


FREEZE = {None: train.build_model, "A": without_A, "embeddings": without_embeddings}

# ==== The command =================================================================================


def main():
    parser = command_parser(__doc__, "python -m experiments.variant")
    add = parser.add_argument
    add("--start", choices=STARTS, help="of the factors, with --init ga")
    add("--optimizer", choices=OPTIMIZERS, default="adamw")
    add("--freeze", choices=["A", "embeddings"], help="LoRA's A, or all that LoRA does not adapt")
    add("--gradient_batches", type=number(int, 1), default=train.GA_BATCHES, metavar="N",
        help="the batches from which LoRA-GA takes its gradient (%(default)s)")
    own, rest = parser.parse_known_args()
    args = train.parse_args(rest)
    other_start = own.start is not None or own.gradient_batches != train.GA_BATCHES
    if other_start and args.init != "ga":
        raise InputError("--start and --gradient_batches change LoRA-GA's start: they need "
                         "--init ga")
    if own.freeze == "A" and args.method == "full":
        raise InputError("--freeze A needs an adapter, which --method full does not have")
    start = train.start_lora_ga
    if other_start:
        start = functools.partial(start_with, own.start, own.gradient_batches)
    train.train(args, FREEZE[own.freeze], OPTIMIZERS[own.optimizer], start)


if __name__ == "__main__":
    run_command(main)
