"""The report's results: the summary at its head, the baselines, and samples."""

from __future__ import annotations

from typing import NamedTuple

from llm_jax.bench.page import (
    Html,
    compact,
    duration,
    finite,
    join,
    missing,
    number,
    percent,
    section,
    table,
    tag,
    value_text,
)
from llm_jax.bench.run_files import BASELINES, Json, RunRecord
from llm_jax.config.sections import NONE


def header(run: RunRecord) -> Html:
    """The run's name, its progress, and the shape of its model."""
    config = run.config
    total = config.get("train.steps") or run.steps
    state = "finished" if run.steps >= total else "not finished"
    parts = [f"{state}: {run.steps:,} of {total:,} steps"]
    resumed = [f"{step:,}" for step in run.starts if step > 0]
    if resumed:
        parts.append(f"resumed at step {', '.join(resumed)}")
    if "model.num_layers" in config:
        parts.append(_shape(config))
    if "data.batch_size" in config:
        parts.append(f"batch {config['data.batch_size']} × {config.get('data.seq_length')} tokens")
    if "optimizer.update" in config:
        schedule = config.get("optimizer.schedule")
        parts.append(f"{config['optimizer.update']}, {schedule} schedule")
    return tag("header", tag("h1", run.name), tag("div", " · ".join(parts), class_="soft"))


def _shape(config: Json) -> str:
    """The shape of a model as text."""
    width = f"width {config.get('model.embed_dim')}"
    kind = config.get("model.recurrent") or NONE
    if kind != NONE:
        return f"{config['model.num_layers']} {kind} layers, {width}"
    heads = config.get("model.attention.num_heads")
    return f"{config['model.num_layers']} layers, {heads} heads, {width}"


class _Fact(NamedTuple):
    """A figure of the headline: its name, its value, and a remark below it."""

    name: str
    value: str
    note: str


def headline(run: RunRecord) -> Html:
    """The main figures of the run."""
    facts = [
        *_score_facts(run),
        _parameters_fact(run),
        _tokens_fact(run),
        *_speed_facts(run),
        _wall_fact(run),
    ]
    cells = [
        tag("div", tag("dt", f.name), tag("dd", f.value, class_="value"), tag("dd", f.note))
        for f in facts
    ]
    peak = finite(run.setup.get("peak_flops"))
    source = "a peak not recorded"
    if peak:
        source = f"{compact(peak, 'FLOP/s')} per device ({run.setup.get('peak_source')})"
    remark = tag("p", f"MFU is the median share of {source}.", class_="remark")
    return join([tag("dl", *cells, class_="facts"), remark])


def _score_facts(run: RunRecord) -> list[_Fact]:
    perplexity = run.score("model", "perplexity")
    if not perplexity and run.evals:
        perplexity = run.evals[-1].get("perplexity")
    bits = run.score("model", "bits_per_byte")
    return [
        _Fact(
            "Validation perplexity",
            number(perplexity, 4),
            _baseline_scores(run, "perplexity") or "no baselines",
        ),
        _Fact("Bits per byte", number(bits, 4), _baseline_scores(run, "bits_per_byte")),
    ]


def _baseline_scores(run: RunRecord, key: str) -> str:
    scores = [(name, run.score(who, key)) for who, name in BASELINES.items()]
    return " · ".join(f"{name} {number(score, 4)}" for name, score in scores if score)


def _parameters_fact(run: RunRecord) -> _Fact:
    vocabulary = run.config.get("model.vocab_size")
    return _Fact(
        "Parameters",
        compact(run.setup.get("parameters")),
        f"vocabulary {value_text(vocabulary)}",
    )


def _tokens_fact(run: RunRecord) -> _Fact:
    tokens = run.steps * (finite(run.setup.get("global_tokens_per_step")) or 0)
    rows = finite(run.setup.get("rows_per_epoch"))
    batch_size = finite(run.config.get("data.batch_size")) or 0
    epochs = run.steps * batch_size / rows if rows else 0
    return _Fact(
        "Tokens seen", compact(tokens or None), f"{number(epochs)} epochs" if epochs else ""
    )


def _speed_facts(run: RunRecord) -> list[_Fact]:
    speed = run.median("tokens_per_second")
    per_device = run.median("tokens_per_second_per_device")
    devices = round(speed / per_device) if speed and per_device else 0
    note = f"median, {devices} device{'s' * (devices != 1)}" if devices else ""
    return [
        _Fact("Tokens per second", compact(speed) if (speed or 0) >= 1e5 else number(speed), note),
        _Fact(
            "MFU, causal",
            percent(run.median("mfu_causal")),
            f"{percent(run.median('mfu_full'))} by full attention",
        ),
    ]


def _wall_fact(run: RunRecord) -> _Fact:
    note = ""
    if run.wall:
        note = f"{percent(sum(run.spent.values()) / run.wall)} accounted for"
    return _Fact("Wall time", duration(run.wall or None), note)


def baselines(run: RunRecord) -> Html:
    """The model beside n-gram models of the same shards."""
    if run.results is None:
        return missing("Against baselines", "Not made: the folder has no results.json.")
    keys = ("bits_per_byte", "perplexity", "word_perplexity", "byte_perplexity")
    names = [name for name in ("model", *reversed(BASELINES)) if run.results.get(name)]
    top = max((run.score(name, keys[0]) or 0 for name in names), default=0) or 1
    rows = []
    for name in names:
        share = 100 * (run.score(name, keys[0]) or 0) / top
        colour = "blue" if name == "model" else "grey"
        rect = tag("rect", width=f"{share:.1f}%", height="100%")
        bar = tag("svg", rect, class_=f"bar {colour}", aria_hidden="true")
        title = tag("b", "this model") if name == "model" else BASELINES[name]
        rows.append((title, bar, *(number(run.score(name, key), 4) for key in keys)))
    head = ("", "", "bits per byte", "perplexity per token", "per word", "per byte")
    return section(
        "Against baselines",
        _comparison(run, names),
        table(head, rows, (2, 3, 4, 5)),
        _scoring(run.results),
    )


def _comparison(run: RunRecord, names: list[str]) -> Html | str:
    """How many times lower or higher the model's perplexity is than each baseline's."""
    own = run.score("model", "perplexity")
    ratios = []
    for name in names:
        other = run.score(name, "perplexity")
        if name != "model" and own and other:
            ratio = number(max(other / own, own / other))
            relation = "lower" if own < other else "higher"
            ratios.append(f"{ratio} times {relation} than the {BASELINES[name]}’s")
    if not ratios:
        return ""
    listed = " and ".join(filter(None, [", ".join(ratios[:-1]), ratios[-1]]))
    return tag("p", f"The model’s perplexity is {listed}.")


def _scoring(results: Json) -> Html:
    """How the model was scored."""
    model = results.get("model") or {}
    how = []
    if finite(results.get("step")) is not None:
        how.append(f"step {value_text(results['step'])}")
    counts = [
        f"{value_text(model[key])} {key}"
        for key in ("tokens", "words", "bytes")
        if finite(model.get(key)) is not None
    ]
    if counts:
        how.append(f"scored on {', '.join(counts)}")
    how += [f"{key} {value_text(model[key])}" for key in ("context", "stride") if key in model]
    if "bos" in model:
        how.append(f"{'with' if model['bos'] else 'without'} a start token before each document")
    remark = f"Model: {'; '.join(how)}." if how else ""
    return tag("p", "Lower is better. ", remark, _five_gram_remark(results), class_="remark")


def _five_gram_remark(results: Json) -> str:
    """How the 5-gram model was made."""
    five_gram = results.get("kneser_ney") or {}
    tokens = finite(five_gram.get("train_tokens"))
    if tokens is None:
        return ""
    part = "" if five_gram.get("whole_train_split", True) else "the first "
    remark = f" 5-gram: modified Kneser–Ney smoothing, counted on {part}{int(tokens):,} tokens"
    if five_gram.get("fallback_orders"):
        remark += ", too few to estimate every discount"
    return f"{remark}."


def samples(run: RunRecord) -> Html:
    """The texts that the model writes, each after its prompt in bold."""
    found = (run.results or {}).get("samples") or []
    if not found:
        return missing("Samples", "Not made: no samples in results.json.")
    figures = []
    for sample in found:
        prompt = tag("b", sample.get("prompt", ""))
        text = tag("pre", prompt, sample.get("text", ""), dir="auto")
        caption = tag("figcaption", sample.get("settings", ""))
        figures.append(tag("figure", text, caption, class_="sample"))
    return section("Samples", *figures)
