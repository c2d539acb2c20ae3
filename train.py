"""Fine-tunes a small GPT with LoRA, LoRA+, LoRA-GA, the Riemannian preconditioner, or in full.

    python train.py --method loraga --rank 8           on two-digit addition, the default task
    python train.py --data pairs.jsonl                 on your own prompts and completions
    python train.py --data notes.txt --init_from gpt2  on any text, from GPT-2's weights
    torchrun --nproc_per_node=4 train.py               the same run, its batches split in four
"""
import argparse
import csv
import importlib.util
import io
import json
import math
import os
import shlex
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path

# CPU threads spin while they wait. Beside another busy process a step would then take up to 40
# times as long. This limits the spinning; it is read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
import torch.distributed as dist

import lora
from data import tasks, tokenizer
# An InputError is the user's mistake: one sentence and exit code 2. An OSError or ValueError in a
# block of about_input(what) becomes one, with `what` in front.
from data.files import (InputError, about_input, number, read_csv, replace_file, run_command,
                        write_csv)
from model import GPT, GPTConfig, read_tensors

GA_BATCHES = 4  # LoRA-GA sums the gradients of the run's first batches
# Flags that --method full, which has no adapter, refuses.
ADAPTER_FLAGS = ("rank", "alpha", "rslora", "targets", "dropout", "init", "gamma", "lr_ratio",
                 "precondition", "damping", "base_dtype")
PRESETS = {  # what --method sets; the learning rates were chosen on math (experiments/)
    "full": {"lr": 3e-3},
    "lora": {"lr": 5e-3},
    "loraplus": {"lr": 2e-3, "lr_ratio": 16.0},
    "loraga": {"lr": 1e-3, "init": "ga", "rslora": True, "alpha": 8.0},
    "riemannian": {"lr": 5e-3, "precondition": True},
}
RUN_FILES = ("log.csv", "ckpt.pt", "adapter.pt", "model.pt", "result.json", "curves.png")
LOG = ("step", "loss", "lr", "ms", "metric", "source_loss")  # log.csv; source: English prose
# The model of --init_from scratch has the shipped one's shape.
SCRATCH = {"block_size": 128, "vocab_size": 2048, "n_layer": 4, "n_head": 4, "n_embd": 256}

# ==== Flags =======================================================================================


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        """The help text with its default, where there is one."""
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser():
    # number(int, 1) refuses what is below 1; number(float, 0, 1) also what is not below 1.
    count, natural, fraction = number(int, 1), number(int, 0), number(float, 0, 1)
    positive, not_negative = number(float, 1e-12, 1e36), number(float, 0)
    path, yes_or_no = os.path.expanduser, argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter,
                                     allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"train.py: {message}\n")

    add = parser.add_argument_group("method").add_argument
    add("--method", choices=PRESETS, default="lora",
        help="sets several flags; a flag given beside it wins")
    add("--rank", type=count, default=8, help="r, the inner dimension of the factors B and A")
    add("--alpha", type=positive, help="the scale is alpha/rank (default: the rank; 8 with loraga)")
    add("--rslora", action=yes_or_no, default=False, help="the scale is alpha/√rank instead")
    add("--targets", nargs="+", default=["c_attn", "c_proj", "c_fc"], help="the layers to adapt")
    add("--dropout", type=fraction, default=0.0, help="dropout on the adapter's input")
    add("--init", choices=["kaiming", "ga"], default="kaiming",
        help="A random and B zero, or LoRA-GA's start")
    add("--gamma", type=positive, default=16.0, help="LoRA-GA: the larger, the smaller its factors")
    add("--lr_ratio", type=positive, default=1.0, help="LoRA+: B's learning rate over A's")
    add("--precondition", action=yes_or_no, default=False, help="the Riemannian preconditioner")
    add("--damping", type=positive, default=1e-6, help="δ in the preconditioner")

    add = parser.add_argument_group("training").add_argument
    add("--steps", type=count, default=1000, help="optimizer steps")
    add("--batch_size", type=count, default=32, help="sequences in a step")
    add("--lr", type=positive, default=5e-3, help="peak learning rate; each method has its own")
    add("--betas", type=fraction, nargs=2, default=[0.9, 0.95], help="AdamW's β₁ and β₂")
    add("--weight_decay", type=not_negative, default=0.0, help="AdamW's decoupled weight decay")
    add("--warmup", type=natural, default=20, help="steps of linear warm-up; cosine decay follows")
    add("--grad_clip", type=not_negative, default=1.0, help="largest gradient norm; 0: no clipping")
    add("--grad_accum", type=count, default=1, help="micro-batches in a batch, to save memory")
    add("--model_dropout", type=fraction, default=0.0, help="dropout in the model itself")
    add("--seed", type=number(int, 0, 2**32), default=0, help="of factors, batches and dropout")

    add = parser.add_argument_group("data and files").add_argument
    add("--data", type=path, default="math", help="math; a .jsonl file of pairs, each line "
        "{\"prompt\": ..., \"completion\": ...}; or a text file")
    add("--val_data", type=path, help="held-out data (default: the last tenth of --data)")
    add("--block_size", type=count, default=128, help="context length in tokens")
    add("--init_from", type=path, default="base",
        help="base, the shipped model; gpt2, gpt2-medium, -large, -xl; a checkpoint; or scratch")
    add("--out_dir", type=path, help="where the files go (default: out/<data>-<method>-r<rank>)")
    add("--eval_interval", type=count, default=200, help="steps between evaluations")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--resume", action="store_true", help="go on from the checkpoint in --out_dir")
    either("--overwrite", action="store_true", help="replace the run in --out_dir")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1 or mps; auto is cuda if there is one")
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
        help="of the computation; auto is bfloat16 on GPUs that have it")
    add("--base_dtype", choices=["float32", "bfloat16"], default="float32",
        help="of the frozen weights")
    add("--compile", action="store_true", help="torch.compile: a slower start, faster steps")
    return parser


def parse_args(argv=None):
    """The command line -> the argparse.Namespace that `train` takes, complete."""
    parser = build_parser()
    argv = [underscores(word) for word in (sys.argv[1:] if argv is None else argv)]

    # The method sets its defaults. A flag that is given wins.
    parser.set_defaults(**PRESETS[parser.parse_args(argv).method])
    args = parser.parse_args(argv)

    # Flags that would do nothing are refused.
    words = {word.partition("=")[0] for word in argv}
    given = [name for name in ADAPTER_FLAGS if words & {f"--{name}", f"--no-{name}"}]
    if given and args.method == "full":
        parser.error(f"--{given[0]} needs an adapter, which --method full does not have")
    if args.init_from == "scratch" and args.method != "full":
        parser.error(f"--init_from scratch needs --method full, not {args.method}")
    if "gamma" in given and args.init != "ga":
        parser.error(f"--gamma {args.gamma:g} is LoRA-GA's: it needs --init ga")
    if "damping" in given and not args.precondition:
        parser.error(f"--damping {args.damping:g} is the preconditioner's: it needs --precondition")
    micro_batches = args.grad_accum * int(os.environ.get("WORLD_SIZE", 1))
    if args.batch_size % micro_batches:
        parser.error(f"--batch_size {args.batch_size} must be a multiple of {micro_batches}, "
                     "--grad_accum times the number of processes")

    # What follows from other flags.
    if args.alpha is None:
        args.alpha = float(args.rank)
    if args.out_dir is None:
        rank = "" if args.method == "full" else f"-r{args.rank}"
        args.out_dir = f"out/{Path(args.data).stem}-{args.method}{rank}"
    if args.dtype == "auto":
        on_gpu = args.device.startswith(("auto", "cuda")) and torch.cuda.is_available()
        bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        args.dtype = "bfloat16" if bfloat16 else "float32"
    return args


def underscores(word):
    """--lr-ratio=4 -> --lr_ratio=4: both spellings are understood."""
    name, equals, value = word.partition("=")
    is_flag = name.startswith("--") and not name.startswith("--no-")
    return "--" + name[2:].replace("-", "_") + equals + value if is_flag else word


# ==== Model and optimizer =========================================================================


def build_model(args, device):
    """The pretrained GPT on its device, with an adapter in it unless all of it is to train."""
    if args.init_from == "scratch":
        model = GPT(GPTConfig(**SCRATCH, dropout=args.model_dropout))
    else:
        with about_input("--init_from"):
            model = GPT.from_pretrained(args.init_from, args.model_dropout)
    model.to(device, getattr(torch, args.base_dtype))
    if args.method == "full":
        return model

    with about_input("--rank, --targets or --dropout"):
        lora.apply_lora(model, args.rank, args.alpha, args.targets, args.dropout, args.rslora)
    # lora_ga_init would refuse this too, but only after the first evaluation.
    smallest = min(min(layer.linear.weight.shape) for layer in lora.lora_layers(model).values())
    if args.init == "ga" and 2 * args.rank > smallest:
        raise InputError(f"--rank {args.rank} is too large for --init ga: at most {smallest // 2}")
    return model


def build_optimizer(args, model):
    """AdamW on everything that trains, with LoRA+'s ratio and, if wanted, the preconditioner."""
    groups = lora.lora_plus_groups(model, args.lr, args.lr_ratio)
    optimizer = torch.optim.AdamW(groups, betas=tuple(args.betas), weight_decay=args.weight_decay,
                                  fused=next(model.parameters()).is_cuda)
    if args.precondition:
        lora.attach_preconditioner(optimizer, model, args.damping)
    return optimizer


def start_lora_ga(args, model, micro_batches):
    """LoRA-GA's start, if wanted, from the gradient of the run's first batches.

    micro_batches(step) gives those of a step. Every process sums the same gradients.
    """
    if args.init == "ga":
        first = [micro_batch for step in range(GA_BATCHES) for micro_batch in micro_batches(step)]
        lora.lora_ga_init(model, first, weighted_loss, args.gamma)


def weighted_loss(model, micro_batch):
    """A micro-batch's part of its batch's mean loss."""
    idx, targets, weight = micro_batch
    _, loss = model(idx, targets)
    return weight * loss


def schedule(step, warmup, steps):
    """The factor on the learning rate: linear warm-up to 1, then cosine decay to 0."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


# ==== Training ====================================================================================


def train(args, build_model=build_model, build_optimizer=build_optimizer,
          start=start_lora_ga, after_step=None):
    """Runs what `parse_args` returned -> the dict in result.json; None in processes but the first.

    Experiments and exercises pass their own build_model, build_optimizer and start, with the same
    arguments. The optimizer's groups hold their peak learning rates.
    after_step(model, optimizer, step) is called after each step, counted from 1.
    Raises InputError for what the user can correct.
    """
    began = time.perf_counter()

    # Processes: torchrun starts several, and each takes its micro-batches of a batch.
    ddp_rank = int(os.environ.get("RANK", 0))
    ddp_world_size = int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(args.device)
    if ddp_world_size > 1 and not dist.is_initialized():
        # The others wait while the first one evaluates.
        dist.init_process_group(timeout=timedelta(hours=2))

    # The checkpoint to resume from, if any. A run in the directory is not lost without a flag.
    checkpoint = find_checkpoint(args)
    print(f"{args.method} on {args.data}, {args.steps} steps on {device}", flush=True)

    # Model.
    torch.manual_seed(args.seed)
    model = build_model(args, device)

    # Data: what to learn, and the held-out English prose that may be forgotten.
    with about_input("--init_from"):
        encoding = tokenizer.load_for(args.init_from)
    check_fit(args, model, encoding)
    task = tasks.load(args.data, encoding, args.block_size, args.val_data)
    source = tasks.load_source(encoding, args.block_size)

    def micro_batches(step):
        """A step's whole batch -> [(idx, targets, weight)], the same list in every process.

        The loss ignores targets of −1. The weight is the micro-batch's fraction of the batch's
        targets that count.
        """
        idx, targets = task.batch(args.seed, step, args.batch_size)
        idx, targets = idx.to(device), targets.to(device)
        count = args.grad_accum * ddp_world_size
        total = (targets != -1).sum().item()
        return [(some_idx, some_targets, (some_targets != -1).sum().item() / total)
                for some_idx, some_targets in zip(idx.chunk(count), targets.chunk(count))]

    # Start: evaluate the base model, then let LoRA-GA choose the factors. Or resume.
    if checkpoint is None:
        first_step, seconds = 0, 0.0
        before = after = evaluate(model, task, source)  # the first checkpoint may need `after`
        start(args, model, micro_batches)
    else:
        if checkpoint["checksum"] != task.checksum:
            raise InputError(f"--resume: {args.data} has changed since the checkpoint")
        first_step, seconds = checkpoint["step"], checkpoint["seconds"]
        before, after = checkpoint["before"], checkpoint["after"]
        restore_model(model, checkpoint["model"])
    if ddp_world_size > 1:  # bit for bit the same in all processes, on different machines too
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)

    # Optimizer. The schedule scales its learning rates.
    optimizer = build_optimizer(args, model)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
    if ddp_rank == 0:
        log = open_log(args, first_step)
        if checkpoint is None:
            log.writerow({"step": 0, **before})

    # The loop.
    forward = torch.compile(model) if args.compile else model
    loop_began = last_saved = last_shown = time.perf_counter()
    for step in range(first_step, args.steps):
        step_began = time.perf_counter()
        model.train()

        # Learning rate.
        lr_factor = schedule(step, args.warmup, args.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr_factor * group["initial_lr"]

        # Dropout depends on seed, step and process alone, batches on seed and step: a run that is
        # resumed on the same machine goes on bit for bit.
        torch.manual_seed((args.seed * 1_000_000 + step) * ddp_world_size + ddp_rank)

        # Forward and backward, one micro-batch after the other.
        loss = torch.zeros((), device=device)
        for micro_batch in micro_batches(step)[ddp_rank::ddp_world_size]:
            with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
                micro_loss = weighted_loss(forward, micro_batch)
            micro_loss.backward()
            loss += micro_loss.detach()

        # Add up the loss and the gradients of all processes.
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        if ddp_world_size > 1:
            for tensor in [loss, *(p.grad for p in trained if p.grad is not None)]:
                dist.all_reduce(tensor)

        # Clip and step. An attached preconditioner acts inside step(), after the clipping.
        norm = torch.nn.utils.clip_grad_norm_(trained, args.grad_clip or math.inf)
        if not norm.isfinite():
            raise InputError(f"the gradient is no longer finite at step {step + 1}: try an --lr "
                             f"below {args.lr:g}")
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if after_step is not None:
            after_step(model, optimizer, done)
        if ddp_rank > 0:
            continue

        # Evaluate, log, checkpoint: the first process alone.
        row = {"step": done, "loss": loss.item(), "lr": args.lr * lr_factor,
               "ms": 1e3 * (time.perf_counter() - step_began)}
        last = done == args.steps
        evaluating = last or done % args.eval_interval == 0
        if evaluating:
            after = evaluate(model, task, source, all_rows=last)
            if not math.isfinite(after["source_loss"]):
                raise InputError(f"the loss is no longer finite at step {done}: try an --lr below "
                                 f"{args.lr:g}")
            row.update(after)
        log.writerow(row)
        now = time.perf_counter()
        if evaluating or now - last_saved > 60:
            last_saved = now
            progress = {"step": done, "seconds": seconds + now - began, "before": before,
                        "after": after}
            save_checkpoint(args, model, optimizer, task, progress)
        if evaluating or now - last_shown > 5:
            last_shown = now
            seconds_left = (now - loop_began) / (done - first_step) * (args.steps - done)
            print_row(args, task, row, seconds_left)

    # The result: files, and a report for a person.
    if ddp_rank > 0:
        return None
    seconds += time.perf_counter() - began
    result = summary(args, model, optimizer, task, before, after, seconds)
    save_results(args, model, result)
    print_report(args, model, task, result)
    return result


def evaluate(model, task, source, all_rows=True):
    """What is learned, and what is forgotten: the loss on the source domain, English prose.

    During training a quarter of the held-out rows is enough.
    """
    measures = task.measure(model, all_rows)
    return {"metric": measures[task.metric], "source_loss": source.evaluate(model),
            "measures": measures}


def pick_device(name):
    """The torch.device of --device."""
    if name == "auto":  # not mps, which lacks operations in many versions of torch
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # torch's answers to a device that it does not have
        raise InputError(f"--device {name} is not on this machine: try --device auto, or cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def check_fit(args, model, encoding):
    """Raises InputError if the context or the vocabulary is larger than the model's."""
    if args.block_size > model.config.block_size:
        raise InputError(f"--block_size {args.block_size} exceeds this model's, "
                         f"{model.config.block_size}")
    if encoding.n_vocab > model.config.vocab_size:
        raise InputError(f"--init_from {args.init_from}: its vocabulary of "
                         f"{model.config.vocab_size} tokens is smaller than the tokenizer's, "
                         f"{encoding.n_vocab}")


# ==== The files of a run ==========================================================================


def settings_of(args):
    """The flags that make two runs the same experiment -> dict."""
    others = ("out_dir", "resume", "overwrite", "device", "compile")
    return {name: value for name, value in vars(args).items() if name not in others}


def find_checkpoint(args):
    """The checkpoint to resume from, or None; InputError if a run would be lost."""
    path = Path(args.out_dir) / "ckpt.pt"
    if not args.resume:
        if path.with_name("log.csv").exists() and not args.overwrite:
            raise InputError(f"--out_dir {args.out_dir} holds a run: --resume goes on with it, "
                             "--overwrite replaces it, another --out_dir keeps it")
        return None
    if not path.exists():  # the run stopped before its first checkpoint, or has not begun
        if path.with_name("result.json").exists():
            raise InputError(f"--resume: the run in {args.out_dir} is finished, without ckpt.pt")
        return None
    with about_input("--resume"):
        checkpoint = read_tensors(path)
    for name, mine in settings_of(args).items():
        theirs = checkpoint["settings"].get(name)
        if mine != theirs:
            raise InputError(f"--resume: {args.out_dir} holds a run with --{name} {theirs}, not "
                             f"{mine}")
    return checkpoint


def trained_state(model):
    """The tensors that a run changes: what trains, and what LoRA-GA started from."""
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for name, layer in lora.lora_layers(model).items():
        state[f"{name}.lora_A0"] = layer.lora_A0
        state[f"{name}.lora_B0"] = layer.lora_B0
    return state


def restore_model(model, state):
    """Puts a checkpoint's tensors into a freshly built model.

    A checkpoint lacks the frozen weights, so W0 − s·B0A0 is computed again.
    """
    for name, layer in lora.lora_layers(model).items():
        if state[f"{name}.lora_B0"].any():
            lora.start_from(layer, state[f"{name}.lora_A0"], state[f"{name}.lora_B0"])
    model.load_state_dict(state, strict=False)


def save_checkpoint(args, model, optimizer, task, progress):
    """Forces log.csv to the disk, so that it is never behind its checkpoint; writes ckpt.pt."""
    with open(Path(args.out_dir) / "log.csv", "a") as log:
        os.fsync(log.fileno())  # of the file, whichever handle has written to it
    save(Path(args.out_dir) / "ckpt.pt", {
        "settings": settings_of(args), "checksum": task.checksum, "metric_name": task.metric,
        "model": trained_state(model), "optimizer": optimizer.state_dict(), **progress})


def open_log(args, first_step):
    """The writer of log.csv. Creating the file claims the directory for this run."""
    path = Path(args.out_dir) / "log.csv"
    with about_input(f"--out_dir {args.out_dir} cannot be used"):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        if first_step > 0:  # later rows are computed again
            rows = read_csv(path)[:first_step + 1]
        else:
            if args.resume:  # stopped before its first checkpoint: it starts again
                path.unlink(missing_ok=True)
            if args.overwrite:
                for name in RUN_FILES:
                    path.with_name(name).unlink(missing_ok=True)
            path.touch(exist_ok=False)  # fails if another run has created it meanwhile
        write_csv(path, LOG, rows)
        file = open(path, "a", buffering=1, encoding="utf-8", newline="")  # each row at once
    return csv.DictWriter(file, LOG, extrasaction="ignore", lineterminator="\n")


def save(path, contents):
    """Writes a PyTorch file: a temporary one first, so that the old one stays if this fails."""
    # In memory first: on a full disk torch.save itself would raise a RuntimeError.
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    with about_input(f"{path} could not be written"), replace_file(path) as file:
        file.write(buffer.getbuffer())


def summary(args, model, optimizer, task, before, after, seconds):
    """What a finished run learned, forgot, trained and cost -> the dict in result.json."""
    state = [tensor for tensors in optimizer.state.values() for tensor in tensors.values()]
    return {
        "method": args.method, "seed": args.seed, "steps": args.steps, "seconds": seconds,
        "metric_name": task.metric,
        "metric_before": before["metric"], "metric_after": after["metric"],
        "measures_before": before["measures"], "measures_after": after["measures"],
        "source_loss_before": before["source_loss"], "source_loss_after": after["source_loss"],
        "trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_params": sum(p.numel() for p in model.parameters()),
        "optimizer_bytes": sum(tensor.nbytes for tensor in state),
        "settings": settings_of(args),
    }


def save_results(args, model, result):
    """Writes adapter.pt, or model.pt in half precision, then result.json, and a picture."""
    directory = Path(args.out_dir)
    if args.method == "full":
        weights = {name: value.half() for name, value in model.state_dict().items()
                   if name != "lm_head.weight"}  # it is tied
        save(directory / "model.pt", {"config": vars(model.config), "model": weights})
    else:
        save(directory / "adapter.pt", lora.adapter_state_dict(model))
    with replace_file(directory / "result.json") as file:
        file.write(json.dumps(result, indent=1).encode())
    if importlib.util.find_spec("matplotlib"):
        from experiments import plot
        plot.draw([directory], directory / "curves.png")


# ==== Report ======================================================================================


def print_row(args, task, row, left):
    """A line about a step, with the time left in seconds."""
    evaluation = ""
    if "metric" in row:
        evaluation = (f"  {task.metric} {task.format(task.metric, row['metric'])}"
                      f"  prose loss {row['source_loss']:.2f}")
    print(f"step {row['step']:>5}/{args.steps}  loss {row['loss']:.4f}  lr {row['lr']:.1e}  "
          f"{row['ms']:4.0f} ms{evaluation}  {left:.0f} s left", flush=True)


def print_report(args, model, task, result):
    """What was learned and forgotten, the loss curve, a few answers, what to do next."""
    print()
    for name, before in result["measures_before"].items():
        after = task.format(name, result["measures_after"][name])
        print(f"learned  {name} on {Path(args.data).stem}: {task.format(name, before)} -> {after}")
    print(f"forgot   loss on English prose: {result['source_loss_before']:.3f} -> "
          f"{result['source_loss_after']:.3f} nats per token")
    print(f"trained  {result['trainable_params']:,} of {result['total_params']:,} parameters")
    print(f"cost     {result['optimizer_bytes'] / 1e6:.1f} MB of optimizer memory, "
          f"{result['seconds']:.0f} s")
    rows = read_csv(Path(args.out_dir) / "log.csv")
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    print("\ntraining loss", *text_plot(losses), sep="\n  ")
    print("\nsamples", *task.samples(model), sep="\n  ")
    print("\nfiles", *sorted(map(str, Path(args.out_dir).glob("[!.]*"))), sep="\n  ")
    print("\nnext", *what_is_next(args, result, rows), sep="\n  ")


def text_plot(values, width=64, height=7):
    """A curve of at most width × height asterisks, each column a median -> its lines."""
    width = min(width, len(values))
    edges = [len(values) * column // width for column in range(width + 1)]
    medians = [statistics.median(values[a:b]) for a, b in zip(edges, edges[1:])]
    high, low = max(medians), min(medians)
    row_height = (high - low) / (height - 1) or 1.0
    rows = [round((high - value) / row_height) for value in medians]  # from the top
    lines = []
    for line in range(height):
        label = f"{high - line * row_height:8.2f}" if line in (0, height - 1) else " " * 8
        stars = "".join("*" if row == line else " " for row in rows)
        lines.append(f"{label} |{stars}".rstrip())
    return [*lines, f"{'':8} +{'-' * width} step {len(values)}"]


def what_is_next(args, result, rows):
    """Commands and advice that fit the run which has just ended."""
    same = ""
    for name, default in (("data", "math"), ("val_data", None), ("init_from", "base")):
        if getattr(args, name) != default:
            same += f" --{name} {shlex.quote(getattr(args, name))}"
    directory = shlex.quote(args.out_dir)
    yield f"python sample.py --adapter {directory}    asks it, and the base model beside it"
    other = "loraga" if args.method == "full" else "full"
    yield f"python train.py --method {other}{same}    what another method does with this data"
    yield f"python -m experiments.compare{same}    all five methods, each at its best rate"
    forgotten = result["source_loss_after"] - result["source_loss_before"]
    if forgotten > 1:
        yield f"--lr {args.lr / 3:.1g}: a lower rate forgets less than {forgotten:.1f} nats"

    # The last quarter of the run: did the held-out figure still improve?
    sign = 1 if result["metric_name"] == "exact match" else -1  # a loss improves downwards
    evaluated = [row for row in rows if row["metric"] and int(row["step"]) <= 0.75 * args.steps]
    late = sign * (result["metric_after"] - float(evaluated[-1]["metric"]))
    in_all = abs(result["metric_after"] - result["metric_before"])
    if late > 0.1 * in_all:
        yield f"--steps {2 * args.steps}: this run was still learning"
    if late < -0.1 * in_all:
        yield f"fewer --steps or a lower --lr: {result['metric_name']} was better earlier"


def main():
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # the first process prints for all
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character: print "?"
    train(parse_args())
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run_command(main)
