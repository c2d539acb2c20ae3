"""lora.py on a model that is not this project's: adapted, trained, saved, and loaded again.

    python example.py
"""
import copy
import tempfile

import torch
from torch import nn

import lora

base = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
batches = [(torch.randn(32, 64), torch.randn(32, 64)) for _ in range(4)]  # noise, to show the calls


def loss_fn(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


model = copy.deepcopy(base)
lora.apply_lora(model, rank=8, alpha=8, targets=["0", "2"], rslora=True)  # the layers' names
lora.lora_ga_init(model, batches, loss_fn)  # optional, as are the ratio and the preconditioner
groups = lora.lora_plus_groups(model, lr=1e-3, ratio=4)
optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
lora.attach_preconditioner(optimizer, model)

for step in range(100):
    loss = loss_fn(model, batches[step % 4])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step:3}  loss {loss.item():.3f}")

with tempfile.TemporaryDirectory() as directory:
    path = f"{directory}/adapter.pt"
    torch.save(lora.adapter_state_dict(model), path)  # small, and for the untouched base
    loaded = lora.load_adapter(copy.deepcopy(base), torch.load(path, weights_only=True))

x = torch.randn(1, 64)
print(f"trained and loaded differ by {(model(x) - loaded(x)).abs().max().item():.1g}")
