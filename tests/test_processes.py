"""Several processes, which torchrun starts, make the run of one."""
import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from experiments import plot

ROOT = Path(__file__).parent.parent
# Three runs in each process, so that torch is imported once. They share one process group, which a
# process cannot join twice.
RUNS = """
import sys
import torch.distributed as dist
import train
from experiments import plot
plot.draw = lambda runs, path: None
leave_the_group = dist.destroy_process_group
dist.destroy_process_group = lambda: None
for flags in sys.argv[1:]:
    train.train(train.parse_args(flags.split()))
leave_the_group()
"""


class Stopped(Exception):
    """What ends a run in the middle of it."""


def stop_at_3(model, optimizer, step):
    if step == 3:
        raise Stopped


def losses(directory):
    with open(Path(directory) / "log.csv", newline="") as file:
        return [float(row["loss"]) for row in list(csv.DictReader(file))[1:]]


def test_two_processes_make_the_losses_of_one_and_go_on_with_its_run(
        tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "draw", lambda runs, path: None)  # it takes a second
    shared = (f"--init_from {tiny_base} --steps 4 --eval_interval 2 --batch_size 8 --grad_accum 2 "
              "--warmup 2 --block_size 32 --device cpu --out_dir ")
    # Prompts and completions of different lengths: the micro-batches have different weights.
    rows = [f'{{"prompt": "Say {i}:", "completion": "{" word" * (1 + i % 4)}"}}\n'
            for i in range(60)]
    Path("pairs.jsonl").write_text("".join(rows))
    shared = f"--data pairs.jsonl {shared}"
    for method in ("lora", "loraga"):
        train.train(train.parse_args(f"--method {method} {shared} {method}-one".split()))
    with pytest.raises(Stopped):
        train.train(train.parse_args(f"--method lora {shared} resumed".split()),
                    after_step=stop_at_3)

    Path("runs.py").write_text(RUNS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "runs.py", f"--method lora {shared} lora-two",
               f"--method loraga {shared} loraga-two", f"--method lora {shared} resumed --resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
    assert run.returncode == 0, run.stderr

    one = losses("lora-one")
    assert len(one) == 4 and abs(one[0] - one[3]) > 1e-3
    assert losses("lora-two") == pytest.approx(one, abs=1e-5)
    assert losses("resumed") == pytest.approx(one, abs=1e-5)
    assert losses("loraga-two") == pytest.approx(losses("loraga-one"), abs=1e-5)
    for directory in ("lora-two", "loraga-two", "resumed"):
        assert (Path(directory) / "result.json").exists()
    # LoRA-GA starts in the same place, as far as float32 allows for singular vectors.
    states = [torch.load(f"loraga-{count}/ckpt.pt", weights_only=True)["model"]
              for count in ("one", "two")]
    for name in [name for name in states[0] if name.endswith(("lora_A0", "lora_B0"))]:
        largest = states[0][name].abs().max().item()
        assert largest > 0
        torch.testing.assert_close(states[1][name], states[0][name], rtol=0, atol=1e-2 * largest)
