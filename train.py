"""Fine-tunes a small GPT with LoRA, LoRA+, LoRA-GA, the Riemannian preconditioner, or all of its weights.

    python train.py --method loraga --rank 8          on two-digit addition, the default task
    python train.py --data notes.txt --init_from gpt2 on any text, from GPT-2's weights
    torchrun --nproc_per_node=4 train.py              the same run, its batches split over four processes
    python train.py --help                            every flag
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
            "eval_interval": 300, **TOGGLES}
PRESETS = {  # learning rates: each method's best in experiments/README.md, with the same betas for all
    "full": {"lr": 3e-3},
    "lora": {"lr": 1e-2},
    "loraplus": {"lr": 1e-3, "lr_ratio": 16.0},
    "loraga": {"lr": 1e-3, "init": "ga", "rslora": True},
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
    positive, not_negative = number(float, 1e-12), number(float, 0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"train.py: {message}\n")
    add, targets = parser.add_argument, ["c_attn", "c_proj", "c_fc"]
    add("--method", choices=PRESETS, default="lora", help="what to train: a preset of toggles, which their own flags override (lora)")
    add("--init_from", help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a checkpoint's path or URL (the shipped base)")
    add("--data", help="math, code, docs, shakespeare, or the path of a UTF-8 text file (math)")
    add("--rank", type=count, default=8, help="r, the inner dimension of the factors B and A (8)")
    add("--alpha", type=positive, help="the adapter's scale is alpha/rank (the rank)")
    add("--rslora", action="store_true", default=None, help="scale by alpha/√rank instead (on in loraga)")
    add("--no_rslora", dest="rslora", action="store_false", help="scale by alpha/rank, whatever the method")
    add("--targets", nargs="+", default=targets, help="the linear layers to adapt (c_attn c_proj c_fc)")
    add("--dropout", type=fraction, default=0.0, help="the share of the adapter's inputs to drop (0)")
    add("--init", choices=["kaiming", "ga"], help="start from B = 0, or along the gradient (ga in loraga)")
    add("--gamma", type=positive, default=16.0, help="LoRA-GA: larger means smaller starting factors (16)")
    add("--lr_ratio", type=positive, help="LoRA+: B's learning rate over A's (1, and 16 in loraplus)")
    add("--precondition", action="store_true", default=None, help="precondition gradients (on in riemannian)")
    add("--no_precondition", dest="precondition", action="store_false", help="do not, whatever the method")
    add("--damping", type=positive, default=1e-6, help="δ, added to the preconditioner's metrics; at least their rounding error (1e-6)")
    add("--lr", type=positive, help="the peak learning rate (each method has its own)")
    add("--betas", type=fraction, nargs=2, metavar=("B1", "B2"), help="AdamW's two memories (0.7 0.8)")
    add("--weight_decay", type=not_negative, help="AdamW's decoupled weight decay (0)")
    add("--warmup", type=natural, help="steps over which the learning rate rises from 0 (20)")
    add("--grad_clip", type=not_negative, default=1.0, help="the largest gradient norm, 0 for any (1)")
    add("--batch_size", type=count, help="sequences in a step (32 questions or 16 windows)")
    add("--block_size", type=count, default=128, help="tokens in a window of text (128)")
    add("--grad_accum", type=count, default=1, help="parts to cut a batch into, to save memory (1)")
    add("--steps", type=count, help="optimizer steps (600)")
    add("--seed", type=natural, default=0, help="the seed of the factors, the batches and the dropout (0)")
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
    gpu = args.device.startswith(("auto", "cuda")) and torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
    args.dtype = args.dtype or ("bfloat16" if gpu else "float32")
    args.batch_size = args.batch_size or (32 if args.data == "math" else 16)
    if args.batch_size % (args.grad_accum * PROCESSES):
        parser.error(f"--batch_size {args.batch_size} must be a multiple of --grad_accum {args.grad_accum}"
                     + f" times {PROCESSES} processes" * (PROCESSES > 1))
    rank = "" if args.method in WITHOUT_ADAPTER else f"-r{args.rank}"
    args.out_dir = args.out_dir or f"out/{Path(args.data).stem}-{args.method}{rank}"
    return args


def pick_device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() and PROCESSES == 1 else "cpu"
    try:
        return torch.empty(0, device=f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name).device
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
    groups = [group | {"peak_lr": group["lr"]} for group in lora.lora_plus_groups(model, args.lr, args.lr_ratio)]
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
    """One optimizer step on a batch -> its loss; ValueError if that or the new weights are not finite."""
    torch.manual_seed((args.seed * 1_000_000 + step) * PROCESSES + RANK)  # dropout too is a function of the step
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
        group["lr"] = group["peak_lr"] * lr_factor(step, args)
    if math.isfinite(loss):
        optimizer.step()
    optimizer.zero_grad()
    if not math.isfinite(loss) or not torch.stack([p.isfinite().all() for p in trained]).all():
        raise ValueError(f"the loss or the weights are no longer finite at step {step + 1}: try an --lr below "
                         f"{args.lr:g}; the last finite checkpoint is {args.out_dir}/ckpt.pt")
    return loss


def train(args, interrupted=threading.Event()):
    """Runs what `parse_args` describes -> the dict in result.json; stops with a checkpoint once `interrupted` is set."""
    start, device, checkpoint = time.perf_counter(), pick_device(args.device), find_checkpoint(args)
    if PROCESSES > 1 and not dist.is_initialized():
        dist.init_process_group(device_id=device if device.type == "cuda" else None, timeout=timedelta(days=1))
    if RANK:
        dist.barrier()  # process 0 goes first: it downloads, and cuts into tokens, what the others then find
    model = build_model(args, device)
    print(f"{args.method} on {args.data}, {args.steps} steps on {device}", flush=True)
    encoding = tokenizer.load("gpt2" if args.init_from else "nanolora")
    if args.block_size > model.config.block_size or encoding.n_vocab > model.config.vocab_size:
        raise ValueError(f"--block_size {args.block_size} or the vocabulary's {encoding.n_vocab} tokens exceed this "
                         f"model's {model.config.block_size} and {model.config.vocab_size}")
    task = tasks.load(args.data, encoding, args.block_size)
    source = tasks.load("docs", encoding, args.block_size)
    if PROCESSES > 1 and not RANK:
        dist.barrier()
    batch = lambda step: [part.to(device) for part in task.batch(args.seed, step, args.batch_size)]
    if checkpoint:
        optimizer, progress = resume(args, model, checkpoint)
    else:
        progress = {"step": 0, "seconds": 0.0, "log": [], "metric_before": task.evaluate(model),
                    "source_loss_before": source.evaluate(model, SOURCE_WINDOWS)}
        if args.init == "ga":
            lora.lora_ga_init(model, map(batch, range(GA_BATCHES)), gamma=args.gamma, loss_fn=lambda model, batch: sum(
                model(part, labels)[1] * share for part, labels, share in shares(*batch, count=1)))
        optimizer = build_optimizer(args, model)
    locked = lock(args.out_dir)  # noqa: F841: until this function returns
    save_checkpoint(args, model, optimizer, task, progress)  # before the work: is the directory writable?
    forward = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if PROCESSES > 1 else model
    forward, first, log = torch.compile(forward) if args.compile else forward, progress["step"], progress["log"]
    spent, shown, loop = progress["seconds"], time.perf_counter(), time.perf_counter()
    for step in range(first, args.steps):
        began = time.perf_counter()
        loss = train_step(args, forward, optimizer, *batch(step), step)
        now = time.perf_counter()
        log.append([step + 1, loss, args.lr * lr_factor(step, args), 1e3 * (now - began), ""])
        progress |= {"step": step + 1, "seconds": spent + now - start}
        line = "step {:>5}/{}  loss {:.4f}  lr {:.1e}  {:4.0f} ms/step".format(step + 1, args.steps, *log[-1][1:4])
        if due := (step + 1) % args.eval_interval == 0 or step + 1 == args.steps:
            log[-1][-1] = task.evaluate(model)
            line += f"  {task.metric} {task.in_words(log[-1][-1])}"
        stop = torch.tensor(float(interrupted.is_set()), device=device)
        if PROCESSES > 1:
            dist.all_reduce(stop)  # if one process stops, all do
        if stop or due:
            save_checkpoint(args, model, optimizer, task, progress)
        if due or now - shown > 5:
            shown, left = now, (now - loop) / (step + 1 - first) * (args.steps - step - 1)
            print(f"{line}  {left:.0f} s left", flush=True)
        if stop:
            raise KeyboardInterrupt(f"stopped after step {step + 1}; the same command with --resume continues")
    return finish(args, model, optimizer, task, source, progress)


def finish(args, model, optimizer, task, source, progress):
    """The files and the table of a finished run -> result, a dict."""
    adapted, directory, log = args.method not in WITHOUT_ADAPTER, Path(args.out_dir), progress["log"]
    result = {
        "method": args.method, "task": Path(args.data).stem, "rank": args.rank if adapted else None,
        "seed": args.seed, "steps": args.steps, "seconds": progress["seconds"], "metric_name": task.metric,
        "metric_before": progress["metric_before"], "metric_after": log[-1][-1],
        "source_loss_before": progress["source_loss_before"], "source_loss_after": source.evaluate(model, SOURCE_WINDOWS),
        "trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_params": sum(p.numel() for p in model.parameters()),
        "optimizer_bytes": sum(value.nbytes for state in optimizer.state.values() for value in state.values()),
        "history": [[row[0], row[-1]] for row in log if row[-1] != ""], "settings": experiment(args),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "processes": PROCESSES},
    }
    save(directory / f"{'adapter' if adapted else 'model'}.pt", (lora.adapter_state_dict if adapted else base.contents)(model))
    if args.export:
        huggingface.export_peft(model, directory / "peft")
    with replace_file(directory / "result.json") as file:
        file.write(json.dumps(result, indent=1).encode())
    report(args, model, task, result)
    return result


def report(args, model, task, result):
    """Prints what a run learned, forgot, trained and cost, and what to try next."""
    before, after, trained = (result[key] for key in ("source_loss_before", "source_loss_after", "trainable_params"))
    rows = [("", "", "before", "after"),
            ("learned", f"{task.metric} on {result['task']}", *map(task.in_words, (result["metric_before"], result["metric_after"]))),
            ("forgot", "docs, nats per token", f"{before:.3f}", f"{after:.3f} ({after - before:+.3f})"),
            ("trained", "parameters", "", f"{trained:,} ({trained / result['total_params']:.1%})"),
            ("cost", "optimizer memory and time", "", f"{result['optimizer_bytes'] / 1e6:.1f} MB, {result['seconds']:.0f} s")]
    print("", *("{:9}{:26}{:>24}{:>26}".format(*row) for row in rows), sep="\n")
    print("\nsamples", *task.samples(model), sep="\n  ")
    print("\nfiles", *sorted(map(str, Path(args.out_dir).glob("[!.]*"))), sep="\n  ")
    print("\nnext\n  another --method or --rank, --precondition or --lr_ratio 4 on top, --data your_own.txt")


def main():
    interrupted = threading.Event()
    on_interrupt = lambda *_: interrupted.set() or signal.signal(signal.SIGINT, signal.default_int_handler)
    for stop in (signal.SIGINT, signal.SIGTERM):  # the first one stops the run after its step, a second Ctrl-C at once
        signal.signal(stop, on_interrupt)
    sys.stdout = open(os.devnull, "w") if RANK else sys.stdout
    try:
        train(parse_args(), interrupted)
    except KeyboardInterrupt as stop:
        sys.exit(f"train.py: {stop or 'stopped at once, without another checkpoint'}")
    except (ValueError, OSError) as error:
        build_parser().error(error)
    except RuntimeError as error:
        if PROCESSES == 1 and not isinstance(error, torch.OutOfMemoryError):
            raise
        build_parser().error(f"process {RANK} stopped: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
