"""Fine-tunes a small GPT with LoRA, LoRA+, LoRA-GA, the Riemannian preconditioner, or in full.

    python train.py --method loraga --rank 8           on two-digit addition, the default task
    python train.py --data pairs.jsonl                 on your own prompts and completions
    python train.py --data notes.txt --init_from gpt2  on any text, from GPT-2's weights
    torchrun --nproc_per_node=4 train.py               the same run, its batches split in four
"""
import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch

import lora
import report
import runs
from data import tasks, tokenizer
from data.files import InputError, about_input
from model import GPT, GPTConfig
from runs import PROCESSES, PROCESS, WITHOUT_ADAPTER, number

GA_BATCHES = 4  # LoRA-GA sums the gradients of the first batches of the run
SOURCE_WINDOWS = 32  # enough to see a rise of a tenth of a nat, and quick
OF_ADAPTERS = ("rank", "alpha", "rslora", "targets", "dropout", "init", "gamma", "lr_ratio",
               "precondition", "damping", "base_dtype", "export")
NO_ADAPTER = dict.fromkeys(OF_ADAPTERS)
PRESETS = {  # learning rates: each method's best on math in experiments/evidence.md
    "full": {**NO_ADAPTER, "lr": 3e-3},
    "lora": {"lr": 5e-3},
    "loraplus": {"lr": 2e-3, "lr_ratio": 16.0},
    "loraga": {"lr": 1e-3, "init": "ga", "rslora": True, "alpha": 8.0},
    "riemannian": {"lr": 5e-3, "precondition": True},
    "pretrain": {**NO_ADAPTER, "lr": 2e-3, "data": "docs", "steps": 10500, "batch_size": 8,
                 "warmup": 300, "weight_decay": 0.1, "betas": [0.9, 0.99], "eval_interval": 1000},
}


def build_parser():
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    count, natural, fraction = number(int, 1), number(int, 0), number(float, 0, 1)
    positive, not_negative = number(float, 1e-12, 1e36), number(float, 0)
    yes_or_no = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Formatter,
                                     allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"train.py: {message}\n")

    add = parser.add_argument_group("method").add_argument
    add("--method", choices=PRESETS, default="lora", help="a preset; flags given beside it win")
    add("--rank", type=count, default=8, help="r, the inner dimension of the factors B and A")
    add("--alpha", type=positive, help="the scale is alpha/rank; if not set, alpha is rank")
    add("--rslora", action=yes_or_no, default=False, help="the scale is alpha/√rank instead")
    add("--targets", nargs="+", default=["c_attn", "c_proj", "c_fc"], help="the layers to adapt")
    add("--dropout", type=fraction, default=0.0, help="the share of the adapter's inputs to drop")
    add("--init", choices=["kaiming", "ga"], default="kaiming", help="A random, or LoRA-GA's start")
    add("--gamma", type=positive, help="LoRA-GA: the larger, the smaller its factors; else 16")
    add("--lr_ratio", type=positive, default=1.0, help="LoRA+: B's learning rate over A's")
    add("--precondition", action=yes_or_no, default=False, help="precondition the gradients")
    add("--damping", type=positive, help="δ in the preconditioner; else 1e-6")

    add = parser.add_argument_group("training").add_argument
    add("--steps", type=count, default=1000, help="optimizer steps")
    add("--batch_size", type=count, help="sequences in a step; 32 pairs, or 16 windows of text")
    add("--lr", type=positive, help="the peak learning rate; each method has its own")
    add("--betas", type=fraction, nargs=2, default=[0.9, 0.95], help="AdamW's β₁ and β₂")
    add("--weight_decay", type=not_negative, default=0.0, help="AdamW's decoupled weight decay")
    add("--warmup", type=natural, default=20, help="steps over which the learning rate rises")
    add("--grad_clip", type=not_negative, default=1.0, help="the largest gradient norm; 0 for any")
    add("--grad_accum", type=count, default=1, help="parts to cut a batch into, to save memory")
    add("--model_dropout", type=fraction, default=0.0, help="the dropout of the model itself")
    add("--seed", type=number(int, 0, 2 ** 32), default=0, help="of factors, batches and dropout")

    add = parser.add_argument_group("data and files").add_argument
    add("--data", default="math", help="math, code, docs, shakespeare, a text file, or a .jsonl "
        "file of pairs, each line {\"prompt\": ..., \"completion\": ...}")
    add("--val_data", help="another such file to judge by; else the last tenth of the first")
    add("--block_size", type=count, default=128, help="tokens in a window of text")
    add("--init_from", help="gpt2, gpt2-medium, -large, -xl, or such a model's path or URL; "
        "without it, the shipped base")
    add("--out_dir", help="where the files go; out/<task>-<method>-r<rank> if not set")
    add("--eval_interval", type=count, help="steps from one evaluation, and "
        "checkpoint, to the next; a fifth of --steps")
    add("--export", choices=["peft"], help="write the adapter in PEFT's format as well")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--resume", action="store_true", help="go on from the checkpoint in the out directory")
    either("--overwrite", action="store_true", help="replace the run in the out directory")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1 or mps; auto: cuda if there is one")
    add("--dtype", choices=["float32", "bfloat16"], help="to compute in; bfloat16 on new GPUs")
    add("--base_dtype", choices=["float32", "bfloat16"], help="of the frozen weights; float32")
    add("--compile", action="store_true", help="compile the model: a slower start, faster steps")
    return parser


def parse_args(argv=None):
    """The command line -> the argparse.Namespace that `train` takes, complete."""
    parser = build_parser()
    method = parser.parse_args(argv).method
    parser.set_defaults(**PRESETS[method])
    args = parser.parse_args(argv)

    given = [name for name in OF_ADAPTERS if getattr(args, name) is not None]
    if method in WITHOUT_ADAPTER and given:
        parser.error(f"--{given[0]} needs an adapter, which --method {method} does not have")
    if args.gamma and args.init != "ga":
        parser.error(f"--gamma {args.gamma:g} is LoRA-GA's: it needs --init ga")
    if args.damping and not args.precondition:
        parser.error(f"--damping {args.damping:g} is the preconditioner's: it needs --precondition")
    parts = args.grad_accum * PROCESSES
    of_pairs = args.data == "math" or args.data.endswith(".jsonl")
    args.batch_size = args.batch_size or (32 if of_pairs else 16)
    args.eval_interval = args.eval_interval or math.ceil(args.steps / 5)
    if args.batch_size % parts:
        parser.error(f"--batch_size {args.batch_size} must be a multiple of {parts}, "
                     "--grad_accum times processes")

    on_gpu = args.device.startswith(("auto", "cuda")) and torch.cuda.is_available()
    bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    args.dtype = args.dtype or ("bfloat16" if bfloat16 else "float32")
    rank = "" if args.rank is None else f"-r{args.rank}"
    args.out_dir = args.out_dir or f"out/{Path(args.data).stem}-{method}{rank}"
    return args


def build_model(args, device):
    """A fresh GPT to pretrain, or the base, with an adapter on it unless all of it is to train."""
    torch.manual_seed(args.seed)
    if args.method == "pretrain" and not args.init_from:
        config = GPTConfig(block_size=128, vocab_size=2048, n_layer=4, n_head=4, n_embd=256,
                           dropout=args.model_dropout)
        return GPT(config).to(device)
    model = runs.load_base(args.init_from, args.model_dropout)
    model.to(device, getattr(torch, args.base_dtype or "float32"))
    if args.method not in WITHOUT_ADAPTER:
        with about_input("--rank or --targets"):
            lora.apply_lora(model, args.rank, args.alpha, args.targets, args.dropout, args.rslora)
    return model


def build_optimizer(args, model):
    """AdamW on all that trains, with LoRA+'s rates, and the preconditioner if it is wanted."""
    groups = lora.lora_plus_groups(model, args.lr, args.lr_ratio or 1.0)
    for group in groups:
        group["peak_lr"] = group["lr"]
    optimizer = torch.optim.AdamW(groups, betas=tuple(args.betas), weight_decay=args.weight_decay,
                                  fused=next(model.parameters()).is_cuda)
    if args.precondition:
        lora.attach_preconditioner(optimizer, model, args.damping or 1e-6)
    return optimizer


def load_tasks(args, model):
    """What to learn, and the docs that may be forgotten."""
    encoding = tokenizer.load_for(args.init_from)
    config = model.config
    if args.block_size > config.block_size or encoding.n_vocab > config.vocab_size:
        raise InputError(f"--block_size {args.block_size} or the vocabulary's {encoding.n_vocab} "
                         f"tokens exceed this model's {config.block_size} and {config.vocab_size}")
    task = tasks.load(args.data, encoding, args.block_size, val_data=args.val_data)
    return task, tasks.load("docs", encoding, args.block_size)


def lr_factor(step, args):
    """The share of the peak learning rate at a step (from 0): a linear rise, then half a cosine."""
    if step < args.warmup:
        return (step + 1) / args.warmup
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def parts_of(batch, count):
    """A batch in parts -> a list of (idx, targets, the part's share of the batch's targets)."""
    idx, targets = batch
    total = (targets != -1).sum().item()
    return [(some_idx, some_targets, (some_targets != -1).sum().item() / total)
            for some_idx, some_targets in zip(idx.chunk(count), targets.chunk(count))]


def train_step(args, model, optimizer, batch, step):
    """One optimizer step on a batch -> its loss; InputError if the new weights are not finite."""
    torch.manual_seed((args.seed * 1_000_000 + step) * PROCESSES + PROCESS)  # for dropout
    loss = torch.zeros((), device=batch[0].device)
    for idx, targets, share in parts_of(batch, args.grad_accum * PROCESSES)[PROCESS::PROCESSES]:
        with torch.autocast(idx.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            part_loss = share * model(idx, targets)[1]
        part_loss.backward()
        loss += part_loss.detach()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    runs.add_up([loss, *(p.grad for p in trained if p.grad is not None)])
    torch.nn.utils.clip_grad_norm_(trained, args.grad_clip or math.inf)  # before the preconditioner
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * lr_factor(step, args)
    optimizer.step()
    optimizer.zero_grad()
    if not torch.stack([p.isfinite().all() for p in trained]).all():
        raise InputError(f"the weights are no longer finite at step {step + 1}: try an --lr below "
                         f"{args.lr:g}")
    return loss.item()


def begin(args, model, task, source, batch_at):
    """The measurements before the first step, and LoRA-GA -> the optimizer, the progress."""
    before = judge(model, task, source)
    first = {"step": 0, **columns(task, before)}
    progress = {"step": 0, "seconds": 0.0, "log": [first], "before": before,
                "metric_name": task.metric}
    if args.init == "ga":
        batches = [part for step in range(GA_BATCHES)
                   for part in parts_of(batch_at(step), args.grad_accum * PROCESSES)]
        with about_input("--init ga"):
            lora.lora_ga_init(model, batches, share_of_loss, args.gamma or 16.0)
    runs.copy_from_process_0(model)
    return build_optimizer(args, model), progress


def judge(model, task, source, whole=True):
    """What is learned and what is kept -> the task's figures, the loss on the docs."""
    return {"measures": task.measure(model, whole),
            "source_loss": source.evaluate(model, SOURCE_WINDOWS)}


def columns(task, judgement):
    """A judgement as log.csv has it."""
    return {"metric": judgement["measures"][task.metric], "source_loss": judgement["source_loss"]}


def share_of_loss(model, part):
    idx, targets, share = part
    return share * model(idx, targets)[1]


def train(args):
    """Runs what `parse_args` describes -> the dict in result.json.

    Raises InputError for what the user can mend, OSError for files that cannot be written, and
    KeyboardInterrupt, once a checkpoint is written, after Ctrl-C or SIGTERM.
    """
    start = time.perf_counter()
    device = runs.pick_device(args.device)
    with runs.lock(args.out_dir):
        checkpoint = runs.find_checkpoint(args)
        print(f"{args.method} on {args.data}, {args.steps} steps on {device}", flush=True)
        runs.join(device)
        with runs.first_process_first():
            model = build_model(args, device)
            task, source = load_tasks(args, model)

        def batch_at(step):
            idx, targets = task.batch(args.seed, step, args.batch_size)
            return idx.to(device), targets.to(device)

        if checkpoint:
            optimizer, progress = runs.restore(checkpoint, model,
                                               lambda: build_optimizer(args, model))
        else:
            optimizer, progress = begin(args, model, task, source, batch_at)
            runs.clear(args.out_dir)
        runs.save_checkpoint(args, model, optimizer, progress)  # is the directory writable?
        run_steps(args, model, optimizer, task, source, batch_at, progress,
                  start - progress["seconds"])
        result = report.summary(args, model, optimizer, task, progress)
        runs.save_results(args, model, result)
        if not PROCESS:
            report.show_result(args, model, task, result, progress["log"])
    return result


def run_steps(args, model, optimizer, task, source, batch_at, progress, start):
    """The training loop: steps, evaluations, log, checkpoints; `progress` says how far it is."""
    forward = torch.compile(model) if args.compile else model
    model.train()
    shown = 0.0
    with runs.stop_on_signal() as stop:
        for step in range(progress["step"], args.steps):
            began = time.perf_counter()
            loss = train_step(args, forward, optimizer, batch_at(step), step)
            ms = 1e3 * (time.perf_counter() - began)

            last = step + 1 == args.steps
            due = last or (step + 1) % args.eval_interval == 0
            stopping = runs.any_process(stop.is_set(), tasks.device_of(model))
            row = {"step": step + 1, "loss": loss, "lr": args.lr * lr_factor(step, args), "ms": ms}
            if due:
                progress["after"] = judge(model, task, source, whole=last)
                row.update(columns(task, progress["after"]))
            progress["log"].append(row)
            progress["step"] = step + 1
            progress["seconds"] = time.perf_counter() - start
            if due or stopping:
                runs.save_checkpoint(args, model, optimizer, progress)
            if due or time.perf_counter() - shown > 5:
                shown = time.perf_counter()
                report.show_step(args, task, row)
            if stopping:
                raise KeyboardInterrupt(f"stopped after step {step + 1}: "
                                        "the same command with --resume goes on")


def main():
    if PROCESS:
        sys.stdout = open(os.devnull, "w")
    runs.print_anywhere()
    parser = build_parser()
    try:
        train(parse_args())
    except KeyboardInterrupt as stop:
        sys.exit(f"train.py: {str(stop) or 'stopped at once'}")
    except (InputError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        parser.error(str(error).partition("\n")[0] or "out of memory")
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, torch._dynamo.exc.TorchDynamoException):
            parser.error(f"--compile does not work on this machine: {reason}")
        if PROCESSES == 1 and "allocate memory" not in str(error):
            raise  # a mistake in the code, not a process that died or a CPU without memory
        parser.error(f"process {PROCESS} stopped: {reason}")


if __name__ == "__main__":
    main()
