"""Many runs of train.py side by side, each a row of a CSV as soon as it ends.

A row begins with the run's flags: `python train.py FLAGS` repeats it, or `python FLAGS` where they
begin with -m. A run that has its row is not repeated. A run that was stopped goes on from its
checkpoint. Rows are appended one at a time, so two sweeps may write one table. If both make the
same run at the same time, its log has steps twice, and the row is refused.
"""
import csv
import hashlib
import io
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

from data.files import InputError, number, read_csv


ROOT = Path(__file__).parents[1]
WORK = Path("out/sweep")  # a directory for each run, until it has its row
EARLY = 50  # steps, whose mean training loss is the column `early`
COLUMNS = ("flags", "metric", "learned_before", "learned", "loss", "docs_before", "docs",
           "trained", "optimizer_bytes", "seconds", "early", "path")
NO_RESUME = ("-m exercises.", "-m experiments.peft_run")  # a checkpoint does not hold all of these


def add_jobs(parser):
    jobs = 1 if torch.cuda.is_available() else os.cpu_count()  # one training fills a GPU
    parser.add_argument("--jobs", type=number(int, 1), default=jobs, help="runs side by side")


def read(*tables):
    """The rows of these CSVs by their flags; a table that is not there has none."""
    rows = {}
    for table in filter(os.path.exists, tables):
        for row in read_csv(table):
            rows.setdefault(row["flags"], row)
    return rows


def append(table, row, columns=COLUMNS):
    """Adds a row to a CSV in one write, so that a second process cannot write into it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    Path(table).parent.mkdir(parents=True, exist_ok=True)
    with open(table, "ab", buffering=0) as file:
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
        file.write(text.getvalue().encode())


def directory_of(flags):
    return WORK / hashlib.sha256(flags.encode()).hexdigest()[:12]


def run(flags, directory, threads):
    """Makes a run, or goes on with it -> its row."""
    if not (directory / "result.json").exists():
        script = [] if flags.startswith("-m ") else [str(ROOT / "train.py")]
        command = [sys.executable, *script, *shlex.split(flags), "--out_dir", str(directory)]
        if (directory / "log.csv").exists():
            command.append("--overwrite" if flags.startswith(NO_RESUME) else "--resume")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT),
                       "PYTHONIOENCODING": "utf-8"}
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, env=environment)
        if "no longer finite" in ended.stderr:
            return {"flags": flags, "metric": "diverged"}
        if ended.returncode:
            reason = ended.stderr.strip().rpartition("\n")[2] or f"exit code {ended.returncode}"
            raise InputError(f"{' '.join(['python', *command[1:]])}: {reason}")
    return row_of(flags, directory)


def row_of(flags, directory):
    """A finished run's row, from result.json and log.csv."""
    result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    log = read_csv(directory / "log.csv")
    if [int(line["step"]) for line in log] != list(range(result["steps"] + 1)):
        raise InputError(f"{directory}/log.csv is not that of one run, perhaps of two at a time: "
                         "delete the directory and start again")
    losses = [float(line["loss"]) for line in log if line["loss"]]
    path = [f"{line['step']}:{float(line['metric']):.4f}:{float(line['source_loss']):.4f}"
            for line in log if line["metric"]]
    return {"flags": flags, "metric": result["metric_name"],
            "learned_before": round(result["metric_before"], 4),
            "learned": round(result["metric_after"], 4),
            "loss": round(result["measures_after"]["loss"], 4),
            "docs_before": round(result["source_loss_before"], 4),
            "docs": round(result["source_loss_after"], 4),
            "trained": result["trainable_params"], "optimizer_bytes": result["optimizer_bytes"],
            "seconds": round(result["seconds"]), "early": round(statistics.mean(losses[:EARLY]), 4),
            "path": " ".join(path)}


def sweep(runs, table, jobs, known=()):
    """Makes the runs, a list of flags, that neither the table nor the `known` tables have."""
    done = read(table, *known)
    missing = [flags for flags in runs if flags not in done]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are stored", flush=True)
    threads = max(1, os.cpu_count() // jobs)
    start = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, flags, directory_of(flags), threads) for flags in missing]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                row = future.result()
                append(table, row)
                shutil.rmtree(directory_of(row["flags"]), ignore_errors=True)
                left = (time.perf_counter() - start) / count * (len(missing) - count)
                print(f"{count}/{len(missing)}  {left / 60:.0f} min left  {row['metric']} "
                      f"{row.get('learned', '')}  docs {row.get('docs', '')}  {row['flags']}",
                      flush=True)
        except BaseException:  # an error or Ctrl-C: no further run is started
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return read(table, *known)
