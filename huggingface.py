"""LoRA adapters in PEFT's format, and merged models as Hugging Face's GPT-2.

    python huggingface.py peft out/math-lora-r8      a run's adapter for PEFT, in OUT_DIR/peft
    python huggingface.py merged out/math-lora-r8    a GPT-2 with the adapter in its weights,
                                                     in OUT_DIR/merged

    export_peft(model, "my_adapter")    # for peft.PeftModel.from_pretrained(hf_model, "my_adapter")
    load_peft(model, "my_adapter")      # onto the base model
    save_merged(model, "my_model")      # for transformers.AutoModelForCausalLM.from_pretrained

A PEFT adapter is a folder with two files. adapter_model.safetensors (or .bin) holds the tensors
"base_model.model.<layer>.lora_A.weight" (r, d_in) and "....lora_B.weight" (d_out, r), and the whole
modules that train in full. adapter_config.json holds s = lora_alpha/r, or lora_alpha/√r with
use_rslora. Neither PEFT nor transformers is needed here.
"""
import copy
import importlib.util
import json
import re
from pathlib import Path

import torch

import lora
from data.files import InputError, about_input, command_parser, replace_file, run_command
from model import GPT, read_tensors, to_hugging_face

PREFIX = "base_model.model."  # of every tensor's name in a PEFT adapter

# The fields of adapter_config.json, as of PEFT 0.21. load_peft reads these:
READ = ("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights",
        "modules_to_save")
# The tensors themselves say which layers have an adapter, and of which rank:
SEEN_IN_TENSORS = ("r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform",
                   "layers_pattern")
# What the model computes with a given adapter does not depend on these:
WITHOUT_EFFECT = ("task_type", "inference_mode", "base_model_name_or_path", "revision",
                  "auto_mapping", "peft_version", "lora_dropout", "fan_in_fan_out",
                  "corda_config", "eva_config", "loftq_config", "lora_ga_config",
                  "megatron_core", "qalora_group_size")
# Every other field has to be unset. Starts other than these also change the base model's weights:
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")


def export_peft(model, directory):
    """Writes everything that trains as a PEFT adapter for the untouched base model.

    After LoRA-GA its rank is 2r (see lora.adapter_state_dict).
    Raises ValueError for a model without LoRA layers, and where PEFT cannot save what trains in
    full: a tied parameter, or one whose module has LoRA layers inside.
    """
    layers = lora.lora_layers(model)
    if not layers:
        raise ValueError("a PEFT adapter needs LoRA layers")
    state = lora.adapter_state_dict(model)
    tensors, ranks, alphas = {}, {}, {}
    for name in layers:
        A, B = state.pop(f"{name}.lora_A"), state.pop(f"{name}.lora_B")
        tensors[f"{PREFIX}{name}.lora_A.weight"] = A.contiguous()  # as safetensors needs it
        tensors[f"{PREFIX}{name}.lora_B.weight"] = B.contiguous()
        ranks[name] = len(A)
        alphas[name] = state.pop(f"{name}.scale").item() * len(A)

    # What is left trains in full, and PEFT saves whole modules.
    for key in state:
        check_not_tied(model, key)
    modules = sorted({key.rpartition(".")[0] for key in state})
    tensors.update(whole_modules(model, modules))

    r = ranks[next(iter(layers))]
    alpha = alphas[next(iter(layers))]
    files = ("adapter_model.safetensors", "adapter_model.bin")
    write(directory, files, tensors, "adapter_config.json", {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if isinstance(model, GPT) else None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": False,
        # PEFT reads the keys as regular expressions for the end of a name.
        "rank_pattern": {exactly(name): rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {exactly(name): a for name, a in alphas.items() if a != alpha},
        "target_modules": list(layers),
        "modules_to_save": modules or None,
        "fan_in_fan_out": isinstance(model, GPT),  # Hugging Face's Conv1D
    })


def exactly(name):
    return "^" + re.escape(name)


def check_not_tied(model, name):
    """Raises ValueError for a tied parameter: PEFT trains a copy, and the others would stay."""
    named = dict(model.named_parameters(remove_duplicate=False))
    names = [other for other, p in named.items() if p is named.get(name)]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are tied: with PEFT only one would train in full")


def whole_modules(model, endings):
    """The tensors that PEFT expects for modules_to_save, a list of the ends of modules' names."""
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(tuple(endings)):
            if lora.lora_layers(module):
                raise ValueError(f"{name or 'the model'} cannot train in full with PEFT, which "
                                 "saves whole modules: it has LoRA layers inside")
            for key, value in module.state_dict(prefix=f"{name}.").items():
                value = to_hugging_face(key, value) if isinstance(model, GPT) else value
                tensors[PREFIX + key] = value.detach().cpu().contiguous()
    return tensors


def load_peft(model, directory):
    """Puts a PEFT adapter on the untouched base model, in place -> model.

    Raises InputError (a ValueError) if the folder does not hold a plain LoRA adapter, or one of
    another model, or uses a field of PEFT's configuration that is not known here.
    """
    directory = Path(directory)
    config = read_json(directory / "adapter_config.json")
    check_config(directory, config)
    file = directory / "adapter_model.safetensors"
    if not file.exists():
        file = file.with_suffix(".bin")
    with about_input(directory):
        tensors = read_tensors(file)

    state = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    in_full = config.get("modules_to_save") or []  # the ends of modules' names
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        if isinstance(model, GPT):
            value = to_hugging_face(name, value)
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            state[f"{layer}.lora_A"] = value
            state[f"{layer}.scale"] = scale_of(config, layer, rank=len(value))
        elif name.endswith(".lora_B.weight"):
            state[name.removesuffix(".weight")] = value
        elif name in parameters and any(f"{ending}." in key for ending in in_full):
            with about_input(directory):
                check_not_tied(model, name)
            state[name] = value
        elif not is_in_model(model, name, value):
            raise InputError(f"{file} holds {name}, which is not of a plain LoRA adapter, or of "
                             "another base model")
    with about_input(directory):
        return lora.load_adapter(model, state)


def check_config(directory, config):
    """Raises InputError unless every field that is set is known and asks for plain LoRA."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"{directory}: peft_type is {config.get('peft_type')!r}, allowed is LORA")
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise InputError(f"{directory}: init_lora_weights is {start!r}, which changes the base "
                         f"model's weights too; allowed are {PLAIN_STARTS[1:]}")
    for field, value in config.items():
        unset = value in (None, False, [], {}, "none")
        if not unset and field not in READ + SEEN_IN_TENSORS + WITHOUT_EFFECT:
            raise InputError(f"{directory}: {field} is {value!r}, which is not of plain LoRA")


def scale_of(config, layer, rank):
    """A layer's s. The first entry of alpha_pattern that fits the end of its name has its alpha."""
    alpha = config.get("lora_alpha", 8)
    for pattern, of_pattern in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = of_pattern
            break
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    return torch.tensor(scale, dtype=torch.float64)


def is_in_model(model, name, value):
    """Whether the base model has this very tensor: PEFT writes some of its layers too."""
    owner, _, part = name.replace(".base_layer.", ".").rpartition(".")
    modules = dict(model.named_modules(remove_duplicate=False))
    own = getattr(modules.get(owner), part, None)
    if not torch.is_tensor(own) or own.shape != value.shape:
        return False
    # One of the two may be the other one, rounded.
    own = own.detach().cpu()
    return torch.equal(own.to(value.dtype), value) or torch.equal(own, value.to(own.dtype))


def save_merged(model, directory):
    """Writes a GPT as Hugging Face's GPT-2, with its adapter merged into the weights."""
    plain = lora.merge_and_unload(copy.deepcopy(model))
    tied = plain.lm_head.weight is plain.transformer.wte.weight
    tensors = {}
    for name, value in plain.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            tensors[name] = to_hugging_face(name, value).detach().cpu().contiguous()
    config = plain.config
    files = ("model.safetensors", "pytorch_model.bin")
    write(directory, files, tensors, "config.json", {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "tie_word_embeddings": tied,
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
    })


def write(directory, files, tensors, config_file, config):
    """Writes tensors, to files[0] if safetensors is installed or else to files[1], and a config."""
    directory = Path(directory)
    if importlib.util.find_spec("safetensors"):
        from safetensors.torch import save
        with replace_file(directory / files[0]) as file:
            file.write(save(tensors, metadata={"format": "pt"}))
    else:
        with replace_file(directory / files[1]) as file:
            torch.save(tensors, file)
    with replace_file(directory / config_file) as file:
        file.write(json.dumps(config, indent=2).encode())


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path} is missing or damaged") from None


def load_run(directory):
    """The model of a finished run of train.py, on the CPU, and its flags -> model, settings."""
    directory = Path(directory)
    settings = read_json(directory / "result.json")["settings"]
    with about_input(directory):
        if settings["method"] == "full":
            return GPT.from_pretrained(directory / "model.pt"), settings
        model = GPT.from_pretrained(settings["init_from"])
        return lora.load_adapter(model, read_tensors(directory / "adapter.pt")), settings


def main():
    parser = command_parser(__doc__)
    parser.add_argument("what", choices=["peft", "merged"])
    parser.add_argument("out_dir", type=Path, help="a finished run's directory")
    args = parser.parse_args()
    model, _ = load_run(args.out_dir)
    directory = args.out_dir / args.what
    with about_input(args.out_dir):
        if args.what == "peft":
            export_peft(model, directory)
        else:
            save_merged(model, directory)
    print(f"wrote {directory}")


if __name__ == "__main__":
    run_command(main)
