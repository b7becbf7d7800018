"""``llm-jax task summarize``, ``translate`` and ``answer``: what a model writes, against references
and beside a baseline that needs no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llm_jax.commands.tasks.results import results, write_results
from llm_jax.commands.tasks.written import (
    Answers,
    LongPrompts,
    first_sentences,
    read_asked,
    write_answers,
)
from llm_jax.evaluation.significance.sums import means
from llm_jax.evaluation.tasks.measures import ROUGE, Figures, figure
from llm_jax.evaluation.text_metrics.answers import answer_scores
from llm_jax.evaluation.text_metrics.rouge import Words, rouge
from llm_jax.evaluation.text_metrics.translation import bleu, chrf, ter
from llm_jax.ranges import Count, Natural, checked
from llm_jax.training.compile_cache import use_compile_cache

References = Sequence[Sequence[str]]


@checked
def summarize(
    documents: Path,
    *,
    model: Path,
    out: Path,
    text_field: str = "document",
    summary_field: str = "summary",
    template: str = "",
    words: Words = "rouge_score",
    max_new_tokens: Count = 64,
    batch_size: Count = 8,
    long: LongPrompts = "refuse",
    step: Natural | None = None,
) -> str:
    """Summaries that a model writes: ROUGE, beside the first three sentences of each document.

    Args:
        documents: JSON lines with a text and a summary, or a list of them.
        model: folder of the run or model: an encoder–decoder, or a decoder.
        out: folder for the figures, every summary and a page.
        text_field: key of the text.
        summary_field: key of the summary.
        template: of the prompt, with the field in braces; the text alone for an encoder–decoder,
            and "{document}\\nSummary:" for a decoder if not given.
        words: rouge_score has letters a to z and digits; unicode the words of any language.
        max_new_tokens: tokens of a summary, at most.
        batch_size: summaries written together.
        long: what becomes of prompts longer than the context: refuse, or skip (left out and
            counted).
        step: which checkpoint of a run; the newest if not given.
    """
    use_compile_cache()
    found = write_answers(
        model,
        read_asked(documents, (text_field,), summary_field),
        template=template,
        of_decoder=f"{{{text_field}}}\nSummary:",
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        long=long,
        step=step,
    )

    def figures(texts: Sequence[str], references: References) -> tuple[Figures, str]:
        made = rouge(texts, references, kinds=ROUGE, words=words)
        return {kind: figure(score.sums) for kind, score in made.scores.items()}, made.signature

    lead = [first_sentences(one.fields[text_field], 3) for one in found.asked]
    ours, signature = figures(found.texts, found.references)
    baselines = {"first 3 sentences": figures(lead, found.references)[0]}
    return _written("summarize", model, out, found, (ours, baselines, signature), long)


@checked
def translate(
    sentences: Path,
    *,
    model: Path,
    out: Path,
    text_field: str = "source",
    target_field: str = "target",
    template: str = "",
    max_new_tokens: Count = 128,
    batch_size: Count = 16,
    long: LongPrompts = "refuse",
    step: Natural | None = None,
) -> str:
    """Translations that a model writes: BLEU, chrF and TER of the corpus, in percent, beside the
    text as it is.

    Args:
        sentences: JSON lines with a text and its translation, or a list of them, as many in each.
        model: folder of the run or model: an encoder–decoder, or a decoder.
        out: folder for the figures, every translation and a page.
        text_field: key of the text.
        target_field: key of the translation.
        template: of the prompt, with the field in braces; a decoder needs one.
        max_new_tokens: tokens of a translation, at most.
        batch_size: translations written together.
        long: what becomes of prompts longer than the context: refuse, or skip (left out and
            counted).
        step: which checkpoint of a run; the newest if not given.
    """
    use_compile_cache()
    found = write_answers(
        model,
        read_asked(sentences, (text_field,), target_field),
        template=template,
        of_decoder="",
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        long=long,
        step=step,
    )
    copies = [one.fields[text_field] for one in found.asked]

    def figures(texts: Sequence[str]) -> tuple[Figures, str]:
        scored = [metric().corpus(texts, found.references) for metric in (bleu, chrf, ter)]
        signature = " ; ".join(f"{one.name} {one.signature}" for one in scored)
        return {one.name: figure(one.sums) for one in scored}, signature

    ours, signature = figures(found.texts)
    return _written(
        "translate", model, out, found, (ours, {"copy": figures(copies)[0]}, signature), long
    )


@checked
def answer(
    questions: Path,
    *,
    model: Path,
    out: Path,
    question_field: str = "question",
    context_field: str = "",
    answer_field: str = "answer",
    template: str = "",
    max_new_tokens: Count = 32,
    batch_size: Count = 16,
    long: LongPrompts = "refuse",
    step: Natural | None = None,
) -> str:
    """Short answers that a model writes: exact match and F1 of words, as SQuAD has them, beside the
    most frequent answer. `llm-jax eval --tasks` asks questions with choices, by likelihood.

    Args:
        questions: JSON lines with a question and an answer, or a list of answers that are right.
        model: folder of the run or model: an encoder–decoder, or a decoder.
        out: folder for the figures, every answer and a page.
        question_field: key of the question.
        context_field: key of a text that has the answer; empty for none.
        answer_field: key of the answer.
        template: of the prompt, with the fields in braces; the context, "Question: …" and "Answer:"
            on lines of their own if not given.
        max_new_tokens: tokens of an answer, at most.
        batch_size: answers written together.
        long: what becomes of prompts longer than the context: refuse, or skip (left out and
            counted).
        step: which checkpoint of a run; the newest if not given.
    """
    use_compile_cache()
    fields = (question_field, context_field) if context_field else (question_field,)
    before = f"{{{context_field}}}\n" if context_field else ""
    usual = f"{before}Question: {{{question_field}}}\nAnswer:"
    found = write_answers(
        model,
        read_asked(questions, fields, answer_field),
        template=template or usual,
        of_decoder=usual,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        long=long,
        step=step,
    )

    def figures(texts: Sequence[str]) -> tuple[Figures, str]:
        made = answer_scores(texts, found.references)
        each = {"exact_match": made.exact_each, "f1": made.f1_each}
        return {name: figure(means(values)) for name, values in each.items()}, made.signature

    often = Counter(own[0] for own in found.references).most_common(1)[0][0]
    baselines = {f"always {often[:24]}": figures([often] * len(found.texts))[0]}
    if context_field:
        first = [first_sentences(one.fields[context_field], 1) for one in found.asked]
        baselines["first sentence"] = figures(first)[0]
    ours, signature = figures(found.texts)
    return _written("answer", model, out, found, (ours, baselines, signature), long)


def _written(
    task: str,
    model: Path,
    out: Path,
    found: Answers,
    scored: tuple[Figures, dict[str, Figures], str],
    long: LongPrompts,
) -> str:
    figures, baselines, signature = scored
    made = results(
        task,
        model,
        found.step,
        found.records,
        figures=figures,
        baselines=baselines,
        template=found.template,
        signature=signature,
        long=long,
        long_texts=found.long,
    )
    return write_results(out, made, found.records)
