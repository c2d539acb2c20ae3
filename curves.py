"""Draws runs: training loss, metric, and what was learned against what was forgotten.

matplotlib is needed for this alone, and nothing else in the project needs this file.
"""
import csv
import importlib.util
import json
import statistics
from pathlib import Path

from data.files import InputError, load_file, replace_file

# Okabe and Ito's colours, which the colour-blind tell apart; in print, lines and markers differ
LOOKS = [("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"),
         ("#CC79A7", ":", "D"), ("#000000", (0, (5, 1, 1, 1, 1, 1)), "v"),
         ("#E69F00", (0, (8, 2)), "P"), ("#56B4E9", (0, (2, 1)), "X")]
STYLE = {"font.size": 14, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2, "svg.hashsalt": "nanoLoRA",
         "svg.fonttype": "none"}  # letters as letters: a smaller file, which can be searched
OF_PRESETS = ("alpha", "rslora", "init", "lr_ratio", "precondition")  # the method says them
MISSING = "drawing needs matplotlib, which is not installed: pip install matplotlib"
FORGOTTEN = "forgotten: rise of the docs loss, nats"


def available():
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width, height, panels=1):
    """A figure, `width` × `height` inches, and its panels side by side; InputError if it cannot."""
    if not available():
        raise InputError(MISSING)
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window and no state

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(1, panels)


def write(figure, path):
    """Writes a figure in the format that the path ends in; the same numbers make the same file."""
    import matplotlib

    kind = Path(path).suffix[1:]
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context(STYLE), replace_file(path) as file:
        figure.savefig(file, format=kind, dpi=100, metadata=metadata)


def read_run(directory):
    """A run, finished or not -> its settings, the metric's name, and log.csv's columns as lists."""
    directory = Path(directory)
    try:
        if (directory / "result.json").exists():
            result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        else:
            checkpoint = load_file(directory / "ckpt.pt")
            result = {"settings": checkpoint["settings"],
                      "metric_name": checkpoint["progress"]["metric_name"]}
        with open(directory / "log.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {name: [float(row[name] or "nan") for row in rows]
                   for name in ("step", "loss", "metric", "source_loss")}
        return {"settings": result["settings"], "metric_name": result["metric_name"], **columns}
    except (OSError, ValueError, KeyError):
        raise InputError(f"{directory} holds no run that can be drawn, or an old one") from None


def labels(runs, hidden=OF_PRESETS):
    """What tells each run from the others: the method, and the settings that are not alike; of the
    `hidden` ones, which the method says, only where it does not."""
    settings = [run["settings"] for run in runs]
    differing = []
    for name in settings[0]:
        values = [str(each[name]) for each in settings if each.get(name) is not None]
        if len(set(values)) > 1 and name not in ("method", "eval_interval", *hidden):
            differing.append(name)
    names = [label(each, differing) for each in settings]
    if hidden and len(set(names)) < len(names):
        return labels(runs, hidden=())
    return names


def label(settings, names):
    """A run's method, and those of its settings that are called so, in words."""
    told = [f"{name} {words(settings[name])}" for name in names if settings.get(name) is not None]
    return " ".join([settings["method"], *told])


def words(value):
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def smooth(values, window):
    """Running medians, each of the `window` values up to and with its own."""
    return [statistics.median(values[max(0, i - window + 1):i + 1]) for i in range(len(values))]


def judged(run):
    """The steps at which a run was judged, the metric there, and what was forgotten by then."""
    rows = [row for row in zip(run["step"], run["metric"], run["source_loss"]) if row[1] == row[1]]
    steps, metric, source = map(list, zip(*rows))
    return steps, metric, [loss - source[0] for loss in source]


def draw(directories, path):
    """Draws the runs in these directories into one file, a .png or .svg; InputError if it cannot.

    Left the training loss, a running median; in the middle the metric; right the run as a path from
    the start, where nothing is learned and nothing forgotten. Its end bears the marker.
    """
    figure, (training, learning, trade) = new_figure(16, 5.5, panels=3)
    runs = [read_run(directory) for directory in directories]
    names = labels(runs)
    if len(set(names)) < len(names):  # the same experiment in several places
        names = list(map(str, directories))
    for i, (run, label) in enumerate(zip(runs, names)):
        color, line, marker = LOOKS[i % len(LOOKS)]
        look = {"color": color, "linestyle": line, "label": label}
        loss = smooth(run["loss"][1:], max(1, len(run["loss"]) // 50))
        training.plot(run["step"][1:], loss, **look)
        steps, metric, forgotten = judged(run)
        learning.plot(steps, metric, **look)
        trade.plot(forgotten, metric, **look, marker=marker, markevery=[-1], markersize=11)
    metrics = " / ".join(sorted({run["metric_name"] for run in runs}))
    training.set(xlabel="step", ylabel="training loss, nats per token", yscale="log")
    learning.set(xlabel="step", ylabel=learned(metrics))
    trade.set(xlabel=FORGOTTEN, ylabel=learned(metrics))
    if metrics == "exact match":
        for panel in (learning, trade):
            in_percent(panel)
    name_lines(figure, trade)
    write(figure, path)


def learned(metric):
    return "learned: held-out loss (low is good)" if metric == "loss" else f"learned: {metric}"


def in_percent(panel):
    """The vertical axis from 0 to 100 %."""
    panel.set_ylim(-0.03, 1.04)
    panel.yaxis.set_major_formatter("{x:.0%}")


def name_lines(figure, panel, columns=4):
    """One legend below all panels, for what one of them shows."""
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), columns),
                  fontsize=STYLE["font.size"], frameon=False)
