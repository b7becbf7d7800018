"""Settings of beam search; the text under a field is its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from llm_jax.config.decode import DecodeConfig
from llm_jax.config.validate_model import require
from llm_jax.ranges import Count, Finite, NotNegative, check_fields

EarlyStopping = Literal["full", "heuristic", "never"]
EARLY_STOPPING: tuple[EarlyStopping, ...] = get_args(EarlyStopping)


@dataclass(frozen=True)
class BeamConfig:
    """How beam search chooses texts. Scores are those of transformers: the sum of log-probabilities
    of the new tokens, the stop token included, divided by their number to the power of
    `length_penalty`."""

    beams: Count = 4
    """Texts that each prompt's search keeps at every step."""
    returned: Count = 1
    """Texts given back for each prompt, the best first; at most `beams`."""
    length_penalty: Finite = 1.0
    """Power of the number of new tokens that divides a score. Above 0 favours long texts, below 0
    short ones; 0 is the plain sum."""
    early_stopping: EarlyStopping = "heuristic"
    """When the search of a prompt ends. full (True in transformers): when as many texts as `beams`
    are finished. heuristic (False): when the best unfinished text, scored at its length so far, is
    no better than the worst finished one. never ("never"): as heuristic, but with a length_penalty
    above 0 the unfinished text is scored at the most new tokens."""
    groups: Count = 1
    """Groups that the beams are divided into; each is a search of its own (diverse beam search)."""
    diversity_penalty: NotNegative = 0.0
    """Taken from the log-probability of a token for each time that an earlier group of the same
    prompt chose it at the same step; needs more than one group."""
    sample: bool = False
    """Draw the continuations, without replacement, instead of taking the most likely ones."""
    required: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """Phrases that every text must contain. Each is a tuple of alternatives, one of which is
    enough; an alternative is a tuple of token ids."""


def validate_beams(config: BeamConfig) -> None:
    """Checks what needs no model.

    Raises:
        ConfigError: a setting is out of range, or contradicts another.
    """
    check_fields(config)
    require(
        config.early_stopping in EARLY_STOPPING,
        f"early_stopping is {config.early_stopping!r}; use {', '.join(EARLY_STOPPING)}",
    )
    require(
        config.returned <= config.beams,
        f"returned {config.returned} is more than beams {config.beams}; a search gives back at most"
        " as many texts as it has beams",
    )
    require(
        config.beams % config.groups == 0,
        f"beams {config.beams} do not divide into {config.groups} groups; make beams a multiple of"
        " groups",
    )
    require(
        config.groups > 1 or config.diversity_penalty == 0,
        f"diversity_penalty is {config.diversity_penalty} and groups is 1; the penalty is between"
        " groups, so raise groups or set diversity_penalty to 0",
    )
    require(
        config.groups == 1 or config.diversity_penalty > 0,
        f"groups is {config.groups} and diversity_penalty is 0, so that all groups would find the"
        " same texts; set diversity_penalty above 0 or groups to 1",
    )
    _check_together(config)


def _check_together(config: BeamConfig) -> None:
    require(
        not (config.sample and config.groups > 1),
        f"sample is set and groups is {config.groups}; drawn texts have no groups, so leave one of"
        " them out",
    )
    require(
        not (config.required and config.groups > 1),
        f"required has {len(config.required)} phrases and groups is {config.groups}; groups cannot"
        " have required phrases, so leave one of them out",
    )
    require(
        not (config.required and config.sample),
        f"required has {len(config.required)} phrases and sample is set; a text with required"
        " phrases is not drawn, so leave one of them out",
    )


def check_beam_settings(config: DecodeConfig, beams: BeamConfig, row: int) -> None:
    """Checks that beam search reads the settings of decoding that are set.

    Raises:
        ConfigError: it does not; the message names the row and the settings.
    """
    default = DecodeConfig()
    unread = ["guidance_scale", "contrastive_alpha"]
    if not beams.sample:
        unread += ["top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"]
    given = [name for name in unread if getattr(config, name) != getattr(default, name)]
    if config.stops.stop:
        given.append("stop")
    if config.watermark.watermark_bias:
        given.append("watermark_bias")
    require(
        not given,
        f"row {row}: {', '.join(given)}: beam search reads no such setting (without sample it reads"
        " no filter, and it ends at stop_ids only); leave it out",
    )
    require(
        beams.sample or config.temperature in (0, default.temperature),
        f"row {row}: temperature is {config.temperature}, which beam search does not read without"
        " sample; leave it out, or set sample",
    )
