"""Which tokens may come next: masks against what a brute search allows, and rows that are taken
back, copied and gathered as drafts and beams do.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("llguidance", reason="needs the extra: pip install -e '.[constrain]'")

from constrained_rows import (
    ALL_KINDS,
    COMPLETE_KINDS,
    MORE_IDS,
    bits,
    random_text,
    tokenizer_of,
    vocabulary_of,
)

from llm_jax.decode.constrain import (
    Choices,
    GrammarVocabulary,
    JsonSchema,
    Lark,
    Matchers,
    Regex,
    compile_constraint,
)
from llm_jax.types import ConfigError

PREFIXES = Choices(["th", "the", "then", "other", "é日", "é本"])
POINT = JsonSchema(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 3}, "n": {"enum": [1, 12, 123]}},
        "required": ["name", "n"],
        "additionalProperties": False,
    }
)


def matchers_of(kind: str, *constraints, begins=None) -> Matchers:
    vocabulary = vocabulary_of(kind)
    compiled = [c and compile_constraint(c, vocabulary) for c in constraints]
    return Matchers(vocabulary, compiled, begins)


def allowed(matchers: Matchers, row: int = 0) -> set[int]:
    return set(np.flatnonzero(bits(matchers.bitmask()[row])).tolist())


def some_tokens(kind: str, text: str) -> list[int]:
    return vocabulary_of(kind)._encode(text.encode())


@pytest.mark.parametrize("kind", COMPLETE_KINDS)
def test_a_mask_is_the_tokens_after_which_some_choice_can_still_come(kind):
    vocabulary = vocabulary_of(kind)
    rng = np.random.default_rng(0)
    for _ in range(12):
        matchers = matchers_of(kind, PREFIXES)
        written = b""
        while not matchers.finished[0]:
            rest = [text.encode() for text in PREFIXES.texts]
            rest = [text[len(written) :] for text in rest if text.startswith(written)]
            fits = {
                id
                for id in range(vocabulary.count)
                if vocabulary.has_text(id)
                and any(text.startswith(vocabulary.bytes_of(id)) for text in rest)
            }
            found = allowed(matchers)
            stops = set(vocabulary.stop_ids) if b"" in rest else set()
            assert found & set(vocabulary.stop_ids) == stops
            assert bool(matchers.accepting[0]) == (b"" in rest)
            found -= stops
            # Where only one text is left, one of the ways to write it is allowed.
            one_way = len({text[:1] for text in rest}) == 1
            assert (found and found <= fits) if one_way else found == fits
            token = int(rng.choice(sorted(found | stops)))
            matchers.consume([[token]])
            written += vocabulary.bytes_of(token)
        assert written.decode() in PREFIXES.texts


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("forced", [False, True])
def test_what_is_finished_is_a_choice_wherever_the_text_begins(kind, begins, forced):
    # The unigram and WordPiece vocabularies have no bytes.
    texts = ["yes", "yes please", "no", "a a"]
    if kind in COMPLETE_KINDS:
        texts += [" yes", "é日本\U0001f600", '"\\\n', "</s>", "<s>x"]
    compiled = compile_constraint(Choices(texts), vocabulary_of(kind))
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(40):
        made = random_text(compiled, rng, kind=kind, begins=begins, forced=forced)
        if made.finished:
            assert made.text in texts
            seen.add(made.text)
        elif kind in COMPLETE_KINDS:
            raise AssertionError(made)
    assert len(seen) >= 2


def test_ids_that_are_no_text_are_never_allowed():
    for kind in ALL_KINDS:
        vocabulary = vocabulary_of(kind)
        matchers = matchers_of(kind, Regex("(?s).*"))
        rng = np.random.default_rng(0)
        for _ in range(5):
            found = allowed(matchers)
            stops = set(vocabulary.stop_ids) if matchers.accepting[0] else set()
            assert found & set(vocabulary.stop_ids) == stops
            text = found - set(vocabulary.stop_ids)
            assert all(vocabulary.has_text(id) for id in text)
            assert not any(tokenizer_of(kind).is_control(id) for id in text)
            assert max(found) < vocabulary.size - MORE_IDS
            matchers.consume([[int(rng.choice(sorted(text)))]])


def test_a_free_row_allows_every_token_and_ends_at_a_stop_token():
    vocabulary = vocabulary_of("byte-level")
    matchers = matchers_of("byte-level", None, PREFIXES)
    assert allowed(matchers) >= set(range(vocabulary.size))
    assert matchers.constrained.tolist() == [False, True]
    matchers.consume([[5, 700], []])
    assert matchers.finished.tolist() == [False, False]
    matchers.consume([[vocabulary.stop_ids[0]], []])
    assert matchers.finished.tolist() == [True, False]
    assert allowed(matchers) >= set(range(vocabulary.size))
    assert matchers.forced()[0] == []


def test_a_finished_row_allows_stop_tokens_only():
    vocabulary = vocabulary_of("byte-level")
    matchers = matchers_of("byte-level", Choices(["no"]))
    matchers.consume([some_tokens("byte-level", "no")])
    assert matchers.finished[0] and matchers.accepting[0]
    assert allowed(matchers) == set(vocabulary.stop_ids)
    matchers.consume([[vocabulary.stop_ids[0]]])
    assert matchers.finished[0] and allowed(matchers) == set(vocabulary.stop_ids)
    with pytest.raises(ConfigError, match="row 0: token 5 may not come after"):
        matchers.consume([[5]])


def test_without_stop_tokens_a_row_ends_where_nothing_can_follow():
    tokenizer = tokenizer_of("byte-level")
    vocabulary = GrammarVocabulary(tokenizer, tokenizer.vocab_size, stop_ids=())
    compiled = compile_constraint(Choices(["a", "ab"]), vocabulary)
    matchers = Matchers(vocabulary, [compiled])
    matchers.consume([tokenizer.encode("a")])
    assert not matchers.finished[0] and allowed(matchers) == set(tokenizer.encode("b"))
    matchers.consume([tokenizer.encode("b")])
    assert matchers.finished[0] and len(allowed(matchers)) >= vocabulary.size


def test_a_stop_token_is_no_text_even_where_the_tokenizer_has_it_as_such():
    tokenizer = tokenizer_of("byte-level")
    (line_end,) = tokenizer.encode("\n")
    vocabulary = GrammarVocabulary(tokenizer, tokenizer.vocab_size, stop_ids=[line_end])
    compiled = compile_constraint(Regex(r"a\s*"), vocabulary)
    matchers = Matchers(vocabulary, [compiled])
    assert line_end not in allowed(matchers)
    matchers.consume([tokenizer.encode("a")])
    assert line_end in allowed(matchers)
    matchers.consume([[line_end]])
    assert matchers.finished[0]


def test_forced_tokens_are_those_of_the_tokenizer_and_are_not_consumed():
    for kind in COMPLETE_KINDS:
        matchers = matchers_of(kind, POINT, None)
        (first, free) = matchers.forced()
        assert free == []
        assert b"".join(map(vocabulary_of(kind).bytes_of, first)).decode() in '{"name'
        matchers.consume([some_tokens(kind, '{"name"'), []])
        assert matchers.forced()[0] == []
        matchers.consume([some_tokens(kind, ':"a","'), []])
        ready = matchers.forced()[0]
        assert tokenizer_of(kind).decode_bytes(ready) in (b"n", b'n"')
        assert matchers.forced()[0] == ready
        matchers.consume([ready, []])


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_rows_go_back_as_if_tokens_had_not_come(kind):
    rng = np.random.default_rng(3)
    matchers = matchers_of(kind, POINT, PREFIXES, Regex("[a-c]*"), None)
    masks = [matchers.bitmask()]
    taken: list[list[int]] = [[], [], [], []]
    for _ in range(9):
        tokens = []
        for row, done in enumerate(matchers.finished):
            choices = sorted(allowed(matchers, row) & set(range(vocabulary_of(kind).count)))
            tokens.append([] if done else [int(rng.choice(choices))])
            taken[row] += tokens[-1]
        matchers.consume(tokens)
        masks.append(matchers.bitmask())
    # All the way back, some rows after a stop token.
    for back in (1, 3):
        again = matchers.copy()
        again.rollback([min(back, len(row)) for row in taken])
        for row, tokens in enumerate(taken):
            left = max(len(tokens) - back, 0)
            np.testing.assert_array_equal(again.bitmask()[row], masks[left][row])
        again.consume([row[max(len(row) - back, 0) :] for row in taken])
        np.testing.assert_array_equal(again.bitmask(), masks[-1])
        np.testing.assert_array_equal(again.finished, matchers.finished)
    matchers.rollback([len(row) for row in taken])
    np.testing.assert_array_equal(matchers.bitmask(), masks[0])
    with pytest.raises(ConfigError, match="row 0: cannot take 1 tokens back; it has 0"):
        matchers.rollback([1, 0, 0, 0])


def test_gathered_rows_go_their_own_ways():
    kind = "byte-level"
    matchers = matchers_of(kind, Choices(["abc", "abd"]), None)
    matchers.consume([some_tokens(kind, "a"), []])
    beams = matchers.gather(np.array([0, 0, 1]))
    beams.consume([some_tokens(kind, "bc"), some_tokens(kind, "bd"), []])
    assert beams.finished.tolist() == [True, True, False]
    assert matchers.finished.tolist() == [False, False]
    assert len(beams) == 3 and beams.constrained.tolist() == [True, True, False]
    assert matchers.copy().bitmask().tolist() == matchers.bitmask().tolist()


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
@pytest.mark.parametrize("begins", [False, True])
def test_masks_along_a_draft_are_those_of_its_tokens_one_by_one(kind, begins):
    matchers = matchers_of(kind, PREFIXES, POINT, None, begins=[begins] * 3)
    stop = vocabulary_of(kind).stop_ids[0]
    text = some_tokens(kind, "the")
    draft = [*text, stop, stop][: len(text) + 1]
    wrong = [*some_tokens(kind, "{"), *some_tokens(kind, "x"), *draft][: len(draft)]
    before = matchers.bitmask()
    masks = matchers.draft_bitmask([draft, wrong, draft])
    assert masks.shape == (3, len(draft) + 1, vocabulary_of(kind).words)
    np.testing.assert_array_equal(matchers.bitmask(), before)
    for place in range(len(draft)):
        np.testing.assert_array_equal(masks[0, place], matchers.bitmask()[0])
        matchers.consume([[draft[place]], [], []])
    np.testing.assert_array_equal(masks[0, -1], matchers.bitmask()[0])
    assert bits(masks[1, 1]).any() and not bits(masks[1, 2:]).any()
    assert bits(masks[2]).all()


def test_a_token_that_may_not_come_leaves_its_row_as_it_was():
    matchers = matchers_of("byte-level", PREFIXES)
    before = matchers.bitmask()
    (wrong,) = some_tokens("byte-level", "z")
    for token in (wrong, 10**6, -1, vocabulary_of("byte-level").stop_ids[0]):
        with pytest.raises(ConfigError, match=f"row 0: token {token} may not come after 0"):
            matchers.consume([[token]])
        np.testing.assert_array_equal(matchers.bitmask(), before)


def test_threads_fill_the_same_masks():
    tokenizer = tokenizer_of("metaspace")
    masks = []
    for threads in (1, 3):
        vocabulary = GrammarVocabulary(tokenizer, tokenizer.vocab_size, threads=threads)
        assert (vocabulary.executor is None) == (threads == 1)
        rows = [compile_constraint(c, vocabulary) for c in (PREFIXES, POINT, Regex("a+"))]
        masks.append(Matchers(vocabulary, [*rows, None, *rows], [True] * 7).bitmask())
    np.testing.assert_array_equal(*masks)


def test_a_dead_end_allows_nothing_and_says_why():
    # The vocabulary has no digits in brackets.
    matchers = matchers_of("unigram", Lark('start: "a" /[日]/ | "ab"'))
    matchers.consume([some_tokens("unigram", "a")])
    assert matchers.dead_end(0) == ""
    stuck = matchers_of("unigram", Lark('start: "a" /[日本]/ | "ab" /日/'))
    stuck.consume([some_tokens("unigram", "a"), []][:1])
    while stuck.bitmask()[0].any():
        stuck.consume([[min(allowed(stuck))]])
    assert "no token for what the constraint needs" in stuck.dead_end(0)
    assert not stuck.finished[0]


def test_the_rows_of_matchers_fit_their_vocabulary():
    compiled = compile_constraint(PREFIXES, vocabulary_of("byte-level"))
    with pytest.raises(ConfigError, match="row 1 was compiled for another vocabulary"):
        Matchers(vocabulary_of("metaspace"), [None, compiled])
    with pytest.raises(ConfigError, match="begins has 2 rows, and there are 1"):
        Matchers(vocabulary_of("byte-level"), [compiled], [True, False])


@pytest.mark.parametrize("whitespace", [0, 1, 4])
def test_white_space_is_bounded(whitespace):
    kind = "byte-level"
    schema = {"type": "array", "items": {"type": "integer"}}
    for constraint in (
        JsonSchema(schema, whitespace=whitespace),
        Lark('start: %json {"type": "array", "items": {"type": "integer"}}', whitespace=whitespace),
    ):
        matchers = matchers_of(kind, constraint)
        (blank,) = some_tokens(kind, " ")
        matchers.consume([some_tokens(kind, "[")])
        for _ in range(whitespace):
            matchers.consume([[blank]])
        # Tokens of several blanks are as long as all that is left.
        assert not any(vocabulary_of(kind).bytes_of(id).isspace() for id in allowed(matchers))
        with pytest.raises(ConfigError):
            matchers.consume([[blank]])


def test_json_inside_of_a_grammar_is_read_as_a_schema_alone():
    schema = '{"type": "object", "patternProperties": {"^\\\\w$": {"type": "null"}}}'
    compiled = compile_constraint(
        Lark(f'start: "<" part ">"\npart: %json {schema}'), vocabulary_of("byte-level")
    )
    rng = np.random.default_rng(0)
    texts = [random_text(compiled, rng, kind="byte-level") for _ in range(10)]
    assert any(text.finished for text in texts)
    for text in texts:
        assert not text.finished or re.fullmatch(r"<\{.*\}>", text.text, re.DOTALL)
