"""Pairs of prompts and completions: files, batches, the loss and the exact match."""
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import train
from data import base, corpora, pairs, tasks, tokenizer
from data.files import InputError
from test_lora import EXACT, ROOT, gpt

SAMPLE = ROOT / "data" / "e2e_sample.jsonl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CACHE", tmp_path / "cache")


def write(path, rows):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def some_pairs(count, longest=9):
    return [{"prompt": f"Say naïve {i}" + "!" * (i % 4), "completion": " word" * (1 + i % longest)}
            for i in range(count)]


def texts(task, idx, targets):
    """The prompt and the completion of each row, read off the tensors."""
    for row, target in zip(idx, targets):
        looks = target != -1
        first = len(row) - len(target) + int(looks.nonzero()[0])
        yield (task.encoding.decode(row[:first + 1].tolist()),
               task.encoding.decode(target[looks].tolist()))


def test_rows_of_a_file_are_its_lines_in_order_and_the_last_tenth_is_held_out(tmp_path):
    written = some_pairs(40)
    written[3]["completion"] += "\n"  # the end of the line is there once
    name = write(tmp_path / "pairs.jsonl", written)
    task = tasks.load(name, tokenizer.load(), 64)
    assert (len(task.train), len(task.val)) == (36, 4)
    decode = task.encoding.decode
    found = [{"prompt": decode(prompt), "completion": decode(completion)}
             for prompt, completion in [*(task.train[i] for i in range(36)), *task.val]]
    for row in written:
        row["completion"] = row["completion"].rstrip("\n") + "\n"
    assert found == written


def test_the_loss_looks_at_the_completion_and_its_end_alone(tmp_path):
    written = some_pairs(40)
    task = tasks.load(write(tmp_path / "pairs.jsonl", written), tokenizer.load(), 64)
    idx, targets = task.batch(0, 0, 16)
    assert idx.shape[0] == targets.shape[0] == 16 and targets.shape[1] < idx.shape[1]
    known = {(row["prompt"], row["completion"] + "\n") for row in written}
    assert set(texts(task, idx, targets)) <= known
    model = gpt(vocab_size=2048, block_size=64)
    alone = []
    for row, target in zip(idx, targets):  # one by one, without padding
        length = len(row) - len(target) + int((target != -1).nonzero()[-1]) + 1
        logits = model(row[None, :length])[0][0]
        told = target[target != -1]
        alone.append(F.cross_entropy(logits[-len(told):], told, reduction="none"))
    torch.testing.assert_close(model(idx, targets)[1], torch.cat(alone).mean(), **EXACT)


def test_batches_are_a_function_of_seed_and_step_and_of_like_lengths_where_lengths_differ(tmp_path):
    name = write(tmp_path / "pairs.jsonl", some_pairs(300, longest=40))
    task = tasks.load(name, tokenizer.load(), 256)
    again = tasks.load(name, tokenizer.load(), 256)
    one, same = task.batch(1, 5, 8), again.batch(1, 5, 8)
    assert all(torch.equal(a, b) for a, b in zip(one, same))
    assert not torch.equal(one[0][:, :9], task.batch(1, 6, 8)[0][:, :9])
    assert not torch.equal(one[0][:, :9], task.batch(2, 5, 8)[0][:, :9])
    spread = []
    for step in range(32):
        lengths = [len(prompt) + len(text) for prompt, text in texts(task, *task.batch(0, step, 8))]
        spread.append(max(lengths) - min(lengths))
    rows = some_pairs(300, longest=40)
    everything = [len(row["prompt"]) + len(row["completion"]) for row in rows]
    assert np.mean(spread) < 0.25 * (max(everything) - min(everything))
    math_task = tasks.load("math", tokenizer.load(), 64)
    assert task.candidates > 1 and math_task.candidates == 1  # there, nothing would be saved


def test_the_mark_with_which_some_editors_begin_a_file_is_no_text(tmp_path):
    name = write(tmp_path / "pairs.jsonl", some_pairs(4))
    rows = pairs.load(name, tokenizer.load(), 64, "--data")
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "pairs.jsonl").read_bytes())
    again = pairs.load(str(marked), tokenizer.load(), 64, "--data")
    assert np.array_equal(rows.tokens, again.tokens)


def test_rows_longer_than_the_context_lose_their_completions_end_and_are_counted(tmp_path):
    name = write(tmp_path / "pairs.jsonl", some_pairs(30, longest=30))
    told = []
    task = tasks.load(name, tokenizer.load(), 20, told.append)
    whole = tasks.load(name, tokenizer.load(), 64, lambda message: None)
    too_long = sum(length - 1 > 20 for length in whole.train.lengths())
    too_long += sum(tasks.sum_of_lengths(pair) - 1 > 20 for pair in whole.val)
    assert too_long and f"{too_long} of 30 completions in {name} end early" in told[-1]
    idx, targets = task.rows([task.train[28 - 3]])
    assert idx.shape[1] == 20
    [(prompt, completion)] = texts(task, idx, targets)
    given, full = (task.encoding.decode(part) for part in task.train[28 - 3])
    assert prompt == given and full.startswith(completion) and len(completion) < len(full)


def test_measures_are_those_of_the_rows_taken_alone_and_of_generated_answers(tmp_path):
    task = tasks.load(write(tmp_path / "pairs.jsonl", some_pairs(60)), tokenizer.load(), 64)
    model = gpt(vocab_size=2048, block_size=64)
    model.lm_head.weight.data *= 20  # far from even
    losses, tokens, right = 0.0, 0, 0
    for prompt, completion in task.val:
        whole = torch.tensor([prompt + completion])
        logits = model(whole[:, :-1])[0][0, len(prompt) - 1:]
        losses += F.cross_entropy(logits, whole[0, len(prompt):], reduction="sum").item()
        tokens += len(completion)
        told = model.generate(whole[:, :len(prompt)], len(completion), temperature=0)
        right += torch.equal(told, whole)
    found = task.measure(model)
    assert math.isclose(found["loss"], losses / tokens, rel_tol=1e-9)
    assert found["exact match"] == right / len(task.val)
    assert task.evaluate(model) == found["loss"] and task.metric == "loss"
    tell = tasks.Pairs(task.encoding, 64, task.train, [
        (prompt, model.generate(torch.tensor([prompt]), 3, temperature=0)[0, len(prompt):].tolist())
        for prompt, _ in task.val])
    assert tell.measure(model)["exact match"] == 1


def test_at_most_500_rows_are_judged_evenly_spread(tmp_path):
    rows = some_pairs(1200)
    task = tasks.load(write(tmp_path / "a.jsonl", some_pairs(3)), tokenizer.load(), 64,
                      val_data=write(tmp_path / "b.jsonl", rows))
    assert len(task.val) == 500 and len(task.train) == 3
    prompts = [task.encoding.decode(task.val[i][0]) for i in (0, -1)]
    assert prompts == [rows[0]["prompt"], rows[-1]["prompt"]]


GOOD = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize("text, sentence", [
    (GOOD + "{}\n", "line 2: not an object with the strings"),
    (GOOD + GOOD + "oops\n", "line 3: not an object"),
    (GOOD + "\n", "line 2: not an object"),
    (GOOD + '{"prompt": "a", "completion": 7}\n', "line 2: not an object"),
    (GOOD + '{"prompt": ["a"], "completion": "b"}\n', "line 2: not an object"),
    (GOOD + '{"prompt": "a", "completion": "\\n"}\n', "line 2: the completion is empty"),
    ('{"prompt": "", "completion": "b"}\n', "line 1: the prompt is empty"),
    (GOOD + '{"prompt": "%s", "completion": "b"}\n' % ("a?" * 40), "line 2: the prompt has 80"),
    (GOOD, "has one pair"), ("", "is empty"),
])
def test_lines_that_are_no_pair_are_refused_with_their_number(tmp_path, text, sentence):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=sentence) as error:
        tasks.load(str(path), tokenizer.load(), 64)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*.nanolora-tmp"))


def test_what_val_data_cannot_be_is_a_sentence(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("Some words of a text. " * 400, encoding="utf-8")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(GOOD.encode() + b'{"prompt": "caf\xe9"}\n')
    pair_file = write(tmp_path / "pairs.jsonl", some_pairs(20))
    for name, val, sentence in (("math", pair_file, "--val_data goes with a file"),
                                ("docs", str(notes), "--val_data goes with a file"),
                                (str(notes), "nowhere.txt", "--val_data nowhere.txt is neither"),
                                (pair_file, str(notes), "--val_data .* line 1: not an object"),
                                (pair_file, str(latin), "--val_data .* after line .*: not UTF-8")):
        with pytest.raises(InputError, match=sentence):
            tasks.load(name, tokenizer.load(), 64, lambda message: None, val)


def test_text_is_judged_by_val_data(tmp_path):
    train_file, val_file = tmp_path / "a.txt", tmp_path / "b.txt"
    train_file.write_text("Some words of a text. " * 100, encoding="utf-8")
    val_file.write_text("And others of another. " * 100, encoding="utf-8")
    task = tasks.load(str(train_file), tokenizer.load(), 16, lambda message: None, str(val_file))
    assert task.encoding.decode(list(task.val)) == val_file.read_text(encoding="utf-8")
    assert task.encoding.decode(list(task.train)) == train_file.read_text(encoding="utf-8")


def test_the_shipped_sample_trains_end_to_end(tmp_path):
    rows = [pairs.parse(line, "") for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 200 and all(prompt.endswith(" ||") for prompt, _ in rows)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(SAMPLE.read_text(encoding="utf-8").splitlines(True)[:7]), "utf-8")
    flags = f"--data {SAMPLE} --val_data {other} --method loraga --steps 8 --lr 1e-3 --device cpu"
    args = train.parse_args([*flags.split(), "--out_dir", str(tmp_path / "o")])
    assert args.batch_size == 32
    args.batch_size = 8
    result = train.train(args)
    task = tasks.load(str(SAMPLE), tokenizer.load(), 128, val_data=str(other))
    assert result["measures_before"] == task.measure(base.load()) and len(task.val) == 7
    assert result["metric_name"] == "loss" and result["task"] == "e2e_sample"
    assert result["metric_after"] == result["measures_after"]["loss"] == result["history"][-1][1]
    assert result["measures_after"]["loss"] < 0.95 * result["measures_before"]["loss"]
    assert 0 <= result["measures_after"]["exact match"] < 1
