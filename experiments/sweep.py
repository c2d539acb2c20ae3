"""Many runs of train.py, side by side, each a row of a CSV as soon as it ends.

A row begins with the run's flags, `python train.py FLAGS` makes it again, and the rest is what
result.json says. A run that has its row is not repeated; one that was killed goes on from its
checkpoint.
"""
import contextlib
import csv
import hashlib
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

from data.files import InputError, write_csv
from runs import lock, number

ROOT = Path(__file__).parents[1]
EARLY = 50  # steps, whose mean training loss is the column `early`
BLOCK = 10  # steps, whose mean training loss is each number of the column `losses`
COLUMNS = ("flags", "metric", "learned_before", "learned", "loss", "docs_before", "docs",
           "trained", "optimizer_bytes", "seconds", "early", "losses", "path")


def read(table):
    """The rows of a CSV as they stand there; [] if there is none."""
    if not Path(table).exists():
        return []
    with open(table, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(flags, directory, threads):
    """`python train.py FLAGS`, or `python -m MODULE FLAGS`, begun or taken up again -> its row."""
    if not (directory / "result.json").exists():  # else it has ended, and only its row is missing
        said = carry_out(flags, directory, threads)
        if "no longer finite" in said:
            return {"flags": flags, "metric": "diverged"}
    return row_of(flags, directory)


def how_to_go_on(flags):
    """A checkpoint lacks what an exercise does to a model, and the W0 of PEFT's LoRA-GA."""
    lacking = flags.startswith(("-m exercises.", "-m experiments.peft_run"))
    return "--overwrite" if lacking else "--resume"


def carry_out(flags, directory, threads):
    """Runs it -> what it said on stderr; InputError if it failed, but for weights not finite."""
    script = [] if flags.startswith("-m ") else [str(ROOT / "train.py")]
    command = [sys.executable, *script, *shlex.split(flags), "--out_dir", str(directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT),
                   "PYTHONIOENCODING": "utf-8"}
    while True:
        again = [how_to_go_on(flags)] if (directory / "ckpt.pt").exists() else []
        ended = subprocess.run(command + again, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, env=environment)
        if "in use by another run" not in ended.stderr:
            break
        time.sleep(2)  # a sweep that was killed has left it behind: it ends soon
    if ended.returncode and "no longer finite" not in ended.stderr:
        reason = ended.stderr.strip().rpartition("\n")[2] or \
            f"ended with code {ended.returncode}: if memory is short, try fewer --jobs"
        raise InputError(f"{' '.join(['python', *command[1:]])}: {reason}")
    return ended.stderr


def row_of(flags, directory):
    """What a finished run's files say, as the CSV has it."""
    result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    with open(directory / "log.csv", encoding="utf-8", newline="") as file:
        losses = [float(line["loss"]) for line in csv.DictReader(file) if line["loss"]]
    blocks = (losses[start:start + BLOCK] for start in range(0, len(losses), BLOCK))
    path = " ".join(f"{step}:{metric:.4f}:{docs:.4f}" for step, metric, docs in result["history"])
    return {"flags": flags, "metric": result["metric_name"],
            "learned_before": round(result["metric_before"], 4),
            "learned": round(result["metric_after"], 4),
            "loss": round(result["measures_after"]["loss"], 4),
            "docs_before": round(result["source_loss_before"], 4),
            "docs": round(result["source_loss_after"], 4),
            "trained": result["trainable_params"], "optimizer_bytes": result["optimizer_bytes"],
            "seconds": round(result["seconds"]), "early": round(statistics.mean(losses[:EARLY]), 4),
            "losses": " ".join(f"{statistics.mean(block):.3f}" for block in blocks), "path": path}


def short(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def add_jobs(parser):
    jobs = 1 if torch.cuda.is_available() else os.cpu_count()  # one training fills a GPU
    parser.add_argument("--jobs", type=number(int, 1), default=jobs, help="runs side by side")


def work_of(table):
    """The name of the directory in which the runs of a table lie until they have their rows."""
    return f"sweep-{short(str(Path(table).resolve()))}"


@contextlib.contextmanager
def locked(table):
    """While a table is locked no other process writes its rows -> the directory for its runs."""
    work = Path("out") / work_of(table)
    with lock(work):
        yield work
    with contextlib.suppress(OSError):  # it holds runs of an earlier plan
        work.rmdir()


def sweep(every, table, jobs):
    """Runs what `every`, a list of flags, has and the CSV has not -> {flags: row}."""
    table = Path(table)
    threads = max(1, os.cpu_count() // jobs)
    with locked(table) as work:
        rows = read(table)
        done = {row["flags"] for row in rows}
        missing = [flags for flags in every if flags not in done]
        print(f"{len(every) - len(missing)} of {len(every)} runs are in {table}", flush=True)
        write_csv(table, COLUMNS, rows)  # can it be written?
        start = time.perf_counter()
        with ThreadPoolExecutor(jobs) as pool:
            directories = {flags: work / short(flags) for flags in missing}
            futures = [pool.submit(run, flags, directories[flags], threads) for flags in missing]
            try:
                for count, future in enumerate(as_completed(futures), 1):
                    rows.append(future.result())
                    write_csv(table, COLUMNS, rows)
                    shutil.rmtree(directories[rows[-1]["flags"]], ignore_errors=True)
                    left = (time.perf_counter() - start) / count * (len(missing) - count)
                    print(f"{count}/{len(missing)}  {left / 60:.0f} min left  {told(rows[-1])}",
                          flush=True)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return {row["flags"]: row for row in read(table)}  # as the next command will find them


def told(row):
    return f"{row['metric']} {row.get('learned', '')}  docs {row.get('docs', '')}  {row['flags']}"
