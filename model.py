"""A GPT in one file, with the parameter names of Hugging Face's GPT-2.

Shapes in comments: B sequences of T tokens, C = n_embd channels, V = vocab_size.
Architecture: GPT-2 (Radford et al., 2019): pre-norm blocks, learned positions, tied embeddings, and
the tanh approximation of GELU.
"""
import contextlib
import json
import math
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch.nn import functional as F

BASE = Path(__file__).parent / "data" / "base.pt"  # the shipped model
GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
GPT2_URL = "https://huggingface.co/openai-community/{}/resolve/main/{}"
# What config.json of a GPT-2 like OpenAI's says; a missing entry means the same.
GPT2_CONFIG = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
               "tie_word_embeddings": True, "scale_attn_weights": True,
               "scale_attn_by_inverse_layer_idx": False}


@dataclass
class GPTConfig:
    block_size: int = 1024     # the longest sequence, in tokens
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} must be a multiple of n_head {self.n_head}")


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each position sees itself and the positions before it."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
                   for part in self.c_attn(x).split(C, dim=2))  # (B, n_head, T, C / n_head) each
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Two linear layers with GPT-2's tanh-approximated GELU between them, position by position."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream after a layer norm of its input."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Token and position embeddings, n_layer blocks, a norm, and the token embedding as output."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # 2·n_layer of these add up in the residual stream
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx, targets=None):
        """Next-token logits, and their mean cross-entropy where targets are given.

        idx      (B, T) token ids, T ≤ block_size, else ValueError
        targets  (B, K) the tokens that follow the last K ≤ T positions, −1 where ignored
        returns  logits (B, T, V) and None; with targets, logits (B, K, V) and the loss in nats per
                 token. K < T spares the projection of a prompt onto the vocabulary.
        """
        T = idx.shape[1]
        if T > self.config.block_size:
            raise ValueError(f"the sequence has {T} tokens, and this model's block_size allows "
                             f"{self.config.block_size}")
        positions = torch.arange(T, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)  # (B, T, C)
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x), None
        logits = self.lm_head(x[:, -targets.shape[1]:])  # (B, K, V)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, F.cross_entropy(precise.flatten(0, 1), targets.flatten(), ignore_index=-1)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, seed=0):
        """Continues idx (B, T) by max_new_tokens tokens -> (B, T + max_new_tokens).

        temperature  0 is greedy decoding: the likeliest token each time
        top_k        sample among the k likeliest tokens only
        seed         of the samples, which leave torch's global random state alone
        """
        generator = torch.Generator(idx.device).manual_seed(seed)
        with eval_mode(self):
            for _ in range(max_new_tokens):
                context = idx[:, -self.config.block_size:]
                logits = self(context)[0][:, -1].float()  # (B, V)
                if temperature < 1e-4:
                    next_token = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
                else:
                    if top_k is not None:
                        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
                        logits = logits.masked_fill(logits < kth, -torch.inf)
                    probabilities = torch.softmax(logits / temperature, dim=-1)
                    next_token = torch.multinomial(probabilities, 1, generator=generator)
                idx = torch.cat((idx, next_token), dim=1)
        return idx

    @classmethod
    def from_pretrained(cls, name_or_path="base", dropout=0.0):
        """A GPT with trained weights, in float32 on the CPU.

        name_or_path  "base", the model in data/base.pt; "gpt2", "gpt2-medium", "gpt2-large" or
                      "gpt2-xl", downloaded once into torch.hub's folder; or a path: a model.pt
                      that train.py wrote, a GPT-2 checkpoint with its config.json beside it, or
                      the folder of `save_pretrained`
        Raises ValueError for a file that is damaged or holds no GPT-2, OSError if a download fails.
        """
        path = find_weights(str(name_or_path))
        contents = read_tensors(path)
        if "config" in contents:  # a file of train.py
            config, state = contents["config"], contents["model"]
        else:
            config, state = from_gpt2(path, contents)
        model = cls(GPTConfig(**{**config, "dropout": dropout}))
        try:
            missing, unexpected = model.load_state_dict(state, strict=False)
        except RuntimeError as error:  # shapes that differ
            raise ValueError(f"{path} is not of its config's size: {error}".replace("\n", " "))
        if unexpected or missing != ["lm_head.weight"]:  # that one is tied
            raise ValueError(f"{path} is not a whole GPT-2: {[*missing, *unexpected][:3]}")
        return model


@contextlib.contextmanager
def eval_mode(model):
    """No dropout inside the block; afterwards each submodule is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


# ==== Checkpoints =================================================================================


def find_weights(name_or_path):
    """The path of a checkpoint's file; GPT-2's is downloaded if it is not there yet."""
    if name_or_path == "base":
        return BASE
    if name_or_path in GPT2_NAMES:
        return download_gpt2(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        safe = path / "model.safetensors"
        path = safe if safe.exists() else path / "pytorch_model.bin"
    if not path.is_file():
        raise ValueError(f"{path} is not a checkpoint's file or folder, nor one of base, "
                         f"{', '.join(GPT2_NAMES)}")
    return path


def download_gpt2(name):
    """OpenAI's weights from the Hugging Face hub, kept in torch.hub's folder -> their path."""
    folder = Path(torch.hub.get_dir()) / "checkpoints" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "pytorch_model.bin"):
        url = GPT2_URL.format(name, file)
        if not (folder / file).exists():
            try:
                torch.hub.download_url_to_file(url, str(folder / file))
            except OSError as error:
                raise OSError(f"the download of {url} failed ({error}): put the file into {folder}")
    return folder / file


def read_tensors(path):
    """The tensors in a .safetensors or a PyTorch file -> dict; ValueError for a damaged file."""
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError:
            raise ValueError(f"{path} needs a package: pip install safetensors")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}")
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, LookupError, OSError, TypeError, ValueError, AttributeError,
            struct.error, pickle.UnpicklingError):  # torch raises all of these for a damaged file
        raise ValueError(f"{path} is missing, damaged or not a checkpoint")


def from_gpt2(path, tensors):
    """A Hugging Face GPT-2 checkpoint -> our config, our state dict."""
    file = path.with_name("config.json")
    try:
        config = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{path} needs a GPT-2's config.json beside it: it is missing or damaged")
    for key, value in GPT2_CONFIG.items():
        if config.get(key, value) != value:
            raise ValueError(f"{file} is not of a GPT-2 like OpenAI's: {key} is {config[key]!r}, "
                             f"allowed is {value!r}")
    needed = ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")
    missing = [key for key in needed if key not in config]
    if missing:
        raise ValueError(f"{file} is not of a GPT-2: it has no {missing[0]}")
    ours = {"block_size" if key == "n_positions" else key: config[key] for key in needed}
    head, embedding = (tensors.get(name) for name in ("lm_head.weight", "transformer.wte.weight"))
    if head is not None and embedding is not None and not head.equal(embedding):
        raise ValueError(f"{path} has an output layer that is not tied to its embedding")
    state = {}
    for name, value in tensors.items():
        # Two buffers hold attention's mask; the output layer is tied to the embedding.
        if not name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):
            state["transformer." + name.removeprefix("transformer.")] = to_hugging_face(name, value)
    return ours, state


def to_hugging_face(name, tensor):
    """A tensor as Hugging Face's GPT-2 has it, or back: its Conv1D weights are (d_in, d_out)."""
    conv1d = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    return tensor.T if conv1d else tensor
