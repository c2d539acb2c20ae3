"""What training with LoRA costs, beside full fine-tuning and, where it is installed, PEFT.

    python -m experiments.bench         steps, memory, preconditioner, merged, startup
    python -m experiments.bench loraga cosine growth sizes    LoRA-GA's start; how the costs grow
    python -m experiments.bench steps --device cuda --dtypes mixed bfloat16 --shapes gpt2 gpt2-xl

Whatever is compared runs in turn, in one process, in another order every round: what runs after a
larger neighbour is slower. A time is a median, a ratio is one of medians. Peak memory is that of a
process of its own. PEFT gets the same model, rank, batch and optimizer.
"""
import argparse
import importlib.util
import math
import multiprocessing
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import lora
import train
from model import GPT, GPTConfig
from runs import number

ADAPTERS = ["LoRA", "PEFT"] if importlib.util.find_spec("peft") else ["LoRA"]
METHODS = [*ADAPTERS, "full"]
TARGETS = ["c_attn", "c_proj", "c_fc"]


@dataclass(frozen=True)
class Case:
    """A model to measure, what trains of it, the batch, and the arithmetic."""
    n_layer: int
    n_embd: int
    vocab_size: int = 50257
    block_size: int = 1024
    sequences: int = 4
    tokens: int = 256  # in a sequence
    method: str = "LoRA"
    rank: int = 8
    device: str = "cpu"
    dtype: str = "float32"  # mixed: the products in bfloat16; bfloat16: the frozen weights as well


SMALL = Case(4, 256, vocab_size=2048, block_size=128, sequences=16, tokens=128)
SHAPES = {"small": SMALL, "gpt2": Case(12, 768, 50304), "gpt2-xl": Case(48, 1600, 50304)}
FAMILY = {"GPT-2 124M": Case(12, 768), "GPT-2 medium": Case(24, 1024),
          "GPT-2 large": Case(36, 1280), "GPT-2 XL 1.5B": Case(48, 1600),
          "GPT-3 175B": Case(96, 12288, block_size=2048)}


def build(case):
    """A case's model, with random weights."""
    torch.manual_seed(0)
    heads = case.n_embd // 64
    config = GPTConfig(case.block_size, case.vocab_size, case.n_layer, heads, case.n_embd)
    with torch.device(case.device):
        model = GPT(config)
    if case.method == "full":
        return model
    if case.dtype == "bfloat16":
        model.bfloat16()
    if case.method == "LoRA":
        return lora.apply_lora(model, case.rank, targets=TARGETS)
    import peft  # not above: it takes seconds
    config = peft.LoraConfig(r=case.rank, lora_alpha=case.rank, target_modules=TARGETS)
    return peft.get_peft_model(model, config)


def batch_of(case):
    """Random tokens and their successors, both (sequences, tokens)."""
    size = case.sequences, case.tokens
    idx = torch.randint(case.vocab_size, size, device=case.device)
    return idx, idx.roll(-1, dims=1)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def total(parameters):
    return sum(p.numel() for p in parameters)


def stepper(case):
    """A function that makes one training step: forward, backward, AdamW."""
    model, batch = build(case), batch_of(case)
    optimizer = torch.optim.AdamW(trained(model), lr=1e-4)

    def step():
        with torch.autocast(case.device, torch.bfloat16, enabled=case.dtype != "float32"):
            loss = model(*batch)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def two_steps(case):
    """A function that makes two: the second is the first to have AdamW's state beside it."""
    step = stepper(case)
    return lambda: (step(), step())


def timed(function):
    """The milliseconds that a call takes, on a GPU until its work is done."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def in_turn(functions, rounds=None):
    """The median milliseconds of each function over rounds of calls -> {name: ms}.

    Without `rounds`, as many as fit into ten seconds, but 3 to 31, after one of warm-up.
    """
    warm_up = sum(timed(function) for function in functions.values())
    rounds = rounds or min(31, max(3, int(10_000 / warm_up)))
    order = random.Random(0)
    ms = {name: [] for name in functions}
    for _ in range(rounds):
        for name in order.sample(list(functions), len(functions)):
            ms[name].append(timed(functions[name]))
    return {name: statistics.median(values) for name, values in ms.items()}


def peak_memory(prepare, *args):
    """The most MB that a call of prepare(*args) holds beyond what was there before it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory_here, (prepare, args)) / 1e6


def peak_memory_here(prepare, args):
    function = prepare(*args)
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here
        before, peak = resident("VmRSS"), lambda: resident("VmHWM")
    function()
    return peak() - before


def resident(field):
    """This process's memory in bytes, now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def cases(args, shapes, dtypes, ranks):
    """The first cells of each row, and the case that it measures."""
    for shape, dtype, rank in product(shapes, dtypes, ranks):
        case = replace(SHAPES[shape], dtype=dtype, rank=rank, device=args.device)
        yield {"shape": shape, "dtype": dtype, "rank": rank}, case


def compared(figures, unit):
    """The cells of some figures by name, and of the first one's ratio to each other one."""
    (first, figure), *others = figures.items()
    cells = {f"{name}, {unit}": value for name, value in figures.items()}
    return cells | {f"{first} / {name}": figure / value for name, value in others}


def steps(args):
    """A training step (forward, backward, AdamW), all linear layers adapted"""
    for cells, case in cases(args, args.shapes, args.dtypes, args.ranks):
        work = {method: stepper(replace(case, method=method)) for method in METHODS}
        ms = in_turn(work, args.rounds)
        flops = count_flops(case)
        bound = flops / count_flops(replace(case, method="full"))
        speed = {"its FLOP bound": bound, "GFLOP/s": flops / ms["LoRA"] / 1e6}
        yield cells | compared(ms, "ms") | speed


def count_flops(case):
    """Floating-point operations of a forward and backward pass, on tensors without content."""
    case = replace(case, device="meta", dtype="float32")
    model = build(case)
    with FlopCounterMode(display=False) as counter:
        model(*batch_of(case))[1].backward()
    return counter.get_total_flops()


def memory(args):
    """Peak memory of a training step above the weights"""
    largest = args.shapes[-1:]  # in a small one, the interpreter blurs the figures
    for cells, case in cases(args, largest, args.dtypes, args.ranks[:1]):
        peaks = {method: peak_memory(two_steps, replace(case, method=method)) for method in METHODS}
        yield cells | compared(peaks, "MB")


def preconditioner(args):
    """The preconditioner, here (LoRA) and in PEFT, beside a LoRA step, float32"""
    for cells, case in cases(args, args.shapes, ["float32"], args.ranks):
        work = {method: preconditioning(replace(case, method=method)) for method in ADAPTERS}
        ms = in_turn(work, args.rounds) | in_turn({"a step": stepper(case)}, 1)
        yield cells | compared(ms, "ms")


def preconditioning(case):
    """A function that preconditions random gradients of all factors."""
    model = build(case)
    for p in trained(model):
        torch.nn.init.normal_(p, std=max(p.shape) ** -0.5)  # the gradients then keep their size
        p.grad = torch.randn_like(p)
    if case.method == "LoRA":
        return lambda: lora.precondition_gradients(model)
    from peft.optimizers import riemannian
    pairs = riemannian._collect_lora_pairs(model)
    return riemannian._RiemannianPreconditioner(pairs, reg=1e-6).step


def merged(args):
    """Inference after merge_lora"""
    for cells, case in cases(args, args.shapes, ["float32"], args.ranks[:1]):
        model, base = build(case), build(replace(case, method="full"))
        lora.merge_lora(model)
        idx, _ = batch_of(case)
        with torch.no_grad():
            ms = in_turn({"merged": lambda: model(idx), "base": lambda: base(idx)}, args.rounds)
        yield cells | compared(ms, "ms")


FIRST_STEP = """
import os, train
step = train.train_step
train.train_step = lambda *args: (step(*args), os._exit(0))
train.main()
"""


def startup(args):
    """The main job"""
    with tempfile.TemporaryDirectory() as directory:
        flags = ["--device", args.device, "--out_dir", directory]
        command = [sys.executable, "-c", FIRST_STEP, *flags]
        run = {"first": lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)}
        seconds = in_turn(run, args.rounds)["first"] / 1e3
    yield {"": "python train.py, from its start to the end of the first step",
           "figure": f"{seconds:.1f} s"}
    for data in ("math", "code"):
        yield {"": f"evaluation and data loading, share of a run on {data}",
               "figure": f"{share_beside_steps(data, args):.1%}"}


def share_beside_steps(data, args):
    """The share of a run's time that evaluations and batches take."""
    run = train.parse_args(["--data", data, "--device", args.device])
    model = train.build_model(run, args.device)
    optimizer = train.build_optimizer(run, model)
    task, source = train.load_tasks(run, model)
    batch = [part.to(args.device) for part in task.batch(0, 0, run.batch_size)]
    ms = in_turn({
        "batch": lambda: task.batch(0, 0, run.batch_size),
        "step": lambda: train.train_step(run, model, optimizer, batch, 50),
        "whole": lambda: train.judge(model, task, source),
        "along": lambda: train.judge(model, task, source, whole=False),
    }, args.rounds)
    along = math.ceil(run.steps / run.eval_interval) - 1
    beside = run.steps * ms["batch"] + 2 * ms["whole"] + along * ms["along"]
    return beside / (beside + run.steps * ms["step"])


def loraga(args):
    """LoRA-GA's initialisation from one batch beside a forward and backward, and its peak memory
    with two batches beside a LoRA step's, float32"""
    for cells, case in cases(args, args.shapes, ["float32"], args.ranks[:1]):
        model, batch = build(case), batch_of(case)
        work = {"init": ga_start(case, 1), "pass": lambda: gradients(model, [batch])}
        ms = in_turn(work, args.rounds)
        peaks = {"init": peak_memory(ga_start, case, 2), "step": peak_memory(two_steps, case)}
        yield cells | compared(ms, "ms") | compared(peaks, "MB")


def ga_start(case, batches):
    """A function that initialises a model with LoRA-GA."""
    model, batch = build(case), batch_of(case)
    return lambda: initialise(model, [batch] * batches)


def initialise(model, batches):
    """LoRA-GA, also of a model that has had it."""
    for layer in lora.lora_layers(model).values():
        torch.nn.init.zeros_(layer.lora_B)
    lora.lora_ga_init(model, batches, lambda model, batch: model(*batch)[1])


def gradients(model, batches):
    """∂L/∂W0 of every adapted layer, summed over batches, by plain autograd -> list of G."""
    weights = [layer.linear.weight for layer in lora.lora_layers(model).values()]
    for W in weights:
        W.requires_grad_(True)
    found = [torch.autograd.grad(model(*batch)[1], weights) for batch in batches]
    for W in weights:
        W.requires_grad_(False)
    return [sum(parts[1:], parts[0]) for parts in zip(*found)]


def cosine(args):
    """LoRA-GA's first step: cosine with the gradient over the best possible, the worst layer,
    rank 8"""
    wide = replace(SMALL, n_layer=1, n_embd=768, sequences=8)
    for data, batches in product(("math", "code", "random tokens"), (1, 4, 16)):
        if data == "random tokens":
            model = build(wide)
            parts = [batch_of(wide) for _ in range(batches)]
        else:
            run = train.parse_args(["--method", "loraga", "--data", data, "--device", "cpu"])
            model = train.build_model(run, "cpu")
            task, _ = train.load_tasks(run, model)
            parts = [task.batch(0, step, 8) for step in range(batches)]
        G = gradients(model, parts)
        initialise(model, parts)
        shares = map(share_of_best, G, lora.lora_layers(model).values())
        yield {"gradient of": data, "width": model.config.n_embd, "batches": batches,
               "share of the best": f"{min(shares):.4f}"}


@torch.no_grad()
def share_of_best(G, layer):
    """The cosine of G AᵀA + BBᵀ G with G (d_out, d_in), over that of G's best rank 2r."""
    A, B = layer.lora_A, layer.lora_B
    step = G @ A.T @ A + B @ B.T @ G
    S = torch.linalg.svdvals(G)
    best = S[:2 * len(A)].norm() / S.norm()
    return ((step * G).sum() / step.norm() / G.norm() / best).item()


def growth(args):
    """Growth: a LoRA step from rank 8, n_embd 256, n_layer 4, 8 sequences of 128 tokens; slopes on
    log-log axes (1: proportional)"""
    start = replace(SMALL, vocab_size=64, sequences=8, device=args.device)
    axes = {"rank": (8, 32, 128), "n_embd": (128, 256, 512, 1024), "n_layer": (2, 4, 8, 16),
            "sequences": (2, 8, 32)}
    for axis, values in axes.items():
        at = [replace(start, **{axis: value}) for value in values]
        ms = in_turn({case: stepper(case) for case in at}, args.rounds)
        measured = {"ms": [ms[case] for case in at],
                    "MB kept": [kept_memory(case) for case in at],
                    "parameters": [total(trained(build(case))) for case in at]}
        slopes = {f"slope of {name}": slope(values, y) for name, y in measured.items()}
        yield {"along": axis, "values": values} | measured | slopes


def slope(x, y):
    """Of a line through the points on log-log axes."""
    log_x, log_y = ([math.log(value) for value in values] for values in (x, y))
    return round(statistics.linear_regression(log_x, log_y).slope, 2)


def kept_memory(case):
    """MB that a step keeps: tensors saved for backward, gradients and AdamW's two moments."""
    model = build(case)
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*batch_of(case))
    for p in model.parameters():
        saved.pop(p.data_ptr(), None)
    activations = sum(storage.nbytes() for storage in saved.values())
    return (activations + 12 * total(trained(model))) / 1e6


def sizes(args):
    """Sizes, from models without content. Files at 2 bytes a number; AdamW's two float32 moments;
    the last column is the memory of weights, gradients and moments at 2 bytes each: 8·N for full
    fine-tuning, 2·N + 8·n for LoRA"""
    for name, (targets, rank) in product(FAMILY, [(["c_attn"], 4), (TARGETS, 8)]):
        base = build(replace(FAMILY[name], method="full", device="meta"))
        model = lora.apply_lora(base, rank, targets=targets)
        n = total(trained(model))
        N = total(model.parameters()) - n
        yield {"model": name, "targets": " ".join(targets), "rank": rank,
               "N, M": N / 1e6, "n trained, M": n / 1e6, "N / n": N / n,
               "full file, MB": 2 * N / 1e6, "adapter file, MB": 2 * n / 1e6,
               "full's AdamW, GB": 8 * N / 1e9, "LoRA's AdamW, GB": 8 * n / 1e9,
               "memory, full / LoRA": 8 * N / (2 * N + 8 * n)}


TABLES = {"steps": steps, "memory": memory, "preconditioner": preconditioner, "merged": merged,
          "startup": startup, "loraga": loraga, "cosine": cosine, "growth": growth, "sizes": sizes}


def show(title, rows):
    """Prints rows, dicts of one kind, as a Markdown table."""
    print("\n### " + " ".join(title.split()) + "\n")
    for cells in (rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)):
        print("| " + " | ".join(map(in_words, cells)) + " |", flush=True)


def in_words(cell):
    """Floats with at least three digits, sequences with spaces between."""
    if isinstance(cell, (list, tuple)):
        return " ".join(map(in_words, cell))
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell >= 100 else f"{cell:.3g}"
    return str(cell)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("tables", nargs="*", help=f"some of {', '.join(TABLES)} (the first five)")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--shapes", nargs="+", choices=SHAPES, default=["small", "gpt2"])
    add("--dtypes", nargs="+", choices=["float32", "mixed", "bfloat16"], default=["float32"])
    add("--ranks", nargs="+", type=number(int, 1), default=[8, 64])
    add("--rounds", type=number(int, 1), help="how often everything is timed; else 3 to 31 times")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has none that torch sees")
    for name in args.tables:
        if name not in TABLES:
            parser.error(f"{name} is no table: allowed are {', '.join(TABLES)}")
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads")
    for name in args.tables or list(TABLES)[:5]:
        table = TABLES[name]
        show(table.__doc__, list(table(args)))


if __name__ == "__main__":
    main()
