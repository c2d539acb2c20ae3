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
    return next((step for step, metric, _ in result["path"] if metric >= level), float("inf"))


def text(found):
    lines = ["| method | lr | mean training loss of steps 1 to 50 | "
             + " | ".join(f"steps to {level:.0%}" for level in LEVELS) + " |",
             "|---" * (3 + len(LEVELS)) + "|"]
    for name in VARIANTS:
        [(lr, results)] = compare.at_rates(found, name).items()
        cells = [name, f"{lr:g}", compare.spread(results, "early", "{:.3f}")]
        for level in LEVELS:
            steps = [{"steps": steps_to(result, level)} for result in results]
            cells.append(compare.spread(steps, "steps", "{:.0f}"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found):
    figure, panel = curves.new_figure(9, 5)
    for name, (color, line, _) in zip(VARIANTS, curves.LOOKS):
        [results] = compare.at_rates(found, name).values()
        steps = [int(step) for step, _, _ in results[0]["path"]]
        at_step = list(zip(*([metric for _, metric, _ in result["path"]] for result in results)))
        panel.plot(steps, [statistics.median(each) for each in at_step], color=color,
                   linestyle=line, label=name)
        panel.fill_between(steps, [min(each) for each in at_step], [max(each) for each in at_step],
                           color=color, alpha=0.12, lw=0)
    panel.set(xlabel="step", ylabel=curves.learned("exact match"))
    curves.in_percent(panel)
    curves.name_lines(figure, panel, columns=3)
    return figure


QUESTION = question.Question("speed", VARIANTS, text=text, draw=draw)

if __name__ == "__main__":
    question.ask(QUESTION)
