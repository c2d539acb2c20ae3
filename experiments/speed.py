"""Are LoRA+ and LoRA-GA faster than LoRA? Each at its own learning rate, judged every 20 steps."""
import statistics

import curves
import train
from experiments import compare, question

LEVELS = (0.5, 0.9)
METHODS = ("lora", "loraplus", "loraga")
VARIANTS = {compare.NAMES[method]: question.Variant(method, (train.PRESETS[method]["lr"],),
                                                    "--eval_interval 20") for method in METHODS}


def steps_to(result, level):
    """The first step at which a run was seen above a level; inf if it never was."""
    return next((step for step, value, _ in result["path"]
                 if compare.reached(value, level, result["metric"])), float("inf"))


def text(found):
    rows = []
    for name in VARIANTS:
        [(lr, results)] = compare.at_rates(found, name).items()
        cells = [name, f"{lr:g}", compare.spread(results, "early", "{:.3f}")]
        for level in LEVELS:
            steps = [{"steps": steps_to(result, level)} for result in results]
            cells.append(compare.spread(steps, "steps", "{:.0f}"))
        rows.append(cells)
    header = ["method", "lr", "mean training loss of steps 1 to 50",
              *(f"steps to {level:.0%}" for level in LEVELS)]
    return compare.markdown(header, rows)


def draw(found):
    figure, panel = curves.new_figure(9, 5)
    for method in METHODS:
        color, line, _ = compare.LOOKS[method]
        [results] = compare.at_rates(found, compare.NAMES[method]).values()
        paths = [result["path"] for result in results]
        steps = [step for step, _, _ in paths[0]]
        of_seeds = [[metric for _, metric, _ in path] for path in paths]
        at_step = list(zip(*of_seeds))  # (steps, seeds)
        panel.plot(steps, list(map(statistics.median, at_step)), color=color, linestyle=line,
                   label=compare.NAMES[method])
        panel.fill_between(steps, list(map(min, at_step)), list(map(max, at_step)), color=color,
                           alpha=0.12, lw=0)
    panel.set(xlabel="step", ylabel=curves.learned("exact match"))
    curves.in_percent(panel)
    curves.name_lines(figure, panel, columns=3)
    return figure


QUESTION = question.Question("speed", VARIANTS, text=text, draw=draw)

if __name__ == "__main__":
    question.ask(QUESTION)
