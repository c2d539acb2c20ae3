"""experiments.llm on a tiny Llama: what it measures, which runs it makes, what it compares."""
import argparse
import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
pytest.importorskip("sacrebleu")

import lora
from data.files import InputError, read_csv
from experiments import claims, llm, llm_measure, plot, smollm, sweep

END = 1


class Characters:
    """A tokenizer of one token for each character."""
    eos_token_id = END

    def __call__(self, text):
        return {"input_ids": [2 + ord(character) % 60 for character in text]}

    def batch_decode(self, rows, skip_special_tokens):
        texts = []
        for row in rows.tolist():
            row = row[:row.index(END)] if END in row else row
            texts.append(" ".join(map(str, row)))
        return texts


def tiny(dtype=torch.float32):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                         tie_word_embeddings=True, initializer_range=0.3, pad_token_id=END)
    return smollm.use_float32_attention(LlamaForCausalLM(config).to(dtype))


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def tokens(shortest, longest):
        size = int(torch.randint(shortest, longest, (1,), generator=generator))
        return torch.randint(2, 64, (size,), generator=generator).tolist()

    return [(tokens(3, 9), tokens(2, 7) + [END]) for _ in range(count)]


@pytest.fixture
def task():
    held_out = rows(4, seed=1)
    return smollm.Task(train=rows(40), reported=held_out, choosing=rows(4, seed=2),
                    prompts=[prompt for prompt, _ in held_out],
                    references=[["a b c"], ["d e", "f g h"], ["i"], ["j"]],
                    windows=torch.randint(2, 64, (3, 17)), end=END)


def test_padded_loss_is_the_mean_over_the_completions_tokens():
    model = tiny()
    group = rows(5)
    losses = []
    for prompt, completion in group:
        logits = model(torch.tensor([prompt + completion])).logits[0].double()
        predictions = logits[len(prompt) - 1:-1]
        losses.append(F.cross_entropy(predictions, torch.tensor(completion), reduction="none"))
    expected = torch.cat(losses).mean().item()
    loss = smollm.loss_of(model, smollm.collate(group, END))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert smollm.rows_loss(model, group, END) == pytest.approx(expected, abs=1e-5)


def test_float32_attention_computes_what_eager_attention_does():
    model = tiny()
    ids = torch.randint(2, 64, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    ours = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    eager = model(ids, attention_mask=mask).logits
    assert (ours - eager)[0, 4:].abs().max() < 1e-4
    assert (ours - eager)[1].abs().max() < 1e-4


def test_answers_do_not_depend_on_what_else_is_in_the_batch():
    model = tiny()
    prompts = [prompt for prompt, _ in rows(6)]
    together = smollm.answers(model, Characters(), prompts, END)
    alone = [smollm.answers(model, Characters(), [prompt], END)[0] for prompt in prompts]
    assert together == alone
    assert len(set(together)) > 1


def test_a_batch_is_a_function_of_seed_and_step(task):
    ids, targets = smollm.draw_batch(task, 3, 5)
    again, _ = smollm.draw_batch(task, 3, 5)
    assert torch.equal(ids, again) and len(ids) == smollm.BATCH
    for other in (smollm.draw_batch(task, 3, 6), smollm.draw_batch(task, 4, 5)):
        assert not torch.equal(ids, other[0])


def test_bleu_takes_the_best_of_several_references():
    references = [["the cat sat on the mat", "a dog"], ["one two three four five"]]
    assert smollm.bleu([" ".join(each[0].split()) for each in references], references) > 99.9
    assert smollm.bleu(["the cat sat on the mat", "one two nine four five"], references) < 99


@pytest.mark.parametrize("method", llm.METHODS)
def test_a_run_trains_a_copy_and_its_flags_make_it_again(method, task):
    base = tiny()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    args = llm.parse_args(f"--method {method} --lr 0.003 --seed 2 --steps 4".split())
    row = smollm.run(args, base, Characters(), task)
    flags = llm.Variant(method, (0.003,)).flags(0.003, seed=2, steps=4)
    assert vars(llm.parse_args(flags.split())) == vars(args)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    untrained = smollm.rows_loss(smollm.build_model("lora", base), task.reported, END)
    assert float(row["loss"]) != pytest.approx(untrained, abs=1e-3)
    assert [point.split(":")[0] for point in row["path"].split()] == ["2", "4"]
    adapted = sum(smollm.RANK * sum(layer.weight.shape) for name, layer in base.named_modules()
                  if name.endswith(smollm.TARGETS))
    assert row["trained"] == (sum(map(torch.numel, base.parameters())) if method == "full"
                              else adapted)


def test_a_run_that_diverges_is_a_row(task):
    base = tiny()
    base.model.norm.weight.data.fill_(math.nan)
    row = smollm.run(llm.parse_args(["--method", "lora", "--steps", "2"]), base, Characters(), task)
    assert row["loss"] == "diverged" and "bleu" not in row


def test_runs_that_are_there_are_not_made_again(task, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm, "load_base", lambda: (tiny(), Characters()))
    monkeypatch.setattr(smollm, "load_task", lambda tokenizer, quick: task)
    monkeypatch.setattr(llm, "VARIANTS", {"lora": llm.Variant("lora", (1e-3, 1e-2))})
    args = llm.parse_args(["--steps", "2", "--seeds", "2"])
    path = tmp_path / "llm.csv"
    llm.run_all(args, path)
    rows = sweep.read(path)
    assert len(rows) == 1 + 2 * 2  # the base, two rates with two seeds
    text = path.read_text()
    monkeypatch.setattr(smollm, "run", None)
    llm.run_all(args, path)
    assert path.read_text() == text
    assert len(llm.results(rows, 2)) == 4


def test_the_rate_is_chosen_by_rows_that_are_not_reported():
    """And a rate at which most seeds diverge is not."""
    rates = {1e-3: [{"learned": 1.0, "to_choose": 2.0}], 1e-2: [{"learned": 3.0, "to_choose": 1.0}]}
    assert llm.best_rate(rates) == 1e-2
    rates = {1e-3: [{"to_choose": loss} for loss in (2.0, 2.0, 2.0)],
             1e-2: [{"to_choose": loss} for loss in (1.0, math.inf, math.inf)]}
    assert llm.best_rate(rates) == 1e-3


def test_table_and_figure_of_runs_that_are_incomplete_or_diverged(tmp_path):
    def row(loss, docs):
        return {"loss": loss, "loss_to_choose": loss, "bleu": "50", "docs": docs, "trained": "9",
                "path": f"1:3.0:{docs} 2:{loss}:{docs}"}

    full, lora_variant = (llm.VARIANTS[name] for name in ("full", "lora"))
    diverged = {**row("diverged", ""), "loss_to_choose": "", "bleu": "", "path": ""}
    rows = {llm.BASE: {**row("3.0", "2.0"), "path": "0:3.0:2.0"},
            full.flags(full.rates[0], 0, 2): row("1.5", "2.25"),
            lora_variant.flags(lora_variant.rates[0], 0, 2): row("1.25", "2.5"),
            lora_variant.flags(lora_variant.rates[1], 0, 2): diverged}
    found = llm.results(rows, 2)
    tables = llm.tables(found)
    assert "| full fine-tuning | 1e-05 | 1.500 | 0.25 | 50.0 | 9 |" in tables
    assert "| LoRA | 0.0003 | 1.250 | 0.50 | 50.0 | 9 |" in tables
    assert "| LoRA | 0.50 | 0.50 | 0.50 |" in tables
    with pytest.raises(InputError, match="no runs"):
        llm.results({}, 2)
    if plot.available():
        llm.draw(found, tmp_path / "llm.svg")
        assert (tmp_path / "llm.svg").stat().st_size > 1000


def test_a_missing_package_is_one_sentence():
    with pytest.raises(InputError, match="needs no_such_package: pip install"):
        smollm.need("torch", "no_such_package")


def test_peft_starts_where_lora_starts_and_goes_the_same_way(task):
    pytest.importorskip("peft")
    model = lora.apply_lora(tiny(), smollm.RANK, targets=smollm.TARGETS)
    ours = llm_measure.Measured(model, lr=1e-2)
    theirs = llm_measure.Measured(llm_measure.start_peft(ours.model), lr=1e-2)
    for step in range(8):
        for each in (ours, theirs):
            each.step(1.0, smollm.draw_batch(task, 0, step))
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-4)
    assert ours.losses[-1] < ours.losses[0] - 0.05
    batch = smollm.draw_batch(task, 0, 0)
    kept = llm_measure.saved_mib(ours.model, batch)
    assert 0 < kept < 1.1 * llm_measure.saved_mib(theirs.model, batch)


def test_loragas_first_step_on_a_language_model_is_the_best_of_rank_2r(task, tmp_path, monkeypatch):
    monkeypatch.setattr(llm, "RESULTS", tmp_path)
    monkeypatch.setattr(claims, "RANKS", (1, 4))
    llm_measure.cosines(argparse.Namespace(seed=0), tiny(), task)
    for row in read_csv(tmp_path / "llm_cosines.csv"):
        assert float(row["lora_ga"]) == pytest.approx(float(row["best"]), abs=2e-3)
        assert 0 < float(row["lora"]) < float(row["best"])


def test_what_each_method_costs_is_a_row(task, tmp_path, monkeypatch):
    monkeypatch.setattr(llm, "RESULTS", tmp_path)
    llm_measure.costs(argparse.Namespace(seed=0), tiny(), task)
    rows = read_csv(tmp_path / "llm_costs.csv")
    assert [row["method"] for row in rows] == list(llm.METHODS)
    assert all(0 <= float(row["seconds_per_step"]) < 60 for row in rows)
