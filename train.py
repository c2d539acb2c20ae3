"""Fine-tunes a small GPT with LoRA, LoRA+, LoRA-GA, the Riemannian preconditioner, or all of its weights.

    python train.py --method loraga --rank 8          on two-digit addition, the default task
    python train.py --data notes.txt --init_from gpt2 on any text, from GPT-2's weights
    torchrun --nproc_per_node=4 train.py              the same run, its batches split over four processes
"""
import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import huggingface
import lora
from data import base, tasks, tokenizer
from data.files import PROCESSES, RANK, load_file, lock, replace_file, save
from model import GPT, GPTConfig

GA_BATCHES = 4  # LoRA-GA averages its gradient over the first batches of the run
SOURCE_WINDOWS = 32  # enough to see forgetting, which is a matter of tenths of nats, and quick
TOGGLES = {"init": "kaiming", "lr_ratio": 1.0, "precondition": False, "rslora": False}
DEFAULTS = {"data": "math", "steps": 600, "warmup": 20, "weight_decay": 0.0, "betas": [0.7, 0.8],
            "eval_interval": 300, "targets": ["c_attn", "c_proj", "c_fc"], **TOGGLES}
PRESETS = {  # learning rates: each method's best in experiments/README.md, with the same betas for all
    "full": {"lr": 3e-3},
    "lora": {"lr": 1e-2},
    "loraplus": {"lr": 1e-3, "lr_ratio": 16.0},
    "loraga": {"lr": 1e-3, "init": "ga", "rslora": True, "alpha": 8.0},
    "riemannian": {"lr": 1e-2, "precondition": True},
    "pretrain": {"lr": 2e-3, "data": "docs", "steps": 10500, "batch_size": 8, "warmup": 300,
                 "weight_decay": 0.1, "betas": [0.9, 0.99], "eval_interval": 1000},
}
WITHOUT_ADAPTER = ("full", "pretrain")


def number(kind, low, high=math.inf):
    """An argparse type: an int or a float that is at least `low` and below `high`."""
    def parse(text):
        value = kind(text)
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"{text} is not allowed: at least {low} and below {high}")
        return value
    parse.__name__ = kind.__name__  # for argparse's own message about text that is no number
    return parse


def build_parser():
    count, natural, fraction = number(int, 1), number(int, 0), number(float, 0, 1)
    positive, not_negative = number(float, 1e-12, 1e36), number(float, 0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"train.py: {message}\n")
    add, yes_or_no = parser.add_argument, argparse.BooleanOptionalAction
    add("--method", choices=PRESETS, default="lora", help="a preset of the toggles, which win if given (lora)")
    add("--init_from", help="gpt2, gpt2-medium, -large, -xl, or a checkpoint's path or URL (the shipped base)")
    add("--data", help="math, code, docs, shakespeare, or the path of a UTF-8 text file (math)")
    add("--rank", type=count, default=8, help="r, the inner dimension of the factors B and A (8)")
    add("--alpha", type=positive, help="the adapter's scale is alpha/rank (the rank, and 8 in loraga)")
    add("--rslora", action=yes_or_no, help="scale by alpha/√rank instead (only in loraga)")
    add("--targets", nargs="+", help="the linear layers to adapt (c_attn c_proj c_fc)")
    add("--dropout", type=fraction, default=0.0, help="the share of the adapter's inputs to drop (0)")
    add("--init", choices=["kaiming", "ga"], help="start from B = 0, or along the gradient (ga in loraga)")
    add("--gamma", type=positive, default=16.0, help="LoRA-GA: larger means smaller starting factors (16)")
    add("--lr_ratio", type=positive, help="LoRA+: B's learning rate over A's (1, and 16 in loraplus)")
    add("--precondition", action=yes_or_no, help="precondition gradients (only in riemannian)")
    add("--damping", type=positive, default=1e-6, help="δ in the preconditioner (1e-6)")
    add("--lr", type=positive, help="the peak learning rate (each method has its own)")
    add("--betas", type=fraction, nargs=2, metavar=("B1", "B2"), help="AdamW's two memories (0.7 0.8)")
    add("--weight_decay", type=not_negative, help="AdamW's decoupled weight decay (0)")
    add("--warmup", type=natural, help="steps over which the learning rate rises from 0 (20)")
    add("--grad_clip", type=not_negative, default=1.0, help="the largest gradient norm, 0 for any (1)")
    add("--batch_size", type=count, help="sequences in a step (32 questions or 16 windows)")
    add("--block_size", type=count, default=128, help="tokens in a window of text (128)")
    add("--grad_accum", type=count, default=1, help="parts to cut a batch into, to save memory (1)")
    add("--steps", type=count, help="optimizer steps (600)")
    add("--seed", type=number(int, 0, 2 ** 32), default=0, help="of the factors, the batches and the dropout (0)")
    add("--dtype", choices=["float32", "bfloat16"], help="what to compute in (bfloat16 on GPUs that have it)")
    add("--base_dtype", choices=["float32", "bfloat16"], help="what to keep the frozen weights in (float32)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (auto: the first GPU, else the CPU)")
    add("--compile", action="store_true", help="compile the model: a slower start, faster steps")
    add("--out_dir", help="where the files go (out/<task>-<method>-r<rank>)")
    add("--eval_interval", type=count, help="steps from one evaluation and checkpoint to the next (300)")
    add("--export", choices=["peft"], help="write the adapter in PEFT's format as well")
    add("--resume", action="store_true", help="continue from the checkpoint in the out directory")
    add("--overwrite", action="store_true", help="replace a different experiment in the out directory")
    return parser


def parse_args(argv=None):
    """The command line -> the argparse.Namespace that `train` takes, with the method's preset filled in."""
    parser = build_parser()
    args = parser.parse_args(argv)
    given = [name for name in (*TOGGLES, "export", "base_dtype") if getattr(args, name) is not None]
    if args.method in WITHOUT_ADAPTER and given:
        parser.error(f"--{given[0]} needs an adapter, which --method {args.method} does not have")
    for name, value in {**DEFAULTS, **PRESETS[args.method]}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    on_gpu = args.device.startswith(("auto", "cuda")) and torch.cuda.is_available()
    args.dtype = args.dtype or ("bfloat16" if on_gpu and torch.cuda.is_bf16_supported(False) else "float32")
    args.batch_size = args.batch_size or (32 if args.data == "math" else 16)
    if args.batch_size % (parts := args.grad_accum * PROCESSES):
        parser.error(f"--batch_size {args.batch_size} must be a multiple of {parts} (--grad_accum times processes)")
    rank = "" if args.method in WITHOUT_ADAPTER else f"-r{args.rank}"
    args.out_dir = args.out_dir or f"out/{Path(args.data).stem}-{args.method}{rank}"
    return args


def pick_device(name):
    if name == "auto":
        mps = torch.backends.mps.is_available() and PROCESSES == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # torch's answers to devices that it does not know or find
        raise ValueError(f"--device {name} is not on this machine: try --device auto") from None


def experiment(args):
    """The settings that make two runs the same experiment."""
    other = ("out_dir", "resume", "overwrite", "device", "compile", "export")
    return {name: value for name, value in vars(args).items() if name not in other}


def find_checkpoint(args):
    """The checkpoint to resume from, or None; ValueError rather than lose another experiment's."""
    path = Path(args.out_dir) / "ckpt.pt"
    if not args.resume and (args.overwrite or not path.exists()):
        return None
    checkpoint = load_file(path)
    for name, mine in experiment(args).items():
        if mine != (theirs := checkpoint.get("settings", {}).get(name)):
            raise ValueError(f"{args.out_dir} holds another experiment, of --{name} {theirs} and not {mine}: "
                             "give its flags to --resume it, another --out_dir, or --overwrite")
    return checkpoint if args.resume else None


def build_model(args, device):
    """A fresh GPT to pretrain, or the base with an adapter on it unless all of it is to train."""
    torch.manual_seed(args.seed)
    if args.method == "pretrain" and not args.init_from:
        return GPT(GPTConfig(block_size=128, vocab_size=2048, n_layer=4, n_head=4, n_embd=256)).to(device)
    model = base.load(args.init_from).to(device, getattr(torch, args.base_dtype or "float32"))
    if args.method not in WITHOUT_ADAPTER:
        lora.apply_lora(model, args.rank, args.alpha, args.targets, args.dropout, args.rslora)
    return model


def build_optimizer(args, model):
    groups = lora.lora_plus_groups(model, args.lr, args.lr_ratio)
    optimizer = torch.optim.AdamW(groups, betas=tuple(args.betas), weight_decay=args.weight_decay,
                                  fused=next(model.parameters()).is_cuda)
    if args.precondition:
        lora.attach_preconditioner(optimizer, model, args.damping)
    return optimizer


def trained_state(model):
    """The tensors that a run has changed: what trains, and what LoRA-GA started from."""
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return state | {name: b for name, b in model.named_buffers() if name.endswith(("lora_A0", "lora_B0"))}


def resume(args, model, checkpoint):
    """Puts a checkpoint's weights into a model fresh from build_model -> its optimizer, its progress."""
    try:
        state = checkpoint["model"]
        for name, layer in lora.lora_layers(model).items():
            if f"{name}.lora_A0" in state:
                layer.start_from(state[f"{name}.lora_A0"], state[f"{name}.lora_B0"])
        if state.keys() != trained_state(model).keys():
            raise KeyError
        model.load_state_dict(state, strict=False)
        optimizer = build_optimizer(args, model)
        optimizer.load_state_dict(checkpoint["optimizer"])
        return optimizer, checkpoint["progress"]
    except (KeyError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"{args.out_dir}/ckpt.pt does not fit the model of these flags") from None


def save_checkpoint(args, model, optimizer, task, progress):
    """Writes ckpt.pt, from which --resume goes on, and log.csv."""
    save(Path(args.out_dir) / "ckpt.pt", {"settings": experiment(args), "progress": progress,
                                          "model": trained_state(model), "optimizer": optimizer.state_dict()})
    rows = [("step", "loss", "lr", "ms", task.metric), *progress["log"]]
    with replace_file(Path(args.out_dir) / "log.csv") as file:
        file.writelines((",".join(map(str, row)) + "\n").encode() for row in rows)


def lr_factor(step, args):
    """The share of the peak learning rate at a step (from 0): a linear rise, then half a cosine down to 0."""
    decay = 0.5 * (1 + math.cos(math.pi * (step - args.warmup) / max(1, args.steps - args.warmup)))
    return (step + 1) / args.warmup if step < args.warmup else decay


def shares(idx, targets, count):
    """This process's `count` parts of a batch -> (idx, targets, share of the batch's targets), one by one."""
    parts = zip(idx.chunk(count * PROCESSES), targets.chunk(count * PROCESSES))
    for part, labels in list(parts)[RANK::PROCESSES]:
        yield part, labels, (labels != -1).sum().item() / (targets != -1).sum().item()


def train_step(args, model, optimizer, idx, targets, step):
    """One optimizer step on a batch -> its loss; ValueError if the new weights are not finite."""
    torch.manual_seed((args.seed * 1_000_000 + step) * PROCESSES + RANK)  # for dropout
    model.train()
    loss = 0.0
    for part, labels, share in shares(idx, targets, args.grad_accum):
        with torch.autocast(idx.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            part_loss = model(part, labels)[1] * share
        (part_loss * PROCESSES).backward()  # DistributedDataParallel divides the processes' sum by that
        loss = loss + part_loss.detach()
    if PROCESSES > 1:
        dist.all_reduce(loss)
    loss = loss.item()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, args.grad_clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak_lr", group["lr"]) * lr_factor(step, args)
    optimizer.step()
    optimizer.zero_grad()
    if not torch.stack([p.isfinite().all() for p in trained]).all():  # nor are they after a loss that is not
        raise ValueError(f"the weights are no longer finite at step {step + 1}: try an --lr below {args.lr:g}")
    return loss


def begin(args, model, task, source, batch):
    """The measurements before the first step, and LoRA-GA -> the optimizer, the progress."""
    progress = {"step": 0, "seconds": 0.0, "log": [], "metric_before": task.evaluate(model),
                "source_loss_before": source.evaluate(model, SOURCE_WINDOWS)}
    if args.init == "ga":
        parts = [next(shares(*batch(step), count=1)) for step in range(GA_BATCHES)]
        lora.lora_ga_init(model, parts, lambda model, part: model(*part[:2])[1] * part[2], args.gamma)
    return build_optimizer(args, model), progress


def train(args, interrupted=threading.Event()):
    """Runs what `parse_args` describes -> the dict in result.json; `interrupted` ends it with a checkpoint."""
    start, device, checkpoint = time.perf_counter(), pick_device(args.device), find_checkpoint(args)
    print(f"{args.method} on {args.data}, {args.steps} steps on {device}", flush=True)
    if PROCESSES > 1 and not dist.is_initialized():
        dist.init_process_group(timeout=timedelta(days=1), device_id=device if device.type == "cuda" else None)
    if RANK:
        dist.barrier()  # process 0 goes first: it downloads, and cuts into tokens, what the others then find
    model = build_model(args, device)
    encoding = tokenizer.load("gpt2" if args.init_from else "nanolora")
    if args.block_size > model.config.block_size or encoding.n_vocab > model.config.vocab_size:
        raise ValueError(f"--block_size {args.block_size} or the vocabulary's {encoding.n_vocab} tokens exceed"
                         f" this model's {model.config.block_size} and {model.config.vocab_size}")
    task, source = (tasks.load(name, encoding, args.block_size) for name in (args.data, "docs"))
    if PROCESSES > 1 and not RANK:
        dist.barrier()
    batch = lambda step: [part.to(device) for part in task.batch(args.seed, step, args.batch_size)]
    optimizer, progress = resume(args, model, checkpoint) if checkpoint else begin(args, model, task, source, batch)
    locked = lock(args.out_dir)  # noqa: F841: until this function returns
    save_checkpoint(args, model, optimizer, task, progress)  # before the work: is the directory writable?
    forward = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if PROCESSES > 1 else model
    forward = torch.compile(forward) if args.compile else forward
    start, shown = start - progress["seconds"], progress["seconds"]
    for step in range(progress["step"], args.steps):
        began = time.perf_counter()
        loss = train_step(args, forward, optimizer, *batch(step), step)
        ms = 1e3 * (time.perf_counter() - began)
        due = (step + 1) % args.eval_interval == 0 or step + 1 == args.steps
        row = [step + 1, loss, args.lr * lr_factor(step, args), ms, task.evaluate(model) if due else ""]
        progress["log"].append(row)
        progress |= {"step": step + 1, "seconds": time.perf_counter() - start}
        stop = torch.tensor(float(interrupted.is_set()), device=device)
        if PROCESSES > 1:
            dist.all_reduce(stop)  # if one process stops, all do
        if stop or due:
            save_checkpoint(args, model, optimizer, task, progress)
        if due or progress["seconds"] - shown > 5:
            shown = progress["seconds"]
            score = f"  {task.metric} {task.in_words(row[-1])}" if due else ""
            print(f"step {step + 1:>5}/{args.steps}  loss {loss:.4f}  lr {row[2]:.1e}  {ms:4.0f} ms/step{score}"
                  f"  {ms / 1e3 * (args.steps - step - 1):.0f} s left", flush=True)
        if stop:
            raise KeyboardInterrupt(f"stopped after step {step + 1}; the same command with --resume continues")
    return finish(args, model, optimizer, task, source, progress)


def finish(args, model, optimizer, task, source, progress):
    """The files and the report of a finished run -> result, a dict."""
    adapted, directory, log = args.method not in WITHOUT_ADAPTER, Path(args.out_dir), progress["log"]
    weights, contents = ("adapter.pt", lora.adapter_state_dict) if adapted else ("model.pt", base.contents)
    result = {
        "method": args.method, "task": Path(args.data).stem, "rank": args.rank if adapted else None,
        "seed": args.seed, "steps": args.steps, "seconds": progress["seconds"],
        "metric_name": task.metric, "metric_before": progress["metric_before"], "metric_after": log[-1][-1],
        "source_loss_before": progress["source_loss_before"],
        "source_loss_after": source.evaluate(model, SOURCE_WINDOWS),
        "trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_params": sum(p.numel() for p in model.parameters()),
        "optimizer_bytes": sum(value.nbytes for state in optimizer.state.values() for value in state.values()),
        "history": [[row[0], row[-1]] for row in log if row[-1] != ""], "settings": experiment(args),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "processes": PROCESSES},
    }
    save(directory / weights, contents(model))
    if args.export:
        huggingface.export_peft(model, directory / "peft")
    with replace_file(directory / "result.json") as file:
        file.write(json.dumps(result, indent=1).encode())
    report(args, model, task, result)
    return result


def report(args, model, task, result):
    """Prints what a run learned, forgot, trained and cost, and what to try next."""
    words = {key: task.in_words(result[key]) for key in ("metric_before", "metric_after")}
    print("\nlearned  {metric_name} on {task}: {metric_before} -> {metric_after}\n"
          "forgot   docs: {source_loss_before:.3f} -> {source_loss_after:.3f} nats per token\n"
          "trained  {trainable_params:,} of {total_params:,} parameters\n"
          "cost     {optimizer_bytes:,} bytes of optimizer memory, {seconds:.0f} s".format(**result | words))
    print("\nsamples", *task.samples(model), sep="\n  ")
    print("\nfiles", *sorted(map(str, Path(args.out_dir).glob("[!.]*"))), sep="\n  ")
    print("\nnext\n  another --method or --rank, --precondition or --lr_ratio 4 on top, --data your_own.txt")


def main():
    interrupted = threading.Event()

    def stop_after_this_step(*_):
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    signal.signal(signal.SIGINT, stop_after_this_step)
    signal.signal(signal.SIGTERM, stop_after_this_step)
    sys.stdout = open(os.devnull, "w") if RANK else sys.stdout
    try:
        train(parse_args(), interrupted)
    except KeyboardInterrupt as stop:
        sys.exit(f"train.py: {str(stop) or 'stopped at once, without another checkpoint'}")
    except (ValueError, OSError, RuntimeError) as error:
        if PROCESSES == 1 and not isinstance(error, (ValueError, OSError, torch.OutOfMemoryError)):
            raise  # a mistake in the code, not a process that died
        stopped = f"process {RANK} stopped: " if PROCESSES > 1 else ""
        build_parser().error(stopped + str(error).partition("\n")[0])


if __name__ == "__main__":
    main()
