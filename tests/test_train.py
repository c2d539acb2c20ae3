"""train.py: its flags, the loop, the files of a run, resuming, and what it refuses."""
import csv
import functools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lora
import train
from data import tasks, tokenizer
from data.files import InputError, run_command
from experiments import plot
from huggingface import load_run

ROOT = Path(__file__).parent.parent
COLUMNS = ["step", "loss", "lr", "ms", "metric", "source_loss"]
KEYS = {"method", "seed", "steps", "seconds", "metric_name", "metric_before", "metric_after",
        "measures_before", "measures_after", "source_loss_before", "source_loss_after",
        "trainable_params", "total_params", "optimizer_bytes", "settings"}
# Everything that a checkpoint has to restore, in one run.
ALL_TOGGLES = ("--method loraga --precondition --lr_ratio 4 --dropout 0.1 --model_dropout 0.1 "
               "--grad_accum 2 --weight_decay 0.1")
draw = plot.draw


class Stopped(Exception):
    """What ends a run in the middle of it."""


def stop_at(step):
    """An after_step that ends the run before this step is logged."""
    def after_step(model, optimizer, done):
        if done == step:
            raise Stopped
    return after_step


@pytest.fixture
def tiny(tiny_base, tmp_path, monkeypatch):
    """tiny(flags) -> the arguments of a short run of a tiny model, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "draw", lambda runs, path: None)  # it takes a second
    write_pairs("pairs.jsonl", 60)
    defaults = (f"--init_from {tiny_base} --data pairs.jsonl --out_dir o --steps 4 --batch_size 8 "
                "--warmup 2 --block_size 32 --device cpu")
    return lambda flags="": train.parse_args([*defaults.split(), *flags.split()])


def write_pairs(path, count):
    rows = [{"prompt": f"Say {i}:", "completion": " word" * (1 + i % 4)} for i in range(count)]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_log(directory="o"):
    with open(Path(directory) / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def log_without_times(directory):
    return [{**row, "ms": None} for row in read_log(directory)]


def losses(directory="o"):
    return [float(row["loss"]) for row in read_log(directory)[1:]]


def contents(directory):
    """{path: bytes} of the files in a directory and below it."""
    return {path: path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


def names(directory="o"):
    return {path.name for path in Path(directory).iterdir()}


def checkpoint(directory="o"):
    return torch.load(Path(directory) / "ckpt.pt", weights_only=True)


def same(a, b):
    """Whether two nested dicts and lists of tensors and numbers are equal, bit for bit."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def sgd(args, model):
    """Plain gradient descent, for build_optimizer."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=args.lr)


def double(args, device):
    """The model in float64, for build_model."""
    return train.build_model(args, device).double()


# ---- Flags ----


def test_a_flag_wins_over_the_methods_preset_and_reaches_the_model_and_the_optimizer():
    flags = ("--method loraga --rank 4 --alpha 3 --no-rslora --dropout 0.2 --targets c_fc "
             "--lr 0.25 --lr_ratio 4 --betas 0.1 0.2 --weight_decay 0.3 --model_dropout 0.4 "
             "--base_dtype bfloat16")
    args = train.parse_args(flags.split())
    model = train.build_model(args, "cpu")
    layers = lora.lora_layers(model)
    assert len(layers) == 4 and all(name.endswith("c_fc") for name in layers)
    assert all(layer.scale == 3 / 4 and layer.dropout.p == 0.2 for layer in layers.values())
    assert model.config.dropout == 0.4
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    groups = train.build_optimizer(args, model).param_groups
    assert [group["lr"] for group in groups] == [0.25, 1.0]
    assert all(group["betas"] == (0.1, 0.2) for group in groups)
    assert all(group["weight_decay"] == 0.3 for group in groups)


@pytest.mark.parametrize("flags, expected", [
    ("", {"method": "lora", "alpha": 8.0, "lr_ratio": 1.0, "init": "kaiming", "data": "math",
          "init_from": "base", "precondition": False, "out_dir": "out/math-lora-r8"}),
    ("--method loraplus --rank 16", {"alpha": 16.0, "lr_ratio": 16.0}),
    ("--method loraga --data a/notes.txt", {"init": "ga", "rslora": True, "alpha": 8.0,
                                            "out_dir": "out/notes-loraga-r8"}),
    ("--method riemannian", {"precondition": True, "damping": 1e-6}),
    ("--method full --init_from scratch", {"out_dir": "out/math-full"}),
    ("--method loraplus --lr-ratio=4 --grad-clip 0 --lr 1e-5",
     {"lr_ratio": 4.0, "grad_clip": 0.0, "lr": 1e-5}),
    ("--init ga --gamma 9", {"gamma": 9.0, "rslora": False}),
    ("--out_dir ~/o --data ~/d --val_data ~/v --init_from ~/i",
     {"out_dir": "/home/me/o", "data": "/home/me/d", "val_data": "/home/me/v",
      "init_from": "/home/me/i"}),
    ("--device cpu", {"dtype": "float32"}),
])
def test_presets_and_what_follows_from_other_flags(monkeypatch, flags, expected):
    monkeypatch.setenv("HOME", "/home/me")
    args = vars(train.parse_args(flags.split()))
    assert {name: args[name] for name in expected} == expected


def test_help_has_every_flag_and_its_default():
    parser = train.build_parser()
    text = " ".join(parser.format_help().split())
    assert all(action.help for action in parser._actions)
    assert "optimizer steps (default: 1000)" in text
    assert "(default: None)" not in text


def test_scratch_is_the_shipped_models_size():
    args = train.parse_args("--method full --init_from scratch --model_dropout 0.3".split())
    scratch = train.build_model(args, "cpu").config
    args = train.parse_args("--method full --model_dropout 0.3".split())
    assert scratch == train.build_model(args, "cpu").config
    assert scratch.dropout == 0.3


# ---- The loop ----


def test_the_schedule_rises_in_a_line_and_falls_as_a_cosine():
    factors = [train.schedule(step, 4, 14) for step in range(14)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert math.isclose(factors[9], 0.5)
    assert math.isclose(factors[13], 0.5 * (1 + math.cos(0.9 * math.pi)))
    assert train.schedule(0, 0, 1) == 1.0


def test_lora_plus_keeps_its_ratio_through_warm_up_and_decay(tiny):
    args = tiny("--method loraplus --lr_ratio 16 --steps 6 --grad_clip 0")
    rates = []
    train.train(args, after_step=lambda model, optimizer, step: rates.append(
        [group["lr"] for group in optimizer.param_groups]))
    for step, (rate_a, rate_b) in enumerate(rates):
        assert math.isclose(rate_a, args.lr * train.schedule(step, 2, 6))
        assert math.isclose(rate_b, 16 * rate_a)
    assert [float(row["lr"]) for row in read_log()[1:]] == [rate_a for rate_a, _ in rates]


@pytest.mark.parametrize("accum", [1, 4])
def test_a_step_follows_the_gradient_of_the_whole_batch(tiny, accum):
    args = tiny(f"--method full --steps 1 --warmup 0 --lr 1 --grad_clip 0 --grad_accum {accum}")
    model = double(args, "cpu")
    task = tasks.load(args.data, tokenizer.load(), 32)
    idx, targets = task.batch(args.seed, 0, 8)
    # The micro-batches differ in how many tokens they take a loss on.
    assert len({(some != -1).sum().item() for some in targets.chunk(4)}) > 1
    _, loss = model(idx, targets)
    loss.backward()
    expected = {name: p.detach() - p.grad for name, p in model.named_parameters()}
    train.train(args, build_model=double, build_optimizer=sgd)
    torch.testing.assert_close(checkpoint()["model"], expected, rtol=1e-10, atol=1e-12)
    assert math.isclose(losses()[0], loss.item(), rel_tol=1e-6)


@pytest.mark.parametrize("clip", [0, 0.01])
def test_the_gradient_is_clipped_to_grad_clip_and_at_0_not_at_all(tiny, clip):
    args = tiny(f"--method full --steps 1 --warmup 0 --lr 1 --grad_clip {clip}")
    model = double(args, "cpu")
    model(*tasks.load(args.data, tokenizer.load(), 32).batch(0, 0, 8))[1].backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    train.train(args, build_model=double, build_optimizer=sgd)
    after = checkpoint()["model"]
    moved = [(after[name] - p).norm() for name, p in model.named_parameters()]
    assert norm > 0.1
    assert math.isclose(torch.stack(moved).norm().item(), clip or norm, rel_tol=1e-3)


def dropout_masks(args):
    """What dropout sets to zero in the first rows that each forward pass of a run trains on."""
    masks = []

    def build_model(args, device):
        model = train.build_model(args, device)
        model.transformer.drop.register_forward_hook(
            lambda module, inputs, y: masks.append((y[0, :5] == 0).tolist())
            if module.training else None)
        return model

    train.train(args, build_model=build_model)
    return masks


def test_dropout_differs_between_micro_batches_steps_and_seeds_and_is_off_in_evaluations(tiny):
    flags = "--method full --model_dropout 0.5 --steps 2 --grad_accum 2 --overwrite --seed "
    masks = dropout_masks(tiny(flags + "0"))
    assert masks == dropout_masks(tiny(flags + "0"))
    masks += dropout_masks(tiny(flags + "1"))
    assert len(masks) == 8 and all(mask not in masks[:i] for i, mask in enumerate(masks))
    with_dropout = json.loads(Path("o/result.json").read_text())["source_loss_before"]
    assert with_dropout == train.train(tiny("--steps 1 --overwrite"))["source_loss_before"]


def test_a_seed_gives_the_same_run_and_another_seed_another(tiny):
    for directory, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(names(".")))
        train.train(tiny(f"--dropout 0.3 --seed {seed} --out_dir {directory}"))
    assert same(checkpoint("a"), {**checkpoint("b"), "seconds": checkpoint("a")["seconds"]})
    assert not same(checkpoint("a")["model"], checkpoint("c")["model"])


def test_loraga_starts_from_the_gradient_of_the_first_four_batches(tiny):
    args = tiny("--method loraga --rank 4 --gamma 9 --grad_accum 2")
    model = double(args, "cpu")
    task = tasks.load(args.data, tokenizer.load(), 32)
    layer = model.transformer.h[0].mlp.c_fc
    weight = layer.linear.weight.detach().clone()
    # The gradient with respect to the frozen weight, by autograd on the plain weight itself.
    layer.linear.weight.requires_grad_(True)
    total = sum(model(*task.batch(0, step, 8))[1] for step in range(4))
    G, = torch.autograd.grad(total, layer.linear.weight)
    layer.linear.weight.requires_grad_(False)
    expected_A, expected_B = lora.lora_ga_factors(G, 4, 9.0)

    start = {}

    def keep(model, optimizer, step):
        start.update(train.trained_state(model))
        raise Stopped

    with pytest.raises(Stopped):
        train.train(args, build_model=double, after_step=keep)
    name = "transformer.h.0.mlp.c_fc"
    torch.testing.assert_close(start[f"{name}.lora_A0"], expected_A, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(start[f"{name}.lora_B0"], expected_B, rtol=1e-6, atol=1e-9)
    assert torch.equal(weight, layer.linear.weight)


@pytest.mark.parametrize("flags", ["--method lora --dtype bfloat16",
                                   "--method loraga --base_dtype bfloat16"])
def test_bfloat16_computes_in_bfloat16_and_trains_float32_factors(tiny, flags):
    seen = set()

    def build_model(args, device):
        model = train.build_model(args, device)
        model.lm_head.register_forward_hook(
            lambda module, inputs, y: seen.add((torch.is_grad_enabled(), y.dtype)))
        return model

    train.train(tiny(flags + " --steps 20 --lr 3e-3"), build_model=build_model)
    assert (True, torch.bfloat16) in seen and (True, torch.float32) not in seen
    assert {value.dtype for value in checkpoint()["model"].values()} == {torch.float32}
    assert sum(losses()[-5:]) < 0.99 * sum(losses()[:5])


def test_compile_traces_the_model_that_trains_and_changes_no_file(tiny, monkeypatch):
    graphs = []

    def backend(graph, inputs):  # it runs the traced graph as it is: no C++ compiler is needed
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    train.train(tiny("--steps 2 --out_dir plain"))
    assert not graphs
    train.train(tiny("--steps 2 --out_dir compiled --compile"))
    assert graphs
    assert losses("compiled") == pytest.approx(losses("plain"), abs=1e-4)
    assert checkpoint("compiled")["model"].keys() == checkpoint("plain")["model"].keys()


def test_the_functions_that_can_be_replaced_are_called_as_documented(tiny):
    args = tiny("--steps 4 --eval_interval 2 --grad_accum 2 --lr 0.5")
    calls = []
    batches = {}

    def build_model(given, device):
        calls.append("build_model")
        assert given is args and device == torch.device("cpu")
        return train.build_model(given, device)

    def start(given, model, micro_batches):
        calls.append("start")
        assert given is args and lora.lora_layers(model)
        for step in range(2):
            batches[step] = micro_batches(step)

    def build_optimizer(given, model):
        calls.append("build_optimizer")
        return sgd(given, model)

    def after_step(model, optimizer, step):
        calls.append(step)
        assert isinstance(optimizer, torch.optim.SGD)
        rate = optimizer.param_groups[0]["lr"]
        assert math.isclose(rate, 0.5 * train.schedule(step - 1, args.warmup, 4))
        if step == 3 and len(calls) == 6:
            raise Stopped

    functions = dict(build_model=build_model, build_optimizer=build_optimizer, start=start,
                     after_step=after_step)
    with pytest.raises(Stopped):
        train.train(args, **functions)
    assert calls == ["build_model", "start", "build_optimizer", 1, 2, 3]
    # micro_batches: the parts of the whole batch, weighted by the number of their targets.
    task = tasks.load(args.data, tokenizer.load(), 32)
    for step, parts in batches.items():
        idx, targets = task.batch(args.seed, step, 8)
        assert torch.equal(torch.cat([part[0] for part in parts]), idx) and len(parts) == 2
        assert torch.equal(torch.cat([part[1] for part in parts]), targets)
        counts = [(part[1] != -1).sum().item() for part in parts]
        assert [part[2] for part in parts] == pytest.approx([n / sum(counts) for n in counts])
    # A run that goes on has its start in the checkpoint.
    args.resume = True
    train.train(args, **functions)
    assert calls[6:] == ["build_model", "build_optimizer", 3, 4]


def test_the_preconditioner_acts_in_the_step_with_the_damping_of_the_flag(tiny):
    args = tiny("--precondition --damping 0.5 --rank 4")
    model = double(args, "cpu")
    layer = model.transformer.h[0].mlp.c_fc
    torch.nn.init.normal_(layer.lora_B)
    task = tasks.load(args.data, tokenizer.load(), 32)
    model(*task.batch(0, 0, 8))[1].backward()
    B = layer.lora_B.detach().clone()
    inverse = torch.linalg.inv(B.T @ B + 0.5 * torch.eye(4, dtype=B.dtype))
    expected = inverse @ layer.lora_A.grad
    train.build_optimizer(args, model).step()
    torch.testing.assert_close(layer.lora_A.grad, expected, rtol=1e-9, atol=1e-12)


# ---- The files of a run ----


@pytest.mark.parametrize("flags", ["--method full", "--method lora", "--method loraplus",
                                   "--method loraga", "--method riemannian",
                                   ALL_TOGGLES + " --dtype bfloat16"])
def test_20_steps_lower_the_loss_and_leave_the_promised_files(tiny, flags):
    args = tiny(flags + " --data math --steps 20 --eval_interval 8 --lr 3e-3")
    result = train.train(args)
    assert sum(losses()[-5:]) < 0.99 * sum(losses()[:5])
    weights = "model.pt" if args.method == "full" else "adapter.pt"
    assert names() == {"log.csv", "ckpt.pt", "result.json", weights}

    assert result.keys() == KEYS
    assert json.loads(Path("o/result.json").read_text()) == result
    assert result["settings"]["lr"] == 3e-3 and result["metric_name"] == "exact match"
    rows = read_log()
    assert list(rows[0]) == COLUMNS
    assert [row["step"] for row in rows] == [str(step) for step in range(21)]
    assert [row["step"] for row in rows if row["metric"]] == ["0", "8", "16", "20"]
    assert float(rows[0]["source_loss"]) == result["source_loss_before"]
    assert float(rows[-1]["source_loss"]) == result["source_loss_after"]
    assert float(rows[-1]["metric"]) == result["metric_after"]

    trained = [value.numel() for name, value in checkpoint()["model"].items()
               if not name.endswith(("A0", "B0"))]
    assert result["trainable_params"] == sum(trained)
    # Adam has two moments in float32, and a count of steps for each tensor.
    assert result["optimizer_bytes"] == 8 * sum(trained) + 4 * len(trained)

    # The files hold the trained model.
    model, _ = load_run("o")
    source = tasks.load_source(tokenizer.load(), 32)
    assert source.evaluate(model) == pytest.approx(result["source_loss_after"], abs=1e-3)


def test_a_run_goes_on_from_the_model_of_another(tiny):
    before = train.train(tiny("--method full --steps 4"))
    after = train.train(tiny("--init_from o/model.pt --out_dir p --steps 1"))
    assert after["source_loss_before"] == pytest.approx(before["source_loss_after"], abs=1e-3)


def test_with_matplotlib_a_run_draws_its_curves(tiny, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plot, "draw", draw)
    train.train(tiny("--steps 2"))
    assert Path("o/curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_full_disk_is_a_sentence_and_the_old_file_stays(tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    train.save(tmp_path / "ckpt.pt", {"old": torch.zeros(9)})
    before = contents(tmp_path)
    # A limit on the size of files stands for a full disk.
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(InputError, match="ckpt.pt could not be written: .*too large"):
            train.save(tmp_path / "ckpt.pt", {"new": torch.zeros(9999)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before


# ---- Stopped runs ----


def assert_equal_runs(one, other):
    """Two finished runs are the same, bit for bit, except for their times and their directory."""
    assert same({**checkpoint(one), "seconds": 0}, {**checkpoint(other), "seconds": 0})
    assert log_without_times(one) == log_without_times(other)
    results = [json.loads((Path(directory) / "result.json").read_text())
               for directory in (one, other)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


@pytest.mark.parametrize("flags", ["--method full", ALL_TOGGLES])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tiny, flags):
    flags += " --steps 12 --eval_interval 4 --lr 3e-3"
    train.train(tiny(flags + " --out_dir whole"))
    # Stopped before its first checkpoint, then between two of them.
    for stop, steps in ((3, [0, 1, 2]), (7, [0, 1, 2, 3, 4, 5, 6])):
        with pytest.raises(Stopped):
            train.train(tiny(flags + (" --resume" if stop > 3 else "")), after_step=stop_at(stop))
        assert [int(row["step"]) for row in read_log()] == steps
    stopped = checkpoint()
    assert stopped["step"] == 4
    torch.save({**stopped, "seconds": 1000.0}, "o/ckpt.pt")
    torch.manual_seed(12345)
    assert train.train(tiny(flags + " --resume"))["seconds"] > 1000
    assert_equal_runs("whole", "o")

    # A finished run has nothing left to do.
    train.train(tiny(flags + " --resume"), after_step=stop_at(13))
    assert_equal_runs("whole", "o")


KILLED = """
import os, signal, sys, train
def after_step(model, optimizer, step):
    if step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
train.train(train.parse_args(sys.argv[1:]), after_step=after_step)
"""


def test_a_run_killed_with_kill_9_goes_on(tiny, tiny_base):
    flags = "--method loraga --dropout 0.1 --steps 8 --eval_interval 4"
    train.train(tiny(flags + " --out_dir whole"))
    command = [sys.executable, "-c", KILLED, *flags.split(), "--init_from", str(tiny_base),
               *"--data pairs.jsonl --out_dir o --batch_size 8 --warmup 2 --block_size 32".split(),
               "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT),
                   "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Each row of the log was written at once.
    assert [int(row["step"]) for row in read_log()] == [0, 1, 2, 3, 4, 5]
    train.train(tiny(flags + " --resume"))
    assert_equal_runs("whole", "o")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-300])


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def replace_by_code(path):
    path.write_bytes(pickle.dumps(Payload(), protocol=2))


def replace_by_a_zip_with_code(path):
    torch.save({"settings": Payload()}, path)


@pytest.mark.parametrize("damage", [cut_off, replace_by_code, replace_by_a_zip_with_code])
def test_a_damaged_checkpoint_is_a_sentence(tiny, damage):
    train.train(tiny("--steps 2"))
    damage(Path("o/ckpt.pt"))
    before = contents(".")
    with pytest.raises(InputError, match="^--resume: o/ckpt.pt is .*damaged"):
        train.train(tiny("--steps 2 --resume"))
    assert contents(".") == before
    assert not Path("executed").exists()


def test_resume_refuses_other_flags_and_another_file(tiny):
    with pytest.raises(Stopped):
        train.train(tiny("--eval_interval 1"), after_step=stop_at(3))
    before = contents("o")
    with pytest.raises(InputError, match="o holds a run with --lr 0.005, not 0.001"):
        train.train(tiny("--eval_interval 1 --resume --lr 0.001"))
    write_pairs("pairs.jsonl", 61)
    with pytest.raises(InputError, match="pairs.jsonl has changed since the checkpoint"):
        train.train(tiny("--eval_interval 1 --resume"))
    assert contents("o") == before
    # The directory may have moved.
    write_pairs("pairs.jsonl", 60)
    Path("o").rename("moved")
    train.train(tiny("--eval_interval 1 --resume --out_dir moved"))


def test_a_directory_that_holds_a_run_is_refused_while_it_goes_and_afterwards(tiny):
    def begin_another(model, optimizer, step):
        with pytest.raises(InputError, match="--out_dir o holds a run: --resume .*--overwrite"):
            train.train(tiny("--steps 2"))

    train.train(tiny("--steps 2"), after_step=begin_another)
    assert [row["step"] for row in read_log()] == ["0", "1", "2"]
    before = contents("o")
    begin_another(None, None, None)
    assert contents("o") == before


def test_of_two_runs_that_begin_at_once_one_gets_the_directory(tiny):
    def another_begins(args, model, micro_batches):
        Path("o").mkdir()
        Path("o/log.csv").write_text("of the other run")

    with pytest.raises(InputError, match="--out_dir o cannot be used: .*File exists"):
        train.train(tiny(), start=another_begins)
    assert contents("o") == {Path("o/log.csv"): b"of the other run"}


@pytest.mark.parametrize("old", ["full", "lora"])
def test_overwrite_removes_the_old_run_and_leaves_the_users_files(tiny, old):
    train.train(tiny(f"--method {old} --steps 2"))
    Path("o/curves.png").write_text("of the old run")
    Path("o/notes.md").write_text("mine")
    Path("o/peft").mkdir()
    with pytest.raises(Stopped):
        train.train(tiny("--overwrite"), after_step=stop_at(2))
    assert names() == {"log.csv", "notes.md", "peft"}
    assert [row["step"] for row in read_log()] == ["0", "1"]


def test_a_run_that_fails_before_its_first_step_costs_the_old_one_nothing(tiny):
    train.train(tiny("--steps 2"))
    before = contents("o")

    def fail(args, model, micro_batches):
        raise Stopped

    with pytest.raises(Stopped):
        train.train(tiny("--steps 3 --overwrite"), start=fail)
    assert contents("o") == before


# ---- Errors ----


BAD_FLAGS = [
    ("--method adam", "argument --method: invalid choice: 'adam'"),
    ("--meth lora", "unrecognized arguments: --meth lora"),
    ("--rank 0", "argument --rank: 0 is not allowed: at least 1"),
    ("--rank 33", "--rank, --targets or --dropout: rank 33"),
    ("--method loraga --rank 17", "--rank 17 is too large for --init ga: at most 16"),
    ("--targets q_proj", "q_proj"),
    ("--lr -1", "argument --lr: -1 is not allowed: at least 1e-12"),
    ("--lr 1e39", "1e39 is not allowed"),
    ("--lr nan", "nan is not allowed"),
    ("--lr abc", "argument --lr: invalid float value: 'abc'"),
    ("--dropout 1", "1 is not allowed: at least 0, below 1"),
    ("--betas 0.9", "argument --betas: expected 2 arguments"),
    ("--seed 4294967296", "argument --seed: 4294967296 is not allowed"),
    ("--steps 1.5", "argument --steps: invalid int value"),
    ("--batch_size 8 --grad_accum 3", "--batch_size 8 must be a multiple of 3, --grad_accum times"),
    ("--method full --precondition", "--precondition needs an adapter, which --method full does"),
    ("--method full --lr-ratio 2", "--lr_ratio needs an adapter"),
    ("--method full --lr_ratio=1", "--lr_ratio needs an adapter"),
    ("--method full --no-rslora", "--rslora needs an adapter"),
    ("--method full --base_dtype bfloat16", "--base_dtype needs an adapter"),
    ("--init_from scratch", "--init_from scratch needs --method full, not lora"),
    ("--gamma 3", "--gamma 3 is LoRA-GA's: it needs --init ga"),
    ("--method loraga --init kaiming --gamma 3", "--gamma 3 is LoRA-GA's"),
    ("--method loraga --damping 1", "--damping 1 is the preconditioner's: it needs"),
    ("--method riemannian --no-precondition --damping 1", "--damping 1 is the preconditioner's"),
    ("--resume --overwrite", "argument --overwrite: not allowed with argument --resume"),
    ("--block_size 33", "--block_size 33 exceeds this model's, 32"),
    ("--data math --block_size 8", "--block_size 8 is too short for --data math"),
    ("--data math --val_data latin.txt", "--val_data goes with a file"),
    ("--data nowhere.txt", "--data nowhere.txt is neither math nor a file"),
    ("--data latin.txt", "--data latin.txt, line 1: not UTF-8"),
    ("--data short.txt", "--data short.txt is too short"),
    ("--init_from nowhere", "--init_from: nowhere is not a checkpoint's file or folder"),
    ("--init_from short.txt", "--init_from: short.txt is missing, damaged or not a checkpoint"),
    ("--device abacus", "--device abacus is not on this machine"),
    ("--device cuda:77", "--device cuda:77 is not on this machine"),
    ("--out_dir short.txt/o", "--out_dir short.txt/o cannot be used"),
    ("--out_dir short.txt/o --overwrite", "--out_dir short.txt/o cannot be used"),
]


@pytest.mark.parametrize("flags, sentence", BAD_FLAGS, ids=[flags for flags, _ in BAD_FLAGS])
def test_bad_input_is_one_sentence_and_exit_code_2_and_nothing_on_disk(
        tiny, tiny_base, monkeypatch, capsys, flags, sentence):
    Path("latin.txt").write_bytes(b"caf\xe9 " * 5000)
    Path("short.txt").write_text("too short")
    before = contents(".")
    good = f"--init_from {tiny_base} --data pairs.jsonl --block_size 32 --device cpu --steps 1"
    monkeypatch.setattr(sys, "argv", ["train.py", *good.split(), *flags.split()])
    with pytest.raises(SystemExit) as stop:
        run_command(train.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("train.py: ") and error.count("\n") == 1
    assert sentence in error
    assert contents(".") == before and set(names(".")) == {str(path) for path in before}


@pytest.mark.parametrize("flags, with_gradients", [("", False), ("", True), ("--init ga", True)])
def test_a_bug_in_a_model_keeps_its_traceback(tiny, flags, with_gradients):
    def build_model(args, device):
        def fail(module, inputs):
            if torch.is_grad_enabled() == with_gradients:
                raise ValueError("a bug")

        model = train.build_model(args, device)
        model.register_forward_pre_hook(fail)
        return model

    with pytest.raises(ValueError, match="a bug") as error:
        train.train(tiny(flags), build_model=build_model)
    assert error.type is ValueError


@pytest.mark.parametrize("error, code, printed", [
    (InputError("no\nroom"), 2, "x.py: no room\n"), (KeyboardInterrupt(), "x.py: stopped", ""),
    (ValueError("a bug"), None, ""), (RuntimeError("a bug"), None, "")])
def test_commands_print_input_errors_and_nothing_else(monkeypatch, capsys, error, code, printed):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["/somewhere/x.py"])
    with pytest.raises(SystemExit if code else type(error)) as stop:
        run_command(main)
    assert getattr(stop.value, "code", None) == code
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize("flags", ["--method full --lr 1e30", "--method lora --lr 1e30",
                                   "--method riemannian --lr 1e25 --warmup 0"])
def test_a_diverging_run_is_a_sentence(tiny, flags):
    with pytest.raises(InputError, match=r"no longer finite at step .*: try an --lr below 1e\+"):
        train.train(tiny(flags + " --steps 9 --eval_interval 1"))
    if Path("o/ckpt.pt").exists():
        assert all(value.isfinite().all() for value in checkpoint()["model"].values())


@pytest.mark.parametrize("step, last_good, sentence", [
    (4, 2, "the loss is no longer finite at step 4"),
    (5, 4, "the gradient is no longer finite at step 6")])
def test_the_last_good_checkpoint_stays(tiny, step, last_good, sentence):
    def diverge(model, optimizer, done):
        if done == step:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)

    with pytest.raises(InputError, match=sentence):
        train.train(tiny("--steps 8 --eval_interval 2"), after_step=diverge)
    assert checkpoint()["step"] == last_good
    assert all(value.isfinite().all() for value in checkpoint()["model"].values())


# ---- Report ----


def test_the_report_says_what_was_learned_and_forgotten(tiny, capsys):
    result = train.train(tiny("--steps 4 --eval_interval 2"))
    printed = capsys.readouterr().out
    before, after = result["source_loss_before"], result["source_loss_after"]
    assert f"forgot   loss on English prose: {before:.3f} -> {after:.3f} nats per token" in printed
    assert f"trained  {result['trainable_params']:,} of {result['total_params']:,}" in printed
    assert "step     2/4  loss " in printed
    assert all(f"o/{name}" in printed for name in names())


def test_text_plot_draws_a_falling_line():
    assert train.text_plot([7.0, 6, 5, 4, 3, 2, 1]) == [
        "    7.00 |*",
        "         | *",
        "         |  *",
        "         |   *",
        "         |    *",
        "         |     *",
        "    1.00 |      *",
        "         +------- step 7"]


def test_text_plot_of_many_values_draws_medians_and_of_equal_ones_a_line():
    values = [1.0] * 500 + [9.0] * 500
    values[250] = 1e9  # one outlier in a column's median
    lines = train.text_plot(values)
    assert lines[0] == "    9.00 |" + " " * 32 + "*" * 32
    assert lines[6] == "    1.00 |" + "*" * 32
    assert lines[7].endswith("step 1000")
    assert train.text_plot([2.0, 2.0])[0] == "    2.00 |**"


LEARNING, WORSE = "still learning", "was better earlier"


@pytest.mark.parametrize("metric, figures, advice", [
    ("exact match", [0.0, 0.2, 0.4, 0.6, 0.8], LEARNING),
    ("exact match", [0.0, 0.8, 0.9, 0.9, 0.9], None),
    ("exact match", [0.0, 0.9, 0.9, 0.9, 0.7], WORSE),
    ("exact match", [0.0, 0.0, 0.0, 0.0, 0.0], None),
    ("loss", [5.0, 4.0, 3.0, 2.0, 1.0], LEARNING),
    ("loss", [5.0, 1.0, 1.0, 1.0, 0.99], None),
    ("loss", [5.0, 2.0, 1.0, 1.0, 1.5], WORSE),
])
def test_advice_follows_the_held_out_figure(metric, figures, advice):
    rows = [{"step": str(step), "metric": ""} for step in range(101)]
    for step, figure in zip((0, 25, 50, 75, 100), figures):
        rows[step]["metric"] = str(figure)
    result = {"metric_name": metric, "metric_before": figures[0], "metric_after": figures[-1],
              "source_loss_before": 3.0, "source_loss_after": 3.5}
    lines = "\n".join(train.what_is_next(train.parse_args(["--steps", "100"]), result, rows))
    for sentence in (LEARNING, WORSE):
        assert (sentence in lines) == (sentence == advice)
    assert "--lr" not in lines.replace("a lower --lr", "")


def test_advice_has_commands_for_this_run_and_a_lower_rate_where_much_is_forgotten():
    args = train.parse_args("--data my_notes.txt --init_from gpt2 --lr 0.03 --out_dir o".split()
                            + ["--val_data", "x y.txt"])
    result = {"metric_name": "loss", "metric_before": 5.0, "metric_after": 1.0,
              "source_loss_before": 3.0, "source_loss_after": 4.5}
    rows = [{"step": "0", "metric": "5.0"}, {"step": "1000", "metric": "1.0"}]
    lines = "\n".join(train.what_is_next(args, result, rows))
    assert "python sample.py --adapter o " in lines
    same = "--data my_notes.txt --val_data 'x y.txt' --init_from gpt2"
    assert f"train.py --method full {same}  " in lines
    assert f"experiments.compare {same}  " in lines
    assert "--lr 0.01: a lower rate forgets less than 1.5 nats" in lines
