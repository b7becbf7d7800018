"""The search: what it walks, how it chooses, and one through the real compiler."""

from __future__ import annotations

import json
import math
import time

import pytest

from llm_jax.commands.plan import plan
from llm_jax.config import Config
from llm_jax.config.overrides import check_unread, override
from llm_jax.config.saved import load_config
from llm_jax.config.sections import flatten
from llm_jax.plan.candidates import candidates, changes, meshes, with_mesh
from llm_jax.plan.changes import kinds, larger, options
from llm_jax.plan.compiled import Traffic
from llm_jax.plan.parallel import compile_steps
from llm_jax.plan.ranking import search_figures, search_table
from llm_jax.plan.roofline import Seconds
from llm_jax.plan.search import Budget, Search, Trial, most_promising, rank, search
from llm_jax.plan.step import plan_step
from llm_jax.plan.topology import parse_topology
from llm_jax.sharding import MESH_AXES
from llm_jax.types import ConfigError

V5E = parse_topology("v5e:2x2")
SETTINGS = {
    "model.vocab_size": 1024,
    "model.num_layers": 3,
    "model.embed_dim": 256,
    "model.attention.num_heads": 2,
    "model.mlp.hidden_dim": 512,
    "data.seq_length": 256,
    "data.batch_size": 16,
    "mesh.data": 1,
    "mesh.fsdp": -1,
}
SMALL = override(Config(), SETTINGS)


@pytest.fixture(scope="module")
def walked():
    return list(candidates(SMALL, V5E))


@pytest.fixture
def two_policies(monkeypatch):
    """Walks in which no others matter: each policy is traced for each kind of model."""
    monkeypatch.setattr("llm_jax.plan.candidates.REMATS", ("none", "full"))


def test_meshes_are_all_products():
    found = list(meshes(12, ("data", "fsdp", "context", "tensor")))
    assert all(math.prod(m.values()) == 12 for m in found) and len(
        {tuple(m.items()) for m in found}
    ) == len(found)
    # 12 = 2 x 2 x 3 over four axes: 10 ways to place the twos, 4 the three.
    assert len(found) == 40 and all(
        set(m) == set(MESH_AXES) and m["expert"] == m["pipeline"] == 1 for m in found
    )


@pytest.mark.slow
def test_what_is_walked_reads_the_same_tokens_and_divides(walked):
    kept = {
        key: value
        for key, value in flatten(SMALL).items()
        if not key.startswith(("mesh.", "execution.", "train.accumulation"))
    }
    for c in walked:
        now, mesh = flatten(c.config), c.config.mesh
        assert {key: now[key] for key in kept} == kept
        assert (
            math.prod((mesh.data, mesh.fsdp, mesh.context, mesh.tensor, mesh.pipeline)) == 4
            and mesh.expert == 1
        )
        assert (
            16 % (c.config.train.accumulation * mesh.data * mesh.fsdp) == 0 and 2 % mesh.tensor == 0
        )
    ways = {(c.config.mesh, c.config.execution, c.config.train.accumulation) for c in walked}
    assert len(ways) == len(walked)
    assert {c.config.execution.remat for c in walked} >= {"none", "dots", "full"}
    assert any(not c.config.execution.shard_sequence for c in walked if c.config.mesh.tensor > 1)


@pytest.mark.mesh
def test_a_ranking_says_whose_times_are_lower_bounds(walked):
    known = plan_step(walked[0].config, V5E, analytic=True)._replace(
        traffic=[Traffic("all-gather", ("fsdp",), 3, 9e9)]
    )
    unknown = known._replace(
        traffic=[*known.traffic, Traffic("all-reduce", ("fsdp",), 0, 0.0, 2, 1e9)]
    )
    found = Search(V5E, 2, 2, [Trial(walked[0], p, "") for p in (known, unknown)], [], 1.0)
    first, second = search_table(found).splitlines()[-2:]
    assert "unknown trips" not in first and second.endswith(
        "; at least, as it has loops of unknown trips"
    )
    ranking = search_figures(found)["ranking"]
    assert [t["traffic_is_lower_bound"] for t in ranking] == [False, True]
    assert [t["bytes_sent_per_device"] for t in ranking] == [9e9, 9e9]
    # What cannot be counted makes nothing faster.
    quick = unknown._replace(seconds=Seconds({**unknown.seconds, "compute": 0.0}))
    assert quick.seconds.serial < known.seconds.serial
    tried = [Trial(walked[0], p, "") for p in (None, quick, known)]
    assert [t.plan for t in sorted(tried, key=rank)] == [known, quick, None]


def test_every_mesh_has_its_turn_and_slow_ones_none(walked):
    chosen = most_promising(walked)
    first = chosen[: len({c.config.mesh for c in chosen})]
    assert len({c.config.mesh for c in first}) == len(first)
    assert max(c.expected.seconds.serial for c in chosen) <= 1.25 * min(
        c.expected.seconds.serial for c in walked
    )


@pytest.mark.slow
def test_pipelines_and_experts_are_walked_where_there_can_be_some(walked, two_policies):
    # 3 layers: of 4 devices neither 2 nor 4 stages. With 4 layers 2 once or twice round, and 4
    # once.
    assert {c.config.mesh.pipeline for c in walked} == {1}
    deeper = list(candidates(override(SMALL, {"model.num_layers": 4}), V5E))
    ways = {
        (
            c.config.mesh.pipeline,
            c.config.execution.pipeline_repeats,
            c.config.execution.microbatches,
        )
        for c in deeper
    }
    assert ways == {(1, 1, 0), (2, 1, 4), (2, 1, 16), (2, 2, 4), (2, 2, 16), (4, 1, 8)}
    experts = list(candidates(override(SMALL, {"model.experts.count": 2}), V5E))
    assert {c.config.mesh.expert for c in experts} == {1, 2}
    assert {c.config.mesh.expert for c in deeper} == {1}


def test_a_pipeline_of_the_config_is_walked_as_it_is(two_policies):
    staged = override(
        SMALL,
        {
            "model.num_layers": 8,
            "mesh.fsdp": 2,
            "mesh.pipeline": 2,
            "execution.pipeline_repeats": 4,
        },
    )
    assert staged in [c.config for c in candidates(staged, V5E)]


def test_offloading_is_walked_where_it_was_compared_with_the_compiler(two_policies):
    offloaded = override(SMALL, {"model.num_layers": 4, "execution.remat": "offload:query"})
    found = [
        c for c in candidates(offloaded, V5E) if c.config.execution.remat.startswith("offload")
    ]
    assert found and {c.config.mesh.pipeline for c in found} == {1}


@pytest.mark.mesh
def test_what_a_candidate_changes_can_be_set_by_hand(walked):
    for c in walked[::7]:
        changed = changes(with_mesh(SMALL, V5E), c.config)
        assert flatten(with_mesh(override(SMALL, changed), V5E)) == flatten(c.config)


@pytest.mark.compiler
def test_nothing_fits_says_what_the_nearest_lacked():
    huge = override(
        SMALL, {"model.embed_dim": 16384, "model.mlp.hidden_dim": 65536, "model.num_layers": 64}
    )
    with pytest.raises(
        ConfigError,
        match=r"nothing fits v5e:2x2: of .* the nearest \(.*mesh\..*\) needs about .* GiB of",
    ):
        search(huge, V5E, Budget(4, 1, 60.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"candidates": 0}, "candidates is 0; it must be at least 1"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"time_limit": 0.0}, "time_limit is 0.0; it must be more than 0"),
        ({"topology": "h100:8"}, "--search compiles for TPU slices; h100:8 is not a TPU slice"),
        ({"analytic": True}, "--search compiles train steps; leave out --decode and --analytic"),
        (
            {"set": ("execution.remat=offload:query", "model.experts.count=2")},
            (
                "execution.remat is 'offload:query' and model.experts.count 2; memory is estimated,"
                " and ways to run searched, with one of them"
            ),
        ),
        (
            {
                "set": (
                    "model.attention=latent",
                    "model.attention.kv_latent=64",
                    "model.attention.rope_dim=16",
                )
            },
            "model.attention is 'latent', and plan --search estimates no latents",
        ),
        (
            {"set": ("model.attention.value_dim=16",)},
            "attention.value_dim is 16, and plan --search estimates no values of another width",
        ),
        (
            {"set": ("model.first_layers.count=1",)},
            "model.first_layers is 'on', and plan --search estimates layers of one kind",
        ),
        (
            {"search": False, "winner": "w.json"},
            "--winner is where a search writes its best config: give --search too",
        ),
        ({"changes": -1}, "changes is -1; it must be at least 0"),
    ],
)
def test_searches_that_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        plan("configs/tiny_cpu.py", **{"topology": "v5e:2x2", "search": True, **given})


@pytest.mark.compiler
def test_batches_that_no_mesh_divides():
    odd = override(
        SMALL,
        {
            "data.batch_size": 3,
            "model.attention.num_heads": 3,
            "model.embed_dim": 192,
            "data.seq_length": 255,
        },
    )
    with pytest.raises(
        ConfigError,
        match="no mesh over the devices of v5e:2x2 divides this model and its batch of 3 rows",
    ):
        search(odd, V5E, Budget(1, 1, 9))


def test_larger_slices_double_their_shortest_side():
    assert [s.name for s in larger(parse_topology("v5e:2x4"))] == ["v5e:4x4", "v5e:4x8", "v5e:8x8"]
    assert [s.name for s in larger(parse_topology("v5p:2x2x1"))] == [
        "v5p:2x2x2",
        "v5p:2x2x4",
        "v5p:2x4x4",
    ]


@pytest.mark.mesh
def test_changes_are_of_few_settings_and_more_chips_are_one_of_them(two_policies):
    here = with_mesh(SMALL, V5E)
    found = {kinds(here, V5E, c) for c in options(SMALL, V5E)}
    alone = {"mesh", "execution.remat", "train.accumulation", "execution.loss_chunk", "slice"}
    assert {frozenset({kind}) for kind in alone} <= found


@pytest.mark.mesh
def test_changes_of_experts_and_pipelines_are_among_those_that_may_help(two_policies):
    apart = override(
        SMALL, {"model.num_layers": 4, "model.experts.count": 4, "mesh.fsdp": 2, "mesh.expert": 2}
    )
    found = {kinds(apart, V5E, c): c for c in options(apart, V5E)}
    assert {
        frozenset({kind}) for kind in ("mesh", "execution.remat", "train.accumulation", "slice")
    } <= set(found)
    staged = found[frozenset({"mesh", "execution.microbatches"})].config
    assert staged.mesh.pipeline > 1 and staged.execution.microbatches >= 2 * staged.mesh.pipeline
    here = override(staged, {"train.accumulation": 1})
    back = {
        kinds(here, V5E, c)
        for c in options(here, V5E)
        if c.config.mesh.pipeline == 1 and c.slice == V5E
    }
    assert frozenset({"mesh", "execution.microbatches"}) in back


@pytest.mark.compiler
def test_a_time_limit_that_is_too_short_says_so_and_prints_what_is_expected(tmp_path):
    place = tmp_path / "winner.json"
    text = plan(
        "configs/tiny_cpu.py",
        "v5e:2x2",
        tuple(f"{key}={value}" for key, value in SETTINGS.items()),
        search=True,
        candidates=2,
        workers=1,
        time_limit=0.01,
        winner=str(place),
    )
    assert (
        "not compiled at the time limit" in text
        and "no winner: nothing was ready in 0.01 s (--time-limit)" in text
    )
    assert text.count(" expected, ") == 2 and not place.exists()


@pytest.mark.compiler
def test_the_best_is_written_as_a_config_that_trains_and_plans_the_same(tmp_path):
    place, out = tmp_path / "winner.json", tmp_path / "plan.json"
    settings = tuple(
        f"{key}={value}" for key, value in SETTINGS.items() if key != "model.vocab_size"
    )
    text = plan(
        "configs/tiny_cpu.py",
        "v5e:2x2",
        settings,
        vocab_size=1024,
        search=True,
        candidates=2,
        workers=2,
        winner=str(place),
        out=str(out),
    )
    found = json.loads(out.read_text())
    ranking = found["search"]["ranking"]
    assert len(ranking) == 2 and ranking[0]["seconds_ranked_by"] <= ranking[1]["seconds_ranked_by"]
    assert f"llm-jax train {place}" in text
    config = load_config(place)
    assert check_unread(config) == []
    assert (
        config.model.vocab_size == 0
        and config.data.batch_size == 16
        and vars(config.mesh) == ranking[0]["mesh"]
    )
    again = plan_step(override(config, {"model.vocab_size": 1024}), V5E)
    assert again.memory == found["memory_bytes_per_chip"] and again.seconds == {
        k: found["seconds"][k] for k in again.seconds
    }


@pytest.mark.compiler
def test_a_step_that_does_not_fit_is_given_changes_that_are_compiled(tmp_path):
    out = tmp_path / "plan.json"
    # What three layers keep of 16,384 rows is three times a chip's memory.
    settings = tuple(
        f"{key}={value}" for key, value in {**SETTINGS, "data.batch_size": 16384}.items()
    )
    text = plan(
        "configs/tiny_cpu.py", "v5e:2x2", settings, changes=1, candidates=2, workers=1, out=str(out)
    )
    p = json.loads(out.read_text())
    assert (
        p["fits"] is False
        and "fits with one of these changes, cheapest first, each compiled" in text
    )
    assert len(p["changes"]) == 1 and p["changes"][0]["memory_bytes_per_chip"] < p["hbm_bytes"]
    changed = override(
        override(Config(), {**SETTINGS, "data.batch_size": 16384}), p["changes"][0]["set"]
    )
    assert len(p["changes"][0]["set"]) == 1 and not plan_step(changed, V5E, analytic=True).refused


@pytest.mark.compiler
def test_a_process_that_dies_is_a_reason_and_what_is_late_is_stopped():
    began = time.monotonic()
    assert list(compile_steps([(SMALL, V5E)] * 3, workers=2, deadline=began + 1.0)) == []
    impossible = override(SMALL, {"mesh.fsdp": 3})
    ((_, reason),) = compile_steps([(impossible, V5E)], workers=1, deadline=began + 300)
    assert "ConfigError" in reason and "does not fit 4 devices" in reason
