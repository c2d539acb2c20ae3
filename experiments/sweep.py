"""The sweeps behind the README's figures: runs of train.py, a line each in runs.csv, and tables.

    python -m experiments.sweep betas     AdamW's betas × method: one seed, a learning rate each
    python -m experiments.sweep lr        5 learning rates × method × 3 seeds, with the best betas
    python -m experiments.sweep table     the tables, from experiments/runs.csv

Runs go side by side, one a core; a run that is in runs.csv already is not repeated.
"""
import argparse
import contextlib
import csv
import io
import multiprocessing
import os
import shutil
import statistics
import time
from pathlib import Path

import torch

import train
from data.files import InputError

METHODS = ("full", "lora", "loraplus", "loraga", "riemannian")
LRS = ("3e-4", "1e-3", "3e-3", "1e-2", "3e-2")
BETAS = ("0.9 0.999", "0.9 0.95", "0.7 0.8")
SEEDS = ("0", "1", "2")
RUNS = Path(__file__).with_name("runs.csv")
COLUMNS = ("method", "lr", "betas", "seed", "steps", "exact_match", "steps_to_half", "docs_before",
           "docs_after", "trainable", "optimizer_bytes", "seconds")
FIRST_LR = {"full": "1e-3", "lora": "1e-2", "loraplus": "1e-3", "loraga": "1e-3",
            "riemannian": "1e-2"}
SWEEPS = {  # method, learning rate, betas, seed, steps
    "betas": [(m, FIRST_LR[m], betas, "0", "600") for betas in BETAS for m in METHODS],
    "lr": [(m, lr, BETAS[-1], seed, "600") for seed in SEEDS for lr in LRS for m in METHODS],
}


def run(settings):
    """One run of train.py -> its row; a run that diverged has an exact match of 0."""
    torch.set_num_threads(1)
    method, lr, betas, seed, steps = settings
    directory = f"out/sweep/{os.getpid()}"
    flags = (f"--method {method} --lr {lr} --betas {betas} --seed {seed} --steps {steps} "
             f"--eval_interval 100 --device cpu --out_dir {directory} --overwrite")
    args = train.parse_args(flags.split())
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            result = train.train(args)
    except InputError as error:
        if "finite" not in str(error):
            raise
        return (*settings, 0.0, "", "", "", "", "", "")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    half = next((step for step, metric in result["history"] if metric > 0.5), "")
    return (*settings, round(result["metric_after"], 4), half,
            round(result["source_loss_before"], 4), round(result["source_loss_after"], 4),
            result["trainable_params"], result["optimizer_bytes"], round(result["seconds"]))


def read():
    return list(csv.DictReader(RUNS.open())) if RUNS.exists() else []


def settings_of(row):
    return tuple(row[column] for column in COLUMNS[:5])


def sweep(name, jobs):
    """Runs what is missing of a sweep; each row is written as soon as it is there."""
    done = {settings_of(row) for row in read()}
    missing = [settings for settings in SWEEPS[name] if settings not in done]
    start = time.perf_counter()
    with RUNS.open("a", newline="") as file:
        rows = csv.writer(file)
        if not done:
            rows.writerow(COLUMNS)
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            for count, row in enumerate(pool.imap_unordered(run, missing), start=1):
                rows.writerow(row)
                file.flush()
                left = (time.perf_counter() - start) / count * (len(missing) - count)
                print(f"{count}/{len(missing)}  {left / 60:.0f} min left ", *row, flush=True)


def grid(rows, across, columns):
    """A Markdown table, method by `across`: the median exact match, %, and its range over seeds."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method in METHODS:
        cells = []
        for column in columns:
            mine = [row for row in rows if row["method"] == method and row[across] == column]
            found = [100 * float(row["exact_match"]) for row in mine]
            spread = f" ({min(found):.0f}–{max(found):.0f})" if len(found) > 1 else ""
            cells.append(f"{statistics.median(found):.1f}{spread}" if found else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def adapter_scale(method):
    """s of W0 + s·BA at a method's defaults, which is half of what its learning rate means."""
    args = train.parse_args(["--method", method])
    if args.rank is None:
        return "–"
    alpha = args.alpha or args.rank
    return f"{alpha / args.rank ** 0.5 if args.rslora else alpha / args.rank:.3g}"


def best(rows):
    """A Markdown table of each method at train.py's learning rate; all figures are medians."""
    header = ("method", "lr", "s", "exact match", "its range", "steps to 50 %",
              "docs loss, nats/token", "trained", "optimizer")
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for method in METHODS:
        lr = f"{train.PRESETS[method]['lr']:.0e}".replace("e-0", "e-")
        mine = [row for row in rows if row["method"] == method and row["lr"] == lr]
        match = sorted(100 * float(row["exact_match"]) for row in mine)
        half, before, after = (statistics.median(float(row[column] or "inf") for row in mine)
                               for column in ("steps_to_half", "docs_before", "docs_after"))
        trained, size = (max(int(row[column] or 0) for row in mine)  # a run that diverged has none
                         for column in ("trainable", "optimizer_bytes"))
        lines.append(f"| {method} | {lr} | {adapter_scale(method)} "
                     f"| **{statistics.median(match):.1f} %** "
                     f"| {match[0]:.1f}–{match[-1]:.1f} | {half:.0f} | {before:.2f} → {after:.2f} "
                     f"| {trained:,} | {size / 1e6:.1f} MB |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SWEEPS, "table"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(),
                        help="runs side by side (one a core)")
    args = parser.parse_args()
    if args.what != "table":
        sweep(args.what, args.jobs)
        return
    betas, lrs = ([row for row in read() if settings_of(row) in SWEEPS[name]]
                  for name in ("betas", "lr"))
    print("Exact match, %, by AdamW's betas\n", grid(betas, "betas", BETAS), sep="\n")
    print("\nMedian exact match, % (range of the seeds), by learning rate\n")
    print(grid(lrs, "lr", LRS))
    print("\nEach method at its default\n", best(lrs), sep="\n")


if __name__ == "__main__":
    main()
