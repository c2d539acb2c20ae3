"""experiments/: drawing, comparing, sweeps, questions, the stored numbers and the pages."""
import csv
import importlib.util
import json
import math
import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import lora
import train
from data.files import InputError, run_command
from experiments import ask, claims, compare, figures, llm, plot, question, sweep, variant
from experiments.question import Question, Variant
from experiments.questions import forgetting, preconditioner
from experiments.questions import lora as of_lora

ROOT = Path(__file__).parent.parent
drawn = pytest.mark.skipif(not plot.available(), reason="needs matplotlib: pip install matplotlib")


def tiny_flags(tiny_base, more=""):
    return (f"--init_from {tiny_base} --block_size 32 --data math --steps 4 --batch_size 4 "
            f"--eval_interval 2 --seed 0 --lr 1e-3 {more}")


@pytest.fixture
def tiny(tiny_base, tmp_path, monkeypatch):
    """tiny(flags, more arguments of train.train) makes a run of four steps in a new directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "draw", lambda runs, path: None)  # a run's own picture takes a second

    def run(flags, *functions, **more):
        args = train.parse_args(tiny_flags(tiny_base, flags).split())
        return train.train(args, *functions, **more)

    return run


def refused(monkeypatch, capsys, main, *words):
    """Runs a command that must end with one sentence and exit code 2 -> the sentence."""
    monkeypatch.setattr("sys.argv", ["command.py", *words])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


# ==== Drawing runs ================================================================================


def write_run(directory, finished=True):
    directory.mkdir(parents=True)
    run = {"metric_name": "exact match"}
    if finished:
        (directory / "result.json").write_text(json.dumps(run))
    else:
        torch.save(run, directory / "ckpt.pt")
    rows = ["step,loss,lr,ms,metric,source_loss", "0,,,,0.0,3.0", "1,2.5,1e-3,9,,",
            "2,2.0,1e-3,9,0.5,3.25"]
    (directory / "log.csv").write_text("\n".join(rows) + "\n")


@drawn
def test_runs_are_drawn_finished_or_not_and_alike_each_time(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", finished=False)
    for name in ("one.svg", "two.svg", "one.png"):
        plot.draw([tmp_path / "a", tmp_path / "b"], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert ">a<" in text and ">b<" in text  # the directories' names


@drawn
def test_directories_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for parent in ("first", "second"):
        write_run(tmp_path / parent / "lora")
    plot.draw([tmp_path / "first/lora", tmp_path / "second/lora"], tmp_path / "both.svg")
    text = (tmp_path / "both.svg").read_text(encoding="utf-8")
    assert f">{tmp_path / 'first/lora'}<" in text and f">{tmp_path / 'second/lora'}<" in text


def test_evaluations_start_where_nothing_is_forgotten(tmp_path):
    write_run(tmp_path / "a")
    run = plot.read_run(tmp_path / "a")
    assert run["step"] == [0, 1, 2] and math.isnan(run["loss"][0])
    assert plot.evaluations(run) == ([0, 2], [0.0, 0.5], [0.0, 0.25])
    assert plot.running_median([1, 9, 2, 8], 3) == [1, 5, 2, 8]


@pytest.mark.parametrize("module, words", [(plot, ["x"]), (figures, [])])
def test_without_matplotlib_there_is_one_sentence(module, words, monkeypatch, capsys, tmp_path):
    write_run(tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "available", lambda: False)
    assert "pip install matplotlib" in refused(monkeypatch, capsys, module.main, *words)


def test_a_directory_without_a_run_is_one_sentence(monkeypatch, capsys, tmp_path):
    assert "holds no run" in refused(monkeypatch, capsys, plot.main, str(tmp_path))


# ==== Comparing ===================================================================================


def test_every_method_gets_the_same_flags_except_an_adapters():
    given = "--rank 16 --no-rslora --targets c_fc c_attn --grad_clip 2".split()
    flags = {method: compare.flags_of(given, "a b.txt", method, 1e-3, 1)
             for method in compare.METHODS}
    args = {method: train.parse_args(sweep.shlex.split(words)) for method, words in flags.items()}
    assert "--rank" not in flags["full"] and "--targets" not in flags["full"]
    for name in ("betas", "steps", "batch_size", "seed", "lr", "grad_clip", "warmup", "data"):
        assert len({str(getattr(each, name)) for each in args.values()}) == 1
    assert args["loraga"].rank == 16 and args["lora"].targets == ["c_fc", "c_attn"]
    assert args["lora"].data == "a b.txt"
    assert all(f"--{name}" in words for name in ("steps", "betas", "batch_size", "eval_interval")
               for words in flags.values())  # in full, so that a row outlives a change of defaults


def result(method, lr, learned, forgotten=1.0, metric="exact match"):
    return {"method": method, "lr": lr, "metric": metric, "learned": learned, "trained": 5,
            "forgotten": forgotten, "optimizer_bytes": 2e6}


def test_the_table_has_medians_at_the_best_rate_and_names_edges():
    found = [result("lora", lr, learned) for lr, seeds in
             {1e-3: (0.1, 0.99, 0.2), 2e-3: (0.5, 0.7, 0.6), 4e-3: (0.3, 0.3, 1.0)}.items()
             for learned in seeds]
    found += [result("full", lr, 0.5, forgotten=lr) for lr in (1.0, 2.0, 3.0)]
    found += [result("loraga", lr, 0.5, forgotten=lr) for lr in (1.0, 2.0)]
    text = compare.table(found, ["full", "lora", "loraga"])
    assert "| LoRA | 0.002 | 60.0 (50.0–70.0) |" in text
    assert "| full fine-tuning | 1 (edge) |" in text  # equal learning, less forgetting
    assert "| LoRA-GA | 1 |" in text  # of two rates each would be an edge
    losses = [result("lora", lr, 1 / lr, metric="loss") for lr in (1.0, 2.0, 3.0)]
    assert "| LoRA | 3 (edge) | 0.333 |" in compare.table(losses, ["lora"])


def stored(learned, docs, metric="exact match", path="0:0.0:0.0", flags="--method lora"):
    """A stored row."""
    return {"flags": flags, "metric": metric, "learned": str(learned), "docs": str(docs),
            "docs_before": "0", "loss": "1", "path": path}


def test_a_run_that_diverged_counts_as_the_worst():
    diverged = {"flags": "--method lora --lr 1", "metric": "diverged"}
    bad, good = compare.results([diverged, stored(2, 2, "loss")])
    assert bad["learned"] == math.inf and good["learned"] == 1 and good["forgotten"] == 2
    [no_number] = compare.results([stored("nan", 2)])
    assert no_number["learned"] == 0
    with pytest.raises(InputError, match="diverged"):
        compare.results([diverged])


def path(metric, *points):
    return {"metric": metric, "docs_before": 3.0,
            "path": [[step, value, docs] for step, (value, docs) in enumerate(points)]}


def test_forgetting_at_equal_learning_and_fronts():
    paths = [path("exact match", (0, 3), (0.5, 4), (0.4, 5), (0.9, 6)),
             path("exact match", (0, 3), (0.2, 3.5), (0.9, 9))]
    losses = [path("loss", (4, 3), (2, 4), (2.5, 3.5), (2.4, 5))]
    assert compare.front(paths) == [(0.5, 0.2), (1, 0.5), (3, 0.9)]
    assert compare.front(losses) == [(0.5, 2.5), (1, 2)]
    assert compare.forgotten_at(losses, 2.5) == 1 and compare.forgotten_at(paths, 0.9) == 4.5
    tried = {1e-3: losses * 2}
    assert compare.at_level(tried, 2.5) == "1.00 (lr 0.001)" and compare.at_level(tried, 1) == "–"
    tried[2e-3] = [path("loss", (4, 3), (2, 3.5))]
    assert compare.at_level(tried, 2.5) == "0.50 (lr 0.002, 1 of 2 seeds)"


@pytest.mark.parametrize("flags, sentence", [
    ("--rank 0", "argument --rank: 0 is not allowed"), ("--lr 1", "--lr is set by the comparison"),
    ("--seed=7", "--seed is set by the comparison"),
    ("--lr-ratio 4", "--lr_ratio is set by the comparison"),
    ("--methods adam", "invalid choice: 'adam'"), ("--rnk 3", "unrecognized arguments: --rnk 3")])
def test_what_a_comparison_cannot_take_is_one_sentence(flags, sentence, monkeypatch, capsys):
    assert sentence in refused(monkeypatch, capsys, compare.main, *flags.split())


def test_rows_about_an_older_file_are_not_used(tmp_path, monkeypatch, capsys):
    pairs, rows = tmp_path / "pairs.jsonl", tmp_path / "runs.csv"
    rows.write_text("flags\n")
    sweep.os.utime(rows, (1000, 1000))
    pairs.write_text('{"prompt": "a", "completion": "b"}\n')
    error = refused(monkeypatch, capsys, compare.main, "--data", str(pairs), "--out", str(tmp_path))
    assert "is newer than" in error and rows.read_text() == "flags\n"


# ==== Sweeps ======================================================================================


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_row(tiny, tiny_base):
    """What a sweep finds in a run's directory after it was killed."""
    def stop(model, optimizer, step):
        if step == 3:
            raise KeyboardInterrupt

    flags = tiny_flags(tiny_base).strip()
    directory = sweep.directory_of(flags)
    with pytest.raises(KeyboardInterrupt):
        tiny(f"--out_dir {directory}", after_step=stop)
    rows = sweep.sweep([flags], "runs.csv", jobs=1)
    assert list(rows) == [flags] and not directory.exists()
    assert sweep.read("runs.csv") == rows
    assert sweep.sweep([flags], "runs.csv", jobs=1) == rows  # nothing is left to run

    tiny("--out_dir whole")
    whole = {name: str(value) for name, value in sweep.row_of(flags, Path("whole")).items()}
    assert {**whole, "seconds": ""} == {**rows[flags], "seconds": ""}


def test_rows_of_two_sweeps_at_once_are_all_there(tmp_path):
    table = tmp_path / "new" / "runs.csv"
    sweep.append(table, {"flags": "0", "path": "x" * 3000})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: sweep.append(table, {"flags": str(i), "path": "x" * 3000}),
                      range(1, 50)))
    assert set(sweep.read(table)) == set(map(str, range(50)))
    assert all(row["path"] == "x" * 3000 for row in sweep.read(table).values())


def test_the_log_of_two_runs_in_one_directory_is_refused(tiny):
    tiny("--out_dir o")
    log = Path("o/log.csv")
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")
    with pytest.raises(InputError, match="two at a time"):
        sweep.row_of("--steps 4", Path("o"))


def test_a_run_that_fails_is_one_sentence_with_its_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--rank 0 .*: train.py: argument --rank: 0 is not"):
        sweep.sweep(["--rank 0"], "runs.csv", jobs=1)


# ==== Questions ===================================================================================

QUESTIONS = [each for each in ask.QUESTIONS.values() if isinstance(each, Question)]


def test_the_first_seed_chooses_a_rate_that_the_others_go_on_with():
    variants = {"LoRA": Variant("lora", (1e-3, 2e-3, 4e-3)),
                "full": Variant("full", (1e-3, 2e-3, 4e-3), always=(1e-3,))}
    asked = Question("asked", variants, text=None)
    plan = asked.plan(3)
    assert len(plan) == 18
    learned = {"LoRA": {1e-3: 0.9, 2e-3: 0.91, 4e-3: 0.1}, "full": {1e-3: 0, 2e-3: 0, 4e-3: 1}}
    rows = {flags: stored(learned[name][lr], docs=lr)
            for flags, (name, lr, seed) in plan.items() if seed == 0}
    chosen = {("LoRA", 1e-3), ("full", 1e-3), ("full", 4e-3)}  # LoRA: equal, but forgot less
    later = [plan[flags] for flags in asked.later(plan, rows)]
    assert sorted(later) == sorted((*each, seed) for each in chosen for seed in range(3))
    assert Question("asked", variants, None, every_rate=True).later(plan, rows) == list(plan)
    most = Question("asked", variants, "method", choose=compare.learned_most)
    assert ("LoRA", 2e-3, 1) in [plan[flags] for flags in most.later(plan, rows)]
    first = [each for each in most.results(plan, rows) if each["seed"] == 0]
    assert "| LoRA | 0.002 | 91.0 | 0.00 |" in most.table(first)
    rows |= {flags: stored(0.5, docs=1) for flags in asked.later(plan, rows)}
    found = asked.results(plan, rows)
    assert compare.best_rate(compare.at_rates(found, "LoRA")) == 1e-3  # one seed has 2e-3


def test_each_variant_has_the_metric_and_the_table_of_its_task():
    variants = {"math: LoRA": Variant("lora", (1e-3,)),
                "code: LoRA": Variant("lora", (1e-3,), data="code")}
    asked = Question("asked", variants, "method")
    plan = asked.plan(2)
    rows = {}
    for flags, (name, _, seed) in plan.items():
        metric = "exact match" if name == "math: LoRA" else "loss"
        rows[flags] = stored(0.25, 1, "diverged" if seed else metric)
    found = asked.results(plan, rows)
    assert {(each["method"], each["metric"]) for each in found} == {("math: LoRA", "exact match"),
                                                                    ("code: LoRA", "loss")}
    on_code = list(plan)[1]
    assert "--data data/code.txt" in on_code and "--val_data data/code_val.txt" in on_code

    rows = {flags: row for flags, row in rows.items() if row["metric"] != "diverged"}
    on_math, on_code = asked.table(asked.results(plan, rows)).split("\n\n")
    assert "| math | lr | exact match, % |" in on_math and "| LoRA | 0.001 | 25.0 |" in on_math
    assert "| code | lr | loss |" in on_code and "| LoRA | 0.001 | 1.000 |" in on_code


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: asked.name)
def test_every_question_has_a_table_and_a_figure_of_a_quick_look(asked, tmp_path):
    """Nothing is learned in two steps, and one rate of each variant is tried."""
    quick = asked.quick()
    plan = quick.plan(1, question.QUICK)
    rows = {flags: stored(0.0, 3.0, "exact match" if "--data math" in flags else "loss",
                          "0:0.0:3.0 4:0.0:3.0") for flags in plan}
    for row in rows.values():
        row["early"] = "1"
    assert not any("shakespeare" in flags for flags in plan)  # it would have to be downloaded
    found = quick.results(plan, rows)
    assert quick.table(found).count("|") > 12
    if quick.draw and plot.available():
        plot.write(quick.draw(found), tmp_path / "figure.svg")


def test_a_question_makes_what_is_missing_and_goes_on(tiny_base, tmp_path, monkeypatch, capsys):
    small = f"--init_from {tiny_base} --block_size 32 --batch_size 4 --rank 4"
    variants = {"random": Variant("loraga", (1e-3, 2e-3), small,
                                  module="experiments.variant --start orthonormal")}
    asked = Question("asked", variants, "method", metric="loss")
    monkeypatch.setitem(ask.QUESTIONS, "asked", asked)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ask", "asked", "--quick"])
    ask.main()
    out = capsys.readouterr().out
    assert "0 of 1 runs" in out and "| random | 0.001 |" in out
    [flags] = sweep.read("out/quick/runs.csv")
    assert flags.startswith("-m experiments.variant --start orthonormal --data math")
    ask.main()
    assert "1 of 1 runs" in capsys.readouterr().out


def test_missing_rows_and_missing_data_are_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "data.prepare code" in refused(monkeypatch, capsys, ask.main, "frozen", "--quick")
    monkeypatch.setattr(question, "RESULTS", tmp_path)
    assert "none was made" in refused(monkeypatch, capsys, ask.main, "frozen", "--stored")
    assert "is not there" in refused(monkeypatch, capsys, ask.main, "diversity", "--stored")


def test_usable_rates_are_those_around_the_best():
    losses = {1e-3: 1.2, 3e-3: 2.0, 1e-2: 1.05, 3e-2: 1.0, 0.1: 1.15, 0.3: 9.0}
    assert preconditioner.usable(losses, 1.1) == "× 3"
    assert preconditioner.usable(losses, 1.25) == "× 10"  # not 1e-3, which lies behind a bad rate
    assert preconditioner.usable(losses, 2) == "≥ × 100"


def test_steps_to_a_level_are_those_of_the_first_evaluation_that_reached_it():
    points = [(0, 0.0), (20, 0.5), (40, 0.4), (60, 0.95)]
    assert [question.steps_to(points, level, "exact match") for level in (0.5, 0.9, 0.99)] == [
        20, 60, math.inf]


def test_measures_of_weights_against_their_definitions():
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 4, dtype=torch.float64, generator=generator))[0]
            for n in (9, 7))
    S = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    delta = U * S @ V.T  # shares of the square norm: 9, 4, 1 and 0.25 of 14.25
    ranks = [forgetting.variance_rank(delta, share) for share in (0.6, 0.7, 0.9, 0.95)]
    assert ranks == [1, 2, 2, 3]
    assert math.isclose(of_lora.overlap(V[:, :2], V), 1)
    assert of_lora.overlap(V[:, :2], V[:, 2:]) < 1e-20
    assert math.isclose(of_lora.amplification(2 * delta, delta, 4), 0.5)


# ==== Variants of train.py ========================================================================


@pytest.mark.parametrize("flags", ["--start gaussian --method lora", "--freeze A --method full",
                                   "--gradient_batches 1 --method lora", "--optimizer adam"])
def test_a_variant_that_would_change_nothing_is_refused(flags, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused(monkeypatch, capsys, variant.main, *flags.split())


def test_starts_have_the_norms_and_directions_that_they_say():
    torch.manual_seed(0)
    G = torch.randn(40, 60)
    c = 40 ** 0.25 / 4
    for name in variant.STARTS:
        A, B = variant.factors(name, G, 5)
        assert A.shape == (5, 60) and B.shape == (40, 5)
        zero = {"aligned-A": "B", "large-A": "B", "aligned-B": "A"}.get(name)
        for factor, matrix in {"A": A, "B": B}.items():
            size = 0 if factor == zero else 1 / 3 ** 0.5 if name == "small" else c
            tolerance = 0.3 if name == "gaussian" else 1e-5
            assert math.isclose(matrix.norm(), size * 5 ** 0.5, rel_tol=tolerance)
    U, _, Vh = torch.linalg.svd(G)

    def span(matrix):
        return torch.linalg.qr(matrix)[0]

    assert of_lora.overlap(span(variant.factors("aligned-B", G, 5)[1]), U[:, :5]) > 0.9999
    for name in ("small", "aligned-A"):
        assert of_lora.overlap(span(variant.factors(name, G, 5)[0].T), Vh[:5].T) > 0.9999


def start_of(tiny, monkeypatch, words, flags):
    """The layers after experiments.variant's start, its batches, and how W0 + s·BA has changed."""
    seen = {}

    def train_so_far(args, build_model, build_optimizer, start):
        model = build_model(args, "cpu")
        before = {name: layer.weight for name, layer in lora.lora_layers(model).items()}
        idx = torch.randint(2048, (4, 8), generator=torch.Generator().manual_seed(0))
        seen["steps"] = []
        start(args, model, lambda step: (seen["steps"].append(step), [(idx, idx, 1.0)])[1])
        seen["layers"] = lora.lora_layers(model)
        seen["moved"] = max((layer.weight - before[name]).abs().max()
                            for name, layer in seen["layers"].items())

    monkeypatch.setattr(train, "train", train_so_far)
    monkeypatch.setattr("sys.argv", ["variant", *words.split(), *flags.split()])
    variant.main()
    return seen


def test_a_start_leaves_the_model_as_it_was_and_takes_the_batches_it_is_given(tiny, tiny_base,
                                                                              monkeypatch):
    flags = tiny_flags(tiny_base, "--method loraga --rank 4")
    seen = start_of(tiny, monkeypatch, "--start gaussian --gradient_batches 2", flags)
    assert seen["steps"] == [0, 1] and seen["moved"] < 1e-5
    assert all(layer.lora_B.any() and torch.equal(layer.lora_B, layer.lora_B0)
               for layer in seen["layers"].values())


def test_with_A_frozen_it_stays_and_B_trains(tiny, tiny_base):
    before = {name: layer.lora_A.clone() for name, layer in lora.lora_layers(
        variant.without_A(seeded(tiny_base, "--rank 4"), "cpu")).items()}
    result = tiny("--rank 4 --out_dir o", variant.without_A)
    state = torch.load("o/ckpt.pt", weights_only=True)["model"]
    assert not any(name.endswith("lora_A") for name in state)
    assert all(state[f"{name}.lora_B"].any() for name in before)
    assert result["trainable_params"] == sum(
        state[f"{name}.lora_B"].numel() for name in before)


def seeded(tiny_base, more):
    args = train.parse_args(tiny_flags(tiny_base, more).split())
    torch.manual_seed(args.seed)
    return args


def test_with_the_embeddings_frozen_only_what_lora_adapts_trains(tiny_base):
    model = variant.without_embeddings(seeded(tiny_base, "--method full"), "cpu")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapted = lora.lora_layers(lora.apply_lora(train.build_model(
        seeded(tiny_base, "--method full"), "cpu")))
    assert trained == {f"{name}.weight" for name in adapted}


def test_preconditioned_steps_are_adams_steps_preconditioned():
    torch.manual_seed(0)
    layer = lora.LoRALinear(torch.nn.Linear(7, 6, bias=False), 3).double()
    torch.nn.init.normal_(layer.lora_B)
    A, B = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0}
    groups = lora.lora_plus_groups(layer, 0.1, ratio=2.0)
    optimizer = variant.PreconditionedSteps(groups, layer, 1e-3, **settings)
    grads = torch.randn_like(A), torch.randn_like(B)
    layer.lora_A.grad, layer.lora_B.grad = (grad.clone() for grad in grads)
    optimizer.step()
    I = torch.eye(3, dtype=A.dtype)
    step_A, step_B = -0.1 * grads[0].sign(), -0.2 * grads[1].sign()  # Adam's first step, ε ≈ 0
    expected_A = A + torch.linalg.solve(B.T @ B + 1e-3 * I, step_A)
    expected_B = B + torch.linalg.solve(A @ A.T + 1e-3 * I, step_B.T).T
    assert torch.allclose(layer.lora_A, expected_A, rtol=1e-4)
    assert torch.allclose(layer.lora_B, expected_B, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft: pip install peft")
@pytest.mark.parametrize("method", ["lora", "loraplus", "loraga", "riemannian"])
def test_pefts_versions_train_in_train_py(method, tiny):
    from experiments import peft_run

    optimizers = []

    def build_optimizer(args, model):
        optimizers.append(peft_run.build_optimizer(args, model))
        return optimizers[0]

    flags = f"--method {method} --rank 4 --betas 0.8 0.9"
    mine = tiny(f"{flags} --out_dir mine")
    theirs = tiny(f"{flags} --out_dir theirs", peft_run.build_model, build_optimizer,
                  peft_run.start)
    first, other = (float(list(csv.DictReader(open(f"{name}/log.csv")))[1]["loss"])
                    for name in ("mine", "theirs"))
    assert abs(first - other) < 1e-4 * first  # all start from the base
    assert theirs["trainable_params"] == mine["trainable_params"]
    groups = optimizers[0].param_groups
    assert {group["betas"] for group in groups} == {(0.8, 0.9)}
    rates = {group["initial_lr"] for group in groups if group["params"]}
    assert rates == ({1e-3, 16e-3} if method == "loraplus" else {1e-3})
    kind = type(optimizers[0]).__name__
    assert kind == ("RiemannianPreconditionedOptimizer" if method == "riemannian" else "AdamW")


# ==== Stored numbers and pages ====================================================================


def test_every_stored_run_can_still_be_made():
    """train.py understands its flags, and the questions find it by them."""
    planned = {flags for asked in QUESTIONS for flags in asked.plan(3)}
    rows = sweep.read(*question.RESULTS.rglob("runs.csv"))
    for flags in rows:
        words = sweep.shlex.split(flags)
        train.parse_args(words[words.index("--data"):])
    assert len(planned & set(rows)) > 0.95 * len(rows)


@pytest.mark.parametrize("page", question.PAGES, ids=lambda page: page.parent.name)
def test_tables_on_the_pages_are_those_of_the_stored_rows(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"<!-- end of (\w+) -->", text):
        _, table, _ = question.place_of(name, text)
        if name == "claims":
            assert table == claims.table_of(claims.verdicts(**stored_claims()))
        elif name == "llm":
            rows = sweep.read(question.RESULTS / "llm.csv")
            assert table == llm.tables(llm.results(rows, llm.STEPS))
        elif name in ask.QUESTIONS:
            asked = ask.QUESTIONS[name]
            assert table == asked.table(asked.stored()), name


def test_the_readmes_table_is_that_of_the_stored_runs():
    found = compare.results(list(sweep.read(figures.RESULTS / "math" / "runs.csv").values()))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in compare.table(found, compare.METHODS).splitlines():
        assert line in readme, line


def stored_claims():
    return {table.__name__: figures.read(table.__name__) for table in claims.TABLES}


def test_stored_claims_hold_as_expected_and_the_page_says_so():
    page = (ROOT / "experiments" / "evidence.md").read_text(encoding="utf-8")
    for claim, _, holds in claims.verdicts(**stored_claims()):
        assert holds == claims.EXPECTED.get(claim, True), claim
        [row] = [line for line in page.splitlines()
                 if line.lower().startswith(f"| [{claim.lower()}](#")]
        assert f"| {claims.WORDS[holds]} |" in row


def test_stored_claims_are_what_the_command_computes():
    tables = stored_claims()
    counts = {(row["case"], row["value"]): row for row in tables["conditioning"]}
    for case, value, condition, start in (("near start", 1, 1, claims.near(1)),
                                          ("near start", 10, 10, claims.near(10)),
                                          ("unbalanced start", 4, 10, claims.near(10, 4))):
        fewest = claims.fewest(condition, start, claims.STEP_SIZES, 200)
        assert fewest == {name: counts[case, value][name] for name in fewest}
    again = statistics.median(claims.share_of_B(64, "shared rate", seed) for seed in range(25))
    assert math.isclose(again, tables["widths"][0]["share_of_B"], rel_tol=0.02)


def test_bs_part_falls_as_the_root_of_the_width_unless_the_ratio_grows():
    """LoRA+ §3.2: at one rate η for both, η²n = Θ(1), and B's part is Θ(η) = Θ(n^-½)."""
    slopes = {rule: claims.slope(claims.column(figures.read("widths"), "share_of_B", rule=rule))
              for rule in claims.RULES}
    assert -0.6 < slopes["shared rate"] < -0.35 and -0.6 < slopes["constant ratio 16"] < -0.3
    assert abs(slopes["ratio n/16"]) < 0.1


def test_a_table_goes_to_its_place_only(tmp_path, monkeypatch):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- end of one -->\nb <!-- two -->\n")
    other.write_text("other")
    monkeypatch.setattr(question, "PAGES", (page, other))
    question.put("one", "| new |")
    question.put("two", "| new |")
    assert page.read_text() == "a\n<!-- one -->\n\n| new |\n\n<!-- end of one -->\nb <!-- two -->\n"
    assert other.read_text() == "other"


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_of_a_page_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md")]:
        links = re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8"))
        for path, anchor in links:
            if not path.startswith("http"):
                target = page.parent / path if path else page
                assert target.exists(), f"{page.name}: {path}"
                assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"


@drawn
def test_the_figures_command_makes_the_stored_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    monkeypatch.setattr("sys.argv", ["figures"])
    figures.main()
    assert len(list(tmp_path.iterdir())) == 5
    assert all((ROOT / "experiments" / "figures" / made.name).exists()
               for made in tmp_path.iterdir())
    pictures = [path for kind in ("svg", "png") for path in ROOT.glob(f"experiments/**/*.{kind}")]
    assert sum(path.stat().st_size for path in pictures) <= 600_000
