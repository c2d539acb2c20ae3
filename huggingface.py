"""GPT-2's weights in, PEFT adapters in and out, merged checkpoints out, without `transformers`.

    model = load_gpt2("gpt2")           # or the path, the directory or the URL of a checkpoint
    export_peft(model, "my_adapter")    # for peft.PeftModel.from_pretrained(hf_gpt2, "my_adapter")
    load_peft(load_gpt2("gpt2"), "my_adapter")
    merge_and_save(model, "my_model")   # for transformers.AutoModelForCausalLM.from_pretrained

A checkpoint is a dict of tensors with config.json beside it. HF's GPT-2 keeps its linear layers as
Conv1D: weights are (d_in, d_out), the transpose of nn.Linear's. A PEFT adapter consists of
adapter_config.json, with s = lora_alpha/r (lora_alpha/√r if use_rslora), and
adapter_model.safetensors, or .bin: "base_model.model.<layer>.lora_A.weight" (r, d_in),
"….lora_B.weight" (d_out, r), and the parameters of modules_to_save, which train in full.
"""
import copy
import hashlib
import importlib.util
import json
import re
from pathlib import Path

import torch

import lora
from data.files import InputError, about_input, load_file, replace_file, save
from model import GPT, GPTConfig

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
REPOSITORY = "https://huggingface.co/openai-community/{}/resolve/main/pytorch_model.bin"
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # two masks, and a tied one
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
ARCHITECTURE = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": True, "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False}
SHAPE = ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")
OTHER_START = ("pissa", "olora", "corda", "loftq", "lora_ga")  # these move the base weights as well
OTHER_KINDS = ("use_dora", "alora_invocation_tokens", "lora_bias", "target_parameters")
PREFIX = "base_model.model."  # of every name in a PEFT adapter


def load_gpt2(name_path_or_url, dropout=0.0):
    """A GPT with GPT-2's weights, in float32 on the CPU.

    name_path_or_url  gpt2, gpt2-medium, gpt2-large or gpt2-xl; or the path or URL of a checkpoint
                      with its config.json beside it, or a directory as `save_pretrained` leaves
                      it. What is downloaded stays in torch.hub's cache.
    Raises InputError (a ValueError) for files that are damaged or no GPT-2, OSError for failed
    downloads.
    """
    path = _fetch(name_path_or_url)
    if path.is_dir():
        safe = path / "model.safetensors"
        path = safe if safe.exists() else path / "pytorch_model.bin"
    if not path.is_file():
        raise InputError(f"{path} is neither {', '.join(NAMES)} nor a checkpoint's file or folder")
    config = _read_json(path.with_name("config.json"))
    try:
        if any(config.get(key, value) != value for key, value in ARCHITECTURE.items()):
            raise KeyError
        config = GPTConfig(*(config[key] for key in SHAPE), dropout)
    except (KeyError, TypeError, AttributeError, ValueError):
        place = path.with_name("config.json")
        raise InputError(f"{place} does not describe a GPT-2 as OpenAI's") from None
    state = {}
    for name, value in _read_tensors(path).items():
        name = "transformer." + name.removeprefix("transformer.")
        if not name.endswith(NOT_WEIGHTS):
            state[name] = _transposed(name, value).float().contiguous()
    with torch.device("meta"):
        model = GPT(config)
    _check_shapes(path, _shapes(model.state_dict()), _shapes(state))
    model.load_state_dict(state, strict=False, assign=True)
    model.lm_head.weight = model.transformer.wte.weight
    return model


def _transposed(name, value):
    """A weight of Conv1D as nn.Linear has it, or the other way round; other tensors as they are."""
    return value.T if name.endswith(CONV1D) else value


def _shapes(state):
    return {name: list(value.shape) for name, value in state.items() if name != "lm_head.weight"}


def _check_shapes(path, expected, found):
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise InputError(f"{path} is not the GPT-2 of its config.json: {name} is "
                             f"{found.get(name, 'missing')}, expected "
                             f"{expected.get(name, 'nothing of that name')}")


def _fetch(name_path_or_url):
    """The local path of a checkpoint, downloaded with its config.json if it is a name or a URL."""
    url = str(name_path_or_url)
    if url in NAMES:
        url = REPOSITORY.format(url)
    if "://" not in url:
        return Path(url)
    site, _, name = url.partition("?")[0].rpartition("/")
    readable = re.sub(r"\W+", "-", site)[-80:]
    digest = hashlib.sha256(site.encode()).hexdigest()[:8]  # two sites must not share a folder
    folder = Path(torch.hub.get_dir()) / "checkpoints" / f"{readable}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", name):
        try:
            if url.startswith("file:") or not (folder / file).exists():
                torch.hub.download_url_to_file(f"{site}/{file}", str(folder / file))
        except OSError as error:
            raise OSError(f"{site}/{file}: no download ({error}); fetch it by hand and put it into "
                          f"{folder}") from None
    return folder / name


def _read_tensors(path):
    """The dict of tensors in a .safetensors or a PyTorch file."""
    if path.suffix != ".safetensors":
        return load_file(path)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors
    except ImportError:
        raise InputError(f"{path} needs a package to read it: pip install safetensors") from None
    try:
        return load_safetensors(path)
    except (SafetensorError, ValueError):
        raise InputError(f"{path} is missing, damaged or not a checkpoint") from None


def _read_json(path):
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path} is missing or damaged") from None


def _write(directory, files, tensors, config_file, config):
    """The tensors, in files[0] with safetensors and in files[1] without it; and a config."""
    safe = importlib.util.find_spec("safetensors") is not None
    path = Path(directory) / files[0 if safe else 1]
    if safe:
        from safetensors.torch import save as as_bytes
        with replace_file(path) as file:
            file.write(as_bytes(tensors, metadata={"format": "pt"}))
    else:
        save(path, tensors)
    with replace_file(Path(directory) / config_file) as file:
        file.write(json.dumps(config, indent=2).encode())


def export_peft(model, directory):
    """Writes what trains as PEFT does, for the untouched base; after LoRA-GA the rank is 2r.

    ValueError for a model without LoRA layers, and for a parameter beside them that trains and is
    tied, or in no module: PEFT saves whole modules.
    """
    state = lora.adapter_state_dict(model)
    layers = list(lora.lora_layers(model))
    if not layers:
        raise ValueError("a PEFT adapter needs LoRA layers")
    is_gpt = isinstance(model, GPT)
    tensors, in_full = {}, set()
    for key, value in state.items():
        name, _, part = key.rpartition(".")
        if name in layers and part == "scale":
            continue
        if name in layers:
            tensors[f"{PREFIX}{key}.weight"] = value
        else:
            _check_owner(model, key)
            in_full.add(name)
            tensors[PREFIX + key] = _transposed(key, value).contiguous() if is_gpt else value
    ranks = {name: len(state[f"{name}.lora_A"]) for name in layers}
    alphas = {name: state[f"{name}.scale"].item() * ranks[name] for name in layers}
    r, alpha = ranks[layers[0]], alphas[layers[0]]
    _write(directory, ("adapter_model.safetensors", "adapter_model.bin"), tensors,
           "adapter_config.json", {
               "peft_type": "LORA", "task_type": "CAUSAL_LM" if is_gpt else None,
               "inference_mode": True, "r": r, "lora_alpha": alpha, "use_rslora": False,
               "rank_pattern": {name: rank for name, rank in ranks.items() if rank != r},
               "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
               "target_modules": layers, "fan_in_fan_out": is_gpt,  # of HF's Conv1D
               "modules_to_save": sorted(in_full) or None,
           })


def _check_owner(model, key):
    parameter = model.get_parameter(key)
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if p is parameter]
    if len(names) > 1 or "." not in key:
        raise ValueError(f"{' and '.join(names)} cannot be exported to PEFT: it saves whole "
                         "modules, and this parameter is tied, or in none")


def load_peft(model, directory):
    """Puts a PEFT adapter on the untouched base model, in place -> model.

    InputError (a ValueError) for a directory that holds no plain LoRA, or one of another model.
    """
    config = _read_json(Path(directory) / "adapter_config.json")
    unread = [key for key in OTHER_KINDS if config.get(key)]
    start = str(config.get("init_lora_weights"))
    if config.get("peft_type") != "LORA" or unread or start.startswith(OTHER_START):
        raise InputError(f"{directory} holds no plain LoRA adapter "
                         f"({', '.join(unread) or 'its type or start'})")
    file = Path(directory) / "adapter_model.safetensors"
    file = file if file.exists() else file.with_suffix(".bin")
    state = {}
    for key, value in _read_tensors(file).items():
        key = key.removeprefix(PREFIX)
        owner = key.rpartition(".")[0]
        name, _, part = owner.rpartition(".")
        if part in ("lora_A", "lora_B"):  # of <name>.lora_A.weight
            state[owner] = value
            if part == "lora_A":
                rank = len(value)
                divisor = rank ** 0.5 if config.get("use_rslora") else rank
                scale = torch.tensor(_alpha(config, name) / divisor, dtype=torch.float64)
                state[f"{name}.scale"] = scale
        elif any(f".{module}." in f".{owner}." for module in config.get("modules_to_save") or ()):
            state[key] = _transposed(key, value) if isinstance(model, GPT) else value
        else:
            raise InputError(f"{file} holds {key}, which is not of plain LoRA")
    with about_input(directory):
        return lora.load_adapter(model, state)


def _alpha(config, name):
    """lora_alpha of a layer: that of alpha_pattern's first expression that fits, or the general."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return alpha
    return config.get("lora_alpha", 8)


def merge_and_save(model, directory):
    """Writes a GPT as HF's GPT-2, its adapter merged in, without a trace of LoRA."""
    plain = lora.merge_and_unload(copy.deepcopy(model))
    state = {name: _transposed(name, value).detach().cpu().contiguous()
             for name, value in plain.state_dict().items()}
    tied = plain.lm_head.weight is plain.transformer.wte.weight
    if tied:
        del state["lm_head.weight"]
    config = plain.config
    _write(directory, ("model.safetensors", "pytorch_model.bin"), state, "config.json", {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new", "tie_word_embeddings": tied,
        "vocab_size": config.vocab_size, "n_positions": config.block_size,
        "n_embd": config.n_embd, "n_layer": config.n_layer, "n_head": config.n_head})
