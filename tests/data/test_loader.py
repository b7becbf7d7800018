"""Order without topology: every token once an epoch on any number of hosts, equal fingerprints,
exact mixtures, good shuffling.
"""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from builders import write_dataset

from llm_jax.data.loading.fingerprints import row_fingerprints
from llm_jax.data.loading.leaves import leaves, map_leaves
from llm_jax.data.loading.loader import Loader, evaluation_batches
from llm_jax.data.loading.mixture import IndexShuffle, Pattern
from llm_jax.data.shards.rows import Rows
from llm_jax.data.shards.store import ShardReader
from llm_jax.types import Batch, DataError


def loader(paths, hosts=1, host=0, **options) -> Loader:
    paths = paths if isinstance(paths, list) else [paths]
    options = {"seq_length": 8, "batch_size": 16, "seed": 5, **options}
    return Loader(paths, **{"rows": share(options["batch_size"], hosts, host), **options})


def share(batch_size: int, hosts: int, host: int) -> range:
    """The rows of one host when each takes one piece."""
    return range(host * batch_size // hosts, (host + 1) * batch_size // hosts)


def fingerprint(rows: np.ndarray) -> int:
    return int(rows.sum(dtype=np.uint64))


def stamp_of(one: Loader, step: int) -> int:
    return fingerprint(row_fingerprints(one.batch(step), one.indices(step)))


def whole(path) -> tuple[list[int], set[tuple[int, int]]]:
    """Every token of the dataset, and every (token, next token) pair inside a document."""
    tokens, pairs = [], set()
    reader = ShardReader(path, "train")
    for i, shard in enumerate(reader.manifest["shards"]["train"]):
        stream, starts = [], set()
        for b, block in enumerate(reader.read(i, range(shard["blocks"]))):
            stream += block.tokens[: min(block.length, reader.block_size)].tolist()
            starts |= {b * reader.block_size + int(s) for s in block.starts}
        tokens += stream
        pairs |= {(stream[k], stream[k + 1]) for k in range(len(stream) - 1) if k + 1 not in starts}
    return tokens, pairs


def join(batches: list[Batch]) -> Batch:
    return map_leaves(lambda *parts: np.concatenate(parts), *batches)


def equal(a: Batch, b: Batch) -> bool:
    return all(
        np.array_equal(x, y)
        for x, y in zip(dict(leaves(a)).values(), dict(leaves(b)).values(), strict=True)
    )


@pytest.mark.parametrize("hosts", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seq_length", [8, 32])
def test_every_token_and_every_pair_exactly_once_an_epoch(counting, hosts, seq_length):
    loaders = [loader(counting, hosts, h, seq_length=seq_length) for h in range(hosts)]
    assert len({one.steps_per_epoch for one in loaders}) == 1
    tokens, pairs, rows_left = [], [], loaders[0].epoch_rows
    for step in range(loaders[0].steps_per_epoch):
        batch = join([one.batch(step) for one in loaders])
        keep = min(rows_left, 16)  # the last batch goes on into the next epoch
        rows_left -= keep
        batch = map_leaves(lambda a, keep=keep: a[:keep], batch)
        tokens += batch.inputs.ids[batch.inputs.segment_ids > 0].tolist()
        pairs += list(
            zip(batch.inputs.ids[batch.loss_mask].tolist(), batch.targets[batch.loss_mask].tolist())
        )
    all_tokens, all_pairs = whole(counting)
    assert (
        rows_left == 0
        and sorted(tokens) == sorted(all_tokens)
        and loaders[0].epoch_tokens == len(all_tokens)
    )
    assert len(pairs) == len(set(pairs)) and set(pairs) == all_pairs


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_hold_slices_of_the_global_batch_and_their_fingerprints_add_up(counting, hosts):
    single = loader(counting)
    parts = [loader(counting, hosts, h) for h in range(hosts)]
    for step in (0, 1, 7, 1000):
        batches = [part.batch(step) for part in parts]
        assert equal(join(batches), single.batch(step))
        assert sum(stamp_of(part, step) for part in parts) % 2**64 == stamp_of(single, step)


def test_a_host_may_hold_any_rows(counting):
    single, rows = loader(counting), [1, 2, 7, 15]
    part = loader(counting, rows=rows)
    for step in (0, 9):
        assert equal(part.batch(step), map_leaves(lambda a: a[rows], single.batch(step)))
        prints = row_fingerprints(single.batch(step), single.indices(step))
        assert (
            row_fingerprints(part.batch(step), part.indices(step)).tolist() == prints[rows].tolist()
        )


def test_changing_the_number_of_hosts_mid_run_repeats_and_skips_nothing(counting):
    plan = [8] * 3 + [2] * 4 + [4] * 5
    seen = [
        join([loader(counting, hosts, h).batch(step) for h in range(hosts)])
        for step, hosts in enumerate(plan)
    ]
    straight = loader(counting)
    for step, batch in enumerate(seen):
        assert equal(batch, straight.batch(step))


def test_fingerprint_sees_rows_places_and_order(counting):
    batch, rows = loader(counting).batch(0), np.arange(16)

    def stamp(batch: Batch, indices: np.ndarray = rows) -> int:
        return fingerprint(row_fingerprints(batch, indices))

    base = stamp(batch)
    swapped = map_leaves(lambda a: a[::-1], batch)
    others = [stamp(batch, rows + 16), stamp(swapped)]
    for path in ("inputs/ids", "inputs/segment_ids", "loss_mask"):
        changed = map_leaves(np.copy, batch)
        array = dict(leaves(changed))[path]
        array[3, 2] = not array[3, 2] if path == "loss_mask" else array[3, 2] + 1
        others.append(stamp(changed))
    targets = batch.targets.copy()
    targets[0, -1] += 1
    others.append(stamp(batch._replace(targets=targets)))
    tokens = batch.inputs.ids.copy()
    tokens[0, [1, 2]] = tokens[0, [2, 1]]
    others.append(stamp(batch._replace(inputs=batch.inputs._replace(ids=tokens))))
    assert base not in others and len(set(others)) == len(others) and 0 <= base < 2**64


def rows_in_order(one: Loader, count: int) -> list[tuple[int, int]]:
    components, rows = one.order.rows_at(range(count))
    return list(zip(components.tolist(), rows.tolist()))


@pytest.mark.parametrize("table_rows", [1 << 20, 0], ids=["table", "grain"])
def test_epochs_are_exact_and_differently_shuffled(counting, table_rows, monkeypatch):
    monkeypatch.setattr("llm_jax.data.loading.mixture._TABLE_ROWS", table_rows)
    one = loader(counting)
    n = one.epoch_rows
    rows = rows_in_order(one, 3 * n)
    epochs = [rows[:n], rows[n : 2 * n], rows[2 * n :]]
    assert all(sorted(epoch) == [(0, r) for r in range(n)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert rows_in_order(loader(counting), 3 * n) == rows
    others = [rows_in_order(loader(counting, seed=s), n) for s in (4, 6)]
    assert epochs[0] not in others and epochs[1] not in others
    assert rows_in_order(loader(counting, shuffle=False), n) == [(0, r) for r in range(n)]


@pytest.mark.parametrize(
    "rows, table_rows",
    [(20_000, 1 << 20), pytest.param(80_000, 0, marks=pytest.mark.slow)],
    ids=["table", "grain"],
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_shuffle_quality(seed, rows, table_rows, monkeypatch):
    """Serial correlation, and a chi-square of place against origin; thresholds at 5 and 4.5
    standard deviations.
    """
    monkeypatch.setattr("llm_jax.data.loading.mixture._TABLE_ROWS", table_rows)
    n, bins = rows, 20
    order = IndexShuffle([n], None, seed, True)
    epochs = order.rows_at(range(2 * n))[1].reshape(2, n).astype(float)
    x = (epochs[0] - epochs[0].mean()) / epochs[0].std()
    for lag in (1, 2, 3, 16, 64, 1000):
        assert abs(np.mean(x[:-lag] * x[lag:])) < 5 / np.sqrt(n), lag
    y = (epochs[1] - epochs[1].mean()) / epochs[1].std()
    assert abs(np.mean(x * y)) < 5 / np.sqrt(n), "two epochs are alike"
    place = np.arange(n) * bins // n
    for origin in (epochs[0] * bins // n, epochs[0] % bins):
        table = np.zeros((bins, bins))
        np.add.at(table, (place, origin.astype(int)), 1)
        freedom = (bins - 1) ** 2
        chi_square = ((table - n / bins**2) ** 2 / (n / bins**2)).sum()
        assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom)


def test_positions_in_the_batch_do_not_favour_a_part_of_the_data():
    """Rows of a batch of 16 (four hosts of four): where a row comes from is independent of its
    place in the batch.
    """
    n = 16 * 1250
    rows = IndexShuffle([n], None, 3, True).rows_at(range(n))[1]
    table = np.zeros((16, 10))
    np.add.at(table, (np.arange(n) % 16, rows * 10 // n), 1)
    chi_square = ((table - 125) ** 2 / 125).sum()
    assert abs(chi_square - 15 * 9) < 4.5 * np.sqrt(2 * 15 * 9)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three datasets of 60, 40 and 13 rows of 8 whose tokens tell them apart."""
    folder = tmp_path_factory.mktemp("three")
    sizes = (60, 40, 13)
    return [
        write_dataset(folder / str(i), [[8] * n], 16, first_token=1000 * (i + 1))
        for i, n in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    "weights", [[0.7, 0.2, 0.1], [1, 1, 1], [5, 3, 0.25], [1 / 3, 1 / 6, 1 / 2], [0.123456, 0.5, 2]]
)
def test_mixture_proportions_are_exact_to_a_row_at_every_point(three, weights):
    one = loader(three, weights=weights)
    count = 5000
    components = one.order.rows_at(range(count))[0]
    given = np.cumsum(components[:, None] == np.arange(3), axis=0)
    due = np.arange(1, count + 1)[:, None] * np.array(one.order.proportions)
    assert np.abs(given - due).max() < 1
    assert np.abs(np.array(one.order.proportions) - np.array(weights) / sum(weights)).max() <= 1e-4
    if weights != [0.123456, 0.5, 2]:
        np.testing.assert_allclose(
            one.order.proportions, np.array(weights) / sum(weights), rtol=1e-12
        )


@pytest.mark.parametrize("weights", [None, [0.7, 0.2, 0.1]])
def test_every_component_goes_through_exact_epochs(three, weights):
    one = loader(three, weights=weights)
    rows = rows_in_order(one, 3000)
    for component, size in enumerate((60, 40, 13)):
        own = [r for c, r in rows if c == component]
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 3
        if weights:
            assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if not weights:
        assert Counter(rows[:113]) == Counter(
            {(c, r): 1 for c, n in enumerate((60, 40, 13)) for r in range(n)}
        )
        assert one.epoch_rows == 113


def test_a_mixed_batch_holds_the_rows_the_order_says(three):
    one = loader(three, weights=[2, 1, 1])
    for step in range(3):
        batch = one.batch(step)
        for r, (component, row) in enumerate(
            rows_in_order(one, 16 * 3)[16 * step : 16 * (step + 1)]
        ):
            assert batch.inputs.ids[r].tolist() == list(
                range(1000 * (component + 1) + 8 * row, 1000 * (component + 1) + 8 * row + 8)
            )
    parts = [loader(three, 4, h, weights=[2, 1, 1]).batch(2) for h in range(4)]
    assert equal(join(parts), one.batch(2))


def test_iteration_is_random_access_and_the_cache_changes_nothing(counting):
    plain = loader(counting, prefetch=0, cache_bytes=0)
    for prefetch, cache in ((0, 1 << 20), (2, 1 << 20), (3, 300)):
        one = loader(counting, prefetch=prefetch, cache_bytes=cache)
        stream = one.iterate(start_step=3)
        for expected in range(3, 60):
            step, batch, stamp = next(stream)
            again = plain.batch(step)
            assert (
                step == expected
                and equal(batch, again)
                and fingerprint(stamp) == stamp_of(plain, step)
            )
        stream.close()
        if prefetch:
            with pytest.raises(StopIteration):
                next(stream)


def test_an_error_in_the_thread_reaches_the_consumer_at_its_step(counting, monkeypatch):
    one = loader(counting)
    real = one.batch

    def broken(step):
        if step == 4:
            raise DataError("shard 'x' unreadable")
        return real(step)

    monkeypatch.setattr(one, "batch", broken)
    seen = []
    with pytest.raises(DataError, match="shard 'x' unreadable"):
        for step, _, _ in one.iterate():
            seen.append(step)
    assert seen == [0, 1, 2, 3]


def test_threads_end_when_the_iterator_is_closed_or_dropped(counting):
    before = threading.active_count()
    first, second = loader(counting).iterate(), loader(counting).iterate()
    next(first), next(second)
    assert threading.active_count() == before + 2
    first.close()
    thread = second._thread
    del second
    thread.join(timeout=5)
    assert threading.active_count() == before


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_sees_every_row_once_in_order_with_equal_batch_counts(counting, hosts):
    batches = [
        list(
            evaluation_batches(
                counting, split="train", seq_length=8, batch_size=12, rows=share(12, hosts, h)
            )
        )
        for h in range(hosts)
    ]
    rows = Rows(counting, "train", 8)
    assert {len(b) for b in batches} == {-(-len(rows) // 12)} and len(rows) % 12
    together = join([join(list(step)) for step in zip(*batches)])
    assert together.inputs.ids[together.inputs.segment_ids > 0].tolist() == whole(counting)[0]
    padding = together.inputs.segment_ids.max(axis=1) == 0
    assert (
        padding.sum() == -len(rows) % 12 and padding[-1] and not together.loss_mask[padding].any()
    )
    limited = list(
        evaluation_batches(counting, split="train", seq_length=8, batch_size=12, limit=2)
    )
    assert len(limited) == 2


def test_prepared_text_comes_through(prepared, tokenizer):
    one = loader(prepared, seq_length=64, tokenizer_fingerprint=tokenizer.fingerprint)
    texts = [
        tokenizer.decode(row[s > 0])
        for row, s in zip(one.batch(0).inputs.ids, one.batch(0).inputs.segment_ids)
    ]
    assert any("Story" in text for text in texts) and one.vocab_size == 420


def test_bad_arguments_are_named(counting, three, tmp_path):
    cases = [
        ({"seq_length": 24}, "seq_length=24 does not divide block_size=32"),
        (
            {"rows": [3, 16]},
            r"rows=\[3, 16\] of batch_size=16; give ascending numbers from 0 to 15",
        ),
        ({"rows": [4, 2]}, r"rows=\[4, 2\]"),
        ({"rows": []}, r"rows=\[\]"),
        ({"batch_size": 0}, "batch_size=0; it must be at least 1"),
        (
            {"tokenizer_fingerprint": "a" * 64},
            "was made with tokenizer ffffffffffffffff…, this run's is aaaaaaaaaaaaaaaa…",
        ),
        ({"split": "validation"}, "split 'validation' is empty"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"weights": [1, 2]}, r"2 weights \[1, 2\] for 1 datasets"),
        ({"weights": [0.0]}, r"weight 0\.0 in \[0\.0\]; every weight must be positive"),
    ]
    for options, message in cases:
        with pytest.raises(DataError, match=message):
            loader(counting, **options)
    with pytest.raises(DataError, match=r"no manifest\.json there"):
        loader([counting, tmp_path / "gone"])
    with pytest.raises(DataError, match="is under 1/10000 of their sum"):
        loader(three, weights=[1, 1, 1e-6])
    with pytest.raises(DataError, match="give a sequence of at least one folder"):
        Loader(counting, seq_length=8, batch_size=4, seed=0)
    with pytest.raises(DataError, match="step=-1"):
        loader(counting).batch(-1)
    with pytest.raises(DataError, match="step=-2"):
        loader(counting).iterate(-2)


def test_datasets_of_different_tokenizers_do_not_mix(counting, prepared):
    with pytest.raises(DataError, match="were made with different tokenizers"):
        loader([counting, prepared])


def test_a_dataset_smaller_than_a_batch_wraps(tmp_path):
    path = write_dataset(tmp_path / "d", [[8, 8, 8]], 8)
    one = loader(path, batch_size=16)
    assert one.epoch_rows == 3 and one.steps_per_epoch == 1
    assert Counter(one.batch(0).inputs.ids[:, 0].tolist()).most_common()[0][1] in (5, 6)


def test_pattern_by_hand():
    pattern = Pattern([2, 1])
    components, nth = pattern.at(np.arange(6))
    assert components.tolist() == [0, 0, 1, 0, 0, 1] and nth.tolist() == [0, 1, 0, 2, 3, 1]
    assert pattern.counts == [2, 1]
