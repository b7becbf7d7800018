"""Our models for lm-evaluation-harness (``pip install 'llm_jax[harness]'``).

    import llm_jax
    import lm_eval
    from llm_jax.evaluation.harness import HarnessModel

    lm = llm_jax.load("runs/quickstart")
    model = HarnessModel(lm.run, lm.tokenizer)
    print(lm_eval.simple_evaluate(model=model, tasks=["piqa"])["results"])

This module imports ``lm_eval``, and nothing else of the package imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

try:
    from lm_eval.api.model import LM
except ImportError as error:
    raise ImportError(
        "llm_jax.evaluation.harness needs lm_eval; pip install 'llm_jax[harness]'"
    ) from error

from llm_jax.checkpoints.open_run import Run
from llm_jax.config import DecodeConfig
from llm_jax.config.decode import PenaltyConfig, StopConfig
from llm_jax.decode.continuation_batches import Pair
from llm_jax.evaluation.text_model import TextModel
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import ConfigError

_NEW_TOKENS = 256
# As lm_eval and transformers name them.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_OTHER = ("until", "do_sample", "repetition_penalty", "seed")


class HarnessModel(LM):  # type: ignore[misc, unused-ignore]
    """A model as the harness asks it.

    Prompts longer than the context lose their beginning, as with the harness's own models; their
    number is in ``cut``.

    Args:
        run: the model; of a ``LanguageModel``, its ``run``.
        tokenizer: of the model.
        batch_size: rows computed at once, over all devices.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, batch_size: int = 16) -> None:
        super().__init__()
        self._model = TextModel(run, tokenizer, batch_size)
        self._name = run.folder.name
        self.cut = 0

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's cache of requests."""
        return self._model.tokenizer.fingerprint

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of each request ``(context, continuation)``: the log-likelihood of the continuation in
        nats, and whether greedy decoding would write it.
        """
        pairs = [self._fitting(self._model.pair(*request.args)) for request in requests]
        found = [(score.total, score.greedy) for score in self._model.score(pairs)]
        self._keep("loglikelihood", requests, found)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Of each request ``(text,)``: the log-likelihood of the whole text in nats, over windows
        of the context in which each token is scored once.
        """
        each = [self._model.rolling(*request.args) for request in requests]
        scores = iter(self._model.score([pair for pairs in each for pair in pairs]))
        found = [sum(next(scores).total for _ in pairs) for pairs in each]
        self._keep("loglikelihood_rolling", requests, found)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Of each request ``(context, settings)``: what the model writes, without the text that
        stops it.

        Raises:
            ConfigError: a setting that nothing here reads.
        """
        found: dict[int, str] = {}
        settings = [repr(sorted(request.args[1].items())) for request in requests]
        order = sorted(range(len(requests)), key=settings.__getitem__)
        for _, group in groupby(order, key=settings.__getitem__):
            numbers = list(group)
            config = _decode_config(requests[numbers[0]].args[1])
            prompts = [self._prompt(requests[i].args[0], config.max_new_tokens) for i in numbers]
            found |= dict(zip(numbers, self._model.write(prompts, config)))
        texts = [found[number] for number in range(len(requests))]
        self._keep("generate_until", requests, texts)
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """What identifies the model in the harness's results."""
        return {
            "model": self._name,
            "step": self._model.step,
            "parameters": self._model.fingerprint(),
        }

    def _fitting(self, pair: Pair) -> Pair:
        excess = self._model.excess(pair)
        if not excess:
            return pair
        self.cut += 1
        return pair._replace(context=pair.context[excess:])

    def _prompt(self, text: str, new: int) -> tuple[int, ...]:
        ids = tuple(self._model.prompt_ids(text))
        excess = self._model.excess_to_write(len(ids), new)
        self.cut += excess > 0
        if excess >= len(ids):
            raise ConfigError(
                f"max_gen_toks is {new}, and the context has {self._model.max_length} tokens, so"
                " that no prompt fits beside them; ask for fewer"
            )
        return ids[excess:]

    def _keep(self, kind: str, requests: Sequence[Any], found: Iterable[Any]) -> None:
        """Hands each result to the harness's cache."""
        for request, result in zip(requests, found):
            self.cache_hook.add_partial(kind, request.args, result)


def _decode_config(settings: Mapping[str, Any]) -> DecodeConfig:
    """Settings of the harness as ours.

    Raises:
        ConfigError: a setting that nothing reads.
    """
    known = (*_LENGTHS, *_SAMPLING, *_OTHER)
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigError(
            f"generation_kwargs has {unknown[0]}, which this adapter does not read; it reads"
            f" {', '.join(known)}"
        )
    lengths = [int(settings[name]) for name in _LENGTHS if settings.get(name) is not None]
    until = settings.get("until") or ()
    sampling = {name: settings[name] for name in _SAMPLING if settings.get(name) is not None}
    # The harness's default is greedy; a temperature above 0 alone asks for samples.
    if not settings.get("do_sample", sampling.get("temperature", 0.0) > 0):
        sampling = {"temperature": 0.0}
    return DecodeConfig(
        max_new_tokens=lengths[0] if lengths else _NEW_TOKENS,
        seed=settings.get("seed", 0),
        penalties=PenaltyConfig(repetition_penalty=settings.get("repetition_penalty", 1.0)),
        stops=StopConfig(stop=(until,) if isinstance(until, str) else tuple(until)),
        **sampling,
    )
