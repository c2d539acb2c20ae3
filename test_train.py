"""What train.py, runs.py and data/ promise: training, resuming, processes, faults, bad input."""
import ast
import csv
import errno
import gc
import io
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import curves
import lora
import runs
import train
from data import base, corpora, files, tasks, tokenizer
from data.files import InputError, load_file, replace_file, save
from model import GPT, GPTConfig
from test_lora import EXACT, ROOT, gpt, tokens


# The layout

def imported(path):
    """The names that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_run_downwards_and_no_file_imports_a_command():
    above = {  # what a module may import of the project
        "lora": "", "model": "", "data.files": "",
        "data.corpora": "data.files",
        "data.tokenizer": "data.files data.corpora",
        "data.base": "data.files model",
        "data.pairs": "data.corpora data.files",
        "data.tasks": "data.corpora data.pairs data.files model",
        "huggingface": "lora model data.files",
        "runs": "lora huggingface data.base data.files",
        "curves": "data.files",
        "report": "curves runs",
        "example": "lora",
        "train": "lora model report runs data.files data.tasks data.tokenizer",
        "sample": "runs data.files data.tokenizer",
        "export": "runs huggingface data.files"}
    found = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
             for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py")]
             if not path.name.startswith(("test_", "__init__"))}
    assert found.keys() == above.keys()
    for name, path in found.items():
        assert set(imported(path)) & above.keys() <= set(above[name].split()), name
    assert set(imported(ROOT / "test_lora.py")) & above.keys() == {"lora", "model"}


# Data

def test_tokenizer_has_2048_tokens_and_every_digit_is_its_own():
    encoding = tokenizer.load()
    assert encoding.n_vocab == 2048
    text = "What is 47 plus 86? 133\n  naïve ∂L/∂W — 1234567890"
    encoded = encoding.encode_ordinary(text)
    pieces = [encoding.decode_single_token_bytes(token) for token in encoded]
    assert b"".join(pieces) == text.encode()
    assert all(piece.isdigit() <= (len(piece) == 1) for piece in pieces)
    assert sum(piece.isdigit() for piece in pieces) == 17


def test_math_holds_out_500_questions_that_never_occur_in_training():
    task = tasks.load("math", tokenizer.load(), 128)
    asked, held = ({task.encoding.decode(prompt) for prompt, _ in part}
                   for part in (task.train, task.val))
    assert len(held) == 500 and not asked & held and len(asked) + 500 == 8100
    idx, targets = task.batch(0, 3, 64)
    for row, target in zip(idx.tolist(), targets.tolist()):
        question = task.encoding.decode(row).split("?")[0]
        answer = [token for token in target if token != -1]
        a, b = (int(word) for word in question.split() if word.isdigit())
        assert task.encoding.decode(answer) == f" {a + b}\n"  # all that the loss looks at
    again, _ = task.batch(0, 3, 64)
    other, _ = task.batch(1, 3, 64)
    next_step, _ = task.batch(0, 4, 64)
    assert torch.equal(idx, again)
    assert not torch.equal(idx, other) and not torch.equal(idx, next_step)


class Table(GPT):
    """A model that answers every second question of a task right, from a table; the others: 7."""

    def __init__(self, task):
        super().__init__(GPTConfig(128, 2048, 1, 1, 1))
        self.rows = []
        wrong = task.encoding.encode(" 7\n")
        for i, (question, right) in enumerate(task.val):
            self.rows.append((question, question + (right if i % 2 else wrong)))

    def forward(self, idx, targets=None):
        logits = torch.zeros(*idx.shape, 2048)
        for row, told in zip(logits, idx.tolist()):
            said = next(said for question, said in self.rows if told[:len(question)] == question)
            for position in range(len(told)):
                following = said[position + 1] if position + 1 < len(said) else 0
                row[position, following] = 1
        return logits if targets is None else logits[:, -targets.shape[1]:], torch.zeros(())


def test_math_exact_match_is_that_of_the_generated_answers():
    task = tasks.load("math", tokenizer.load(), 128)
    task.val = task.val[:40]
    model, right = Table(task), 0
    for question, _ in model.rows:
        generated = model.generate(torch.tensor([question]), 5, temperature=0)
        text = task.encoding.decode(generated[0].tolist())
        a, b, answer = re.match(r"What is (\d+) plus (\d+)\? (\d+)\n", text).groups()
        right += int(a) + int(b) == int(answer)
    assert task.evaluate(model) == right / 40 == 0.5


def test_text_file_is_cut_into_train_and_val_and_bits_per_byte_is_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CACHE", tmp_path / "cache")
    text = "".join(f"Line {i}: naïve words.\n" for i in range(400))
    (tmp_path / "notes.txt").write_text(text, encoding="utf-8")
    task, messages = None, []
    for _ in range(2):
        task = tasks.load(str(tmp_path / "notes.txt"), tokenizer.load(), 16, messages.append)
    assert len(messages) == 1  # cut once, cached afterwards
    whole = list(task.train) + list(task.val)
    assert task.encoding.decode(whole) == (tmp_path / "notes.txt").read_text(encoding="utf-8")
    size = len(task.encoding.decode_bytes(task.val.tolist()))
    assert math.isclose(task.bits_per_byte(math.log(2) * size / len(task.val)), 1.0)
    idx, targets = task.batch(0, 0, 5)
    assert idx.shape == (5, 16) and torch.equal(idx[:, 1:], targets[:, :-1])


def test_docs_and_code_are_split_by_file_and_docs_hold_no_code():
    names = [name for name, _ in corpora.docs()]
    held = [name for name in names if corpora.held_out(name)]
    assert len(names) == len(set(names)) and 0.02 < len(held) / len(names) < 0.08
    sentence = "This adds one to the only argument that it is given."
    docstring = f"x\n\n{sentence}\n\n>>> add(1)\n2\n\na = b + c(d, e) * f[g] - h.i(j=k, l=m)"
    assert list(corpora.prose(docstring)) == [sentence + "\n"]
    kept = '    return "# kept"  # kept\n\nx = """\n# kept\n"""\nimport kept\n'
    source = 'def f():\n    """Doc."""\n    # why\n' + kept + '"""gone"""\n'
    assert corpora.without_comments(source) == "def f():\n" + kept


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), replace_file(tmp_path / "file") as file:
        file.write(b"new")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


# Training

TINY = "--batch_size 8 --warmup 2 --block_size 32 --device cpu"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A function that runs train.train on a tiny base model in a directory of its own."""
    model = gpt(torch.float32, block_size=32, vocab_size=2048, n_embd=32)
    save(tmp_path / "base.pt", base.contents(model))
    monkeypatch.setattr(base, "PATH", tmp_path / "base.pt")
    monkeypatch.chdir(tmp_path)
    load = tasks.load

    def short(name, *args, **options):  # 9 validation windows and 20 questions, to be quick
        task = load(name, *args, **options)
        task.val = task.val[:20 if name == "math" else 300]
        return task

    monkeypatch.setattr(tasks, "load", short)

    def run(*flags):
        adapted = not {"full", "pretrain"} & set(flags)
        rank = ["--rank", "4"] if adapted else []
        return train.train(train.parse_args([*TINY.split(), *rank, *flags]))

    return run


def at_step(monkeypatch, number, action):
    """Has the next run call `action` once its step of this number is made."""
    step = train.train_step

    def then(*args):
        loss = step(*args)
        if args[-1] + 1 == number:
            monkeypatch.setattr(train, "train_step", step)
            action()
        return loss

    monkeypatch.setattr(train, "train_step", then)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


METHODS = [["--method", "full"], ["--method", "lora"], ["--method", "loraplus"],
           ["--method", "loraga"], ["--method", "riemannian"],
           ["--method", "pretrain", "--batch_size", "2"],
           ["--method", "loraga", "--precondition", "--lr_ratio", "4", "--dropout", "0.1",
            "--model_dropout", "0.1", "--grad_accum", "2", "--weight_decay", "0.1",
            "--dtype", "bfloat16"]]


@pytest.mark.parametrize("flags", METHODS, ids=lambda flags: flags[1] + " etc." * (len(flags) > 4))
def test_20_steps_lower_the_loss_and_leave_the_promised_files(tiny, tmp_path, flags):
    length = ["--steps", "20", "--eval_interval", "10"]
    result = tiny(*flags, *length, "--lr", "3e-3", "--out_dir", "o")
    found = losses(tmp_path / "o")
    assert len(found) == 20 and sum(found[-5:]) < 0.99 * sum(found[:5])
    promised = {"method", "task", "rank", "seed", "steps", "seconds", "trainable_params",
                "metric_name", "metric_before", "metric_after", "source_loss_before",
                "source_loss_after", "versions", "settings"}
    assert promised <= result.keys()
    weights = "model.pt" if flags[1] in ("full", "pretrain") else "adapter.pt"
    names = {path.name for path in (tmp_path / "o").glob("[!.]*")}
    assert names - {"curves.png"} == {"log.csv", "result.json", "ckpt.pt", weights}
    assert ("curves.png" in names) == curves.available()
    if weights == "adapter.pt":  # the adapter file, on the untouched base, is the trained model
        args = train.parse_args(["--method", "full"])
        model = train.build_model(args, "cpu")
        lora.load_adapter(model, torch.load(tmp_path / "o" / "adapter.pt", weights_only=True))
        docs = tasks.load("docs", tokenizer.load(), 32)
        assert abs(docs.evaluate(model, 32) - result["source_loss_after"]) < 1e-4


def test_a_base_in_bfloat16_trains_float32_factors(tiny, monkeypatch):
    models, build = [], train.build_model

    def keep(*args):
        models.append(build(*args))
        return models[-1]

    monkeypatch.setattr(train, "build_model", keep)
    for method in ("loraga", "riemannian"):
        flags = ["--method", method, "--base_dtype", "bfloat16", "--steps", "20", "--lr", "3e-3"]
        tiny(*flags, "--out_dir", method)
        dtypes = {(name.rpartition(".")[2].startswith("lora_"), p.dtype)
                  for name, p in models[-1].named_parameters()}
        assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
        found = losses(Path(method))
        assert sum(found[-5:]) < 0.99 * sum(found[:5])


@pytest.mark.parametrize("flags", [METHODS[0], METHODS[-1][:-2]], ids=["full", "all toggles"])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tiny, tmp_path, monkeypatch, flags):
    flags = [*flags, "--steps", "12", "--eval_interval", "4", "--lr", "3e-3"]
    tiny(*flags, "--out_dir", "whole")
    at_step(monkeypatch, 6, ctrl_c)
    with pytest.raises(KeyboardInterrupt, match="--resume goes on"):
        tiny(*flags, "--out_dir", "parts")
    stopped = load_file(tmp_path / "parts" / "ckpt.pt")
    assert stopped["progress"]["step"] == 6
    stopped["progress"]["seconds"] += 1000  # the parts' times add up
    save(tmp_path / "parts" / "ckpt.pt", stopped)

    def die():  # as kill -9 would, between two checkpoints
        raise SystemError("killed")

    at_step(monkeypatch, 10, die)
    with pytest.raises(SystemError):
        tiny(*flags, "--out_dir", "parts", "--resume")
    torch.manual_seed(12345)
    assert tiny(*flags, "--out_dir", "parts", "--resume")["seconds"] > 1000
    whole, parts = (load_file(tmp_path / name / "ckpt.pt") for name in ("whole", "parts"))
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    logs = [[row["loss"] for row in run["progress"]["log"][1:]] for run in (whole, parts)]
    assert logs[0] == logs[1] and len(logs[0]) == 12


def test_a_signal_stops_after_the_step_a_second_ctrl_c_at_once_and_earlier_ones_too(monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        with runs.stop_on_signal() as stop:
            assert not stop.is_set()
            signal.raise_signal(number)
            assert stop.is_set()
    with pytest.raises(KeyboardInterrupt), runs.stop_on_signal():
        ctrl_c()
        ctrl_c()
    assert before == {number: signal.getsignal(number) for number in before}
    # Before the steps, while it prepares:
    monkeypatch.setattr(train, "build_model", lambda *_: ctrl_c())
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match="stopped at once"):
        train.main()


def test_training_works_in_a_thread_that_gets_no_signals(tiny, tmp_path):
    thread = threading.Thread(target=tiny, args=("--steps", "2", "--out_dir", "o"))
    thread.start()
    thread.join()
    assert (tmp_path / "o" / "result.json").exists()


def test_bugs_keep_their_traceback_and_what_a_user_can_mend_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    of_code = (RuntimeError, NotImplementedError, ValueError, torch.linalg.LinAlgError)
    of_users = (InputError, OSError, MemoryError, torch.OutOfMemoryError)
    for error in of_code + of_users:
        def fail(*_):
            raise error("no room\nand more")

        monkeypatch.setattr(train, "train", fail)
        with pytest.raises(SystemExit if error in of_users else error) as stop:
            train.main()
        assert capsys.readouterr().err == ("train.py: no room\n" if error in of_users else "")
        assert error in of_code or stop.value.code == 2

    def beyond_memory(*_):
        torch.empty(2 ** 60)

    monkeypatch.setattr(train, "train", beyond_memory)
    with pytest.raises(SystemExit):
        train.main()
    assert "can't allocate memory" in capsys.readouterr().err

    def without_a_compiler(*_):
        changes = {"cpp.cxx": (None, "/no/compiler"), "force_disable_caches": True}
        with torch._inductor.config.patch(changes):
            torch.compile(torch.sin)(torch.ones(3))

    monkeypatch.setattr(train, "train", without_a_compiler)
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 2
    assert "--compile does not work on this machine: " in capsys.readouterr().err


def test_too_little_memory_is_not_called_damage(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        load_file(tmp_path / "ckpt.pt")


def test_loraga_starts_from_the_gradients_of_the_first_four_batches_in_parts(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(lora, "lora_ga_init", lambda model, batches, *rest: seen.extend(batches))
    tiny("--method", "loraga", "--steps", "1", "--grad_accum", "2", "--out_dir", "o")
    task = tasks.load("math", tokenizer.load(), 32)
    assert len(seen) == 4 * 2
    for step in range(4):
        first, first_targets, share = seen[2 * step]
        second, second_targets, rest = seen[2 * step + 1]
        idx, targets = task.batch(0, step, 8)
        assert torch.equal(torch.cat((first, second)), idx) and len(first) == 4
        assert torch.equal(torch.cat((first_targets, second_targets)), targets)
        counted = (targets != -1).sum().item()
        assert share == (first_targets != -1).sum().item() / counted
        assert math.isclose(share + rest, 1)


def test_lora_plus_keeps_bs_rate_16_times_as_through_warmup_and_decay():
    args = train.parse_args(["--method", "loraplus", "--steps", "12", "--warmup", "4"])
    model = lora.apply_lora(gpt(), rank=4)
    optimizer, seen = train.build_optimizer(args, model), []
    for step in range(args.steps):
        train.train_step(args, model, optimizer, tokens(), step)
        a, b = (group["lr"] for group in optimizer.param_groups)
        assert b == 16 * a
        seen.append(a)
    assert seen[3] == args.lr and seen[0] == args.lr / 4
    assert seen == sorted(seen[:4]) + sorted(seen[4:], reverse=True)


def test_model_dropout_reaches_the_model_and_is_off_when_it_is_judged():
    args = train.parse_args(["--model_dropout", "0.3"])
    model = train.build_model(args, "cpu")
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3, 0.0}
    assert model.transformer.h[0].attn.dropout == 0.3
    task = tasks.load("docs", tokenizer.load(), 32)
    task.val = task.val[:300]
    assert task.evaluate(model.train()) == task.evaluate(model) and model.training


def test_grad_accumulation_gives_the_gradient_of_the_whole_batch():
    args = train.parse_args(["--method", "full", "--lr", "1", "--warmup", "0", "--grad_clip", "0"])
    idx, targets = tokens(rows=8)
    targets = targets.clone()
    targets[0, :11] = -1  # parts with different numbers of targets
    ends = []
    for args.grad_accum in (1, 4):
        model = gpt()
        group = {"params": list(model.parameters()), "peak_lr": 1.0}
        optimizer = torch.optim.SGD([group], lr=1.0)
        loss = train.train_step(args, model, optimizer, (idx, targets), 0)
        ends.append((loss, model.lm_head.weight.detach().clone()))
    assert math.isclose(ends[0][0], ends[1][0], rel_tol=1e-12)
    torch.testing.assert_close(ends[0][1], ends[1][1], **EXACT)


@pytest.mark.parametrize("flags", [["--method", "full", "--lr", "1e30"],
                                   ["--method", "riemannian", "--lr", "1e25", "--warmup", "0"]])
def test_a_diverging_run_is_a_sentence_and_keeps_the_last_good_checkpoint(tiny, tmp_path, flags):
    with pytest.raises(InputError, match=r"no longer finite .* try an --lr below 1e[+]"):
        tiny(*flags, "--steps", "9", "--eval_interval", "1", "--out_dir", "o")
    checkpoint = load_file(tmp_path / "o" / "ckpt.pt")
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_no_run_is_lost_without_a_flag(tiny, tmp_path, monkeypatch):
    at_step(monkeypatch, 3, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        tiny("--steps", "9", "--out_dir", "o")
    before = (tmp_path / "o" / "ckpt.pt").read_bytes()
    sentence = "holds a run of 3 steps: --resume goes on with it, --over"
    for steps in ("9", "3"):
        with pytest.raises(InputError, match=sentence):
            tiny("--steps", steps, "--out_dir", "o")
    with pytest.raises(InputError, match="holds a run of --steps 9, not 3"):
        tiny("--steps", "3", "--resume", "--out_dir", "o")
    assert (tmp_path / "o" / "ckpt.pt").read_bytes() == before
    assert tiny("--steps", "2", "--out_dir", "o", "--overwrite")["steps"] == 2
    with pytest.raises(InputError, match="holds a run of 2 steps"):
        tiny("--steps", "2", "--out_dir", "o")


def test_resume_does_not_go_on_with_a_file_that_has_been_edited(tiny, tmp_path, monkeypatch):
    text = tmp_path / "notes.txt"
    text.write_text("Low rank. " * 400)
    flags = ["--data", str(text), "--block_size", "16", "--steps", "4", "--out_dir", "o"]
    at_step(monkeypatch, 2, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        tiny(*flags)
    text.write_text("Full rank. " * 400)
    with pytest.raises(InputError, match="notes.txt is newer than .*ckpt.pt"):
        tiny(*flags, "--resume")


def test_a_long_run_of_spaces_is_cut_into_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CACHE", tmp_path / "cache")
    (tmp_path / "spaces.txt").write_text("a" + " " * 1_200_000 + "b")
    tokens = corpora.text_file(tmp_path / "spaces.txt", tokenizer.load(), "--data", print)
    assert len(tokens) > 1_000_000


def test_an_interrupted_overwrite_leaves_nothing_of_the_old_run(tiny, tmp_path, monkeypatch):
    for old in ("lora", "full"):
        tiny("--method", old, "--steps", "2", "--out_dir", "o", "--overwrite")
        assert (tmp_path / "o" / "result.json").exists()
        (tmp_path / "o" / "merged").mkdir()
        (tmp_path / "o" / "merged" / "config.json").write_text("of export.py")
        at_step(monkeypatch, 1, ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny("--steps", "3", "--out_dir", "o", "--overwrite")
        (tmp_path / "o" / "merged").rmdir()  # empty
        assert {path.name for path in (tmp_path / "o").glob("[!.]*")} == {"ckpt.pt", "log.csv"}
        with pytest.raises(InputError, match="holds no finished run"):
            runs.load_run(tmp_path / "o")


def test_a_run_that_fails_before_its_first_step_costs_the_old_one_nothing(tiny, tmp_path):
    tiny("--steps", "2", "--out_dir", "o")
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    with pytest.raises(InputError, match="--rank or --targets: rank 33 does not fit"):
        tiny("--rank", "33", "--steps", "2", "--out_dir", "o", "--overwrite")
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before


def test_the_lock_ends_with_the_run_and_leaves_the_users_files_alone(tiny, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine.tmp").write_text("mine")
    (tmp_path / "o" / f".ckpt.pt.1{files.TEMPORARY}").write_text("of a run that was killed")
    with pytest.raises(InputError) as kept:
        tiny("--method", "full", "--lr", "1e30", "--steps", "9", "--out_dir", "o")
    with runs.lock(tmp_path / "o"):  # though the exception, and with it the frames, lives on
        assert kept.tb is not None
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"ckpt.pt", "log.csv", "mine.tmp"}
    with pytest.raises(InputError), runs.lock(tmp_path / "new" / "deep"):
        raise InputError
    assert not (tmp_path / "new").exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


# Bad command lines -> what the sentence that answers them contains.
# {} stands for the test's directory.
LISTED = {  # in processes of their own: unknown method, rank 0 or too large, negative lr, file,
            # checkpoint, device
    "--method adam": "argument --method: invalid choice: 'adam'",
    "--rank 0": "argument --rank: 0 is not allowed: at least 1 and below inf",
    "--rank 257": "--rank or --targets: rank 257 does not fit transformer.h.0.attn.c_attn: "
                  "allowed are 1 to 256",
    "--lr -1": "argument --lr: -1 is not allowed: at least 1e-12",
    "--data nowhere.txt": "--data nowhere.txt is neither",
    "--data {}/latin.txt": "not UTF-8",
    "--device cuda:77": "--device cuda:77 is not on this machine",
    "--resume --out_dir {}/cut": "ckpt.pt is missing, damaged or not a checkpoint",
    "--resume --out_dir {}/shape": "ckpt.pt does not fit the model of these flags",
    "--resume --out_dir {}/evil": "ckpt.pt is missing, damaged or not a checkpoint",
}
MORE = {  # these within pytest's process, which is quicker
    "--method loraga --rank 129": "allowed are 1 to 128",
    "--lr 1e39": "1e39 is not allowed: at least 1e-12 and below 1e+36",
    "--lr abc": "argument --lr: invalid float value: 'abc'",
    "--dropout 1": "1 is not allowed: at least 0 and below 1",
    "--device abacus": "--device abacus is not",
    "--method full --precondition": "--precondition needs an adapter, which --method full does "
                                    "not have",
    "--method full --export peft": "--export needs an adapter",
    "--method full --dropout 0.5": "--dropout needs an adapter, which --method full",
    "--method pretrain --rank 8": "--rank needs an adapter, which --method pretrain",
    "--method lora --gamma 3": "--gamma 3 is LoRA-GA's: it needs --init ga",
    "--method loraga --damping 1": "--damping 1 is the preconditioner's: it needs --precondition",
    "--resume --overwrite": "argument --overwrite: not allowed with argument --resume",
    "--meth lora": "unrecognized arguments: --meth lora",
    "--block_size 129": "--block_size 129 or the vocabulary's",
    "--block_size 16": "--block_size 16 cuts the answers of --data math: at least 17",
    "--seed 4294967296": "allowed: at least 0 and below 4294967296",
    "--grad_accum 3": "--batch_size 32 must be a multiple of 3, --grad_accum times",
    "--data {}/short.txt": "too short",
    "--data {}": "is neither",
    "--targets q_proj": "target 'q_proj' matches no linear layer: allowed are c_attn, c_fc, "
                        "c_proj, lm_head",
    "--resume --out_dir {}/none": "{}/none/ckpt.pt is missing, damaged or not",
    "--resume --out_dir {}/good": "ckpt.pt is missing, damaged or not a checkpoint",
}


def test_bad_input_is_one_sentence_exit_code_2_and_no_change_on_disk(
        tmp_path, monkeypatch, capsys):
    good, cut, shape, evil = (tmp_path / name for name in ("good", "cut", "shape", "evil"))
    for directory in (good, cut, shape, evil):
        directory.mkdir()
    args = train.parse_args(["--method", "lora", "--out_dir", str(shape)])
    weights = {"transformer.h.0.lora_A": torch.zeros(3)}
    checkpoint = {"settings": runs.settings_of(args), "model": weights}
    torch.save(checkpoint, shape / "ckpt.pt")
    (cut / "ckpt.pt").write_bytes((shape / "ckpt.pt").read_bytes()[:-300])
    (evil / "ckpt.pt").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    torch.save({"settings": Payload(tmp_path / "executed")}, good / "ckpt.pt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 5000)
    (tmp_path / "short.txt").write_text("too short")

    def stamps():
        return {path: path.is_file() and path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = stamps()
    options = dict(cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"})
    command = [sys.executable, ROOT / "train.py"]
    running = [subprocess.Popen([*command, *flags.format(tmp_path).split()], **options)
               for flags in LISTED]
    monkeypatch.chdir(tmp_path)
    # What is not bad is cached:
    monkeypatch.setattr(corpora, "CACHE", tmp_path.with_name("cache"))
    for flags, sentence in MORE.items():
        monkeypatch.setattr(sys, "argv", ["train.py", *flags.format(tmp_path).split()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train.main()
        error, sentence = capsys.readouterr().err, sentence.format(tmp_path)
        assert sentence in error and error.count("\n") == 1, (sentence, error)
        assert stop.value.code == 2, (sentence, error)
    for sentence, process in zip(LISTED.values(), running):
        error = process.communicate()[1]
        assert sentence in error and error.count("\n") == 1, (sentence, error)
        assert process.returncode == 2, (sentence, error)
    assert stamps() == before  # nor was a payload executed


# What a careless change would break

def test_the_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine_to_nearly_0():
    args = train.parse_args(["--steps", "14", "--warmup", "4"])
    factors = [train.lr_factor(step, args) for step in range(14)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1, 1] and math.isclose(factors[9], 0.5)
    assert math.isclose(factors[13], 0.5 * (1 + math.cos(0.9 * math.pi)))


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed():
    found, args = [], train.parse_args(["--method", "full"])
    for args.seed, step in ((0, 0), (0, 0), (0, 1), (1, 0), (1, 1)):
        model = gpt(dropout=0.5)
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "peak_lr": 0.0}])
        found.append(train.train_step(args, model, optimizer, tokens(), step))
    assert found[0] == found[1] and len(set(found)) == 4


@pytest.mark.parametrize("clip", [0, 0.01])
def test_gradients_are_clipped_to_grad_clip_and_at_0_not_at_all(clip):
    args = train.parse_args(["--method", "full", "--warmup", "0", "--grad_clip", str(clip)])
    model, plain = gpt(), gpt()
    plain(*tokens())[1].backward()
    norm = torch.stack([p.grad.norm() for p in plain.parameters()]).norm().item()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "peak_lr": 1.0}])
    train.train_step(args, model, optimizer, tokens(), 0)
    step = torch.stack([(p - q).norm() for p, q in zip(model.parameters(), before)]).norm().item()
    assert norm > 0.1 and math.isclose(step, clip or norm, rel_tol=1e-3)


def test_flags_win_over_the_methods_preset_and_reach_the_model_and_the_optimizer(monkeypatch):
    flags = "--method loraga --rank 4 --alpha 3 --no-rslora --dropout 0.2 --targets c_fc " \
            "--precondition --damping 0.5 --gamma 9 --lr 0.25 --lr_ratio 4 --betas 0.1 0.2 " \
            "--weight_decay 0.3"
    args = train.parse_args(flags.split())
    model = train.build_model(args, "cpu")
    layers = lora.lora_layers(model)
    assert all(name.endswith("c_fc") and layer.scale == 3 / 4 and layer.dropout.p == 0.2
               for name, layer in layers.items())
    seen = []
    monkeypatch.setattr(lora, "attach_preconditioner", lambda *args: seen.append(args[2]))
    monkeypatch.setattr(lora, "lora_ga_init", lambda *args: seen.append(args[3]))
    task = tasks.load("math", tokenizer.load(), 32)
    monkeypatch.setattr(type(task), "measure", lambda *args: {"exact match": 0.0})
    monkeypatch.setattr(type(task), "evaluate", lambda *args: 0.0)
    optimizer, _ = train.begin(args, model, task, task, lambda step: task.batch(0, step, 32))
    assert seen == [9, 0.5]
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 1]
    for group in optimizer.param_groups:
        assert group["betas"] == (0.1, 0.2) and group["weight_decay"] == 0.3
    assert train.build_model(train.parse_args(["--alpha", "4", "--rslora", "--rank", "4"]),
                             "cpu").transformer.h[0].mlp.c_fc.scale == 2


def test_what_is_not_set_follows_from_the_rest():
    of = lambda flags: train.parse_args(flags.split())
    assert of("").batch_size == 32 and of("--data docs").batch_size == 16
    assert of("--method loraga --rank 4 --data a/notes.txt").out_dir == "out/notes-loraga-r4"
    assert of("--method full").out_dir == "out/math-full"
    for flag in ("--lr_ratio 4", "--base_dtype bfloat16", "--targets c_fc", "--rslora",
                 "--alpha 2"):
        with pytest.raises(SystemExit):
            of(f"--method full {flag}")


def test_dtype_bfloat16_computes_in_bfloat16_and_model_dropout_reaches_pretraining():
    args, seen = train.parse_args(["--method", "full", "--dtype", "bfloat16"]), []
    model = gpt(torch.float32)
    model.lm_head.register_forward_hook(lambda module, inputs, y: seen.append(y.dtype))
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "peak_lr": 0.0}])
    train.train_step(args, model, optimizer, tokens(), 0)
    assert seen == [torch.bfloat16]
    args = train.parse_args(["--method", "pretrain", "--model_dropout", "0.3"])
    assert train.build_model(args, "cpu").config.dropout == 0.3


def test_result_json_counts_the_parameters_and_keeps_each_evaluation_a_0_too(tiny, tmp_path):
    result = tiny("--steps", "5", "--eval_interval", "2", "--out_dir", "o")
    assert [step for step, *_ in result["history"]] == [0, 2, 4, 5]  # of exact matches, all 0
    state = load_file(tmp_path / "o" / "adapter.pt")
    assert result["trainable_params"] == sum(v.numel() for k, v in state.items() if "lora_" in k)
    model = gpt(block_size=32, vocab_size=2048, n_embd=32)
    frozen = result["total_params"] - result["trainable_params"]
    assert frozen == sum(p.numel() for p in model.parameters())


def test_two_fresh_runs_of_one_seed_are_the_same_and_another_seed_is_another(tiny, tmp_path):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        torch.manual_seed(len(name) + int(torch.randint(99, ())))
        tiny("--steps", "2", "--dropout", "0.3", "--seed", seed, "--out_dir", name)
    a, b, c = (load_file(tmp_path / name / "ckpt.pt")["model"] for name in "abc")
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert not all(torch.equal(v, c[k]) for k, v in a.items())


def test_batches_are_of_a_seed_and_a_step_in_math_and_in_text(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CACHE", tmp_path / "cache")
    (tmp_path / "notes.txt").write_text("".join(f"Line {i}: some words.\n" for i in range(400)))
    for data in ("math", str(tmp_path / "notes.txt")):
        task = tasks.load(data, tokenizer.load(), 32, lambda message: None)
        found = [task.batch(seed, step, 8)[0] for seed in (0, 1) for step in (0, 1)]
        assert torch.equal(found[0], task.batch(0, 0, 8)[0])
        assert not any(torch.equal(x, y) for i, x in enumerate(found) for y in found[:i])


def test_text_trains_on_its_last_token_and_judges_by_the_mean_of_all_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CACHE", tmp_path / "cache")
    (tmp_path / "notes.txt").write_text("".join(f"Line {i}: some words.\n" for i in range(2000)))
    task = tasks.load(str(tmp_path / "notes.txt"), tokenizer.load(), 16, lambda message: None)
    task.val = task.train[:16 * 301 + 1]  # 301 windows, in two groups, of 151 and 150
    model = gpt(block_size=16, vocab_size=2048)
    rows = task._windows(task.val, range(0, 16 * 301, 16))
    assert math.isclose(task.evaluate(model, 301), model(*rows)[1].item(), rel_tol=1e-9)
    task.train = task.train[:17]
    assert task.batch(0, 0, 1)[1][0, -1] == task.train[16]
    monkeypatch.setattr(corpora, "load", lambda *args: (task.val[:16], task.val))
    with pytest.raises(InputError, match="too short"):
        tasks.load("docs", task.encoding, 16)


def test_every_left_over_temporary_file_goes(tmp_path):
    for name in ("ckpt.pt", "adapter.pt", "result.json"):
        (tmp_path / f".{name}.1{files.TEMPORARY}").write_text("of a run that was killed")
    with runs.lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_number_that_is_none_is_refused():
    with pytest.raises(SystemExit):
        train.parse_args(["--lr", "nan"])


# Faults, and several processes

def launch(*flags):
    """Starts train.py."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *map(str, flags)], text=True, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


ENDLESS = ("--steps", 10 ** 6, "--eval_interval", 10 ** 6, "--device", "cpu")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TWICE = """
import sys, train
from data import base, tasks
load = tasks.load
def short(name, *args, **options):
    task = load(name, *args, **options)
    task.val = task.val[:300 if name == "docs" else 8]
    return task
tasks.load, base.PATH = short, sys.argv[1]
for flags in sys.argv[2:]:
    train.train(train.parse_args(flags.split()))
"""


def losses(directory):
    with open(directory / "log.csv", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["step"] != "0"]


def test_two_processes_make_the_losses_and_the_lora_ga_start_of_one_and_resume_its_run(
        tiny, tmp_path, monkeypatch):
    shared = TINY + " --rank 4 --steps 4 --eval_interval 4 --lr 1e-4 --out_dir "
    for method in ("lora", "loraga"):
        tiny("--method", method, *shared.split(), f"{method}1")
    at_step(monkeypatch, 2, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        tiny("--method", "lora", *shared.split(), "resumed")
    (tmp_path / "twice.py").write_text(TWICE)
    runs = [f"--method lora {shared} lora2", f"--method loraga {shared} loraga2",
            f"--method lora --resume {shared} resumed"]
    run = launch(*TORCHRUN, "twice.py", tmp_path / "base.pt", *runs)
    output, error = run.communicate(timeout=120)
    assert run.returncode == 0 and output.count("4/4") >= 3, error
    for of_one, of_two in (("lora1", "lora2"), ("loraga1", "loraga2"), ("lora1", "resumed")):
        one, two = losses(tmp_path / of_one), losses(tmp_path / of_two)
        assert len(one) == len(two) == 4 and one[0] != one[3]
        assert max(abs(a - b) for a, b in zip(one, two)) < 1e-5
    one, two = (load_file(tmp_path / f"loraga{n}" / "ckpt.pt")["model"] for n in (1, 2))
    for name in [name for name in one if name.endswith(("A0", "B0"))]:
        largest = one[name].abs().max().item()
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4 * largest)


DIES = """
import os, runs, train
step = train.train_step
def die(*args):
    if runs.PROCESS == 1 and args[-1] == 2:
        os._exit(9)
    return step(*args)
train.train_step = die
train.main()
"""


def test_a_process_that_dies_ends_the_run_with_a_sentence(tmp_path):
    (tmp_path / "dies.py").write_text(DIES)
    run = launch(*TORCHRUN, tmp_path / "dies.py", *ENDLESS, "--out_dir", tmp_path / "o")
    error = run.communicate(timeout=120)[1]
    assert run.returncode != 0 and "train.py: process 0 stopped: " in error


def test_two_runs_in_one_directory_are_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    flags = [ROOT / "train.py", *ENDLESS, "--out_dir", tmp_path / "o"]
    first = launch(*flags)
    while not (tmp_path / "o" / "ckpt.pt").exists():
        assert first.poll() is None
        time.sleep(0.1)
    before = (tmp_path / "o" / "ckpt.pt").read_bytes()
    second = launch(*flags, "--resume")
    error = second.communicate(timeout=60)[1]
    assert error == f"train.py: --out_dir {tmp_path / 'o'} is in use by another run\n"
    assert second.returncode == 2
    assert (tmp_path / "o" / "ckpt.pt").read_bytes() == before
    first.kill()
    first.wait()
    with runs.lock(tmp_path / "o"):
        pass


def test_a_full_disk_is_a_sentence_and_keeps_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    tiny("--steps", "2", "--out_dir", "o")
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(path, mode):
        return Full(path, mode) if str(path).endswith(files.TEMPORARY) else open(path, mode)

    monkeypatch.setattr(files, "open", open_full, raising=False)
    with pytest.raises(OSError, match="could not be written|No space left") as error:
        save(tmp_path / "o" / "ckpt.pt", {"weights": torch.zeros(9)})
    assert "\n" not in str(error.value)
    gc.collect()
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before
    monkeypatch.undo()

    def fail(*args):
        raise RuntimeError("unexpected pos 64\nand more")  # as torch says it

    monkeypatch.setattr(torch, "save", fail)
    sentence = "ckpt.pt could not be written: is the disk full.*unexpected pos 64.$"
    with pytest.raises(OSError, match=sentence):
        save(tmp_path / "o" / "ckpt.pt", {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()} == before


def test_an_out_dir_that_cannot_be_written_is_a_sentence(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        tiny("--steps", "2", "--out_dir", "file/o")
    assert (tmp_path / "file").read_text() == "mine"


def resaved(path):
    buffer = io.BytesIO()
    torch.save(torch.load(path, weights_only=True), buffer)
    return buffer.getvalue()


def test_a_corrupted_byte_in_any_file_that_is_read_is_noticed(tiny, tmp_path, monkeypatch):
    tiny("--steps", "2", "--out_dir", "o")
    monkeypatch.setattr(corpora, "CACHE", tmp_path / "cache")
    (tmp_path / "notes.txt").write_text("Some words of a text. " * 200)
    shutil.copy(tokenizer.PATH, tmp_path / "vocabulary")
    monkeypatch.setattr(tokenizer, "PATH", tmp_path / "vocabulary")

    def cut(_):
        return corpora.load(str(tmp_path / "notes.txt"), tokenizer.load(), lambda message: None)

    cut(None)
    cache, generator = next((tmp_path / "cache").iterdir()), random.Random(0)
    readers = {tmp_path / "o" / "ckpt.pt": load_file,
               tmp_path / "o" / "adapter.pt": load_file,
               tmp_path / "base.pt": load_file,
               cache: cut,
               tokenizer.PATH: lambda path: tokenizer.load()}
    for path, read in readers.items():
        whole, noticed = path.read_bytes(), 0
        expected = resaved(path) if path.suffix == ".pt" else None
        for place in generator.sample(range(len(whole)), 40):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1:])
            try:
                read(path)  # without an error: then the byte is padding
                assert resaved(path) == expected, f"{path.name}: byte {place} changes unnoticed"
            except ValueError as error:
                assert re.search("damaged", str(error)) and "\n" not in str(error)
                noticed += 1
        assert noticed > 20
        path.write_bytes(whole)
        read(path)
