"""train.py with what only experiments need: other starts, other frozen parts, gradient descent.

    python -m experiments.variant --start orthonormal --method loraga
    python -m experiments.variant --optimizer sgd --method riemannian --lr 0.3
    python -m experiments.variant --freeze A --method lora --lr 2e-2
    python -m experiments.variant --freeze embeddings --method full
    python -m experiments.variant --gradient_batches 1 --method loraga
"""
import argparse
import functools
import sys

import torch

import lora
import train
from runs import number


def orthonormal(rows, columns, device):
    return torch.linalg.qr(torch.randn(rows, columns, device=device))[0]


def start(name, G, rank, gamma=16.0):
    """Factors for a gradient G (d_out, d_in) -> A (rank, d_in), B (d_out, rank).

    All but "small" have the norms of LoRA-GA's, ‖A‖_F = ‖B‖_F = c√r, or one of them is zero.
    """
    d_out, d_in = G.shape
    A, B = lora_ga_factors(G, rank, gamma)
    c = d_out ** 0.25 / gamma ** 0.5
    if name == "orthonormal":  # the magnitude alone
        return c * orthonormal(d_in, rank, G.device).T, c * orthonormal(d_out, rank, G.device)
    if name == "gaussian":
        A = torch.randn(rank, d_in, device=G.device) / d_in ** 0.5
        B = torch.randn(d_out, rank, device=G.device) / d_out ** 0.5
        return c * A, c * B
    if name == "small":  # the directions alone: A, and B, as large as LoRA's own A
        return A / c / 3 ** 0.5, B / c / 3 ** 0.5
    if name == "aligned-A":
        return A, torch.zeros_like(B)
    if name == "aligned-B":  # A's share of G: LoRA-GA's B has the next r directions
        return torch.zeros_like(A), c * lora.top_singular_vectors(G, rank)[0]
    return c * orthonormal(d_in, rank, G.device).T, torch.zeros_like(B)  # "large-A"


lora_ga_factors = lora.lora_ga_factors  # kept: main puts `start` in its place
STARTS = ("orthonormal", "gaussian", "small", "aligned-A", "aligned-B", "large-A")


def with_sgd(args, model):
    """Plain gradient descent in AdamW's place, without weight decay; all else is train.py's."""
    groups = lora.lora_plus_groups(model, args.lr, args.lr_ratio or 1.0)
    for group in groups:
        group["peak_lr"] = group["lr"]
    optimizer = torch.optim.SGD(groups)
    if args.precondition:
        lora.attach_preconditioner(optimizer, model, args.damping or 1e-6)
    return optimizer


own_build_model = train.build_model


def without_A(args, device):
    """A model whose factors A stay as they start, as in LoRA-FA (arXiv 2308.03303)."""
    model = own_build_model(args, device)
    for layer in lora.lora_layers(model).values():
        layer.lora_A.requires_grad_(False)
    return model


def without_embeddings(args, device):
    """A model of which the weights train that LoRA adapts: no embedding, norm or output layer."""
    model = own_build_model(args, device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")))
    return model


FREEZE = {"A": without_A, "embeddings": without_embeddings}


def main():
    parser = argparse.ArgumentParser(prog="python -m experiments.variant", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--start", choices=STARTS, help="of the factors, with --init ga")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--freeze", choices=FREEZE, help="LoRA's A, or all that LoRA leaves alone")
    parser.add_argument("--gradient_batches", type=number(int, 1), metavar="N",
                        help=f"of which LoRA-GA takes its gradient; {train.GA_BATCHES} without it")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    own, rest = parser.parse_known_args()
    args = train.parse_args(rest)
    for flag in ("start", "gradient_batches"):
        if getattr(own, flag) and args.init != "ga":
            parser.error(f"--{flag} {getattr(own, flag)} is LoRA-GA's alone: it needs --init ga")
    if own.freeze == "A" and args.rank is None:
        parser.error(f"--freeze A needs an adapter, which --method {args.method} does not have")
    if own.start:
        lora.lora_ga_factors = functools.partial(start, own.start)
    train.GA_BATCHES = own.gradient_batches or train.GA_BATCHES
    if own.optimizer == "sgd":
        train.build_optimizer = with_sgd
    if own.freeze:
        train.build_model = FREEZE[own.freeze]
    sys.argv = ["train.py", *rest]
    train.main()


if __name__ == "__main__":
    main()
