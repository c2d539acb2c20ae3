"""The exercises' graders grade: solutions pass, stubs do not, wrong answers are noticed."""
import copy
import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data import tasks, tokenizer
from data.files import InputError
from exercises import train as training
from exercises.teacher import figures, handout
from exercises.teacher import grade as grade_command
from exercises.tests import answers
from exercises.tests.conftest import Answers
from exercises.tests.worker import Worker
from experiments import plot
from model import GPT, GPTConfig

ROOT = Path(__file__).parents[1]
EXERCISES = ROOT / "exercises"
WRONG = Path(__file__).parent / "wrong_answers"
NAMES = handout.NAMES
forks = pytest.mark.skipif(sys.platform == "win32", reason="workers are forked")


class Grading:
    """A plugin that grades several answers to one exercise: {what they are: Answers}."""

    def __init__(self, answers):
        self.answers = answers
        self.failures = {what: [] for what in answers}
        self.points = dict.fromkeys(answers, 0)

    def pytest_generate_tests(self, metafunc):
        metafunc.parametrize("ex", list(self.answers.values()), ids=list(self.answers),
                             scope="module")

    def pytest_runtest_setup(self, item):
        if self.stop_early and self.failures[self.what(item)]:
            pytest.skip("it has failed already")

    def what(self, item):
        [what] = [what for what, ex in self.answers.items() if ex is item.callspec.params["ex"]]
        return what

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = (yield).get_result()
        if report.failed:
            self.failures[self.what(item)].append(str(report.longrepr))
        elif report.when == "call":
            mark = item.get_closest_marker("points")
            self.points[self.what(item)] += mark.args[0] if mark else 1

    def run(self, number, stop_early=False, random=0):
        """Always with the same inputs, so that these tests do not depend on chance."""
        self.stop_early = stop_early
        grader = EXERCISES / "tests" / f"test_{number}.py"
        pytest.main([str(grader), "-p", "no:cacheprovider", "-p", "no:terminal",
                     "--random", str(random)], plugins=[self])
        for ex in self.answers.values():
            ex.close()
        return self


def sections(number):
    """[(wrong or right, what, text)] of a file of wrong_answers/."""
    text = (WRONG / f"{number}.py").read_text(encoding="utf-8")
    parts = re.split(r"^# (wrong|right): (.*)\n", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[0::3], parts[1::3], parts[2::3]))


def solution_with(number, text, directory, isolated=False):
    """The solution of an exercise with other functions laid over it -> Answers."""
    solution = (EXERCISES / "solutions" / f"{number}.py").read_text(encoding="utf-8")
    file = directory / f"{number}_{len(list(directory.iterdir()))}.py"
    file.write_text(f"{solution}\n\n{text}", encoding="utf-8")
    [stub] = EXERCISES.glob(f"{number}_*.py")
    return Answers(stub, file, isolated)


@pytest.mark.parametrize("name", NAMES)
def test_a_solution_gets_all_points_and_a_stub_gets_none(name):
    path, solution = EXERCISES / f"{name}.py", EXERCISES / "solutions" / f"{name[:4]}.py"
    graded = Grading({"stub": Answers(path), "solution": Answers(path, solution)}).run(name[:4])
    assert not graded.failures["solution"]
    assert graded.points == {"stub": 0, "solution": handout.points(name)}
    for failure in graded.failures["stub"]:
        assert re.search(rf"{name}: \w+ is not written yet", failure), failure
    # The solution has the functions that the stub leaves open, and the handout names them.
    functions = answers.functions_to_write(path)
    found = re.findall(r"^def (\w+)", solution.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found == functions
    page = (EXERCISES / "README.md").read_text(encoding="utf-8")
    row = rf"\| \[{name}\]\({name}\.py\) \| (.*) \| (\d+) \| \d+ \|"
    [(listed, points)] = re.findall(row, page)
    assert int(points) == handout.points(name)
    assert re.findall(r"`(\w+)`", listed) == functions


@pytest.mark.parametrize("name", NAMES)
def test_wrong_answers_are_noticed_and_other_right_ones_pass(name, tmp_path):
    number = name[:4]
    wrong, right = {}, {}
    for kind, what, text in sections(number):
        {"wrong": wrong, "right": right}[kind][what] = solution_with(number, text, tmp_path)
    assert len(wrong) >= 5 and right
    graded = Grading(wrong).run(number, stop_early=True)
    unnoticed = [what for what, failures in graded.failures.items() if not failures]
    assert not unnoticed, f"{name}: nobody noticed that {unnoticed}"
    graded = Grading(right).run(number)
    assert not any(graded.failures.values()), graded.failures


ALIKE = {  # what only the process of the answers can see
    "changes its input": ("ex01", "def gradients(x, W, A, B, alpha, grad_y):\n"
                          "    x += 1\n    return x, A, B"),
    "shares memory": ("ex02", "def merged_head(wte, A, B, alpha):\n    return wte.T"),
    "seeds": ("ex10", "def chosen_layers(names, count, round):\n    random.seed(round)\n"
              "    return random.sample(names, count)"),
    "numpy": ("ex10", "import numpy as np\ndef chosen_layers(names, count, round):\n"
              "    rng = np.random.default_rng(round)\n"
              "    return list(rng.choice(names, count, replace=False))"),
    "remembers": ("ex09", "kept = {}\ndef frozen_factor(m, r, seed):\n"
                  "    if seed not in kept:\n        Q = torch.linalg.qr(torch.randn(m, r))[0]\n"
                  "        kept[seed] = Q.double()\n    return kept[seed]"),
}


@forks
@pytest.mark.parametrize("what", ALIKE)
def test_both_ways_of_grading_give_the_same_points(what, tmp_path):
    number, text = ALIKE[what]
    graded = Grading({str(isolated): solution_with(number, text, tmp_path, isolated)
                      for isolated in (False, True)}).run(number)
    points, most = list(graded.points.values()), handout.points(NAMES[int(number[2:]) - 1])
    assert points[0] == points[1]
    assert points[0] == most if what == "numpy" else points[0] < most
    local, isolated = ([re.sub(r"[\d.e+-]+", "#", failure) for failure in failures]
                       for failures in graded.failures.values())
    assert local == isolated  # except for numbers: each has inputs of its own


ATTACKS = {
    "leaves": "import os\nos._exit(0)",
    "loops": "def forward(*_):\n    while True:\n        pass",
    "hangs": "while True:\n    pass",
    "prints": "import sys\nprint('passed ' * 99)\nsys.stdout.buffer.write(b'x' * 9999)\n{solution}",
    "cheats": "import torch, pytest\ntorch.equal = lambda *_: True\npytest.fail = print\n"
              "def forward(*_): return 0\ndef gradients(*_): return 0, 0, 0",
}
PLACES = "def forward(x, W, A, B, alpha):\n    x += 1\n    return x @ W"
PEEKS = """import os, pathlib
for folder in (os.environ.get("PWD", ""), os.environ.get("OLDPWD", "")):
    path = pathlib.Path(folder) / "exercises/solutions/ex01.py"
    if path.exists():
        exec(path.read_text())
"""


@forks
def test_hostile_answers_get_no_points_and_do_not_stop_the_grader(tmp_path, monkeypatch):
    solution = (EXERCISES / "solutions" / "ex01.py").read_text(encoding="utf-8")
    monkeypatch.setattr("exercises.tests.worker.CALL_SECONDS", 1)
    hostile = {}
    for name, text in ATTACKS.items():
        (tmp_path / f"{name}.py").write_text(text.replace("{solution}", solution))
        hostile[name] = Answers(tmp_path / f"{name}.py", isolated=True)
    graded = Grading(hostile).run("ex01")
    assert graded.points == dict.fromkeys(ATTACKS, 0) | {"prints": 8}
    assert "loops: forward took more than 1 s" in graded.failures["loops"]
    assert "the import took more than 1 s" in graded.failures["hangs"][0]


@forks
def test_marks_of_a_folder_of_submissions(tmp_path, monkeypatch, capsys):
    """Good and bad answers, and one that looks for the solutions; then a stop."""
    solution = (EXERCISES / "solutions" / "ex01.py").read_text(encoding="utf-8")
    stub = (EXERCISES / "ex01_forward.py").read_text(encoding="utf-8")
    texts = {"alice": solution, "bob": stub, "places": PLACES, "peeks": PEEKS}
    for name, text in texts.items():
        folder = tmp_path / "in" / name / "homework"
        folder.mkdir(parents=True)
        (folder / "ex01_forward.py").write_text(text, encoding="utf-8")
    (tmp_path / "in" / "empty").mkdir()
    out = tmp_path / "marks.csv"
    flags = ["grade", str(tmp_path / "in"), "--out", str(out), "--only", "ex01",
             "--feedback", str(tmp_path / "told")]
    monkeypatch.setattr("sys.argv", flags)
    monkeypatch.setenv("PWD", str(ROOT))
    monkeypatch.setenv("OLDPWD", str(ROOT))
    grade_command.main()
    rows = read(out)
    assert list(rows) == ["(possible)", *sorted([*texts, "empty"])]
    totals = {name: int(row["total"]) for name, row in rows.items()}
    assert totals == dict.fromkeys(totals, 0) | {"(possible)": 8, "alice": 8}
    assert rows["empty"]["remark"] == "no answers found"
    assert rows["bob"]["remark"] == "ex01: forward is not written yet"
    assert rows["alice"]["remark"] == ""
    told = (tmp_path / "told" / "places.txt").read_text(encoding="utf-8")
    assert "forward changes x in place" in told
    assert "5 submissions, median 0 of 8 points" in capsys.readouterr().out

    with pytest.raises(InputError, match="--resume"):
        grade_command.main()
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(line for line in lines if not line.startswith("alice")))
    monkeypatch.setattr("sys.argv", [*flags, "--resume"])
    grade_command.main()
    assert re.findall(r"^1/1 .* alice: 8 points", capsys.readouterr().out, flags=re.MULTILINE)
    again = read(out)
    assert again["alice"] == rows["alice"] and again["(possible)"] == rows["(possible)"]


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return {row["submission"]: row for row in csv.DictReader(file)}


def test_names_that_browsers_canvas_and_moodle_make_are_understood(tmp_path):
    for name in ("doejane_123_456_ex01_forward.py", "doejane_123_457_ex2.py",
                 "roe_LATE_77_88_ex01_forward-1.py", "Jo Moe_5_assignsubmission_file_ex03.py",
                 "poe_9_10_all.zip", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "__MACOSX").mkdir()
    folder = tmp_path / "kim"
    folder.mkdir()
    for name in ("ex02_merge (1).py", "ex02_merge.py", "ex1.py", "test_ex01.py", "exercise 5.py",
                 "lora.py"):
        (folder / name).touch()
    found = grade_command.find_submissions(tmp_path)
    taken = {student: grade_command.collect(files) for student, files in found.items()}
    assert {student: {name[:4]: path.name for name, path in answers.items()}
            for student, (answers, _) in taken.items()} == {
        "doejane_123": {"ex01": "doejane_123_456_ex01_forward.py",
                        "ex02": "doejane_123_457_ex2.py"},
        "roe_77": {"ex01": "roe_LATE_77_88_ex01_forward-1.py"},
        "Jo Moe_5": {"ex03": "Jo Moe_5_assignsubmission_file_ex03.py"},
        "poe_9": {},
        "kim": {"ex01": "ex1.py", "ex02": "ex02_merge.py"}}
    assert taken["poe_9"][1] == ["not understood: poe_9_10_all.zip"]
    assert taken["kim"][1] == ["ex02: took ex02_merge.py of 2 files",
                               "not understood: exercise 5.py"]


@forks
def test_answers_in_an_endless_loop_end_with_their_grader(tmp_path):
    (tmp_path / "loop.py").write_text("def f():\n    while True:\n        pass\n")
    code = ("import os\nfrom exercises.tests.worker import Worker, send\n"
            f"worker = Worker({str(tmp_path / 'loop.py')!r})\nworker.start()\n"
            "send(worker.connection, ['f', [], False])\n"
            "print(worker.process.pid, flush=True)\nos._exit(0)")
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    for _ in range(300):
        try:
            os.kill(int(ran.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the loop goes on")


@forks
def test_an_exercise_has_a_time_limit(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text("import time\ndef f():\n    time.sleep(0.1)\n    return 1\n")
    monkeypatch.setattr("exercises.tests.worker.EXERCISE_SECONDS", 0.3)
    worker = Worker(tmp_path / "slow.py")
    worker.start()
    try:
        with pytest.raises(answers.Failure, match="used its 0.3 s"):
            for _ in range(5):
                assert worker.call("f", [])["result"] == 1
    finally:
        worker.kill()


# The handout

@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    directory = tmp_path_factory.mktemp("handout") / "class"
    handout.write(directory)
    return directory


def in_copy(directory, *words):
    return subprocess.run([sys.executable, "-m", *words], cwd=directory, capture_output=True,
                          text=True, encoding="utf-8")


def test_a_handout_has_no_solutions_and_all_that_grading_and_training_need(handed_out):
    with pytest.raises(InputError, match="not empty"):
        handout.write(handed_out)
    files = {str(path.relative_to(handed_out)) for path in handed_out.rglob("*")}
    assert not any("solutions" in name or "wrong" in name or "teacher" in name for name in files)
    assert {"README.md", ".gitignore", "report.md", "challenge.md", "lora.py", "data/docs_val.bin",
            ".github/workflows/classroom.yml"} <= files
    ran = in_copy(handed_out, "pytest", "exercises", "-q", "-p", "no:cacheprovider", "-k", "ex01")
    assert ran.returncode == 1 and "ex01_forward: forward is not written yet" in ran.stdout
    ran = in_copy(handed_out, "exercises.train", "ex11_lora_pro", "--steps", "1")
    assert ran.returncode == 2 and "sylvester is not written yet" in ran.stderr
    assert "Traceback" not in ran.stderr
    for command in (["pytest", "exercises"], ["exercises.train"], ["experiments.plot"],
                    ["experiments.compare"]):  # train.py's report names the last
        ran = in_copy(handed_out, *command, "--help")
        assert ran.returncode == 0 and "--solutions" not in ran.stdout


def test_the_workflow_has_a_step_and_its_points_for_each_exercise():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(handout.workflow())
    *steps, reporter = workflow["jobs"]["grading"]["steps"]
    graders = {step["id"]: step["with"] for step in steps if "id" in step}
    assert list(graders) == [name[:4] for name in NAMES]
    for name in NAMES:
        assert graders[name[:4]]["max-score"] == handout.points(name)
        assert reporter["env"][f"{name[:4].upper()}_RESULTS"]
    assert reporter["with"]["runners"].split(",") == list(graders)


def test_a_notebook_holds_the_file_and_its_cells_run(handed_out):
    name = "ex01_forward"
    path = handed_out / "notebooks" / f"{name}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    stub = (EXERCISES / f"{name}.py").read_text(encoding="utf-8")
    assert "".join(notebook["cells"][2]["source"]) == f"%%writefile exercises/{name}.py\n{stub}"
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    (handed_out / "exercises" / f"{name}.py").unlink()
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                            resources={"metadata": {"path": str(path.parent)}}).execute()
    assert (handed_out / "exercises" / f"{name}.py").read_text(encoding="utf-8") == stub
    said = "".join(output["text"] for output in notebook.cells[3].outputs)
    assert re.search(r"ex01_forward +0 of 8", said)


def test_plain_pytest_does_not_grade():
    ran = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q"], cwd=ROOT,
                         capture_output=True, text=True)
    assert ran.returncode == 0 and "exercises/tests/" not in ran.stdout


@pytest.mark.skipif(not plot.available(), reason="matplotlib is not installed")
def test_the_pictures_are_drawn_and_show_what_they_should(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    figures.main()
    for name in ("splits", "boosters"):
        assert (tmp_path / f"{name}.svg").stat().st_size < 100_000
    rite_step = training.load_exercise("ex16", solutions=True).step
    for step, apart in ((rite_step, False), (figures.adam_step, True)):
        ends = [figures.path(step, split)[-1][0] for split in (1, 4)]
        assert (abs(ends[0] - ends[1]) > 0.1) == apart
        assert apart or abs(ends[0] - ends[1]) < 1e-5


# Training with the solutions

SYSTEMS = [name for name in NAMES if name >= "ex06"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_starts_from_the_base_trains_what_it_adds_and_learns(name):
    """On a tiny model and one batch. The models that merge are followed across a restart."""
    torch.manual_seed(0)
    base = GPT(GPTConfig(block_size=128, vocab_size=2048, n_layer=2, n_head=2, n_embd=32))
    model = copy.deepcopy(base)
    exercise = training.load_exercise(name, solutions=True)
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
    # A random model hardly reacts to a prompt, or to query and value alone.
    least = 0.01 if name in ("ex07_prompt_tuning", "ex17_beyond_linear") else 0.15
    assert losses[-1] < losses[0] - least, losses[::10]
    for merging, last in (("ex08", 201), ("ex09", 101), ("ex10", 51), ("ex14", 500)):
        if name.startswith(merging):
            model.eval()
            before = model(idx, targets)[1].item()
            exercise.after_step(model, optimizer, last)
            jump = abs(model(idx, targets)[1].item() - before)
            assert jump < (0.05 if merging == "ex14" else 1e-4)  # pruning may cost a little
            assert not optimizer.state


def test_a_run_with_a_solution_leaves_what_a_run_leaves(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train", "ex17", "--solutions", "--steps", "2", "--set",
                                      "TARGET=no such layer", "--set", "TARGET=c_attn",
                                      "--batch_size", "2", "--out_dir", str(out)])
    training.main()
    assert (out / "result.json").exists() and (out / "adapter.pt").exists()
    assert json.loads((out / "result.json").read_text())["trainable_params"] == 8 * 2 * 256 * 8
    assert "ex17_beyond_linear, the solution" in capsys.readouterr().out


@pytest.mark.parametrize("flags, name", [("--alpha 4", "alpha"), ("--lr_ratio 2", "lr_ratio"),
                                         ("--method full", "method"), ("--betas 0.9 0.9", "betas"),
                                         ("--rank 4 --resume", "resume")])
def test_flags_that_an_exercise_decides_are_refused(flags, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "ex11", "--solutions", *flags.split()])
    with pytest.raises(InputError, match=f"--{name} "):
        training.main()


def test_a_constant_of_an_exercise_can_be_set(monkeypatch):
    exercise = training.load_exercise("ex12", solutions=True)
    training.set_constant(exercise, "PROXY=gradient")
    training.set_constant(exercise, "BATCHES=2")
    assert exercise.PROXY == "gradient" and exercise.BATCHES == 2
    with pytest.raises(InputError, match="has no constant ROUND, but EVERY"):
        training.set_constant(training.load_exercise("ex08", solutions=True), "ROUND=3")
