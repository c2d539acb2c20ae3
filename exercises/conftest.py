"""Grades the exercises: `pytest exercises`, with --solutions the solutions, -k ex05 one of them.

Each test is worth points (1 without the mark `points`); an exercise's are the sum of its tests'.
"""
import functools
import json
import time
import zlib
from pathlib import Path

import pytest
import torch

from exercises.worker import Failure, Worker, call, load

HERE = Path(__file__).parent


def pytest_addoption(parser):
    group = parser.getgroup("exercises")
    group.addoption("--solutions", action="store_true", help="grade the solutions")
    group.addoption("--answers", metavar="DIR", help="grade the ex*.py of another directory")
    group.addoption("--report", metavar="FILE", help="write the points as JSON")
    group.addoption("--random", type=int, metavar="N", help="repeat the inputs of an earlier run")
    group.addoption("--isolated", action="store_true", help="run answers in a process of their own")


def grading(config):
    """Whether this folder, or a file in it, was asked for: the project's own `pytest` does not."""
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return any(path == HERE or HERE in path.parents for path in named)


def pytest_configure(config):
    if grading(config):
        config.option.reportchars = ""  # each failure once, not again in a summary
    config.addinivalue_line("markers", "points(n): what a test is worth")
    if config.getoption("random", None) is None:
        config.option.random = time.time_ns() % 1_000_000


def pytest_ignore_collect(collection_path, config):
    return None if grading(config) else True


def pytest_report_header(config):
    return f"exercises: inputs of --random {config.option.random}"


class Answers:
    """A student's functions. What is not yet written, or raises, fails the test in one sentence."""

    def __init__(self, call, name):
        self._call, self._name = call, name

    def __getattr__(self, function):
        def asked(*inputs):
            try:
                return self._call(function, inputs)
            except NotImplementedError:
                problem = "is not written yet"
            except Failure as failure:
                problem = str(failure)
            pytest.fail(f"{self._name}: {function} {problem}", pytrace=False)
        return asked


@pytest.fixture(scope="module")
def ex(request):
    """The answers that the test file of the same number is about."""
    number = request.path.stem.removeprefix("test_")
    [path] = HERE.glob(f"{number}_*.py")
    if request.config.getoption("solutions"):
        path = HERE / "solutions" / path.name
    if request.config.getoption("answers"):
        path = Path(request.config.getoption("answers")) / path.name
    if not path.exists():
        pytest.fail(f"there is no {path}", pytrace=False)
    if request.config.getoption("isolated"):
        with Worker(path) as worker:
            yield Answers(worker.call, path.stem)
    else:
        try:
            module = load(path)
        except Failure as failure:
            pytest.fail(f"{path.stem} {failure}", pytrace=False)
        yield Answers(functools.partial(call, module), path.stem)


@pytest.fixture
def draw(request):
    """draw(3, 4) -> a (3, 4) float64 tensor of standard normal numbers, new ones in every run."""
    seed = zlib.crc32(f"{request.config.option.random} {request.node.name}".encode())
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


# The table at the end

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if call.excinfo and issubclass(call.excinfo.type, Exception):  # no failed check: what it got
        report.longrepr = (f"{item.path.stem[5:]}: the result has not the form that is asked for: "
                           f"{call.excinfo.typename}: {call.excinfo.value}")
    mark = item.get_closest_marker("points")
    report.user_properties.append(("points", mark.args[0] if mark else 1))


def pytest_terminal_summary(terminalreporter, config):
    if not grading(config):
        return
    points, messages = {}, {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            if outcome == "passed" and report.when != "call":
                continue
            [path] = HERE.glob(Path(report.nodeid.partition("::")[0]).stem[5:] + "_*.py")
            worth = dict(report.user_properties).get("points", 1)
            if outcome != "passed":
                messages.setdefault(path.stem, []).append(str(report.longrepr).strip())
            got, possible = points.get(path.stem, (0, 0))
            points[path.stem] = got + worth * (outcome == "passed"), possible + worth
    if not points:
        return
    terminalreporter.section("points")
    for name, (got, possible) in sorted(points.items()):
        terminalreporter.line(f"{name:24} {got:3} of {possible}")
    total = [sum(column) for column in zip(*points.values())]
    terminalreporter.line(f"{'together':24} {total[0]:3} of {total[1]}")
    if config.getoption("report"):
        marks = {name: {"got": got, "points": possible, "messages": messages.get(name, [])}
                 for name, (got, possible) in points.items()}
        Path(config.getoption("report")).write_text(json.dumps(marks, indent=1), encoding="utf-8")
