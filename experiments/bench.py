"""What training with LoRA costs, beside full fine-tuning and, where it is installed, PEFT.

    python -m experiments.bench
    python -m experiments.bench steps memory --ranks 8 --shapes small
    python -m experiments.bench steps --device cuda --dtypes mixed bfloat16 --shapes gpt2 gpt2-xl

Whatever is compared runs in turn in one process, in another order every round, since what runs
after a larger neighbour is slower. A time is a median, a ratio is one of medians. Peak memory is
measured in a process of its own. PEFT gets the same model, rank, batch and optimizer.
"""
import importlib.util
import multiprocessing
import random
import re
import statistics
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

import lora
from data.files import command_parser, number
from experiments import compare
from model import GPT, GPTConfig

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
        before, peak = reset_peak(), lambda: resident("VmHWM")
    function()
    return peak() - before


def reset_peak():
    """Lets this process's peak memory, VmHWM, begin again (Linux) -> its memory now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


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
        yield cells | compared(in_turn(work, args.rounds), "ms")


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


def loraga(args):
    """LoRA-GA's start from one batch, beside a forward and backward pass, float32"""
    for cells, case in cases(args, args.shapes, ["float32"], args.ranks[:1]):
        work = {"start": ga_start(case), "pass": backward_pass(replace(case, method="full"))}
        yield cells | compared(in_turn(work, args.rounds), "ms")


def ga_start(case):
    """A function that gives a model LoRA-GA's start, also if it has had it."""
    model, batch = build(case), batch_of(case)

    def start():
        for layer in lora.lora_layers(model).values():
            torch.nn.init.zeros_(layer.lora_B)
        lora.lora_ga_init(model, [batch], lambda model, batch: model(*batch)[1])
    return start


def backward_pass(case):
    """A function that makes the gradients of all weights."""
    model, batch = build(case), batch_of(case)
    return lambda: model(*batch)[1].backward()


TABLES = {"steps": steps, "memory": memory, "preconditioner": preconditioner, "merged": merged,
          "loraga": loraga}


def in_words(cell):
    """Floats with three digits or more."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell >= 100 else f"{cell:.3g}"
    return str(cell)


def main():
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("tables", nargs="*", help=f"some of {', '.join(TABLES)} (all)")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--shapes", nargs="+", choices=SHAPES, default=["small", "gpt2"])
    add("--dtypes", nargs="+", choices=["float32", "mixed", "bfloat16"], default=["float32"])
    add("--ranks", nargs="+", type=number(int, 1), default=[8, 64])
    add("--rounds", type=number(int, 1), help="how often everything is timed; else 3 to 31 times")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has none that torch sees")
    for name in args.tables:
        if name not in TABLES:
            parser.error(f"{name} is no table: allowed are {', '.join(TABLES)}")
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads")
    for name in args.tables or TABLES:
        rows = list(TABLES[name](args))
        cells = [list(map(in_words, row.values())) for row in rows]
        print(f"\n### {TABLES[name].__doc__}\n\n{compare.markdown(rows[0], cells)}", flush=True)


if __name__ == "__main__":
    main()
