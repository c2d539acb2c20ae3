"""lora.py on two processes: FSDP2 (fully_shard) and DDP give what one process gives.

`work` runs everything once in two processes on the CPU, which gloo connects. The tests compare what
came out. The models are float64. Stochastic gradient descent takes the steps: Adam would hide
gradients that are too large or too small.
"""
import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lora import (adapter_state_dict, apply_lora, attach_preconditioner, load_adapter,
                  lora_ga_init, lora_layers, lora_plus_groups, merge_lora)
from model import GPT, GPTConfig

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs a torch with torch.distributed and gloo", allow_module_level=True)
try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    pytest.skip("needs fully_shard: torch 2.6 or newer", allow_module_level=True)

ROOT = Path(__file__).parents[1]
CONFIG = GPTConfig(block_size=8, vocab_size=32, n_layer=2, n_head=2, n_embd=16)
RANK = 3  # does not divide evenly by two processes
METHODS = ("lora", "loraplus", "loraga", "riemannian")
ENGINES = ("FSDP2", "DDP")
AFTER_SHARDING = {"merge_lora": merge_lora,
                  "lora_ga_init": lambda model: lora_ga_init(model, batches(), loss_fn)}


# ---- What the processes run ----------------------------------------------------------------------


def batches():
    """Four batches of (idx, targets), (4, 8) each."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(32, (2, 4, 8), generator=generator).unbind() for _ in range(4)]


def loss_fn(model, batch):
    idx, targets = batch
    return model(idx, targets)[1]


def base_model():
    torch.manual_seed(0)
    return GPT(CONFIG).double()


def adapted_model(method):
    model = base_model()
    apply_lora(model, RANK, rslora=method == "loraga")
    model.transformer.ln_f.requires_grad_(True)
    if method == "loraga":
        lora_ga_init(model, batches(), loss_fn)
    return model


def shard(model):
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model, method="lora", wrap=lambda model: model, rank=0, world_size=1):
    """Four steps on the rank's rows of each batch -> the adapter."""
    engine = wrap(model)
    ratio = 4.0 if method == "loraplus" else 1.0
    optimizer = torch.optim.SGD(lora_plus_groups(model, lr=0.5, ratio=ratio), momentum=0.9)
    if method == "riemannian":
        attach_preconditioner(optimizer, model)
    trained = [p for p in model.parameters() if p.requires_grad]

    for idx, targets in batches():
        rows = slice(rank, None, world_size)
        loss_fn(engine, (idx[rows], targets[rows])).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return adapter_state_dict(model)


def from_meta_device(rank):
    """A model that is sharded before it has weights, as torchtitan does -> two adapters.

    The first is saved before training, the second after. Only the first process reads the base.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    with torch.device("meta"):
        model = GPT(CONFIG).double()
    apply_lora(model, RANK)
    shard(model)
    model.to_empty(device="cpu")

    torch.manual_seed(0)
    for layer in lora_layers(model).values():
        layer.reset_parameters()

    own_names = {name.replace(".linear.", "."): name for name in model.state_dict()}
    state = base_model().state_dict() if rank == 0 else {}
    state = {own_names[name]: tensor for name, tensor in state.items()}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, state, options=options)

    start = adapter_state_dict(model)
    return start, train(model, rank=rank, world_size=2)


def work(rank, folder):
    """Runs everything in one of two processes, which leaves its results in `rank`.pt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank,
                            world_size=2, timeout=datetime.timedelta(minutes=5))
    results = {}
    for method in METHODS:
        for engine, wrap in zip(ENGINES, (shard, DistributedDataParallel)):
            model = adapted_model(method)
            results[engine, method] = train(model, method, wrap, rank, world_size=2)

    for name, function in AFTER_SHARDING.items():
        model = shard(adapted_model("lora"))
        try:
            function(model)
            results[name] = "no error"
        except ValueError as error:
            results[name] = str(error)

    layer = lora_layers(shard(adapted_model("loraga")))["transformer.h.0.attn.c_attn"]
    results["delta"] = layer.delta().detach()
    results["start"], results["end"] = from_meta_device(rank)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


# ---- Tests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the first and the second process left."""
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert type(actual[name]) is torch.Tensor, name
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_the_adapter_that_one_process_trains(results, engine, method):
    """Each process saves the whole adapter, as plain tensors, and one process can load it."""
    alone = train(adapted_model(method), method)
    for result in results:
        assert_same(result[engine, method], alone)
        loaded = load_adapter(base_model(), result[engine, method])
        assert_same(adapter_state_dict(loaded), alone)


@pytest.mark.parametrize("name", AFTER_SHARDING)
def test_after_fully_shard_one_sentence_says_what_to_do(results, name):
    for result in results:
        assert result[name].endswith("is sharded: do this before fully_shard")


def test_delta_of_a_sharded_layer_is_whole(results):
    """Right after LoRA-GA's start nothing has been added, and both factors are large."""
    for result in results:
        assert type(result["delta"]) is torch.Tensor
        torch.testing.assert_close(result["delta"], torch.zeros(48, 16).double())


def test_from_the_meta_device_a_sharded_model_starts_trains_and_saves(results):
    start = results[0]["start"]
    for name, factor in start.items():
        if name.endswith("lora_A"):
            assert factor.abs().max() <= factor.shape[1] ** -0.5
            assert torch.linalg.matrix_rank(factor) == RANK, name
        elif name.endswith("lora_B"):
            assert not factor.any()

    model = load_adapter(base_model(), start)
    alone = train(model)
    for result in results:
        assert_same(result["start"], start)
        assert_same(result["end"], alone)


def test_the_readme_program_for_several_gpus_trains_and_saves(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    programs = [block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
                if "fully_shard" in block]
    if not programs:
        pytest.skip("README.md has no program with fully_shard")
    (tmp_path / "finetune.py").write_text(programs[0], encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node=2", "finetune.py"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1",
                       CUDA_VISIBLE_DEVICES="")
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]

    # The file holds the adapter whole, and the model has learned something.
    from data import tasks, tokenizer
    base = GPT.from_pretrained()
    batch = tasks.load("math", tokenizer.load(), base.config.block_size).batch(1, 0, 64)
    with torch.no_grad():
        before = loss_fn(base, batch)
        state = torch.load(tmp_path / "adapter.pt", weights_only=True)
        after = loss_fn(load_adapter(base, state), batch)
    assert after < 0.8 * before
