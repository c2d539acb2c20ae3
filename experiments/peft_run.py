"""train.py with the adapters, the start and the optimizers of the library PEFT in lora.py's place.

    python -m experiments.peft_run --method loraga --lr 1e-3

Takes train.py's flags. PEFT's own choices stay: its LoRA-GA gives A the first r directions, and B
the next r times their singular values; its preconditioner has δ = 0.01.
"""
import torch

import train
from data.files import InputError, run_command
from model import GPT


def peft():
    """The library; InputError if it is not installed."""
    try:
        import peft
        import peft.optimizers
    except ImportError:
        raise InputError("PEFT is not installed: pip install peft") from None
    return peft


def config_of(args):
    """train.py's flags as a peft.LoraConfig."""
    ga = {}
    if args.init == "ga":
        if args.gamma != int(args.gamma):
            raise InputError(f"--gamma {args.gamma:g}: PEFT's is a whole number")
        ga = {"init_lora_weights": "lora_ga",
              "lora_ga_config": peft().LoraGAConfig(stable_gamma=int(args.gamma))}
    return peft().LoraConfig(r=args.rank, lora_alpha=args.alpha, use_rslora=args.rslora,
                             lora_dropout=args.dropout, target_modules=list(args.targets), **ga)


def build_model(args, device):
    """A GPT with PEFT's layers in it; LoRA-GA's come with their start."""
    model = GPT.from_pretrained(args.init_from, args.model_dropout).to(device)
    if args.init != "ga":
        peft().get_peft_model(model, config_of(args))
    return model


def start(args, model, micro_batches):
    """PEFT's LoRA-GA, on the mean gradient of the batches from which ours takes the sum."""
    def run_batches():
        for step in range(train.GA_BATCHES):
            for micro_batch in micro_batches(step):
                train.weighted_loss(model, micro_batch).backward()

    if args.init == "ga":
        config = config_of(args)
        peft().preprocess_loraga(model, config, run_batches)
        peft().get_peft_model(model, config)


def build_optimizer(args, model):
    """PEFT's optimizers, or AdamW, with the rates, betas and decay of train.py's flags."""
    same = {"lr": args.lr, "betas": tuple(args.betas), "weight_decay": args.weight_decay}
    if args.precondition:
        return peft().optimizers.create_riemannian_optimizer(model, torch.optim.AdamW, reg=0.01,
                                                             **same)
    if args.lr_ratio != 1:
        return peft().optimizers.create_loraplus_optimizer(
            model, torch.optim.AdamW, loraplus_lr_ratio=args.lr_ratio, **same)
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **same)


def main():
    train.train(train.parse_args(), build_model, build_optimizer, start)


if __name__ == "__main__":
    run_command(main)
