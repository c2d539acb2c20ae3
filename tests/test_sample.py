"""sample.py's command: runs answer one below the other, each on the base that it started from."""
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lora
import sample
from data import tokenizer
from data.files import run_command
from model import GPT

ROOT = Path(__file__).parents[1]
PROMPT = "This function returns the"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process -> exit code, what it printed, its errors."""
    def run(*arguments, typed=""):
        monkeypatch.setattr("sys.argv", ["sample.py", "--device", "cpu", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        code = 0
        try:
            run_command(sample.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def line(name, model, prompt, tokens, temperature=0.0, top_k=None, seed=0, whole=False):
    """What is printed of a model's continuation, after its name."""
    encoding = tokenizer.load()
    idx = torch.tensor([encoding.encode(prompt)])
    new = model.generate(idx, tokens, temperature, top_k, seed)[0, idx.shape[1]:].tolist()
    answer = encoding.decode(new)
    if not whole:
        answer = answer.partition("\n")[0]
    return f"{name}{prompt}{answer if answer.strip() else ' (nothing)'}\n"


def write_run(directory, model, method="lora", init_from="base"):
    """The files of a finished run that matter here."""
    directory.mkdir()
    settings = {"method": method, "init_from": str(init_from)}
    (directory / "result.json").write_text(json.dumps({"settings": settings}))
    if method == "full":
        torch.save({"config": vars(model.config), "model": whole(model)}, directory / "model.pt")
    else:
        torch.save(lora.adapter_state_dict(model), directory / "adapter.pt")


def whole(model):
    """The tensors of a model.pt, without the output layer, which is tied."""
    return {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}


def moved(seed, base="base"):
    """The base model with an adapter as if it had been trained."""
    torch.manual_seed(seed)
    model = lora.apply_lora(GPT.from_pretrained(base), 2)
    for layer in lora.lora_layers(model).values():
        layer.lora_B.data.normal_(std=0.5)
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Models by the names of their directories: two adapters and a whole model."""
    directory = tmp_path_factory.mktemp("runs")
    models = {directory / "one": moved(1), directory / "two": moved(2)}
    for path, model in models.items():
        write_run(path, model)
    full = lora.merge_and_unload(moved(3))
    write_run(directory / "full", full, "full")
    return {**models, directory / "full": full}


def test_runs_answer_one_below_the_other_each_on_the_untouched_base(runs, run):
    adapters = [flag for path in runs for flag in ("--adapter", path)]
    code, printed, _ = run(*adapters, "--prompt", PROMPT, "--tokens", 8)
    models = {"base": GPT.from_pretrained(), **{str(path): model for path, model in runs.items()}}
    width = max(map(len, models)) + 2
    lines = [line(f"{name:{width}}", model, PROMPT, 8) for name, model in models.items()]
    assert (code, printed) == (0, "".join(lines))
    assert len({answer[width:] for answer in lines}) == 4  # four models, four answers


def test_without_a_prompt_each_line_typed_is_answered_until_an_empty_one(runs, run):
    flags = ["--adapter", next(iter(runs)), "--tokens", 3]
    alone = run(*flags, "--prompt", "Returns the")[1]
    for typed in ("What is 47 plus 86?\nReturns the\n\nnot read\n", "What is 1?\nReturns the"):
        code, printed, _ = run(*flags, typed=typed)
        assert code == 0 and printed.count("\n") == 1 + 2 * 2  # the first line explains
        assert printed.endswith(alone)


def test_temperature_top_k_samples_seed_and_whole(run):
    flags = ["--prompt", PROMPT, *"--tokens 30 --temperature 2 --top_k 100".split()]
    model = GPT.from_pretrained()
    for whole in (False, True):
        lines = [line("base  ", model, PROMPT, 30, 2.0, 100, seed, whole) for seed in (3, 4)]
        _, printed, _ = run(*flags, "--seed", 3, "--samples", 2, *["--whole"] * whole)
        assert printed == "".join(lines) and lines[0] != lines[1]
    assert printed.count("\n") > 2  # so that --whole made a difference


def test_runs_of_another_base_are_sampled_on_it_alone(runs, run, tiny_base, tmp_path):
    write_run(tmp_path / "run", moved(4, tiny_base), init_from=tiny_base)
    code, printed, _ = run("--adapter", tmp_path / "run", "--prompt", PROMPT, "--tokens", 3)
    width = len(str(tmp_path / "run")) + 2
    base = line(f"{'base':{width}}", GPT.from_pretrained(tiny_base), PROMPT, 3)
    assert code == 0 and printed.startswith(base)
    code, _, error = run("--adapter", tmp_path / "run", "--adapter", next(iter(runs)))
    assert code == 2 and "different base models" in error


@pytest.mark.parametrize("arguments", [
    ["--prompt", ""], ["--prompt", "x", "--adapter", "nowhere"], ["--temperature", "-1"],
    ["--prompt", "x", "--device", "abacus"], ["--top_k", "many"]])
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, run):
    code, _, error = run(*arguments)
    assert (code, error.count("\n")) == (2, 1)


def test_the_command_itself():
    command = [sys.executable, "sample.py", "--prompt", "x", "--adapter", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr.startswith("sample.py: nowhere") and result.stderr.count("\n") == 1
