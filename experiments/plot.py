"""Draws runs of train.py, finished or not, in one figure.

    python -m experiments.plot out/math-lora-r8 out/math-full
    python -m experiments.plot out/math-* --out figures/mine

Writes out/runs.png and out/runs.svg: the training loss, the metric, and what was learned against
what was forgotten. The legend has the directories' names. Needs matplotlib.
"""
import importlib.util
import json
import statistics
from pathlib import Path

import torch

from data.files import InputError, command_parser, read_csv, replace_file, run_command

# Okabe and Ito's colours, which colour-blind readers can tell apart. Line styles and markers differ
# as well, for print.
LOOKS = [("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"),
         ("#CC79A7", ":", "D"), ("#000000", (0, (5, 1, 1, 1, 1, 1)), "v"),
         ("#E69F00", (0, (8, 2)), "P"), ("#56B4E9", (0, (2, 1)), "X")]
STYLE = {"font.size": 14, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2, "svg.hashsalt": "nanoLoRA",
         "svg.fonttype": "none"}  # text stays text: a smaller file that can be searched
MISSING = "drawing needs matplotlib, which is not installed: pip install matplotlib"
FORGOTTEN = "forgotten: rise of the docs loss, nats"


def available():
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width, height, panels=1):
    """A figure of width × height inches and its panels side by side; InputError without matplotlib.
    """
    if not available():
        raise InputError(MISSING)
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window and no global state

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(1, panels)


def write(figure, path):
    """Writes a figure in the format of the path's suffix. Equal data give equal bytes."""
    import matplotlib

    kind = Path(path).suffix[1:]
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context(STYLE), replace_file(path) as file:
        figure.savefig(file, format=kind, dpi=100, metadata=metadata)


def read_run(directory):
    """The metric's name, and the columns of log.csv as lists of numbers."""
    directory = Path(directory)
    try:
        if (directory / "result.json").exists():
            run = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        else:
            run = torch.load(directory / "ckpt.pt", map_location="cpu", weights_only=True)
        rows = read_csv(directory / "log.csv")
    except OSError:
        raise InputError(f"{directory} holds no run that can be drawn yet: it needs log.csv and "
                         "ckpt.pt or result.json") from None
    columns = {name: [float(row[name] or "nan") for row in rows]
               for name in ("step", "loss", "metric", "source_loss")}
    return {"metric_name": run["metric_name"], **columns}


def running_median(values, window):
    """For each value the median of the `window` values that end with it."""
    return [statistics.median(values[max(0, i - window + 1):i + 1]) for i in range(len(values))]


def evaluations(run):
    """The steps at which a run was evaluated, the metric there, and what was forgotten by then."""
    steps, metrics, forgotten = [], [], []
    for step, metric, source_loss in zip(run["step"], run["metric"], run["source_loss"]):
        if metric == metric:  # not NaN
            steps.append(step)
            metrics.append(metric)
            forgotten.append(source_loss - run["source_loss"][0])
    return steps, metrics, forgotten


def draw(directories, path):
    """Draws the runs in these directories into one .png or .svg file.

    Left: the running median of the training loss. Middle: the metric. Right: each run as a path
    that starts where nothing is learned and nothing forgotten; the marker is at its end.
    """
    runs = [read_run(directory) for directory in directories]
    names = [Path(directory).name for directory in directories]
    if len(set(names)) < len(names):
        names = list(map(str, directories))
    figure, (training, learning, trade) = new_figure(16, 5.5, panels=3)
    for i, (run, name) in enumerate(zip(runs, names)):
        color, line, marker = LOOKS[i % len(LOOKS)]
        look = {"color": color, "linestyle": line, "label": name}
        loss = running_median(run["loss"][1:], max(1, len(run["loss"]) // 50))
        training.plot(run["step"][1:], loss, **look)
        steps, metric, forgotten = evaluations(run)
        learning.plot(steps, metric, **look)
        trade.plot(forgotten, metric, **look, marker=marker, markevery=[-1], markersize=11)
    metrics = " / ".join(sorted({run["metric_name"] for run in runs}))
    training.set(xlabel="step", ylabel="training loss, nats per token", yscale="log")
    learning.set(xlabel="step", ylabel=learned(metrics))
    trade.set(xlabel=FORGOTTEN, ylabel=learned(metrics))
    if metrics == "exact match":
        in_percent(learning)
        in_percent(trade)
    name_lines(figure, trade)
    write(figure, path)


def learned(metric):
    """An axis label: what was learned, in this metric."""
    return "learned: held-out loss (low is good)" if metric == "loss" else f"learned: {metric}"


def in_percent(panel):
    """The vertical axis from 0 to 100 %."""
    panel.set_ylim(-0.03, 1.04)
    panel.yaxis.set_major_formatter("{x:.0%}")


def name_lines(figure, panel, columns=4):
    """One legend below all panels, from the labels in one of them."""
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), columns),
                  fontsize=STYLE["font.size"], frameon=False)


def main():
    parser = command_parser(__doc__, "python -m experiments.plot")
    parser.add_argument("directories", nargs="+", metavar="OUT_DIR", help="runs of train.py")
    parser.add_argument("--out", default="out/runs", help="the files' path without .png and .svg")
    args = parser.parse_args()
    for path in (f"{args.out}.png", f"{args.out}.svg"):
        draw(args.directories, path)
        print(path)


if __name__ == "__main__":
    run_command(main)
