"""Draws the README's figures from stored numbers.

    python -m experiments.figures

reads experiments/results (made by experiments.compare and experiments.claims) and writes SVGs to
experiments/figures.
"""
from pathlib import Path

from data.files import command_parser, read_csv, run_command
from experiments import compare, plot, sweep

RESULTS = Path(__file__).with_name("results")
FIGURES = Path(__file__).with_name("figures")
BLUE, ORANGE = (color for color, _, _ in plot.LOOKS[:2])


def read(name):
    """The rows of a CSV of results, numbers as floats."""
    return [{key: value if key in ("rule", "start", "case") else float(value)
             for key, value in row.items()} for row in read_csv(RESULTS / f"{name}.csv")]


def learned_and_forgotten():
    """All runs of math/runs.csv: five methods, every learning rate, a marker a seed."""
    found = compare.results(list(sweep.read(RESULTS / "math" / "runs.csv").values()))
    figure, panel = plot.new_figure(9, 5)
    compare.learned_against_forgotten(panel, found, compare.METHODS)
    plot.in_percent(panel)
    panel.set_ylabel("learned: sums answered exactly")
    panel.set_xlabel("forgotten: rise of the loss on what it had read, nats per token")
    panel.text(0.03, 0.55, "better ↖", transform=panel.transAxes, color="dimgray",
               fontsize=14)
    plot.name_lines(figure, panel, columns=3)
    return figure


def lora():
    """The layer with its shapes: x through W0, and beside it through A and B."""
    figure, panel = plot.new_figure(9, 4.2)
    panel.set(xlim=(0, 18), ylim=(0, 8.4))
    panel.axis("off")

    def box(corners, color, text, shape):
        xs, ys = zip(*corners)
        panel.fill(xs, ys, facecolor=color, alpha=0.25, edgecolor=color, linewidth=2)
        middle = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
        panel.text(*middle, text, ha="center", va="center", fontsize=15)
        panel.text(middle[0], min(ys) - 0.1, shape, ha="center", va="top", fontsize=12)

    def arrow(start, end):
        panel.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 1.8})

    def square(x, y, width, height):
        return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]

    box(square(4.6, 4.9, 7, 3), BLUE, "$W_0$\nfrozen", "$d_{out}\\times d_{in}$")
    box([(4.6, 0.9), (7.6, 1.9), (7.6, 2.9), (4.6, 3.9)], ORANGE, "$A$ trains\nfrom random",
        "$r\\times d_{in}$")
    box([(8.6, 1.9), (11.6, 0.9), (11.6, 3.9), (8.6, 2.9)], ORANGE, "$B$ trains\nfrom zero",
        "$d_{out}\\times r$")
    panel.text(8.1, 3.25, "$r$", fontsize=14, ha="center")
    panel.text(0.4, 4.4, "$x$", fontsize=18, ha="left", va="center")
    panel.plot([1.2, 2.6, 2.6], [4.4, 4.4, 6.4], color="black", lw=1.8)
    panel.plot([2.6, 2.6], [4.4, 2.4], color="black", lw=1.8)
    arrow((2.55, 6.4), (4.5, 6.4))
    arrow((2.55, 2.4), (4.5, 2.4))
    arrow((7.65, 2.4), (8.55, 2.4))
    panel.plot([11.6, 12.5], [2.4, 2.4], color="black", lw=1.8)
    panel.text(12.9, 2.4, "$\\times\\, s$", fontsize=15, ha="center", va="center")
    panel.plot([13.4, 14.6], [2.4, 2.4], color="black", lw=1.8)
    panel.plot([11.6, 14.6], [6.4, 6.4], color="black", lw=1.8)
    arrow((14.6, 2.4), (14.6, 4.05))
    arrow((14.6, 6.4), (14.6, 4.75))
    panel.text(14.6, 4.4, "$+$", fontsize=20, ha="center", va="center")
    arrow((15.0, 4.4), (16.2, 4.4))
    panel.text(16.4, 4.4, "$y$", fontsize=18, va="center")
    return figure


def widths():
    """LoRA+: B's share of the update against the width, by the rule for the two rates."""
    figure, panel = plot.new_figure(7, 4.2)
    rows = read("widths")
    names = {"shared rate": "ratio 1 (LoRA)",
             "constant ratio 16": "ratio 16",
             "ratio n/16": "ratio n/16"}
    for (rule, name), (color, line, marker) in zip(names.items(), plot.LOOKS):
        mine = [row for row in rows if row["rule"] == rule]
        x = [row["width"] for row in mine]
        panel.plot(x, [row["share_of_B"] for row in mine], color=color, linestyle=line,
                   marker=marker, markersize=8, label=name)
        panel.fill_between(x, [row["low_quartile"] for row in mine],
                           [row["high_quartile"] for row in mine], color=color, alpha=0.15, lw=0)
    panel.set(xscale="log", yscale="log", xlabel="width n", ylabel="B's share of the update")
    panel.set_xticks(x, [f"{width:g}" for width in x], minor=False)
    panel.set_xticks([], minor=True)
    panel.set_yticks([0.03, 0.1, 0.3], ["3 %", "10 %", "30 %"])
    panel.set_yticks([], minor=True)
    plot.name_lines(figure, panel, columns=3)
    return figure


def alignment():
    """LoRA-GA: how well the first step agrees with the gradient, by rank."""
    figure, panel = plot.new_figure(7, 4.2)
    rows = read("alignment")
    looks = {"LoRA-GA": compare.LOOKS["loraga"], "LoRA": compare.LOOKS["lora"]}
    best = [row for row in rows if row["start"] == "best possible"]
    panel.plot([row["rank"] for row in best], [row["cosine"] for row in best], color="black",
               linestyle="none", marker="o", markersize=14, markerfacecolor="none",
               label="best of rank 2r")
    for start, (color, line, marker) in looks.items():
        mine = [row for row in rows if row["start"] == start]
        ranks = [row["rank"] for row in mine]
        panel.plot(ranks, [row["cosine"] for row in mine], color=color, linestyle=line,
                   marker=marker, markersize=7, label=start)
        panel.fill_between(ranks, [row["least"] for row in mine], [row["most"] for row in mine],
                           color=color, alpha=0.15, lw=0)
    panel.set(xscale="log", ylim=(0, 1.08), xlabel="rank r", ylabel="cosine with the gradient")
    panel.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
    panel.set_xticks([], minor=True)
    plot.name_lines(figure, panel, columns=3)
    return figure


def conditioning():
    """The preconditioner: gradient steps to a matrix of rank 4, by its condition number and by how
    unbalanced the factors start."""
    figure, panels = plot.new_figure(10, 4.2, panels=2)
    cases = {"near start": "condition number κ", "unbalanced start": "t, from (t·B, A/t) at κ = 10"}
    for panel, (case, xlabel) in zip(panels, cases.items()):
        rows = [row for row in read("conditioning") if row["case"] == case]
        x = [row["value"] for row in rows]
        for name, method in {"plain": "lora", "preconditioned": "riemannian"}.items():
            color, line, marker = compare.LOOKS[method]
            panel.plot(x, [row[name] for row in rows], color=color, linestyle=line, marker=marker,
                       markersize=8, label=f"{name} gradient descent")
        panel.set(xscale="log", yscale="log", xlabel=xlabel, ylim=(2, 10000))
        panel.set_xticks(x, [f"{value:g}" for value in x])
        panel.set_xticks([], minor=True)
        panel.set_yticks([10, 100, 1000, 10000], ["10", "100", "1,000", "10,000"])
    panels[0].set_ylabel("steps to error 1e-6")
    plot.name_lines(figure, panels[0], columns=2)
    return figure


def main():
    command_parser(__doc__, "python -m experiments.figures").parse_args()
    for draw in (learned_and_forgotten, lora, widths, alignment, conditioning):
        path = FIGURES / f"{draw.__name__}.svg"
        plot.write(draw(), path)
        print(path)


if __name__ == "__main__":
    run_command(main)
