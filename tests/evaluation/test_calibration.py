"""ECE, the reliability table and the Brier score, by hand."""

import numpy as np
import pytest

from llm_jax.evaluation.text_metrics.calibration import brier_score, calibration
from llm_jax.types import ConfigError, DataError


def test_ece_by_hand():
    got = calibration([0.05, 0.1, 0.9, 0.95, 1.0], [0, 0, 1, 1, 0], bins=10)
    # 0.1 is in the first bin, 0.9 in the ninth, 0.95 and 1.0 in the last.
    assert [(each.low, each.high, each.answers) for each in got.bins] == [
        (0.0, 0.1, 2),
        (0.8, 0.9, 1),
        (0.9, 1.0, 2),
    ]
    assert [each.accuracy for each in got.bins] == [0, 1, 0.5]
    assert got.ece == pytest.approx((2 * 0.075 + 0.1 + 2 * 0.475) / 5)
    assert got.mce == pytest.approx(0.475)
    assert got.signature == "bins:10|binning:width"


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_a_calibrated_model_has_no_error(binning):
    sure = np.repeat([0.25, 0.5, 0.75], 4)
    right = [1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0]
    assert calibration(sure, right, bins=3, binning=binning).ece == pytest.approx(0)


def test_bins_of_equal_mass_do_not_split_equal_confidences():
    sure = np.array([0.2, 0.5, 0.5, 0.5, 0.5, 0.9])
    right = np.array([0, 1, 0, 1, 0, 1])
    order = np.random.default_rng(0).permutation(6)
    got = calibration(sure, right, bins=3, binning="mass")
    assert got == calibration(sure[order], right[order], bins=3, binning="mass")
    assert sum(each.answers for each in got.bins) == 6
    assert [each.answers for each in got.bins] == [5, 1]
    apart = calibration([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], bins=2, binning="mass")
    assert [(each.low, each.high, each.answers) for each in apart.bins] == [
        (0.1, 0.2, 2),
        (0.3, 0.4, 2),
    ]


def test_brier_score_by_hand():
    # (0.2, 0.3, 0.5) with the last right: 0.04 + 0.09 + 0.25.
    table = [[0.2, 0.3, 0.5], [1, 0, 0]]
    assert brier_score(table, [2, 0]) == pytest.approx(0.19)
    assert brier_score([[0.5, 0.5]], [0]) == pytest.approx(0.5)
    assert brier_score([[1, 0]], [1]) == 2


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: calibration([0.5], [1], bins=0), ConfigError, "bins is 0"),
        (lambda: calibration([0.5], [1], binning="x"), ConfigError, "width or mass"),
        (lambda: calibration([1.5], [1]), DataError, r"confidences\[0\] is 1.5"),
        (lambda: calibration([np.nan], [1]), DataError, r"confidences\[0\] is nan"),
        (lambda: calibration([], []), DataError, "confidences is empty"),
        (lambda: calibration([0.5, 0.5], [1]), DataError, r"correct \(1,\)"),
        (lambda: calibration([0.5], [2]), DataError, "other than 0 and 1"),
        (lambda: brier_score([[0.5, 0.2]], [0]), DataError, r"probabilities\[0\] sum to 0.7"),
        (lambda: brier_score([[0.5, 0.5]], [2]), DataError, "2 classes"),
        (lambda: brier_score([[0.5, 0.5]], [-1]), DataError, "2 classes"),
        (lambda: brier_score([[0.5, 0.5]], [0, 1]), DataError, r"\[N, classes\]"),
        (lambda: brier_score([[0.5, 0.5]], [0.5]), DataError, "indices"),
    ],
)
def test_what_is_no_probability_is_named(call, error, said):
    with pytest.raises(error, match=said):
        call()
