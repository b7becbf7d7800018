"""Tasks: files to questions, questions to answers, answers to figures; resumed, and on a mesh."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pytest
from parameters import random_parameters
from words import WORDS

from llm_jax import models, sharding
from llm_jax.api.language_model import LanguageModel
from llm_jax.checkpoints.open_run import Run
from llm_jax.commands.evaluate_tasks import compare_results, table
from llm_jax.config import Config, ExecutionConfig, MeshConfig
from llm_jax.config.overrides import override
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.evaluation.bias.records import Row
from llm_jax.evaluation.tasks import readers
from llm_jax.evaluation.tasks.known import TASKS, load_tasks
from llm_jax.evaluation.tasks.measures import baselines, chosen, figures
from llm_jax.evaluation.tasks.questions import Asked, examples, questions
from llm_jax.evaluation.tasks.questions import chosen as drawn
from llm_jax.evaluation.tasks.run import Asker
from llm_jax.evaluation.tasks.task import Item, Task
from llm_jax.evaluation.text_model import TextModel
from llm_jax.sharding import parameter_shardings
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError, DataError

SMALL = {
    "num_layers": 1,
    "embed_dim": 16,
    "attention.num_heads": 2,
    "mlp.hidden_dim": 24,
    "max_length": 96,
}


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, and files of the user's for each kind of task."""
    path = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)

    def some(count):
        return " ".join(rng.choice(WORDS, count))

    text = write_jsonl(path / "text.jsonl", [{"text": some(30)} for _ in range(100)])
    train_tokenizer((str(text),), path / "tokenizer", vocab_size=300)
    ask = [
        {
            "question": some(3) + f" {i}",
            "choices": [some(1) + str(n) for n in range(3)],
            "answer": i % 3,
        }
        for i in range(12)
    ]
    write_jsonl(path / "ask.jsonl", ask)
    write_jsonl(path / "say.jsonl", [{"question": some(3), "answer": some(1)} for _ in range(5)])
    (path / "whole.txt").write_text(some(200))
    return path


@pytest.fixture(scope="module")
def run(folder):
    config = override(Config(), {f"model.{name}": value for name, value in SMALL.items()})
    config = override(config, {"model.vocab_size": 300})
    model = models.build(config.model, ExecutionConfig(layers="unroll", attention="xla"))
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    return Run(folder, 7, config, mesh, model, random_parameters(model))


def on_mesh(run, **shape):
    mesh = sharding.make_mesh(MeshConfig(**shape))
    placed = jax.device_put(run.params, parameter_shardings(run.model.specs, run.params, mesh))
    return run._replace(mesh=mesh, params=placed)


def model_of(run, batch_size=4):
    return TextModel(run, open_tokenizer(run.folder / "tokenizer"), batch_size)


# Records ------------------------------------------------------------------------------------------


def row(**fields):
    return Row("f.jsonl:3", MappingProxyType(fields))


def test_lettered_records_ask_for_letters_or_for_texts():
    record = row(question="Where?", options="A. here\nB. there\nC. B. nowhere", answer="B. there")
    lettered = readers.read_lettered(record)
    assert lettered.choices == ("A", "B", "C") and lettered.gold == 1
    assert TASKS["mmlu"].example(lettered) == (
        "Where?\nA. here\nB. there\nC. B. nowhere\nAnswer: B"
    )
    plain = readers.read_options(record)
    assert plain.choices == ("here", "there", "B. nowhere")
    assert TASKS["piqa"].example(plain) == "Question: Where?\nAnswer: there"


def test_options_that_begin_in_the_question_are_options():
    record = row(question="What?\nA. x\nB. y", options="C. z\nD. w?", answer="D. w")
    found = readers.read_lettered(record)
    assert found.fields["question"] == "What?" and found.texts == ("x", "y", "z", "w?")
    assert found.gold == 3


@pytest.mark.parametrize("answer, gold", [("False", 0), (True, 1)])
def test_boolq_takes_truth_and_its_text(answer, gold):
    item = readers.read_boolq(row(passage="P", question="is it?", answer=answer))
    assert item.gold == gold and TASKS["boolq"].prompt(item) == "P\nQuestion: is it?\nAnswer:"


@pytest.mark.parametrize(
    "targets", [{"choices": ["a", "b"], "labels": [0, 1]}, {"a": 0, "b": 1}], ids=["lists", "pairs"]
)
def test_truthfulqa_has_one_right_answer(targets):
    item = readers.read_truthfulqa(row(question="q", mc1_targets=targets))
    assert item.choices == ("a", "b") and item.gold == 1


@pytest.mark.parametrize(
    "read, fields, part",
    [
        (readers.read_choices, {"choices": ["a", "b"], "answer": 0}, "question is None"),
        (readers.read_choices, {"question": "q", "answer": 0}, "choices is None"),
        (readers.read_choices, {"question": "q", "choices": ["a", ""]}, r"choices\[1\] is ''"),
        (readers.read_choices, {"question": "q", "choices": ["a", "b"]}, "answer is None"),
        (readers.read_choices, {"question": "q", "choices": ["a", "b"], "answer": True}, "True"),
        (readers.read_choices, {"question": "q", "choices": ["a", "b"], "answer": 2}, "number 2"),
        (readers.read_choices, {"question": "q", "choices": ["a", "a"], "answer": 0}, "twice"),
        (readers.read_lettered, {"question": "q", "options": "A. x\nB. y"}, "answer is None"),
        (
            readers.read_lettered,
            {"question": "q", "options": "A. x\nB. y", "answer": "C. z"},
            "C. z",
        ),
        (readers.read_options, {"question": "q", "options": "x", "answer": "x"}, "options is"),
        (readers.read_boolq, {"passage": "p", "question": "q", "answer": 3}, "answer is 3"),
        (readers.read_truthfulqa, {"question": "q", "answer": ["a"]}, "truthfulqa_gen"),
        (readers.read_summary, {"document": "d"}, "summary is None"),
        (readers.read_references, {"question": "q", "answer": []}, r"answer is \[\]"),
    ],
)
def test_a_field_that_is_missing_is_named_with_its_line(read, fields, part):
    with pytest.raises(DataError, match=part) as error:
        read(row(**fields))
    assert "f.jsonl:3" in str(error.value)


def test_records_that_cannot_be_read_are_refused_or_counted(tmp_path):
    good = {"question": "q", "choices": ["a", "b"], "answer": "b"}
    path = write_jsonl(tmp_path / "own.jsonl", [good, {"question": "q"}, good])
    with pytest.raises(DataError, match=r"own.jsonl:2: choices is None.*--invalid skip"):
        load_tasks([str(path)], None)
    (loaded,) = load_tasks([str(path)], None, "skip")
    assert len(loaded.items) == 2 and "own.jsonl:2" in loaded.invalid[0]


def test_tasks_are_found_by_name_and_by_file(tmp_path):
    (tmp_path / "deep" / "PIQA").mkdir(parents=True)
    record = {"question": "q", "options": "A. x\nB. y", "answer": "A. x"}
    path = write_jsonl(tmp_path / "deep" / "PIQA" / "validation.jsonl", [record])
    assert load_tasks(["piqa"], tmp_path)[0].file == path
    assert load_tasks([f"piqa={path}"], None)[0].task.name == "piqa"
    for wanted, folder, part in (
        (["piqua"], tmp_path, "did you mean 'piqa'"),
        (["boolq"], tmp_path, "has no file BoolQ/dev.jsonl"),
        (["piqa"], None, "--files"),
        (["piqa", f"piqa={path}"], tmp_path, "piqa twice"),
        (["piqa"], tmp_path / "none", "no folder"),
        ([], tmp_path, "tasks is empty"),
    ):
        with pytest.raises(ConfigError, match=part):
            load_tasks(wanted, folder)


# Questions ----------------------------------------------------------------------------------------


def test_a_draw_grows_with_the_limit_and_differs_by_seed():
    small = drawn(50, Asked(limit=5))
    assert set(small) < set(drawn(50, Asked(limit=20))) and small == sorted(small)
    assert drawn(50, Asked(limit=5, seed=1)) != small and drawn(5, Asked(limit=9)) == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_examples_are_never_the_question_itself():
    items = [Item(f"f:{i}", {"question": str(i // 2)}, ("a", "b"), 0) for i in range(8)]
    for number in range(8):
        found = examples(items, number, Asked(shots=6))
        assert len(found) == 6 and items[number].fields not in [one.fields for one in found]
        assert examples(items, number, Asked(shots=2)) == found[:2]
    assert examples(items, 0, Asked(shots=3)) != examples(items, 0, Asked(shots=3, seed=1))
    with pytest.raises(ConfigError, match="has 6 other questions"):
        examples(items, 0, Asked(shots=7))


def test_blanks_before_a_continuation_belong_to_it(run):
    model = model_of(run)
    with_blank, without = model.pair("a story ", "of"), model.pair("a story", " of")
    assert with_blank == without
    whole = model.prompt_ids("a story of")
    assert [*without.context, *without.continuation] == whole
    assert list(without.context) == model.prompt_ids("a story")
    assert model.pair("", "of").context == (model.prefix,) == model.pair(" ", "of").context


def test_long_prompts_are_refused_left_out_or_cut(folder, run):
    model = model_of(run)
    (loaded,) = load_tasks([str(folder / "ask.jsonl")], None)
    asked = Asked(shots=5)
    with pytest.raises(DataError, match=r"\d+ prompts .* longer than the context of 96 tokens"):
        questions(loaded, asked, model)
    cut = questions(loaded, asked._replace(long="truncate-left"), model)
    assert len(cut.asked) == 12 and len(cut.long) > 1
    assert all(one.tokens > one.most for one in cut.long)
    for question in cut.asked:
        assert max(len(p.context) + len(p.continuation) - 1 for p in question.pairs) <= 96
        assert (question.cut > 0) == (question.item.where in [one.where for one in cut.long])
        assert {pair.context[0] for pair in question.pairs} == {model.prefix}
    if len(cut.long) < 12:
        left = questions(loaded, asked._replace(long="skip"), model)
        assert len(left.asked) + len(left.long) == 12 and left.long == cut.long


# Answers ------------------------------------------------------------------------------------------


def test_answers_are_the_likelihoods_of_full_texts(folder, run):
    model = model_of(run)
    (loaded,) = load_tasks([str(folder / "ask.jsonl")], None)
    asked = questions(loaded, Asked(shots=1), model).asked[:3]
    lm = LanguageModel(run)
    for question, record in zip(asked, Asker(model, loaded.task).answers(asked), strict=True):
        for choice, found, alone in zip(
            record["choices"], record["log_likelihoods"], record["unconditional"]
        ):
            before = len(model.prompt_ids(question.prompt))
            scores = lm.score(f"{question.prompt} {choice}")[before - 1 :]
            assert found == pytest.approx(sum(s.logprob for s in scores), abs=1e-4)
            before = len(model.prompt_ids("Answer:"))
            scores = lm.score(f"Answer: {choice}")[before - 1 :]
            assert alone == pytest.approx(sum(s.logprob for s in scores), abs=1e-4)


def record_of(**more):
    base = {
        "choices": ["é", "long answer"],
        "texts": ["é", "long answer"],
        "log_likelihoods": [-3.0, -4.0],
        "unconditional": [-1.0, -9.0],
        "gold": 1,
    }
    record = {**base, **more}
    return {**record, "chosen": chosen(record)}


def test_measures_by_their_definitions():
    assert record_of()["chosen"] == {
        "accuracy": 0,
        "accuracy_characters": 1,
        "accuracy_bytes": 1,
        "accuracy_mutual_information": 1,
    }
    # By characters -1 and -0.6, by bytes -0.5 and -0.6.
    two = record_of(choices=["é", "abc"], log_likelihoods=[-1.0, -1.8])["chosen"]
    assert (two["accuracy_characters"], two["accuracy_bytes"]) == (1, 0)
    assert record_of(log_likelihoods=[-2.0, -2.0])["chosen"]["accuracy"] == 0


def test_figures_and_baselines_of_choices():
    task = TASKS["piqa"]
    records = [record_of(), record_of(gold=0), record_of(gold=0), record_of(gold=0)]
    found = figures(task, records)
    assert found["accuracy"]["value"] == 0.75 and found["accuracy_bytes"]["value"] == 0.25
    assert found["accuracy"]["low"] < 0.75 < found["accuracy"]["high"]
    trivial = {name: one["accuracy"]["value"] for name, one in baselines(task, records).items()}
    assert trivial == {"random": 0.5, "longest": 0.25, "majority": 0.75}
    assert figures(task, records[:1])["accuracy"] == {"value": 0.0, "low": None, "high": None}


def test_figures_of_whole_texts():
    # The golden values: -100 nats over 20 tokens, 15 words and 80 bytes.
    record = {"nll": 50.0, "tokens": 10, "words": 7.5, "bytes": 40}
    task = Task("t", "perplexity", readers.read_document)
    found = {name: one["value"] for name, one in figures(task, [record, record]).items()}
    assert found["perplexity"] == pytest.approx(148.413, abs=1e-3)
    assert found["word_perplexity"] == pytest.approx(785.77, abs=1e-2)
    assert found["byte_perplexity"] == pytest.approx(3.4903, abs=1e-4)
    assert found["bits_per_byte"] == pytest.approx(1.8034, abs=1e-4)


def test_figures_of_written_answers():
    records = [
        {"text": "The Paris.", "references": ["Paris"]},
        {"text": "Rome", "references": ["Rome", "Roma"]},
    ]
    found = {name: one["value"] for name, one in figures(TASKS["truthfulqa_gen"], records).items()}
    assert found["exact_match"] == 0.5 and found["exact_match_squad"] == 1.0
    assert found["exact_match_unicode"] == 0.5
    trivial = baselines(TASKS["truthfulqa_gen"], records)["majority"]
    assert trivial["exact_match"]["value"] == 0.5


# Whole evaluations --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(folder, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    wanted = [str(folder / name) for name in ("ask.jsonl", "say.jsonl")]
    lm = LanguageModel(run)
    found = lm.evaluate_tasks(wanted, batch_size=4, out=out, name="<b>small</b>")
    return lm, wanted, out, found


def answers_in(out, name):
    return [json.loads(line) for line in (out / "answers" / name).read_text().splitlines()]


def test_results_name_all_that_was_asked(evaluated):
    _, _, out, found = evaluated
    assert found == json.loads((out / "results.json").read_text())
    assert [(one["task"], one["shots"], one["items"]) for one in found["results"]] == [
        ("ask", 0, 12),
        ("say", 0, 5),
    ]
    assert found["results"][0]["template"] == "Question: {question}\nAnswer:"
    assert "accuracy of longest" in table(found)


def test_a_stopped_evaluation_goes_on_and_other_settings_are_refused(evaluated, tmp_path):
    lm, wanted, out, found = evaluated
    begun = tmp_path / "answers" / "ask-0-shot.jsonl"
    begun.parent.mkdir()
    lines = (out / "answers" / "ask-0-shot.jsonl").read_bytes().splitlines(keepends=True)
    kept = lines[3].replace(b'"log_likelihoods": [', b'"log_likelihoods": [-0.5, ')
    begun.write_bytes(b"".join([lines[0], kept, lines[5], lines[6][:20]]))
    again = lm.evaluate_tasks(wanted[:1], batch_size=4, out=tmp_path, name="<b>small</b>")
    assert again["results"][0]["figures"] == found["results"][0]["figures"]
    # What was there is not asked again, and what was cut off is.
    assert begun.read_bytes().splitlines(keepends=True)[1] == kept
    assert len(answers_in(tmp_path, "ask-0-shot.jsonl")) == 13
    for more, part in (({"limit": 3}, "limit is 3"), ({"seed": 1}, "seed is 1")):
        given = {"batch_size": 4, "out": tmp_path, "name": "<b>small</b>", **more}
        with pytest.raises(ConfigError, match=f"{part}, and the answers in .* another out"):
            lm.evaluate_tasks(wanted[:1], **given)


def test_changed_parameters_are_not_gone_on_with(evaluated, tmp_path):
    lm, wanted, out, _ = evaluated
    other = lm.with_params(jax.tree.map(lambda a: a + 1, lm.params))
    with pytest.raises(ConfigError, match="parameters is"):
        other.evaluate_tasks(wanted[:1], batch_size=4, out=out, name="<b>small</b>")


@pytest.mark.mesh
def test_answers_are_the_same_at_any_batch_size_and_on_a_mesh(evaluated, run, tmp_path):
    _, wanted, out, found = evaluated
    on_eight = LanguageModel(on_mesh(run, data=2, fsdp=2, tensor=2))
    there = on_eight.evaluate_tasks(wanted, batch_size=8, out=tmp_path, name="<b>small</b>")
    assert there["parameters"] == found["parameters"]
    for name, key in (("ask-0-shot.jsonl", "chosen"), ("say-0-shot.jsonl", "text")):
        one = {r["item"]: r for r in answers_in(out, name)[1:]}
        two = {r["item"]: r for r in answers_in(tmp_path, name)[1:]}
        assert {n: r[key] for n, r in one.items()} == {n: r[key] for n, r in two.items()}
        for n, r in one.items():
            own = r.get("log_likelihoods", [])
            np.testing.assert_allclose(own, two[n].get("log_likelihoods", []), atol=1e-4)


def test_a_page_has_every_answer_and_escapes_all(evaluated, tmp_path):
    _, _, out, _ = evaluated
    page = Path(compare_results((out,), tmp_path / "page.html")).read_text()
    assert "&lt;b&gt;small&lt;/b&gt;, step 7" in page and "<b>small" not in page
    assert page.count("<details>") == 17 and "src=" not in page and "href=" not in page
    with pytest.raises(ConfigError, match="given twice"):
        compare_results((out, out), tmp_path / "page.html")
    with pytest.raises(DataError, match="has no results.json"):
        compare_results((tmp_path,), tmp_path / "page.html")


def test_a_page_compares_answers_to_the_same_questions_only(evaluated, run, folder, tmp_path):
    _, _, out, _ = evaluated
    record = {"question": "q", "choices": ["a", "b"], "answer": 0}
    path = write_jsonl(tmp_path / "ask.jsonl", [record, {**record, "question": "r"}])
    other = tmp_path / "other"
    LanguageModel(run).evaluate_tasks([str(path)], out=other, batch_size=4)
    with pytest.raises(DataError, match="sha256"):
        compare_results((out, other), tmp_path / "page.html")


def test_perplexity_of_a_text_file(folder, run):
    lm = LanguageModel(run)
    (one,) = lm.evaluate_tasks([str(folder / "whole.txt")], batch_size=4)["results"]
    text = (folder / "whole.txt").read_text()
    expected = lm.loss(text, context=96, stride=96)
    found = {name: figure["value"] for name, figure in one["figures"].items()}
    assert found["perplexity"] == pytest.approx(expected.summary()["perplexity"], rel=1e-4)
    bits = expected.nll / (len(text.encode()) * math.log(2))
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    with pytest.raises(ConfigError, match="take no examples"):
        lm.evaluate_tasks([str(folder / "whole.txt")], shots=(2,))
