"""What a run says and draws, and the comparisons of experiments/."""
import csv
import importlib
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import curves
import lora
import report
import runs
import train
from data import base
from data.files import InputError, load_file
from experiments import (arrivals, claims, compare, figures, fronts, perturbation, plot, question,
                         robustness, speed, starts, subspaces, sweep, trained, variant)
from test_lora import ROOT
from test_train import TINY, at_step, ctrl_c, tiny  # noqa: F401, a fixture

drawn = pytest.mark.skipif(not curves.available(), reason="matplotlib is not installed")
MATH = ROOT / "experiments" / "results" / "math" / "runs.csv"
QUESTIONS = ("arrivals", "betas", "diversity", "fronts", "frozen", "gradients", "libraries",
             "links", "longer", "memory", "perturbation", "ranks", "rates", "ratios",
             "regularisation", "robustness", "shared", "speed", "starts", "subspaces", "systems",
             "targets", "toggles", "transfer")


def log_of(directory):
    with open(Path(directory) / "log.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# What a run says

def test_log_is_a_path_from_nothing_learned_and_nothing_forgotten(tiny, monkeypatch):
    asked = []
    judge = train.judge
    monkeypatch.setattr(train, "judge", lambda *args, whole=True: (
        asked.append(whole), judge(*args, whole=whole))[1])
    result = tiny("--method", "full", "--steps", "7", "--eval_interval", "3", "--lr", "1e-3",
                  "--out_dir", "o")
    rows = log_of("o")
    assert [row["step"] for row in rows] == [str(step) for step in range(8)]
    judged = [row for row in rows if row["metric"]]
    assert [row["step"] for row in judged] == ["0", "3", "6", "7"]
    assert asked == [True, False, False, True]
    assert all(bool(row["source_loss"]) == bool(row["metric"]) for row in rows)
    source = [float(row["source_loss"]) for row in judged]
    assert source[0] == result["source_loss_before"] != source[-1] == result["source_loss_after"]
    assert [float(row["metric"]) for row in judged] == [m for _, m, _ in result["history"]]
    assert not rows[0]["loss"] and all(float(row["loss"]) > 0 for row in rows[1:])


def test_a_look_along_the_way_takes_a_quarter_of_the_pairs():
    from data import base, tasks, tokenizer
    task, model = tasks.load("math", tokenizer.load(), 32), base.load()
    quarter = tasks.load("math", tokenizer.load(), 32)
    quarter.val = [pair for i, pair in enumerate(task.val) if i % 4 == 0]
    assert task.measure(model, whole=False) == quarter.measure(model) != task.measure(model)


def test_text_plot_puts_each_median_at_its_height():
    lines = report.text_plot([6, 6, 3, 3, 0, 0], width=3, height=7)
    assert lines[0] == "    6.00 |*" and lines[3].endswith("| *") and lines[6] == "    0.00 |  *"
    assert len(lines) == 8 and lines[7].endswith("step 6")
    assert report.text_plot([1.0])[0].endswith("|*")  # neither flat nor single curves divide by 0
    assert sum(line.count("*") for line in report.text_plot(range(1000), width=64)) == 64


def test_what_is_next_fits_the_run():
    def told(flags, **more):
        result = {"source_loss_before": 3.0, "source_loss_after": 3.2, "metric_before": 0.0,
                  "metric_after": 0.9, "steps": 100,
                  "history": [[0, 0.0, 3], [80, 0.9, 3], [100, 0.9, 3.2]], **more}
        return "\n".join(report.what_is_next(train.parse_args(shlex.split(flags)), result))

    assert "--method full" in told("--method lora") and "--lr" not in told("--method lora")
    assert "--method loraga --data a.txt" in told("--method full --data a.txt")
    assert "--lr 0.003, since it forgot 2.0 nats" in told("--lr 1e-2", source_loss_after=5.0)
    assert "--steps 200" in told("--steps 100", metric_after=0.99)
    assert "--steps" not in told("--steps 100")
    worse = {"metric_before": 5.0, "metric_after": 1.6, "history": [[80, 1.0, 3], [100, 1.6, 3]]}
    assert "--steps" not in told("--steps 100", **worse)
    assert "--steps" not in told("--steps 100", metric_before=0.9)  # nothing learned at all
    assert "--data 'a b.txt' --init_from gpt2" in told("--init_from gpt2 --data a\\ b.txt")
    assert told("--method pretrain").startswith("cp out/docs-pretrain/model.pt data/base.pt")
    for command in re.findall(r"python (\S+\.py)|-m (\S+)", told("--method lora")):
        path = command[0] or command[1].replace(".", "/") + ".py"
        assert (ROOT / path).exists()


# Drawing

@drawn
def test_runs_are_drawn_finished_or_not_and_alike_each_time(tiny, monkeypatch):
    tiny("--method", "full", "--steps", "6", "--eval_interval", "2", "--out_dir", "a")
    assert Path("a/curves.png").read_bytes().startswith(b"\x89PNG")
    at_step(monkeypatch, 3, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        tiny("--method", "lora", "--steps", "6", "--eval_interval", "2", "--out_dir", "b")
    monkeypatch.setattr(sys, "argv", ["plot", "a", "b", "--out", "both"])
    plot.main()
    first = Path("both.svg").read_bytes()
    plot.main()
    assert Path("both.svg").read_bytes() == first and Path("both.png").stat().st_size > 10_000
    assert curves.read_run("b")["step"] == [0, 1, 2, 3]
    assert curves.read_run("b")["metric_name"] == curves.read_run("a")["metric_name"]


@drawn
def test_a_picture_that_fails_is_told_and_fails_no_run(tiny, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(curves, "draw", fail)
    tiny("--steps", "2", "--out_dir", "o")
    told = capsys.readouterr().out
    assert "could not be drawn: no fonts" in told and "\nnext\n" in told


def test_labels_say_in_what_runs_differ():
    def labels(*flags):
        return curves.labels([{"settings": vars(train.parse_args(each.split()))}
                              for each in flags])

    same = "--out_dir o --lr 1e-3"
    assert labels(same, f"--rank 2 {same}") == ["lora rank 8", "lora rank 2"]
    assert labels(f"--method full {same}", f"--method loraga {same}") == ["full", "loraga"]
    assert labels(f"--betas 0.9 0.95 {same}", f"--betas 0.7 0.8 {same}") == [
        "lora betas 0.9 0.95", "lora betas 0.7 0.8"]
    assert labels(f"--method loraga {same}", f"--method loraga --precondition {same}") == [
        "loraga precondition False", "loraga precondition True"]


def test_the_path_of_a_run_starts_at_nothing_forgotten():
    nan = math.nan
    run = {"step": [0, 1, 2], "metric": [0.0, nan, 0.5], "source_loss": [3.0, nan, 3.25]}
    assert curves.judged(run) == ([0, 2], [0.0, 0.5], [0.0, 0.25])
    assert curves.smooth([1, 9, 2, 8], 3) == [1, 5, 2, 8]


@pytest.mark.parametrize("module, arguments", [(plot, ["x"]), (figures, [])])
def test_without_matplotlib_there_is_one_sentence(module, arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curves, "available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["it", *arguments])
    with pytest.raises(SystemExit) as stop:
        module.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "pip install matplotlib" in error and error.count("\n") == 1


def test_a_run_without_matplotlib_leaves_no_picture(tiny, monkeypatch):
    monkeypatch.setattr(curves, "available", lambda: False)
    tiny("--steps", "2", "--out_dir", "o")
    assert not Path("o/curves.png").exists() and Path("o/result.json").exists()


@drawn
def test_directories_without_a_run_are_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plot", str(tmp_path)])
    with pytest.raises(SystemExit):
        plot.main()
    assert "holds no run" in capsys.readouterr().err


# Comparing

def test_every_method_gets_the_same_flags_but_for_an_adapters():
    given = "--rank 16 --no-rslora --targets c_fc c_attn --grad_clip 2".split()
    flags = {method: compare.flags_of(given, "math", method, 1e-3, 1) for method in compare.METHODS}
    args = {method: train.parse_args(words.split()) for method, words in flags.items()}
    assert flags["full"].count("--") == 9 and args["full"].rank is None
    for name in ("betas", "steps", "batch_size", "seed", "lr", "grad_clip", "warmup", "data"):
        assert len({str(getattr(each, name)) for each in args.values()}) == 1
    assert args["loraga"].rank == 16 and args["lora"].targets == ["c_fc", "c_attn"]
    assert all(f"--{name}" in words for name in ("steps", "betas", "batch_size", "eval_interval")
               for words in flags.values())  # said in full, so that a row outlives the defaults


def result(method, lr, learned, forgotten=1.0, metric="exact match"):
    return {"method": method, "lr": lr, "metric": metric, "learned": learned, "trained": 5,
            "forgotten": forgotten, "optimizer_bytes": 2e6, "seconds": 3}


def test_the_table_has_medians_at_the_best_rate_and_says_where_it_is_an_edge():
    found = [result("lora", lr, learned) for lr, all_of_it in
             {1e-3: (0.1, 0.99, 0.2), 2e-3: (0.5, 0.7, 0.6), 4e-3: (0.3, 0.3, 1.0)}.items()
             for learned in all_of_it]
    found += [result("full", lr, 0.5, forgotten=lr) for lr in (1.0, 2.0, 3.0)]
    found += [result("loraga", lr, 0.5, forgotten=lr) for lr in (1.0, 2.0)]
    text = compare.table(found, ["full", "lora", "loraga"])
    assert "| lora | 0.002 | 60.0% (50.0% to 70.0%) |" in text
    assert "| full | 1 |" in text  # learned alike, forgot less
    assert text.endswith("so perhaps better beyond: full.")  # of loraga's two, each is at one
    losses = [result("lora", lr, 1 / lr, metric="loss") for lr in (1.0, 2.0, 3.0)]
    assert "| lora | 3 | 0.333 |" in compare.table(losses, ["lora"])


def test_a_run_that_diverged_counts_as_the_worst():
    row = {"flags": "--method lora --lr 1", "metric": "diverged"}
    fine = {**dict.fromkeys(compare.NUMBERS, "2"), "flags": "--method lora", "metric": "loss",
            "path": "0:5.0:2.0 9:2.0:2.0"}
    bad, good = compare.results([row, fine])
    assert bad["learned"] == math.inf and good["learned"] == 2 and good["forgotten"] == 0
    no_number = compare.results([{**fine, "learned": "nan"}])
    assert no_number[0]["learned"] == math.inf
    with pytest.raises(InputError, match="diverged"):
        compare.results([row])


COMPARE = [sys.executable, "-m", "experiments.compare", "--data", "data/e2e_sample.jsonl",
           "--methods", "full", "lora", "--lrs", "1e-3", "--seeds", "1", "--jobs", "2",
           "--batch_size", "2", "--eval_interval", "1"]


def test_a_comparison_that_is_killed_goes_on_and_ends_as_one_that_is_not(tmp_path):
    def rows(out):
        return {row["flags"]: [row[name] for name in ("learned", "docs", "path")]
                for row in sweep.read(tmp_path / out / "runs.csv")}

    def start(out):
        return subprocess.Popen([*COMPARE, "--steps", "6", "--out", str(tmp_path / out)], cwd=ROOT,
                                stdout=subprocess.PIPE, text=True, start_new_session=True)

    killed = start("parts")
    assert any(line.startswith("0 of 2 runs are in") for line in killed.stdout)
    work = ROOT / "out" / sweep.work_of(tmp_path / "parts" / "runs.csv")
    until = time.time() + 120
    while not list(work.glob("*/ckpt.pt")) and time.time() < until:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)  # its runs live on for a while
    killed.wait()
    assert not rows("parts")
    again = start("parts")
    output = again.communicate()[0]
    assert again.returncode == 0 and "| lora | 0.001 |" in output and not work.exists()
    once_more = subprocess.run([*COMPARE, "--steps", "6", "--out", str(tmp_path / "parts")],
                               cwd=ROOT, capture_output=True, text=True)
    assert once_more.stdout.startswith("2 of 2 runs are in")
    start("whole").wait()
    assert rows("whole") == rows("parts") and len(rows("whole")) == 2
    assert "| full | 0.001 |" in (tmp_path / "whole" / "table.md").read_text(encoding="utf-8")
    pictures = [tmp_path / "whole" / f"compare.{kind}" for kind in ("png", "svg")]
    assert all(path.exists() == curves.available() for path in pictures)


@pytest.mark.parametrize("flags, sentence", [
    ("--rank 0", "argument --rank: 0 is not allowed"), ("--lr 1", "--lr is set by the comparison"),
    ("--seed=7", "--seed is set by the comparison"),
    ("--precondition", "--precondition is set by the comparison"),
    ("--methods adam", "invalid choice: 'adam'"), ("--rnk 3", "unrecognized arguments: --rnk 3")])
def test_what_a_comparison_cannot_take_is_a_sentence(flags, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", *flags.split()])
    with pytest.raises(SystemExit) as stop:
        compare.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in error and error.count("\n") == 1


def test_rows_of_a_file_that_has_been_edited_since_are_not_taken(tmp_path, monkeypatch, capsys):
    pairs, rows = tmp_path / "pairs.jsonl", tmp_path / "runs.csv"
    pairs.write_text('{"prompt": "a", "completion": "b"}\n')
    args = train.parse_args(["--data", "math", "--val_data", str(pairs)])
    runs.check_unchanged(args, rows, "")  # no rows yet
    rows.write_text("flags\n")
    os.utime(rows, (1000, 1000))
    os.utime(pairs, (999, 999))
    runs.check_unchanged(args, rows, "")
    os.utime(pairs, (1001, 1001))
    with pytest.raises(InputError, match="newer"):
        runs.check_unchanged(args, rows, "")
    monkeypatch.setattr(sys, "argv", ["compare", "--data", str(pairs), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        compare.main()
    assert stop.value.code == 2 and "is newer than" in capsys.readouterr().err
    assert rows.read_text() == "flags\n"


# Stored numbers

def test_the_readmes_table_is_that_of_the_stored_runs():
    found = compare.results(sweep.read(MATH))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in compare.table(found, compare.METHODS).splitlines():
        assert line in readme, line
    told = (ROOT / "experiments" / "details.md").read_text(encoding="utf-8")
    for line in compare.equal_learning(found, compare.METHODS).splitlines():
        assert line in told, line
    for method in compare.METHODS:
        rises = [compare.forgotten_at(results, 0.9)
                 for results in compare.at_rates(found, method).values()]
        assert f" {min(rises):.2f}" in readme


def test_stored_claims_hold_and_are_what_the_commands_compute():
    tables = {table.__name__: figures.read(table.__name__) for table in claims.TABLES}
    told = (ROOT / "experiments" / "evidence.md").read_text(encoding="utf-8")
    for claim, source, numbers, holds in claims.verdicts(**tables):
        assert holds != (claim in claims.REFUTED)
        assert f"| {claim} | {source} | {numbers} | {claims.WORDS[holds]} |" in told, claim
    stored = {(row["case"], row["value"]): row for row in tables["conditioning"]}
    starts = {("near start", 1): claims.near(1, 1), ("near start", 10): claims.near(10, 1),
              ("unbalanced start", 4): claims.near(10, 4)}
    for case, start in starts.items():
        condition = 1 if case == ("near start", 1) else 10
        counts = [min(claims.iterations(condition, start, size, preconditioned, most=200)
                      for size in claims.STEP_SIZES) for preconditioned in (False, True)]
        assert counts == [stored[case]["plain"], stored[case]["preconditioned"]]


def sections(page):
    """A page's text, in parts -> {heading as a link has it: the text under it}."""
    _, *parts = re.split(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    anchors = (re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in parts[::2])
    return dict(zip(anchors, parts[1::2]))


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md")]
LINK = re.compile(r"\]\(([^)#\s]*)#?([^)\s]*)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page):
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if path.startswith("http"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in sections(target), f"{path}#{anchor}"


def test_a_row_of_the_evidence_has_no_number_that_its_details_lack():
    """Of those with a decimal point; the tables behind them are compared with the rows below."""
    details = sections(ROOT / "experiments" / "details.md")
    evidence = sections(ROOT / "experiments" / "evidence.md")["the-table"]
    rows = [row.split(" | ") for row in evidence.splitlines()
            if row.startswith("| ") and ("`python -m" in row or " | the same | " in row)]
    assert len(rows) > 25
    links = []
    for claim, _, command, *told in rows:
        assert len(told) == 2, claim
        links = LINK.findall(command) or links  # else the same as above
        more = [link for cell in told for link in LINK.findall(cell)]
        behind = "".join(details[anchor] for _, anchor in (*links, *more))
        plain = re.sub(r"\([\d., ]+\)|δ = \S+", "", " ".join(told))  # betas, not results
        for found in re.findall(r"(?<![\w.])\d+\.\d+", plain):
            assert re.search(rf"(?<![\d.]){re.escape(found)}(?!\d)", behind), (claim, found)


def test_the_evidence_is_read_in_fifteen_minutes():
    words = (ROOT / "experiments" / "evidence.md").read_text(encoding="utf-8").split()
    assert sum(any(map(str.isalnum, word)) for word in words) < 15 * 250  # words a minute


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_is_told_as_its_rows_have_it(name):
    asked = importlib.import_module(f"experiments.{name}").QUESTION
    assert asked.name == name
    page = asked.page.read_text(encoding="utf-8")
    assert question.place_of(name, page)[1] == asked.table(asked.stored())


def test_a_question_runs_what_is_missing_and_goes_on(tmp_path, monkeypatch, capsys):
    """Two variants, one of them through experiments.variant; a second call makes no runs."""
    variants = {"LoRA": question.Variant("lora", (1e-3, 2e-3)), "random": question.Variant(
        "loraga", (1e-3,), module="experiments.variant --start orthonormal")}
    asked = question.Question("asked", variants, metric="loss")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["asked", "--quick", "--jobs", "2"])
    question.ask(asked)
    out = capsys.readouterr().out
    assert "0 of 2 runs" in out and "| LoRA | 0.001 |" in out and "| random | 0.001 |" in out
    rows = sweep.read("out/quick/asked.csv")
    assert sorted(row["flags"].split()[0] for row in rows) == ["--data", "-m"]
    assert all(0 < float(row["early"]) == pytest.approx(float(row["losses"]), abs=1e-3)
               for row in rows)  # four steps, less than a block of ten
    question.ask(asked)
    assert "2 of 2 runs" in capsys.readouterr().out


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_a_table_and_a_figure_of_a_quick_look(name, tmp_path):
    """Nothing is learned in four steps, and one rate of each variant is tried."""
    asked = importlib.import_module(f"experiments.{name}").QUESTION
    if not isinstance(asked, question.Question):
        return
    quick = asked.quick()
    every = quick.plan(1, question.QUICK)
    assert not any("shakespeare" in flags for flags in every)  # it would have to be downloaded
    nothing = {**dict.fromkeys(compare.NUMBERS, "1"), "learned": "0.0",
               "path": "0:0.0:3.0 4:0.0:3.0"}
    on_math = {flags: "--data math" in flags for flags in every}
    rows = {flags: {**nothing, "metric": "exact match" if on_math[flags] else "loss"}
            for flags in every}
    found = quick.results(every, rows)
    assert all(each["learned"] == (1 if each["metric"] == "loss" else 0) for each in found)
    assert quick.table(found).count("|") > 20
    if quick.draw and curves.available():
        curves.write(quick.draw(found), tmp_path / "figure.svg")


def test_a_run_that_lacks_only_its_row_gets_it_and_is_not_made_again(tmp_path, monkeypatch, tiny):
    tiny("--steps", "2", "--out_dir", "o")
    monkeypatch.setattr(sweep.subprocess, "run", lambda *_, **__: pytest.fail("run again"))
    made = sweep.run("--steps 2", Path("o"), threads=1)
    monkeypatch.setattr(sweep, "run", lambda *_: {**made, "learned": 0.0})
    [swept] = sweep.sweep(["--steps 2"], tmp_path / "rows.csv", jobs=1).values()
    assert swept["learned"] == "0.0"  # as it is read the next time, and not without a number
    assert compare.outcome(swept, swept["metric"])["learned"] == 0


def test_a_run_is_begun_anew_where_a_checkpoint_does_not_hold_all_of_it():
    for flags, how in (("--method lora", "--resume"), ("-m experiments.variant", "--resume"),
                       ("-m exercises.train ex08", "--overwrite"),
                       ("-m experiments.peft_run --method loraga", "--overwrite")):
        assert sweep.how_to_go_on(flags) == how


@pytest.mark.parametrize("flags", ["--start gaussian --method lora", "--freeze A --method full",
                                   "--gradient_batches 1 --method lora"])
def test_a_variant_that_would_be_the_plain_method_is_refused(flags, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["variant", *flags.split(), "--steps", "1"])
    with pytest.raises(SystemExit) as stop:
        variant.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "needs" in error


def test_what_is_missing_is_a_sentence_and_not_an_empty_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(question, "RESULTS", tmp_path)
    for name in ("diversity", "frozen"):
        asked = importlib.import_module(f"experiments.{name}")
        page = tmp_path / "page.md"
        page.write_text(f"<!-- {name} -->\nold\n<!-- end of {name} -->\n")
        monkeypatch.setattr(asked.QUESTION, "page", page)
        monkeypatch.setattr("sys.argv", [name, "--stored"])
        with pytest.raises(SystemExit) as stop:
            (trained.ask if name == "diversity" else question.ask)(asked.QUESTION)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
        assert "old" in page.read_text()
    with pytest.raises(InputError, match="has no runs yet"):
        compare.best_rate({})


def row(learned, docs, metric="exact match"):
    return {"metric": metric, "learned": str(learned), "docs": str(docs), "docs_before": "0",
            "loss": "1", "path": "0:0.0:0.0"}


def test_the_first_seed_chooses_a_rate_that_the_others_go_on_with():
    variants = {"LoRA": question.Variant("lora", (1e-3, 2e-3, 4e-3)),
                "full": question.Variant("full", (1e-3, 2e-3, 4e-3), always=(1e-3,))}
    asked = question.Question("asked", variants)
    every = asked.plan(3)
    assert len(every) == 18
    learned = {"LoRA": {1e-3: 0.9, 2e-3: 0.91, 4e-3: 0.1}, "full": {1e-3: 0, 2e-3: 0, 4e-3: 1}}
    rows = {flags: row(learned[name][lr], docs=lr)
            for flags, (name, lr, seed) in every.items() if seed == 0}
    later = [every[flags] for flags in asked.later(every, rows)]
    chosen = {("LoRA", 1e-3), ("full", 1e-3), ("full", 4e-3)}  # LoRA: alike, but forgot less
    assert sorted(later) == sorted((*each, seed) for each in chosen for seed in range(3))
    everywhere = question.Question("asked", variants, every_rate=True)
    assert everywhere.later(every, rows) == list(every)
    others = {flags: row(lr, docs=1) for flags, (_, lr, seed) in every.items() if seed}
    assert asked.later(every, rows | others) == asked.later(every, rows)  # whatever they learn
    rows |= {flags: row(0.5, docs=1) for flags in asked.later(every, rows)}
    found = asked.results(every, rows)
    assert compare.best_rate(compare.at_rates(found, "LoRA")) == 1e-3  # 0.91 is of one seed


def test_each_variant_of_a_question_has_the_metric_of_its_task():
    """And each task its table, since shares and losses do not go into one column."""
    variants = {"math: LoRA": question.Variant("lora", (1e-3,)),
                "code: LoRA": question.Variant("lora", (1e-3,), data="code")}
    asked = question.Question("asked", variants)
    every = asked.plan(2)
    rows = {}
    for flags, (name, _, seed) in every.items():
        metric = "exact match" if name.startswith("math") else "loss"
        rows[flags] = row(2.5, 1, "diverged" if seed else metric)
    found = asked.results(every, rows)
    metrics = {(each["method"], each["metric"]) for each in found}
    assert metrics == {("math: LoRA", "exact match"), ("code: LoRA", "loss")}
    on_math, on_code = asked.table(found).split("\n\n")
    assert "exact match" in on_math and "| math: LoRA |" in on_math and "code" not in on_math
    assert "| loss |" in on_code and "| code: LoRA |" in on_code and "math" not in on_code


def path(metric, *points):
    return {"metric": metric, "docs_before": 3.0,
            "path": [[step, value, docs] for step, (value, docs) in enumerate(points)]}


def test_a_front_keeps_what_no_other_point_beats():
    paths = [path("exact match", (0, 3), (0.5, 4), (0.4, 5), (0.9, 6)),
             path("exact match", (0, 3), (0.2, 3.5), (0.9, 9))]
    assert fronts.front(paths) == [(0.5, 0.2), (1, 0.5), (3, 0.9)]
    losses = [path("loss", (4, 3), (2, 4), (2.5, 3.5), (2.4, 5))]
    assert fronts.front(losses) == [(0.5, 2.5), (1, 2)]
    assert compare.forgotten_at(losses, 2.5) == 1 and compare.forgotten_at(paths, 0.9) == 4.5
    tried = {1e-3: losses * 2}
    assert compare.at_level(tried, 2.5) == "1.00 (lr 0.001)" and compare.at_level(tried, 1) == "–"
    tried[2e-3] = [path("loss", (4, 3), (2, 3.5))]  # lucky, perhaps
    assert compare.at_level(tried, 2.5) == "0.50 (lr 0.002, 1 of 2 seeds)"


def test_the_usable_rates_are_those_around_the_best():
    """Neighbours only: a rate beyond a bad one does not count."""
    losses = {1e-3: 1.2, 3e-3: 2.0, 1e-2: 1.05, 3e-2: 1.0, 0.1: 1.15, 0.3: 9.0}
    assert robustness.usable(losses, 1.1) == "× 3"
    assert robustness.usable(losses, 1.25) == "× 10"
    assert robustness.usable(losses, 2) == "≥ × 100"  # perhaps lower ones too


def test_speed_is_the_first_step_seen_above_a_level():
    run = path("exact match", (0, 3), (0.5, 3), (0.4, 3), (0.95, 3))
    assert [speed.steps_to(run, level) for level in (0.5, 0.9, 0.99)] == [1, 3, math.inf]


def test_arrival_is_the_end_of_the_first_ten_steps_below_a_level():
    run = {"losses": [2.0, 1.4, 1.6, 1.1]}
    assert [arrivals.steps_to(run, level) for level in (1.5, 1.2, 1)] == [20, 40, math.inf]
    of_rates = {1e-3: [{"n": 3}, {"n": 5}, {"n": math.inf}], 2e-3: [{"n": 6}, {"n": 1}, {"n": 7}]}
    cell = arrivals.lowest(of_rates, lambda result: result["n"], "{:.0f}")
    assert cell == "5 (3 to inf), lr 0.001"


def test_starts_arrive_at_the_rates_that_began_fastest_and_ended_lowest():
    found = starts.QUESTION.stored()
    for name, variant in arrivals.VARIANTS.items():
        rates = compare.at_rates(found, name)
        [fastest] = (lr for lr in rates if rates[lr][0]["early"] == min(
            results[0]["early"] for results in rates.values()))  # of the first seed
        assert list(variant.rates) == list(dict.fromkeys((fastest, compare.best_rate(rates)))), name


def test_a_table_goes_to_its_place_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- end of one -->\nb <!-- two -->\n")
    question.put("| new |", "one", page)
    assert page.read_text() == "a\n<!-- one -->\n\n| new |\n\n<!-- end of one -->\nb <!-- two -->\n"
    assert question.place_of("one", page.read_text())[1] == "| new |"
    with pytest.raises(InputError, match="<!-- two -->"):
        question.put("| new |", "two", page)


@pytest.mark.parametrize("method", ["lora", "loraplus", "loraga", "riemannian"])
def test_pefts_versions_train_in_train_py(method, tiny, monkeypatch):
    pytest.importorskip("peft", reason="needs peft: pip install peft")
    from experiments import peft_run

    flags = ["--method", method, "--steps", "2", "--lr", "1e-3", "--betas", "0.8", "0.9"]
    mine = tiny(*flags, "--out_dir", "mine")
    for name in ("build_model", "build_optimizer"):
        monkeypatch.setattr(train, name, getattr(peft_run, name))
    monkeypatch.setattr(lora, "lora_ga_init", lora.lora_ga_init)  # so that it is put back
    build, optimizers = train.build_optimizer, []
    monkeypatch.setattr(train, "build_optimizer",
                        lambda *args: optimizers.append(build(*args)) or optimizers[0])
    theirs = tiny(*flags, "--out_dir", "theirs")
    first, other = (float(log_of(directory)[1]["loss"]) for directory in ("mine", "theirs"))
    assert abs(first - other) < 1e-4 * first  # all start from the base
    assert theirs["trainable_params"] == mine["trainable_params"]
    groups = optimizers[0].param_groups
    assert {group["betas"] for group in groups} == {(0.8, 0.9)}
    rates = {group["peak_lr"] for group in groups if group["params"]}
    assert rates == ({1e-3, 16e-3} if method == "loraplus" else {1e-3})
    kind = type(optimizers[0]).__name__
    assert kind == ("RiemannianPreconditionedOptimizer" if method == "riemannian" else "AdamW")


def test_a_frozen_a_stays_as_it_started(tiny, monkeypatch):
    monkeypatch.setattr(train, "build_model", variant.without_A)
    result = tiny("--method", "lora", "--steps", "2", "--lr", "1e-2", "--out_dir", "o")
    factors = torch.load("o/adapter.pt", weights_only=True)
    torch.manual_seed(0)
    layers = lora.lora_layers(lora.apply_lora(runs.load_base(), rank=4))
    for name, layer in layers.items():
        assert torch.equal(factors[f"{name}.lora_A"], layer.lora_A)
        assert factors[f"{name}.lora_B"].any()
    assert result["trainable_params"] == sum(layer.lora_B.numel() for layer in layers.values())


def test_with_the_embeddings_frozen_lora_s_layers_alone_are_trained(tiny, monkeypatch):
    monkeypatch.setattr(train, "build_model", variant.without_embeddings)
    tiny("--method", "full", "--steps", "2", "--lr", "1e-2", "--out_dir", "o")
    trained = base.build(load_file("o/model.pt")).state_dict()
    adapted = {f"{name}.weight" for name in lora.lora_layers(lora.apply_lora(runs.load_base()))}
    for name, before in runs.load_base().state_dict().items():
        assert torch.equal(trained[name], before) == (name not in adapted), name


def test_a_variant_takes_the_gradient_of_as_many_batches_as_it_is_told(tiny, monkeypatch):
    taken, own = [], lora.lora_ga_init
    monkeypatch.setattr(train, "GA_BATCHES", train.GA_BATCHES)  # so that it is put back
    monkeypatch.setattr(lora, "lora_ga_init", lambda model, batches, *rest: (
        taken.append(len(batches)), own(model, batches, *rest)))
    flags = f"--gradient_batches 2 --method loraga --rank 4 {TINY} --steps 1"
    monkeypatch.setattr("sys.argv", ["variant", *flags.split()])
    variant.main()
    assert taken == [2]


def test_starts_have_the_norms_that_they_say():
    torch.manual_seed(0)
    G = torch.randn(40, 60)
    c = 40 ** 0.25 / 4
    for name in variant.STARTS:
        A, B = variant.start(name, G, 5)
        assert A.shape == (5, 60) and B.shape == (40, 5)
        size = 1 / 3 ** 0.5 if name == "small" else c
        tolerance = 0.3 if name == "gaussian" else 1e-5
        zero = {"aligned-A": "B", "large-A": "B", "aligned-B": "A"}.get(name)
        for factor, matrix in {"A": A, "B": B}.items():
            norm = 0 if factor == zero else size * 5 ** 0.5
            assert math.isclose(matrix.norm(), norm, rel_tol=tolerance)
    U, _, Vh = torch.linalg.svd(G)
    V = Vh[:5].T
    B = variant.start("aligned-B", G, 5)[1]
    assert subspaces.overlap(torch.linalg.qr(B)[0], U[:, :5]) > 0.9999
    for name in ("small", "aligned-A"):  # along the gradient
        assert subspaces.overlap(torch.linalg.qr(variant.start(name, G, 5)[0].T)[0], V) > 0.9999


def test_measures_of_weights_against_their_definitions():
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64, generator=generator))[0]
            for n in (9, 7))
    S = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    delta = U * S @ V.T  # 9/14.25 = 0.63, 13/14.25 = 0.91
    ranks = [perturbation.variance_rank(delta, share) for share in (0.6, 0.7, 0.9, 0.95)]
    assert ranks == [1, 2, 2, 3]
    assert math.isclose(subspaces.overlap(V[:, :2], V), 1)
    assert subspaces.overlap(V[:, :2], V[:, 2:]) < 1e-20
    W = 2 * delta  # ‖ΔW‖ / ‖UᵀWV‖ is 1/2 in ΔW's own directions
    assert math.isclose(subspaces.amplification(W, delta, 4), 0.5)


def test_bs_share_falls_as_one_over_the_root_of_the_width_unless_the_ratio_grows():
    """LoRA+ §3.2: at one rate η for both, η²n = Θ(1), and B's part is Θ(η) = Θ(n^-½)."""
    rows = figures.read("widths")
    slopes = {}
    for rule in claims.RULES:
        share = {row["width"]: row["share_of_B"] for row in rows if row["rule"] == rule}
        slopes[rule] = math.log(share[4096] / share[64]) / math.log(4096 / 64)
    shared, constant, linear = slopes.values()
    assert -0.6 < shared < -0.35 and -0.6 < constant < -0.3 and abs(linear) < 0.1
    again = statistics.median(claims.share_of_B(64, 1, seed) for seed in range(25))
    assert math.isclose(again, rows[0]["share_of_B"], rel_tol=0.05)


@drawn
def test_the_readmes_figures_are_there_and_their_command_makes_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    monkeypatch.setattr("sys.argv", ["figures"])
    figures.main()
    made = {path.name for path in tmp_path.iterdir()}
    shown = set(re.findall(r"\(experiments/figures/(\S+?)\)",
                           (ROOT / "README.md").read_text(encoding="utf-8")))
    assert shown == made and len(made) == 5
    pictures = [path for kind in ("svg", "png") for path in ROOT.glob(f"experiments/**/*.{kind}")]
    assert sum(path.stat().st_size for path in pictures) <= 600_000
