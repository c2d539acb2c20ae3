"""Speed and memory, beside PEFT where it is installed and beside full fine-tuning, and how they grow.

    python -m experiments.bench                       what training costs: under five minutes on two CPU cores
    python -m experiments.bench loraga growth sizes   LoRA-GA's start, how the costs grow, models up to GPT-3
    python -m experiments.bench steps --device cuda --dtypes bfloat16 --shapes gpt2 gpt2-xl --compile
                                                      a GPU; with --peak_tflops 989, the share of its peak

Whatever is compared runs in turn, in one process, after a warm-up, in another order every round: what runs
after a larger neighbour is slower. A figure is a median, a ratio is one of medians. Peak memory is that of a
process of its own. PEFT gets the same model, rank, batch and optimizer.
"""
import argparse
import importlib.metadata
import importlib.util
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import lora
import train
from data import tasks, tokenizer
from model import GPT, GPTConfig

TARGETS = ["c_attn", "c_proj", "c_fc"]
SHAPES = {  # the model, and (sequences, tokens) of a batch
    "small": (dict(block_size=128, vocab_size=2048, n_layer=4, n_head=4, n_embd=256), (16, 128)),
    "gpt2": (dict(block_size=1024, vocab_size=50304, n_layer=12, n_head=12, n_embd=768), (4, 256)),
    "gpt2-xl": (dict(block_size=1024, vocab_size=50304, n_layer=48, n_head=25, n_embd=1600), (4, 256)),
}
FAMILY = {"GPT-2 124M": (12, 768, 50257), "GPT-2 medium": (24, 1024, 50257), "GPT-2 large": (36, 1280, 50257),
          "GPT-2 XL 1.5B": (48, 1600, 50257), "GPT-3 175B": (96, 12288, 50257)}
HAS_PEFT = importlib.util.find_spec("peft") is not None


# Measuring

def sync(device):
    if device == "cuda":
        torch.cuda.synchronize()


def in_turn(functions, rounds, device="cpu"):
    """Calls every function once a round, the first round not counted -> {name: median seconds}."""
    seconds, order = {name: [] for name in functions}, random.Random(0)
    for _ in range(rounds + 1):
        for name in order.sample(list(functions), len(functions)):
            sync(device)
            start = time.perf_counter()
            functions[name]()
            sync(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def peak_memory(prepare, *args, device="cpu"):
    """The memory that prepare(*args)() needs beyond what prepare(*args) has left there, in bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (prepare, args, device))


def _peak_memory(prepare, args, device):
    work = prepare(*args)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def table(title, header, rows):
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |", "|" + "---|" * len(header), sep="\n")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def ms(seconds):
    return f"{1e3 * seconds:.0f} ms" if seconds > 0.02 else f"{1e3 * seconds:.1f} ms"


def mb(size):
    return f"{size / 1e6:.0f} MB"


# What is measured

def build(kind, shape, rank, device):
    """A model: "full", "lora" or "peft"; " bf16" behind it keeps the (frozen) weights in bfloat16."""
    torch.manual_seed(0)
    with torch.device(device):
        model = GPT(GPTConfig(**SHAPES[shape][0]))
    if kind.endswith("bf16"):
        model.bfloat16()
    if kind.startswith("lora"):
        lora.apply_lora(model, rank, targets=TARGETS)
    if kind.startswith("peft"):
        import peft
        model = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    return model


def batch_of(shape, device):
    idx = torch.randint(SHAPES[shape][0]["vocab_size"], SHAPES[shape][1], device=device)
    return idx, idx.roll(-1, dims=1)


def stepper(kind, shape, rank, dtype, device, compiled=False):
    """A function that makes one training step: forward, backward, AdamW."""
    model, batch = build(kind, shape, rank, device), batch_of(shape, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    forward = torch.compile(model) if compiled else model

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(*batch)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def two_steps(*args):
    """The second step is the first that has AdamW's state beside it."""
    step = stepper(*args)
    return lambda: (step(), step())


def flops(kind, shape, rank):
    """Of a step's forward and backward, counted on tensors without content."""
    def in_place(y, x, w, **_):  # of an addmm_ of these shapes, which the counter lacks
        return 2 * x[0] * x[1] * w[1]

    model = build(kind, shape, rank, "meta")
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        model(torch.zeros(SHAPES[shape][1], dtype=torch.long, device="meta"))[0].sum().backward()
    return counter.get_total_flops()


def bf16_slowdown():
    """A bfloat16 product's time over that of a float32 one; far above 1 on CPUs without such units."""
    x, w = torch.randn(512, 768), torch.randn(768, 256)
    halves = x.bfloat16(), w.bfloat16()
    found = in_turn({"float32": lambda: x @ w, "bfloat16": lambda: halves[0] @ halves[1]}, rounds=3)
    return found["bfloat16"] / found["float32"]


STEP = {}  # (shape, rank) -> seconds of a LoRA step in float32, once measured


def steps(args):
    rows = []
    for shape in args.shapes:
        rounds = args.rounds or (20 if args.device == "cuda" else 7 if shape == "small" else 3)
        bound = {rank: flops("lora", shape, rank) / flops("full", shape, rank) for rank in args.ranks}
        for dtype in args.dtypes:
            kinds = ["lora"] + ["peft"] * HAS_PEFT
            if dtype == "bfloat16":  # also with frozen weights held in it: autocast casts others at every use
                kinds += [f"{kind} bf16" for kind in kinds]
            work = {(kind, rank): stepper(kind, shape, rank, dtype, args.device, args.compile)
                    for kind in kinds for rank in args.ranks}
            full = stepper("full", shape, 0, dtype, args.device, args.compile)
            found = in_turn({"full": full, **work}, rounds, args.device)
            for rank in args.ranks:
                for kind in [kind for kind in kinds if kind.startswith("lora")]:
                    mine, peft = found[kind, rank], found.get((kind.replace("lora", "peft"), rank))
                    speed = flops("lora", shape, rank) / mine
                    share = f" ({speed / 1e12 / args.peak_tflops:.0%})" if args.peak_tflops else ""
                    frozen = "bfloat16" if "bf16" in kind else "float32"
                    beside = [ms(peft), f"{mine / peft:.2f}"] if peft else ["not installed", ""]
                    rows.append([shape, dtype, frozen, rank, ms(found["full"]), ms(mine), *beside,
                                 f"{mine / found['full']:.2f}", f"{bound[rank]:.2f}",
                                 f"{speed / 1e9:.0f}{share}"])
                if dtype == "float32":
                    STEP[shape, rank] = found["lora", rank]
                elif HAS_PEFT:
                    ratio = found["lora bf16", rank] / found["peft", rank]
                    print(f"{shape}, bfloat16, rank {rank}: "
                          f"LoRA on frozen weights in bfloat16 / PEFT on float32 ones: {ratio:.2f}")
    table("A training step (forward, backward, AdamW), all linear layers adapted",
          ["shape", "computed in", "frozen in", "rank", "full", "LoRA", "PEFT", "LoRA / PEFT", "LoRA / full",
           "its FLOP bound", "GFLOP/s"], rows)


def memory(args):
    rows, rank = [], args.ranks[0]
    for shape in args.shapes[-1:]:  # the largest: in a small one, the interpreter's memory blurs the figures
        for dtype in args.dtypes:
            kinds = ["full", "lora bf16" if dtype == "bfloat16" else "lora"] + ["peft"] * HAS_PEFT
            peaks = [peak_memory(two_steps, kind, shape, rank, dtype, args.device, device=args.device)
                     for kind in kinds]
            full, mine, *peft = peaks
            rows.append([shape, dtype, rank, mb(full), mb(mine), mb(*peft) if peft else "no peft",
                         f"{mine / peft[0]:.2f}" if peft else "no peft", f"{mine / full:.2f}"])
    table("Peak memory of a training step above the weights",
          ["shape", "dtype", "rank", "full", "LoRA", "PEFT", "LoRA / PEFT", "LoRA / full"], rows)


def preconditioner(args):
    rows = []
    for shape in args.shapes:
        for rank in args.ranks:
            whole = STEP.get((shape, rank)) or in_turn(
                {0: stepper("lora", shape, rank, "float32", args.device)}, 3, args.device)[0]
            models = {kind: build(kind, shape, rank, args.device) for kind in ["lora"] + ["peft"] * HAS_PEFT}
            for model in models.values():
                for p in model.parameters():
                    if p.requires_grad:
                        torch.nn.init.normal_(p)
                        p.grad = torch.randn_like(p)
            work = {"lora": lambda: lora.precondition_gradients(models["lora"])}
            if HAS_PEFT:
                from peft.optimizers import riemannian
                pairs = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight)
                         for layer in models["peft"].modules() if "default" in getattr(layer, "lora_A", ())]
                work["peft"] = riemannian._RiemannianPreconditioner(pairs, reg=1e-6).step
            found = in_turn(work, args.rounds or 31, args.device)
            mine, peft = found["lora"], found.get("peft")
            beside = [ms(peft), f"{mine / peft:.2f}"] if peft else ["no peft", "no peft"]
            rows.append([shape, rank, ms(mine), *beside, f"{mine / whole:.3f}"])
    table("The preconditioner, float32",
          ["shape", "rank", "here", "PEFT", "here / PEFT", "here / a LoRA step"], rows)


# LoRA-GA's initialisation

def gradients(model, batches):
    """∂L/∂W0 of every adapted layer, summed over batches, by autograd through the weights -> {name: G}."""
    layers = lora.lora_layers(model)
    weights = {name: layer.linear.weight.requires_grad_(True) for name, layer in layers.items()}
    with torch.enable_grad():
        for batch in batches:
            model(*batch)[1].backward(inputs=list(weights.values()))
    found = {name: W.grad for name, W in weights.items()}
    for W in weights.values():
        W.grad = None
        W.requires_grad_(False)
    return found


def initialise(model, batches):
    lora.lora_ga_init(model, batches, lambda model, batch: model(*batch)[1])


def worst_cosine(model, batches):
    """The lowest share, over the layers, of the best possible first-step alignment that LoRA-GA reaches."""
    G, shares = gradients(model, batches), []
    initialise(model, batches)
    for name, layer in lora.lora_layers(model).items():
        A, B, g = layer.lora_A, layer.lora_B, G[name]
        with torch.no_grad():
            S, step = torch.linalg.svdvals(g).square(), g @ A.T @ A + B @ B.T @ g
            best = (S[:2 * len(A)].sum() / S.sum()).sqrt()
            shares.append(((step * g).sum() / step.norm() / g.norm() / best).item())
    return min(shares)


def frozen_pass(shape, rank, device):
    model, batch = build("lora", shape, rank, device), batch_of(shape, device)
    return lambda: model(*batch)[1].backward()


def ga_pass(shape, rank, device, batches=1):
    model, batch = build("lora", shape, rank, device), batch_of(shape, device)
    return lambda: initialise(model, [batch] * batches)


def loraga(args):
    rows = []
    for shape in args.shapes:
        rank, rounds = args.ranks[0], args.rounds or 3
        at, batch = (shape, rank, args.device), batch_of(shape, args.device)
        models = iter([build("lora", *at) for _ in range(rounds + 1)])  # each can start only once
        plain = build("lora", *at)
        work = {"init": lambda: initialise(next(models), [batch]), "pass": lambda: gradients(plain, [batch])}
        found = in_turn(work, rounds, args.device)
        frozen = peak_memory(frozen_pass, *at, device=args.device)
        one = peak_memory(ga_pass, *at, device=args.device)
        two = peak_memory(ga_pass, *at, 2, device=args.device)
        layers = lora.lora_layers(plain).values()
        largest = max(layer.linear.weight.nbytes for layer in layers)
        factors = sum(layer.lora_A.nbytes + layer.lora_B.nbytes for layer in layers)
        rows.append([shape, rank, ms(found["pass"]), f"{found['init'] / found['pass']:.2f}",
                     mb(one - frozen), mb(two - frozen), mb(largest), mb(factors)])
    table("LoRA-GA's initialisation, float32; memory above a forward and backward with frozen weights",
          ["shape", "rank", "forward and backward", "init / that", "memory, 1 batch", "2 batches",
           "(the largest gradient)", "(A and B)"], rows)
    rows = []
    for name in ("math", "code"):
        for batches in (1, 4, 16):
            run = train.parse_args(["--method", "loraga", "--data", name, "--device", args.device])
            task, model = tasks.load(name, tokenizer.load(), 128), train.build_model(run, args.device)
            parts = [[part.to(args.device) for part in task.batch(0, i, 8)] for i in range(batches)]
            rows.append(["the base on " + name, batches, f"{worst_cosine(model, parts):.4f}"])
    config = dict(block_size=128, vocab_size=2048, n_layer=1, n_head=12, n_embd=768)
    for batches in (1, 4):
        torch.manual_seed(0)
        model = lora.apply_lora(GPT(GPTConfig(**config)), 8)
        parts = [torch.randint(2048, (2, 8, 128)).unbind() for _ in range(batches)]
        rows.append(["random weights 768 wide, random tokens", batches, f"{worst_cosine(model, parts):.4f}"])
    table("LoRA-GA's first step: cosine with the gradient over the best possible, the worst layer, rank 8",
          ["gradient", "batches", "share of the best"], rows)


def merged(args):
    rows = []
    for shape in args.shapes:
        base, model = build("full", shape, 8, args.device).eval(), build("lora", shape, 8, args.device).eval()
        lora.merge_lora(model)
        idx, _ = batch_of(shape, args.device)
        rounds = args.rounds or (3 if shape == "gpt2" else 15)
        with torch.no_grad():
            found = in_turn({"base": lambda: base(idx), "merged": lambda: model(idx)}, rounds, args.device)
        rows.append([shape, ms(found["base"]), ms(found["merged"]), f"{found['merged'] / found['base']:.2f}"])
    table("Inference after merge_lora", ["shape", "base", "merged", "merged / base"], rows)


# The main job

FIRST_STEP = """
import os, sys, train
step = train.train_step
def first(*args):
    step(*args)
    os._exit(0)
train.train_step = first
sys.argv[1:] = ["--device", sys.argv[1], "--out_dir", os.path.join(sys.argv[2], "o"), "--overwrite"]
train.main()
"""


def startup(args):
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", FIRST_STEP, args.device, directory]
        found = in_turn({"first": lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)},
                        args.rounds or 3)
    rows.append(["python train.py, from its start to the end of the first step", f"{found['first']:.1f} s"])
    for name in ("math", "code"):
        run = train.parse_args(["--method", "lora", "--data", name, "--device", args.device])
        model, encoding = train.build_model(run, torch.device(args.device)), tokenizer.load()
        task, source = tasks.load(name, encoding, 128), tasks.load("docs", encoding, 128)
        optimizer = train.build_optimizer(run, model)
        batch = [part.to(args.device) for part in task.batch(0, 0, run.batch_size)]
        work = {"batch": lambda: task.batch(0, 0, run.batch_size),
                "step": lambda: train.train_step(run, model, optimizer, *batch, 50),
                "target": lambda: task.evaluate(model),
                "source": lambda: source.evaluate(model, train.SOURCE_WINDOWS)}
        found = in_turn(work, args.rounds or 5, args.device)
        evaluations = 1 + run.steps / run.eval_interval
        other = run.steps * found["batch"] + evaluations * found["target"] + 2 * found["source"]
        share = other / (other + run.steps * found["step"])
        rows.append([f"evaluation and data loading, share of a run on {name}", f"{share:.1%}"])
    table("The main job", ["", ""], rows)


# Growth

def step_memory(model, batch):
    """Bytes that one step keeps: tensors saved for backward, gradients and AdamW's two moments."""
    own, saved = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*batch)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return sum(size for size, _ in saved.values()) + 12 * trained


def growth(args):
    rows, start = [], dict(rank=8, width=256, depth=4, tokens=1024)
    axes = {"rank": (8, 32, 128), "width": (128, 256, 512, 1024), "depth": (2, 4, 8, 16),
            "tokens": (256, 1024, 4096)}
    for axis, values in axes.items():
        work, kept, trained = {}, [], []
        for value in values:
            at = {**start, axis: value}
            depth, width = at["depth"], at["width"]
            config = dict(block_size=128, vocab_size=64, n_layer=depth, n_head=width // 64, n_embd=width)
            SHAPES[value] = config, (at["tokens"] // 128, 128)
            work[value] = stepper("lora", value, at["rank"], "float32", args.device)
            model = build("lora", value, at["rank"], args.device)
            kept.append(step_memory(model, batch_of(value, args.device)))
            trained.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
        seconds = list(in_turn(work, args.rounds or 5, args.device).values())
        slope = [np.polyfit(np.log(values), np.log(y), 1)[0] for y in (seconds, kept, trained)]
        rows.append([axis, " ".join(map(str, values)), " ".join(f"{1e3 * s:.0f}" for s in seconds),
                     " ".join(f"{m / 1e6:.0f}" for m in kept), *(f"{s:.2f}" for s in slope)])
    of = ", ".join(f"{axis} {value}" for axis, value in start.items())
    table(f"Growth: a LoRA step from {of}; slopes on log-log axes (1: proportional)",
          ["along", "values", "ms", "MB kept", "time's slope", "memory's", "trainable parameters'"], rows)


def sizes(args):
    rows = []
    for name, (layers, width, vocabulary) in FAMILY.items():
        block, head = (2048, 128) if "3" in name else (1024, 64)  # tokens; the width of an attention head
        config = GPTConfig(block, vocabulary, layers, width // head, width)
        for targets, rank in ((["c_attn"], 4), (TARGETS, 8)):
            with torch.device("meta"):
                model = lora.apply_lora(GPT(config), rank, targets=targets)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            total = sum(p.numel() for p in model.parameters()) - trained
            full, adapted = 2 * total + 6 * total, 2 * total + 6 * trained
            rows.append([name, " ".join(targets), rank, f"{total / 1e6:,.0f} M", f"{trained / 1e6:,.2f} M",
                         f"{total / trained:,.0f}×",
                         f"{2 * total / 1e6:,.0f} MB", f"{2 * trained / 1e6:,.1f} MB",
                         f"{8 * total / 1e9:,.1f} GB", f"{8 * trained / 1e9:,.3f} GB",
                         f"{full / adapted:.1f}×"])
    table("Sizes, from models without content. Files at 2 bytes a number; AdamW's two float32 moments; "
          "the last column is the memory of weights, gradients and moments at 2 bytes each: "
          "8·N for full fine-tuning, 2·N + 6·n for LoRA",
          ["model", "targets", "rank", "N", "n trained", "N / n", "full file", "adapter file", "full's AdamW",
           "LoRA's AdamW", "memory, full / LoRA"], rows)


TABLES = {"steps": steps, "memory": memory, "preconditioner": preconditioner, "merged": merged,
          "startup": startup, "loraga": loraga, "growth": growth, "sizes": sizes}
FIRST_FIVE = list(TABLES)[:5]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(TABLES)} (the first five)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["small", "gpt2"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=None,
                        help="float32, and bfloat16 where the hardware has it")
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--rounds", type=int, help="measurements of everything that is timed (3 to 31)")
    parser.add_argument("--compile", action="store_true", help="compile the models of `steps`")
    parser.add_argument("--peak_tflops", type=float,
                        help="the device's peak: prints the share of it that `steps` reaches")
    args = parser.parse_args()
    if unknown := set(args.tables) - TABLES.keys():
        parser.error(f"{sorted(unknown)[0]} is none of {', '.join(TABLES)}")
    torch._dynamo.config.cache_size_limit = 64  # every model of a table is compiled anew
    start = time.perf_counter()
    slowdown = bf16_slowdown() if args.device == "cpu" else 0
    peft = ("peft " + importlib.metadata.version("peft") if HAS_PEFT
            else "peft is not installed: its columns stay empty")
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {peft}")
    if args.dtypes is None:
        args.dtypes = ["float32", "bfloat16"] if slowdown < 3 else ["float32"]
    if slowdown >= 3:
        print(f"bfloat16 products take {slowdown:.0f} times as long as float32's on this CPU"
              + ("" if "bfloat16" in args.dtypes else ": not measured (--dtypes bfloat16 insists)"))
    for name in args.tables or FIRST_FIVE:
        TABLES[name](args)
        print(f"\n({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
