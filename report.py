"""What a run says: a line now and then, at its end what it learned and forgot, and what is next."""
import shlex
import statistics
import sys
from pathlib import Path

import torch

import curves
import runs


def show_step(args, task, row):
    """Prints a row of log.csv, with the time left."""
    score = ""
    if "metric" in row:
        score = (f"  {task.metric} {task.in_words(task.metric, row['metric'])}"
                 f"  docs {row['source_loss']:.2f}")
    left = row["ms"] / 1e3 * (args.steps - row["step"])
    print(f"step {row['step']:>5}/{args.steps}  loss {row['loss']:.4f}  lr {row['lr']:.1e}  "
          f"{row['ms']:4.0f} ms/step{score}  {left:.0f} s left", flush=True)


def summary(args, model, optimizer, task, progress):
    """What a finished run learned, forgot, trained and cost -> the dict for result.json."""
    parameters, states = list(model.parameters()), optimizer.state.values()
    before, after = progress["before"], progress["after"]
    return {
        "method": args.method, "task": Path(args.data).stem, "rank": args.rank,
        "seed": args.seed, "steps": args.steps, "seconds": progress["seconds"],
        "metric_name": task.metric,
        "metric_before": before["measures"][task.metric],
        "metric_after": after["measures"][task.metric],
        "measures_before": before["measures"], "measures_after": after["measures"],
        "source_loss_before": before["source_loss"], "source_loss_after": after["source_loss"],
        "trainable_params": sum(p.numel() for p in parameters if p.requires_grad),
        "total_params": sum(p.numel() for p in parameters),
        "optimizer_bytes": sum(tensor.nbytes for state in states for tensor in state.values()),
        "history": [[row["step"], row["metric"], row["source_loss"]]
                    for row in progress["log"] if "metric" in row],
        "settings": runs.settings_of(args),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__,
                     "processes": runs.PROCESSES},
    }


def show_result(args, model, task, result, log):
    """Prints the summary for a person: figures, the loss's shape, a few answers, what is next."""
    print()
    for name, before in result["measures_before"].items():
        after = task.in_words(name, result["measures_after"][name])
        print(f"learned  {name} on {result['task']}: {task.in_words(name, before)} -> {after}")
    forgot = [f"{result[key]:.3f}" for key in ("source_loss_before", "source_loss_after")]
    print("forgot   docs:", " -> ".join(forgot), "nats per token")
    print(f"trained  {result['trainable_params']:,} of {result['total_params']:,} parameters")
    print(f"cost     {result['optimizer_bytes'] / 1e6:.1f} MB of optimizer memory, "
          f"{result['seconds']:.0f} s")
    print("\ntraining loss", *text_plot([row["loss"] for row in log[1:]]), sep="\n  ")
    print("\nsamples", *task.samples(model), sep="\n  ")
    picture(args.out_dir)
    print("\nfiles", *sorted(map(str, Path(args.out_dir).glob("[!.]*"))), sep="\n  ")
    print("\nnext", *what_is_next(args, result), sep="\n  ")


def picture(directory):
    """Draws curves.png where matplotlib is installed; its failure is not that of a finished run."""
    if curves.available():
        try:
            curves.draw([directory], Path(directory) / "curves.png")
        except Exception as error:
            print(f"\ncurves.png could not be drawn: {error}")


def text_plot(values, width=64, height=7):
    """A curve of at most width × height asterisks, each column a median -> its lines."""
    width = min(width, len(values))
    edges = [len(values) * column // width for column in range(width + 1)]
    medians = [statistics.median(values[a:b]) for a, b in zip(edges, edges[1:])]
    low, high = min(medians), max(medians)
    step = (high - low) / (height - 1) or 1.0
    rows = [round((high - value) / step) for value in medians]  # from the top
    lines = []
    for line in range(height):
        label = f"{high - line * step:8.2f}" if line in (0, height - 1) else " " * 8
        dots = "".join("*" if row == line else " " for row in rows)
        lines.append(f"{label} |{dots}".rstrip())
    return [*lines, f"{'':8} +{'-' * width} step {len(values)}"]


def what_is_next(args, result):
    """Commands that fit the run which has just ended."""
    if args.method == "pretrain":
        yield f"cp {args.out_dir}/model.pt data/base.pt    makes it the base of every run"
        return
    names = [name for name in ("val_data", "init_from") if getattr(args, name)]
    names += ["data"] if args.data != "math" else []
    same = "".join(f" --{name} {shlex.quote(getattr(args, name))}" for name in sorted(names))
    directory = shlex.quote(args.out_dir)
    yield f"python sample.py --adapter {directory}    asks it, and the base model beside it"
    other = "loraga" if args.method == "full" else "full"
    yield f"python train.py --method {other}{same}    what the same data do to the model that way"
    yield f"python -m experiments.plot {directory} ...    draws it and other runs"
    yield f"python -m experiments.compare{same}    all five methods, each at its best rate"
    forgotten = result["source_loss_after"] - result["source_loss_before"]
    if forgotten > 1:
        yield (f"--lr {args.lr / 3:.1g}, since it forgot {forgotten:.1f} nats: "
               "a lower one forgets less")
    if still_learning(result):
        yield f"--steps {2 * args.steps}, since it was still learning at its end"


def still_learning(result):
    """Whether the last quarter of the run made a twentieth or more of its progress."""
    history = result["history"]
    earlier = next(metric for step, metric, _ in history if step >= 0.75 * result["steps"])
    before, after = result["metric_before"], result["metric_after"]
    return after != before and (after - earlier) / (after - before) > 0.05
