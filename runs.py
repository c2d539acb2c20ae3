"""A run's flags, directory, signals and processes: what train.py, sample.py and export.py share.

An out directory holds ckpt.pt, from which --resume goes on, and log.csv; at the end result.json,
and adapter.pt, or model.pt where there is no adapter. The processes of torchrun share a run: each
takes its part of every batch, and process 0 alone writes.
"""
import argparse
import contextlib
import json
import math
import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import huggingface
import lora
from data import base
from data.files import (TEMPORARY, InputError, about_input, load_file, replace_file, save,
                        write_csv)

try:
    import fcntl
except ImportError:  # Windows: runs do not notice each other there
    fcntl = None

PROCESS = int(os.environ.get("RANK", 0))  # this process's number, by torchrun
PROCESSES = int(os.environ.get("WORLD_SIZE", 1))
WITHOUT_ADAPTER = ("full", "pretrain")  # these methods train the model's own weights
LOG = ("step", "loss", "lr", "ms", "metric", "source_loss")  # the columns of log.csv
RESULTS = ("log.csv", "result.json", "adapter.pt", "model.pt", "curves.png",
           "peft/adapter_*", "merged/*")


def number(kind, low, high=math.inf):
    """An argparse type: an int or a float that is at least `low` and below `high`."""
    def parse(text):
        value = kind(text)
        if not low <= value < high:
            raise argparse.ArgumentTypeError(
                f"{text} is not allowed: at least {low} and below {high}")
        return value
    parse.__name__ = kind.__name__  # for argparse's own message about text that is no number
    return parse


def pick_device(name):
    """The torch.device of --device; auto is CUDA's where there is one, else the CPU."""
    if name == "auto":  # not mps: it lacks some of what the methods need, in many versions of torch
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, ImportError):  # torch's answers to what it does not know
        remedy = "--device auto" if PROCESSES == 1 else "fewer processes, or --device cpu"
        raise InputError(f"--device {name} is not on this machine: try {remedy}") from None


def print_anywhere():
    """Where the output takes few characters, as in Windows' pipes, "?" stands for the others."""
    sys.stdout.reconfigure(errors="replace")


@contextlib.contextmanager
def lock(directory):
    """Keeps other runs out of a directory; what was made for nothing is removed afterwards."""
    if PROCESS or fcntl is None:
        yield
        return
    directory = Path(directory)
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    lock_file = directory / ".lock"
    with open(lock_file, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out_dir {directory} is in use by another run") from None
        try:
            for leftover in directory.glob(f".*{TEMPORARY}"):  # of a run killed as it wrote
                leftover.unlink()
            yield
        finally:
            lock_file.unlink()
            for path in made:
                with contextlib.suppress(OSError):  # it is not empty
                    path.rmdir()


@contextlib.contextmanager
def stop_on_signal():
    """Yields an event that Ctrl-C or SIGTERM sets; a second Ctrl-C raises KeyboardInterrupt."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield stop
        return

    def handle(*_):
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def settings_of(args):
    """The flags that make two runs the same experiment -> dict."""
    others = ("out_dir", "resume", "overwrite", "device", "compile", "export")
    return {name: value for name, value in vars(args).items() if name not in others}


def check_unchanged(args, stored, remedy):
    """A run is known by its flags, which do not tell that a file has been edited since."""
    for path in map(Path, filter(None, [args.data, args.val_data])):
        if path.is_file() and stored.exists() and path.stat().st_mtime > stored.stat().st_mtime:
            raise InputError(f"{path} is newer than {stored}, which is of the older file: {remedy}")


def find_checkpoint(args):
    """The checkpoint to go on from, or None to begin; InputError rather than lose a run's work."""
    path = Path(args.out_dir) / "ckpt.pt"
    if args.overwrite or not (args.resume or path.exists()):
        return None
    checkpoint = load_file(path)
    if args.resume:
        for name, mine in settings_of(args).items():
            theirs = checkpoint.get("settings", {}).get(name)
            if mine != theirs:
                raise InputError(f"--resume: {args.out_dir} holds a run of --{name} {theirs}, "
                                 f"not {mine}")
        check_unchanged(args, path, "--overwrite begins anew")
        return checkpoint
    step = checkpoint.get("progress", {}).get("step")
    if step == 0:  # nothing to lose
        return None
    raise InputError(f"--out_dir {args.out_dir} holds a run of {step} steps: --resume goes on with "
                     "it, --overwrite replaces it, another --out_dir keeps it")


def trained_state(model):
    """The tensors that a run has changed: what trains, and what LoRA-GA started from."""
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for name, layer in lora.lora_layers(model).items():
        state[f"{name}.lora_A0"] = layer.lora_A0
        state[f"{name}.lora_B0"] = layer.lora_B0
    return state


def clear(directory):
    """Removes what an earlier run left in the directory, but for its checkpoint."""
    if not PROCESS:
        for name in RESULTS:
            for path in Path(directory).glob(name):
                path.unlink()


def save_checkpoint(args, model, optimizer, progress):
    """Writes ckpt.pt and log.csv."""
    if PROCESS:
        return
    contents = {"settings": settings_of(args), "progress": progress, "model": trained_state(model),
                "optimizer": optimizer.state_dict()}
    save(Path(args.out_dir) / "ckpt.pt", contents)
    write_csv(Path(args.out_dir) / "log.csv", LOG, progress["log"])


def restore(checkpoint, model, build_optimizer):
    """Puts a checkpoint into a model as it was before step 0 -> its optimizer, its progress."""
    try:
        state = checkpoint["model"]
        for name, layer in lora.lora_layers(model).items():
            if state[f"{name}.lora_B0"].any():
                layer.start_from(state[f"{name}.lora_A0"], state[f"{name}.lora_B0"])
        if state.keys() != trained_state(model).keys():
            raise KeyError
        model.load_state_dict(state, strict=False)
        optimizer = build_optimizer()
        optimizer.load_state_dict(checkpoint["optimizer"])
        return optimizer, checkpoint["progress"]
    except (KeyError, RuntimeError, TypeError, ValueError):
        raise InputError("--resume: ckpt.pt does not fit the model of these flags") from None


def save_results(args, model, result):
    """Writes adapter.pt or model.pt, PEFT's files if they are wanted, and last result.json."""
    if PROCESS:
        return
    directory = Path(args.out_dir)
    if args.method in WITHOUT_ADAPTER:
        save(directory / "model.pt", base.contents(model))
    else:
        save(directory / "adapter.pt", lora.adapter_state_dict(model))
    if args.export:
        huggingface.export_peft(model, directory / "peft")
    with replace_file(directory / "result.json") as file:
        file.write(json.dumps(result, indent=1).encode())


def load_base(init_from=None, dropout=0.0):
    """The model that runs start from: the shipped GPT, or what `huggingface.load_gpt2` takes."""
    return huggingface.load_gpt2(init_from, dropout) if init_from else base.load(dropout)


def load_run(directory):
    """A finished run's settings, and its adapter or model's file; InputError without them."""
    try:
        text = (Path(directory) / "result.json").read_text(encoding="utf-8")
        settings = {"init_from": None, **json.loads(text)["settings"]}
        weights = "model.pt" if settings["method"] in WITHOUT_ADAPTER else "adapter.pt"
        return settings, load_file(Path(directory) / weights)
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{directory} holds no finished run, or a damaged one") from None


def model_of(state, model):
    """The model of a run: its adapter on the base `model`, in place, or the whole it trained."""
    if "config" in state:
        return base.build(state)
    with about_input("the adapter"):
        return lora.load_adapter(model, state)


def join(device):
    """Joins torchrun's processes, if there are several."""
    if PROCESSES > 1 and not dist.is_initialized():
        on_gpu = device if device.type == "cuda" else None
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(timeout=timedelta(days=1), device_id=on_gpu)


@contextlib.contextmanager
def first_process_first():
    """Process 0 runs the block before the others, which find what it has downloaded and cached."""
    if PROCESSES > 1 and PROCESS:
        dist.barrier()
    yield
    if PROCESSES > 1 and not PROCESS:
        dist.barrier()


def add_up(tensors):
    """Replaces each tensor by its sum over the processes."""
    if PROCESSES > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def any_process(flag, device):
    """Whether the flag is set in any process: if one stops, all do."""
    if PROCESSES == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    add_up([found])
    return found.item() > 0


def copy_from_process_0(model):
    """Gives all processes the same weights, to the last bit."""
    if PROCESSES > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
