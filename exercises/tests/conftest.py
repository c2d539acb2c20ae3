"""Grades the exercises: `pytest exercises`, `-k ex05` for one, `--solutions` for the solutions.

A test is worth one point, or what its mark `points` says.
"""
import json
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch

from exercises.tests.answers import Failure, call, load
from exercises.tests.worker import Worker

EXERCISES = Path(__file__).parents[1]
SOLUTIONS = EXERCISES / "solutions"


def pytest_addoption(parser):
    group = parser.getgroup("exercises")
    if SOLUTIONS.is_dir():  # a student's copy has none
        group.addoption("--solutions", action="store_true", help="grade the solutions")
    group.addoption("--report", metavar="FILE", help="write the points as JSON")
    group.addoption("--random", type=int, metavar="N", help="repeat the inputs of an earlier run")
    group.addoption("--isolated", action="store_true", help="run answers in a process of their own")


def grading(config):
    """Whether this folder was asked for: `pytest` without arguments does not grade."""
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return any(path == EXERCISES or EXERCISES in path.parents for path in named)


def pytest_configure(config):
    config.addinivalue_line("markers", "points(n): what a test is worth")
    if grading(config):
        if config.getoption("isolated", False) and sys.platform == "win32":
            raise pytest.UsageError("--isolated needs Linux or macOS")
        config.option.reportchars = ""  # each failure once, not again in a summary
        if config.getoption("random", None) is None:
            config.option.random = time.time_ns() % 1_000_000


def pytest_ignore_collect(collection_path, config):
    return None if grading(config) else True


def pytest_report_header(config):
    if grading(config):
        return f"exercises: inputs of --random {config.option.random}"


class Answers:
    """The functions of a student's file. A failure is one sentence that names the function.

    `drew`, `shares` and `overlaps` are those of answers.call, for the call before.
    """
    asked = "the answers"  # the last function, of any exercise

    def __init__(self, path, solution=None, isolated=False):
        self._path, self._solution = path, solution
        self._worker = Worker(path, solution) if isolated else None
        self.reload()

    def reload(self):
        """Loads the file again: what its functions have kept is gone."""
        if self._worker:
            self._worker.start()
        else:
            self._module = load(self._path, self._solution)

    def close(self):
        if self._worker:
            self._worker.kill()

    def __getattr__(self, function):
        if function.startswith("_"):
            raise AttributeError(function)
        return lambda *inputs: self._ask(function, inputs)["result"]

    def flops(self, function, *inputs):
        """The flops of the products of matrices that a function makes."""
        return self._ask(function, inputs, count_flops=True)["flops"]

    def _ask(self, function, inputs, count_flops=False):
        Answers.asked = f"{self._path.stem}: {function}"
        problem = None
        try:
            if self._worker:
                done = self._worker.call(function, inputs, count_flops)
            else:
                done = call(self._module, function, list(inputs), count_flops)
        except NotImplementedError:
            problem = "is not written yet"
        except Failure as failure:
            problem = str(failure)
        if problem is not None:  # outside of `except`: pytest would print both exceptions
            pytest.fail(f"{Answers.asked} {problem}", pytrace=False)
        self.drew, self.shares = done["drew"], done["shares"]
        self.overlaps = done["overlaps"]
        return done


@pytest.fixture(scope="module")
def ex(request):
    """The answers that the grader of the same number is about."""
    number = request.path.stem.removeprefix("test_")
    [path] = EXERCISES.glob(f"{number}_*.py")
    solution = None
    if request.config.getoption("solutions", False):
        solution = SOLUTIONS / f"{number}.py"
    problem = None
    try:
        answers = Answers(path, solution, request.config.getoption("isolated"))
    except Failure as failure:
        problem = str(failure)
    if problem is not None:
        pytest.fail(f"{path.stem}: the import {problem}", pytrace=False)
    yield answers
    answers.close()


@pytest.fixture
def draw(request):
    """draw(3, 4) -> a (3, 4) float64 tensor of standard normal numbers, new ones in every run."""
    seed = zlib.crc32(f"{request.config.option.random} {request.node.name}".encode())
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


# The points at the end

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if call.excinfo and issubclass(call.excinfo.type, Exception):  # raised by what came back
        report.longrepr = (f"{Answers.asked} returned something of another form: "
                           f"{call.excinfo.typename}: {call.excinfo.value}")
    mark = item.get_closest_marker("points")
    report.user_properties.append(("points", mark.args[0] if mark else 1))


def pytest_terminal_summary(terminalreporter, config):
    if not grading(config):
        return
    marks = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            if report.when == "call" or outcome != "passed" and report.when != "collect":
                add(marks, report, outcome == "passed")
    if not marks:
        return
    marks = dict(sorted(marks.items()))
    terminalreporter.section("points")
    for name, mark in marks.items():
        terminalreporter.line(f"{name:24} {mark['got']:3} of {mark['points']}")
    got, points = (sum(mark[key] for mark in marks.values()) for key in ("got", "points"))
    terminalreporter.line(f"{'together':24} {got:3} of {points}")
    if config.getoption("report"):
        Path(config.getoption("report")).write_text(json.dumps(marks, indent=1), encoding="utf-8")


def add(marks, report, passed):
    """Adds a test's points to those of its exercise."""
    number = Path(report.nodeid.partition("::")[0]).stem.removeprefix("test_")
    [path] = EXERCISES.glob(f"{number}_*.py")
    mark = marks.setdefault(path.stem, {"got": 0, "points": 0, "messages": []})
    worth = dict(report.user_properties).get("points", 1)
    mark["points"] += worth
    mark["got"] += worth * passed
    if not passed:
        mark["messages"].append(str(report.longrepr).strip())
