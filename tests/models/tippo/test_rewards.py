"""The two rewards of PolishPPO (eq. 7 and 8), with numbers derived by hand."""

import random

import pytest

from stages.models.tippo import rewards
from stages.shared.similarity.embedders import MiniLMEmbedder


def levenshtein(a: str, b: str) -> int:
    """The edit distance by its recurrence."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


@pytest.mark.parametrize(
    ("text", "references", "normalized", "raw"),
    [
        ("kitten", ["sitting"], 1 - 3 / 7, -2),
        ("cat", ["cat"], 1, 1),
        ("", ["cat"], 0, -2),
        ("", [""], 1, 1),
        ("红色的猫", ["红色的狗"], 3 / 4, 0),  # characters, not bytes
        ("cat", ["a dog", "cats"], 3 / 4, 0),
        # Each form has its own best reference: 1 - 2/3 and 1 - 6/9, but 1 - 2 and 1 - 6.
        ("abc", ["a", "abcdefghi"], 1 / 3, -1),
    ],
)
def test_the_literal_reward_is_that_of_the_best_reference(text, references, normalized, raw):
    reward = rewards.compute_literal_reward(text, references, raw=False)
    assert reward == pytest.approx(normalized)
    assert rewards.compute_literal_reward(text, references, raw=True) == raw


def test_the_literal_reward_matches_the_recurrence_on_random_texts():
    rng = random.Random(0)
    for _ in range(50):
        a, b = ("".join(rng.choices("abc\n", k=rng.randrange(1, 12))) for _ in range(2))
        expected = 1 - levenshtein(a, b) / max(len(a), len(b))
        assert rewards.compute_literal_reward(a, [b], raw=False) == pytest.approx(expected)
        assert rewards.compute_literal_reward(a, [b], raw=True) == 1 - levenshtein(a, b)


def test_the_semantic_reward_is_high_for_paraphrases_and_takes_the_best_reference():
    minilm = MiniLMEmbedder(32)
    reference = ["A fox stands in the rain."]
    texts = ["A fox stands in the rain.", "A fox is out in rainy weather.", "Tax law.", " \n"]
    same, near, far, empty = rewards.compute_semantic_rewards(minilm, texts, [reference] * 4)
    assert same == pytest.approx(1, abs=1e-5)
    assert same > near > 0.6 > 0.3 > far
    assert empty == 0
    (best,) = rewards.compute_semantic_rewards(minilm, ["Tax law."], [["Tax law.", *reference]])
    assert best > 0.99
