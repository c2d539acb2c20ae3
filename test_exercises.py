"""The exercises' graders grade: solutions pass, stubs do not, wrong answers are found out."""
import copy
import csv
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import curves
from data import tasks, tokenizer
from data.files import InputError
from exercises import figures
from exercises import grade as grade_command
from exercises import handout, worker
from exercises import train as training
from model import GPT, GPTConfig

ROOT = Path(__file__).parent
EXERCISES = ROOT / "exercises"
NAMES = sorted(path.stem for path in (EXERCISES / "solutions").glob("ex*.py"))
NUMBERS = [name[:4] for name in NAMES]


class Results:
    """A plugin of a run within the run: how many tests passed, and what the others said."""

    def __init__(self):
        self.passed, self.points, self.failures = 0, 0, []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failures.append(str(report.longrepr))
        elif report.when == "call":
            self.passed += 1
            self.points += dict(report.user_properties)["points"]


def grade(number, *options):
    """Runs the grader of one exercise -> its Results."""
    results = Results()
    path = EXERCISES / f"test_{number}.py"
    pytest.main([str(path), "-p", "no:cacheprovider", "-p", "no:terminal", *options],
                plugins=[results])
    return results


def answers(number):
    module = importlib.import_module(f"exercises.answers.{number}")
    return module.WRONG, module.RIGHT


def written(tmp_path, name, text):
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    return f"--answers={tmp_path}"


@pytest.mark.parametrize("name", NAMES)
def test_a_solution_gets_all_points_and_the_handout_says_how_many(name):
    results = grade(name[:4], "--solutions")
    assert results.passed >= 3 and not results.failures
    page = (EXERCISES / "README.md").read_text(encoding="utf-8")
    [(functions, points)] = re.findall(
        rf"\| \[{name}\]\({name}\.py\) \| (.*) \| (\d+) \| \d+ \|", page)
    assert int(points) == results.points
    assert tuple(re.findall(r"`(\w+)`", functions)) == worker.load(
        EXERCISES / "solutions" / f"{name}.py").TO_WRITE


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_gets_none_and_is_the_solution_without_its_answers(name, tmp_path):
    solution = (EXERCISES / "solutions" / f"{name}.py").read_text(encoding="utf-8")
    stub = handout.stub(solution)
    assert (EXERCISES / f"{name}.py").read_text(encoding="utf-8") == stub
    results = grade(name[:4], written(tmp_path, name, stub))
    assert not results.passed and results.failures
    for failure in results.failures:
        assert re.search(rf"{name}: \w+ is not written yet", failure), failure


@pytest.mark.parametrize("number", NUMBERS)
def test_wrong_answers_are_found_out_and_another_right_one_is_not(number, tmp_path):
    [name] = [name for name in NAMES if name.startswith(number)]
    solution = (EXERCISES / "solutions" / f"{name}.py").read_text(encoding="utf-8")
    wrong, right = answers(number)
    assert len(wrong) >= 3
    for what, (said, instead) in wrong.items():
        assert solution.count(said) == 1, (what, said)
        results = grade(number, written(tmp_path, name, solution.replace(said, instead)))
        assert results.failures, f"{name}: nobody noticed that {what}"
    results = grade(number, written(tmp_path, name, right))
    assert results.passed and not results.failures, results.failures


ATTACKS = {
    "leaves": "import os\nos._exit(0)",
    "loops": "while True:\n    pass",
    "prints": "import sys\nprint('passed ' * 99)\nsys.stdout.buffer.write(b'x' * 9999)\n{solution}",
    "places": "def forward(x, W, A, B, alpha):\n    x += 1\n    return x @ W",
    "cheats": "import torch, pytest\ntorch.equal = lambda *_: True\npytest.fail = print\n"
              "def forward(*_): return 0\ndef gradients(*_): return 0, 0, 0",
}


def test_marks_of_a_folder_of_submissions(tmp_path, monkeypatch, capsys):
    """Good, stub, and hostile answers, none of which hurts another's marks."""
    solution = (EXERCISES / "solutions" / "ex01_forward.py").read_text(encoding="utf-8")
    stub = (EXERCISES / "ex01_forward.py").read_text(encoding="utf-8")
    texts = {name: text.replace("{solution}", solution) for name, text in ATTACKS.items()}
    texts |= {"alice": solution, "bob": stub}
    for name, text in texts.items():
        folder = tmp_path / "in" / name / "homework"
        folder.mkdir(parents=True)
        (folder / "ex01_forward.py").write_text(text, encoding="utf-8")
    (tmp_path / "in" / "empty").mkdir()
    out = tmp_path / "marks.csv"
    monkeypatch.setattr("sys.argv", ["grade", str(tmp_path / "in"), "--out", str(out), "--only",
                                     "ex01_forward", "--feedback", str(tmp_path / "told")])
    monkeypatch.setenv("SECONDS_FOR_A_CALL", "2")
    grade_command.main()
    with open(out, encoding="utf-8", newline="") as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["(possible)", *sorted([*texts, "empty"])]
    totals = {name: int(row["total"]) for name, row in rows.items()}
    got = {"(possible)": 8, "alice": 8, "prints": 8}
    assert totals == got | dict.fromkeys(set(totals) - set(got), 0)
    assert rows["empty"]["remark"] == "no answers found"
    assert rows["loops"]["remark"] == "ex01: forward took more than 2 s"
    assert rows["bob"]["remark"] == "ex01: forward is not written yet"
    assert rows["alice"]["remark"] == ""
    assert re.fullmatch(r"--random \d+", rows["(possible)"]["remark"])
    told = (tmp_path / "told" / "places.txt").read_text(encoding="utf-8")
    assert "forward changes x in place" in told


def test_answers_in_an_endless_loop_end_with_their_grader(tmp_path):
    (tmp_path / "loop.py").write_text("def f():\n    while True:\n        pass\n")
    code = ("import sys, os\nfrom exercises.worker import Worker, send\n"
            f"worker = Worker({str(tmp_path / 'loop.py')!r}).__enter__()\n"
            "send(worker.process.stdin, {'function': 'f', 'inputs': []})\n"
            "print(worker.process.pid, flush=True)\nos._exit(0)")
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    for _ in range(300):
        try:
            os.kill(int(ran.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the loop goes on")


def test_a_handout_has_no_solutions_and_all_that_grading_and_training_need(tmp_path):
    handout.write(tmp_path / "class")
    with pytest.raises(InputError, match="not empty"):
        handout.write(tmp_path / "class")
    files = {str(path.relative_to(tmp_path / "class")) for path in (tmp_path / "class").rglob("*")}
    assert not any("solutions" in name or "answers" in name or "grade" in name for name in files)
    assert {"lora.py", "train.py", "exercises/README.md", "exercises/test_ex01.py"} <= files
    ran = subprocess.run([sys.executable, "-m", "pytest", "exercises", "-q", "-p",
                          "no:cacheprovider", "-k", "ex01"], cwd=tmp_path / "class",
                         capture_output=True, text=True)
    assert ran.returncode == 1 and "ex01_forward: forward is not written yet" in ran.stdout
    ran = subprocess.run([sys.executable, "-m", "exercises.train", "ex11_lora_pro", "--steps", "1"],
                         cwd=tmp_path / "class", capture_output=True, text=True)
    assert ran.returncode == 1 and "sylvester is not written yet" in ran.stderr
    for command in ("plot", "compare"):  # which train.py's report names
        subprocess.run([sys.executable, "-m", f"experiments.{command}", "--help"], check=True,
                       cwd=tmp_path / "class", stdout=subprocess.DEVNULL)


def test_plain_pytest_does_not_grade(tmp_path):
    ran = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q"], cwd=ROOT,
                         capture_output=True, text=True)
    assert ran.returncode == 0 and "exercises/test_ex" not in ran.stdout


@pytest.mark.skipif(not curves.available(), reason="matplotlib is not installed")
def test_the_pictures_are_those_that_their_command_makes(tmp_path, monkeypatch, capsys):
    stored = {name: figures.read(name) for name in ("splits", "boosters")}
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    figures.main()
    for name, there in stored.items():
        for mine, old in zip(figures.read(name), there, strict=True):
            assert mine.keys() == old.keys()
            assert all(abs(mine[key] - old[key]) < 1e-4 for key in mine if key != "run")
        assert (tmp_path / f"{name}.svg").stat().st_size < 100_000
    runs = {row["run"]: row for row in figures.read("splits")}  # the last step of each
    rite = [runs[f"LoRA-RITE, {split}"] for split in ("A, B", "4B, A/4")]
    adam = [runs[f"Adam, {split}"] for split in ("A, B", "4B, A/4")]
    assert abs(rite[0]["x"] - rite[1]["x"]) < 1e-5 and abs(adam[0]["x"] - adam[1]["x"]) > 0.1


SYSTEMS = [name for name in NAMES if name >= "ex06"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_starts_from_the_base_trains_what_it_adds_and_learns(name):
    """On a tiny model and one batch; what merges is followed across a restart."""
    torch.manual_seed(0)
    base = GPT(GPTConfig(block_size=128, vocab_size=2048, n_layer=2, n_head=2, n_embd=32))
    model = copy.deepcopy(base)
    exercise = training.load(name, solutions=True)
    exercise.adapt(model, 2)
    task = tasks.load("math", tokenizer.load(), 96)
    idx, targets = task.batch(0, 0, 8)
    if name != "ex07_prompt_tuning":  # its prompt is seen from the start
        torch.testing.assert_close(model(idx, targets)[0], base(idx, targets)[0], rtol=0, atol=1e-4)
    trained = {p for p in model.parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained) < 0.1 * sum(p.numel() for p in base.parameters())

    optimizer = exercise.optimizer(model, 0.1 if name == "ex07_prompt_tuning" else 1e-2)
    losses = []
    for step in range(1, 61):
        loss = model(idx, targets)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        exercise.after_step(model, optimizer, step)
        losses.append(loss.item())
    least = 0.01 if name == "ex07_prompt_tuning" else 0.15  # a random model hardly hears a prompt
    assert losses[-1] < losses[0] - least, losses[::10]
    for merging, last in (("ex08", 201), ("ex09", 101), ("ex10", 51), ("ex14", 500)):
        if name.startswith(merging):
            model.eval()
            before = model(idx, targets)[1].item()
            exercise.after_step(model, optimizer, last)
            jump = abs(model(idx, targets)[1].item() - before)
            assert jump < (0.05 if merging == "ex14" else 1e-4)  # pruning may cost a little
            assert not optimizer.state


@pytest.mark.parametrize("flags, name", [("--alpha 4", "alpha"), ("--lr_ratio 2", "lr_ratio"),
                                         ("--method full", "method"), ("--betas 0.9 0.9", "betas")])
def test_flags_that_an_exercise_decides_are_refused(flags, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "ex11", "--solutions", *flags.split()])
    with pytest.raises(SystemExit, match=f"--{name} .* would change nothing"):
        training.main()


def test_a_constant_of_an_exercise_can_be_set(monkeypatch, capsys):
    exercise = training.load("ex12", solutions=True)
    training.set_constant(exercise, "PROXY=gradient")
    training.set_constant(exercise, "BATCHES=2")
    assert exercise.PROXY == "gradient" and exercise.BATCHES == 2
    monkeypatch.setattr(sys, "argv", ["train", "ex08", "--solutions", "--set", "ROUND=3"])
    with pytest.raises(SystemExit, match="--set ROUND=3: .* has no constant ROUND, but EVERY"):
        training.main()
