"""train.py with the adapters, the start and the optimizers of the library PEFT for lora.py's.

    python -m experiments.peft_run --method loraga --lr 1e-3

Takes the flags of train.py. PEFT's own defaults stay: its LoRA-GA gives A the first r directions, B
the next r times their singular values, and its preconditioner has δ = 0.01.
"""
import functools
import sys

try:
    import peft
    from peft import optimizers
except ImportError:
    sys.exit("experiments.peft_run: PEFT is not installed: pip install peft")
import torch

import lora
import train
from data.files import InputError
from runs import load_base


def config_of(args):
    """The flags of train.py as a peft.LoraConfig."""
    start = {}
    if args.init == "ga":
        gamma = args.gamma or 16
        if gamma != int(gamma):
            raise InputError(f"--gamma {gamma:g}: PEFT's is a whole number")
        start = {"init_lora_weights": "lora_ga",
                 "lora_ga_config": peft.LoraGAConfig(stable_gamma=int(gamma))}
    return peft.LoraConfig(r=args.rank, lora_alpha=args.alpha or args.rank, use_rslora=args.rslora,
                           lora_dropout=args.dropout, target_modules=list(args.targets), **start)


def build_model(args, device):
    """A GPT with PEFT's layers in it; for LoRA-GA they come with their start."""
    torch.manual_seed(args.seed)
    model = load_base(args.init_from, args.model_dropout).to(device)
    if args.init == "ga":
        lora.lora_ga_init = functools.partial(start, args)  # which train.py calls
    else:
        peft.get_peft_model(model, config_of(args))
    return model


def start(args, model, batches, loss_fn, gamma):
    """PEFT's LoRA-GA, on the mean gradient of the same batches."""
    def run_batches():
        for batch in batches:
            loss_fn(model, batch).backward()

    config = config_of(args)
    peft.preprocess_loraga(model, config, run_batches)
    peft.get_peft_model(model, config)


def build_optimizer(args, model):
    """PEFT's optimizers, or AdamW, with the rates, betas and decay of train.py."""
    same = {"lr": args.lr, "betas": tuple(args.betas), "weight_decay": args.weight_decay}
    if args.precondition:
        optimizer = optimizers.create_riemannian_optimizer(
            model, torch.optim.AdamW, reg=args.damping or 0.01, **same)
    elif args.lr_ratio != 1:
        optimizer = optimizers.create_loraplus_optimizer(
            model, torch.optim.AdamW, loraplus_lr_ratio=args.lr_ratio, **same)
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, **same)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def main():
    train.build_model, train.build_optimizer = build_model, build_optimizer
    train.main()


if __name__ == "__main__":
    main()
