"""GPT-2's weights in, PEFT adapters in and out, merged checkpoints out, without `transformers`.

    model = load_gpt2("gpt2")                 # or the path or the URL of a checkpoint
    export_peft(model, "my_adapter")          # for peft.PeftModel.from_pretrained(hf_gpt2, "my_adapter")
    load_peft(load_gpt2("gpt2"), "my_adapter")
    merge_and_save(model, "my_model")         # for transformers.AutoModelForCausalLM.from_pretrained("my_model")
    python huggingface.py export OUT_DIR      # a run's adapter, to OUT_DIR/peft; `merge`: to OUT_DIR/merged

A checkpoint is a dict of tensors with config.json beside it. HF's GPT-2 keeps its linear layers as Conv1D: weights
are (d_in, d_out), the transpose of nn.Linear's. A PEFT adapter is adapter_model.safetensors (or .bin), of
"base_model.model.<layer>.lora_A.weight" (r, d_in) and "….lora_B.weight" (d_out, r), and adapter_config.json, with
r, lora_alpha and use_rslora: s = lora_alpha/r, or lora_alpha/√r.
"""
import argparse
import copy
import importlib.util
import json
import re
from pathlib import Path

import torch

import lora
from data.files import load_file, replace_file
from model import GPT, GPTConfig

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
REPOSITORY = "https://huggingface.co/openai-community/{}/resolve/main/pytorch_model.bin"
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
ARCHITECTURE = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": True, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
OTHER_START = ("pissa", "olora", "corda", "loftq", "lora_ga")  # these move the base weights as well
OTHER_KINDS = ("use_dora", "alora_invocation_tokens", "modules_to_save", "lora_bias", "target_parameters")


def load_gpt2(name_path_or_url):
    """A GPT with GPT-2's weights, in float32 on the CPU.

    name_path_or_url  gpt2, gpt2-medium, gpt2-large or gpt2-xl; or a path or a URL of a checkpoint whose
                      config.json is beside it. What is downloaded stays in torch.hub's cache.
    Raises ValueError for files that are damaged or no GPT-2, OSError for missing ones and failed downloads.
    """
    path = _fetch(name_path_or_url)
    if not path.is_file():
        raise ValueError(f"{path} is neither {', '.join(NAMES)} nor the file of a checkpoint")
    config = _read_json(path.with_name("config.json"))
    try:
        if any(config.get(key, value) != value for key, value in ARCHITECTURE.items()):
            raise KeyError
        config = GPTConfig(*(config[key] for key in ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")))
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path.with_name('config.json')} does not describe a GPT-2 as OpenAI's") from None
    state = {}
    for name, value in _read_tensors(path).items():
        name = "transformer." + name.removeprefix("transformer.")
        if not name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):  # masks, and the tied output
            state[name] = (value.T if name.endswith(CONV1D) else value).float().contiguous()
    with torch.device("meta"):
        model = GPT(config)
    expected, found = ({name: tuple(value.shape) for name, value in tensors.items() if name != "lm_head.weight"}
                       for tensors in (model.state_dict(), state))
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{path} is not the GPT-2 of its config.json: {name} is {found.get(name, 'missing')}, "
                             f"expected {expected.get(name, 'nothing of that name')}")
    model.load_state_dict(state, strict=False, assign=True)
    model.lm_head.weight = model.transformer.wte.weight
    return model


def _fetch(name_path_or_url):
    """The local path of a checkpoint, downloaded with its config.json if it is a name or a URL."""
    url = REPOSITORY.format(name_path_or_url) if name_path_or_url in NAMES else str(name_path_or_url)
    if "://" not in url:
        return Path(url)
    site, _, name = url.partition("?")[0].rpartition("/")
    folder = Path(torch.hub.get_dir()) / "checkpoints" / re.sub(r"\W+", "-", site)
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", name):
        try:
            if url.startswith("file:") or not (folder / file).exists():
                torch.hub.download_url_to_file(f"{site}/{file}", str(folder / file))
        except OSError as error:
            raise OSError(f"{site}/{file}: no download ({error}); fetch it by hand and put it into {folder}") from None
    return folder / name


def _read_tensors(path):
    """The dict of tensors in a .safetensors or a PyTorch file."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors
            return load_safetensors(path)
        return load_file(path)
    except ImportError:
        raise ValueError(f"{path} needs a package to read it: pip install safetensors") from None
    except Exception:  # torch and safetensors raise many kinds for a damaged file
        raise ValueError(f"{path} is damaged or not a checkpoint") from None


def _read_json(path):
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{path} is missing or damaged") from None


def _write(directory, files, tensors, config_file, config):
    """The tensors, in files[0] with safetensors and in files[1] without that package; and a config."""
    directory, safe = Path(directory), importlib.util.find_spec("safetensors") is not None
    with replace_file(directory / files[0 if safe else 1]) as file:
        if safe:
            from safetensors.torch import save
            file.write(save(tensors, metadata={"format": "pt"}))
        else:
            torch.save(tensors, file)
    with replace_file(directory / config_file) as file:
        file.write(json.dumps(config, indent=2).encode())


def export_peft(model, directory):
    """Writes the model's adapter as PEFT does, for the untouched base; after LoRA-GA its rank is 2r."""
    layers, tensors, ranks, alphas = lora.lora_layers(model), {}, {}, {}
    for name, layer in layers.items():
        A, B = layer.factors()
        for part, value in (("lora_A", A), ("lora_B", B)):
            tensors[f"base_model.model.{name}.{part}.weight"] = value.detach().cpu().contiguous()
        ranks[name], alphas[name] = len(A), layer.scale * len(A) ** (0.5 if layer.rslora else 1)
    if len({layer.rslora for layer in layers.values()}) != 1:
        raise ValueError("a PEFT adapter needs LoRA layers, all of them with rslora or all without")
    first = next(iter(layers))
    _write(directory, ("adapter_model.safetensors", "adapter_model.bin"), tensors, "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True,
        "r": ranks[first], "lora_alpha": alphas[first], "use_rslora": layers[first].rslora,
        "rank_pattern": {name: r for name, r in ranks.items() if r != ranks[first]},
        "alpha_pattern": {name: alpha for name, alpha in alphas.items() if alpha != alphas[first]},
        "target_modules": list(layers), "fan_in_fan_out": True,  # of HF's Conv1D
    })


def load_peft(model, directory):
    """Puts a PEFT adapter on the untouched base model, in place -> model; ValueError if it is not plain LoRA."""
    config = _read_json(Path(directory) / "adapter_config.json")
    unread = [key for key in OTHER_KINDS if config.get(key)]
    if config.get("peft_type") != "LORA" or unread or str(config.get("init_lora_weights")).startswith(OTHER_START):
        raise ValueError(f"{directory} holds no plain LoRA adapter ({', '.join(unread) or 'its type or start'})")
    file, state = Path(directory) / "adapter_model.safetensors", {}
    file = file if file.exists() else file.with_suffix(".bin")
    for key, value in _read_tensors(file).items():
        name, part = re.fullmatch(r"(?:base_model\.model\.)?(.*?)(?:\.(lora_[AB])\.weight)?", key).groups()
        if part is None:
            raise ValueError(f"{file} holds {key}, which is not of plain LoRA")
        state[f"{name}.{part}"] = value
        if part == "lora_A":
            alpha = next((alpha for pattern, alpha in (config.get("alpha_pattern") or {}).items()
                          if re.fullmatch(rf"(.*\.)?({pattern})", name)), config.get("lora_alpha", 8))
            state[f"{name}.scale"] = alpha / len(value) ** (0.5 if config.get("use_rslora") else 1)
    lora.load_adapter(model, state)
    for layer in lora.lora_layers(model).values():
        layer.rslora = bool(config.get("use_rslora"))
    return model


def merge_and_save(model, directory):
    """Writes the model as HF's GPT-2, adapters merged in, without a trace of LoRA; the model stays as it was."""
    model, state, config = copy.deepcopy(model), {}, model.config
    lora.merge_lora(model)
    for name, value in model.state_dict().items():
        if not re.search(r"\.(lora_[AB]0?|unmerged_weight)$|^lm_head\.weight$", name):
            name = name.replace(".linear.", ".")
            state[name] = (value.T if name.endswith(CONV1D) else value).detach().cpu().contiguous()
    _write(directory, ("model.safetensors", "pytorch_model.bin"), state, "config.json", {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
        "vocab_size": config.vocab_size, "n_positions": config.block_size, "n_embd": config.n_embd,
        "n_layer": config.n_layer, "n_head": config.n_head,
        "tie_word_embeddings": "lm_head" not in lora.lora_layers(model)})


def main():
    from data import base
    from sample import load_run, model_of
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"export": (export_peft, "peft"), "merge": (merge_and_save, "merged")}
    parser.add_argument("what", choices=commands)
    parser.add_argument("out_dir", type=Path, help="a finished run's directory")
    args = parser.parse_args()
    try:
        settings, state = load_run(args.out_dir)
        model = model_of(state, base.load(settings["init_from"]))
        for layer in lora.lora_layers(model).values():
            layer.rslora = settings["rslora"]
        write, directory = commands[args.what][0], args.out_dir / commands[args.what][1]
        write(model, directory)
        print(f"wrote {directory}")
    except (ValueError, OSError) as error:
        parser.exit(2, f"huggingface.py: {error}\n")


if __name__ == "__main__":
    main()
