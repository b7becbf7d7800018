"""Metrics beside the packages that define them: sacrebleu, rouge-score, scikit-learn."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
SENTENCE = "the cat sat on a mat and dogs ran over hills , while rain fell softly . running"


def made_corpus(seed: int, count: int = 40):
    """Texts of two systems and two references each."""
    rng = np.random.default_rng(seed)
    references, first, second = [], [], []
    for _ in range(count):
        words = list(rng.choice(SENTENCE.split(), rng.integers(4, 20)))
        references.append([" ".join(words), " ".join(rng.permutation(words))])
        first.append(" ".join(np.where(rng.random(len(words)) < 0.4, "x", words)))
        second.append(" ".join(np.where(rng.random(len(words)) < 0.3, "y", words)))
    return first, second, references


@pytest.fixture(scope="module")
def sacrebleu():
    pytest.importorskip("sacrebleu.significance")
    import sacrebleu

    return sacrebleu


def ours_and_theirs(sacrebleu):
    from llm_jax.evaluation.text_metrics import translation

    metrics = sacrebleu.metrics
    return {
        "bleu": (translation.bleu(), metrics.BLEU()),
        "char": (translation.bleu(tokenizer="char"), metrics.BLEU(tokenize="char")),
        "floor": (translation.bleu(smoothing="floor"), metrics.BLEU(smooth_method="floor")),
        "chrf": (translation.chrf(), metrics.CHRF()),
        "chrf++": (translation.chrf(word_order=2), metrics.CHRF(word_order=2)),
        "ter": (translation.ter(), metrics.TER()),
        "ter, case": (translation.ter(case_sensitive=True), metrics.TER(case_sensitive=True)),
    }


def test_scores_and_signatures_are_those_of_sacrebleu(sacrebleu):
    texts, _, references = made_corpus(0)
    streams = [list(stream) for stream in zip(*references, strict=True)]
    for ours, theirs in ours_and_theirs(sacrebleu).values():
        got = ours.corpus(texts, references)
        expected = theirs.corpus_score(texts, streams)
        assert got.score == pytest.approx(expected.score, abs=1e-12)
        assert got.signature == str(theirs.get_signature()) and got.name == expected.name
        each = [theirs.sentence_score(t, r).score for t, r in zip(texts, references, strict=True)]
        assert ours.sentences(texts, references) == pytest.approx(each, abs=1e-12)


@pytest.mark.parametrize("test_type", ["bs", "ar"])
def test_p_values_are_those_of_sacrebleu_by_its_definition(sacrebleu, monkeypatch, test_type):
    from sacrebleu.significance import PairedTest

    from llm_jax.evaluation.significance.paired import approximate_randomization, paired_bootstrap

    monkeypatch.setenv("SACREBLEU_SEED", "99")
    samples = 300
    first, second, references = made_corpus(1)
    streams = [list(stream) for stream in zip(*references, strict=True)]
    for name in ("bleu", "chrf", "ter"):
        ours, theirs = ours_and_theirs(sacrebleu)[name]
        test = PairedTest(
            [("first", first), ("second", second)],
            {name: theirs},
            references=streams,
            test_type=test_type,
            n_samples=samples,
        )
        _, results = test()
        _, (_, of_second) = results.values()
        expected = of_second.p_value
        compare = paired_bootstrap if test_type == "bs" else approximate_randomization
        got = compare(
            ours.corpus(first, references).sums,
            ours.corpus(second, references).sums,
            samples=samples,
            seed=99,
            definition="sacrebleu",
        )
        assert got.p_value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_that_of_rouge_score(stemmer):
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    from llm_jax.evaluation.text_metrics.rouge import KINDS, rouge

    texts, _, references = made_corpus(2)
    got = rouge(texts, references, stemmer=stemmer, resamples=10).scores
    theirs = scorer.RougeScorer(list(KINDS), use_stemmer=stemmer)
    each = [theirs.score_multi(own, text) for text, own in zip(texts, references, strict=True)]
    for kind in KINDS:
        assert got[kind].f.value == pytest.approx(np.mean([e[kind].fmeasure for e in each]))
        assert got[kind].recall == pytest.approx(np.mean([e[kind].recall for e in each]))
        assert got[kind].precision == pytest.approx(np.mean([e[kind].precision for e in each]))


def test_labels_and_probabilities_are_scored_as_scikit_learn_scores_them():
    metrics = pytest.importorskip("sklearn.metrics")
    from llm_jax.classic.scores import classification_scores
    from llm_jax.evaluation.text_metrics.calibration import brier_score, calibration

    rng = np.random.default_rng(4)
    labels = rng.integers(0, 5, 300)
    predictions = np.where(rng.random(300) < 0.6, labels, rng.integers(0, 6, 300))
    got = classification_scores(labels.tolist(), predictions.tolist())
    options = {"zero_division": 0}
    assert got.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions))
    for average in ("macro", "micro", "weighted"):
        expected = metrics.f1_score(labels, predictions, average=average, **options)
        assert getattr(got, f"{average}_f1") == pytest.approx(expected)
    chosen = classification_scores(labels.tolist(), predictions.tolist(), classes=[0, 1, 2])
    expected = metrics.f1_score(labels, predictions, labels=[0, 1, 2], average="micro", **options)
    assert chosen.micro_f1 == pytest.approx(expected)

    table = rng.dirichlet(np.ones(5), 300)
    expected = metrics.brier_score_loss(labels, table, labels=range(5), scale_by_half=False)
    assert brier_score(table, labels) == pytest.approx(expected)
    from sklearn.calibration import calibration_curve

    sure = table.max(axis=1)
    right = (table.argmax(axis=1) == labels).astype(int)
    accuracy, confidence = calibration_curve(right, sure, n_bins=10)
    bins = calibration(sure, right, bins=10).bins
    assert [each.accuracy for each in bins] == pytest.approx(accuracy.tolist())
    assert [each.confidence for each in bins] == pytest.approx(confidence.tolist())
