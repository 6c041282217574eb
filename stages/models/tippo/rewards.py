"""The two rewards of PolishPPO for a generated text: literal and semantic (section 2.2).

    R_literal  = 1 - LD(Y, y)              eq. 7   compute_literal_reward
    R_semantic = cos(emb_Y, emb_y)         eq. 8   compute_semantic_rewards

Y is a reference and y the generated text. With several references, each reward takes its own best.

Where the paper is silent: LD counts characters and is divided by the length of the longer text.
Without the division, the reward of a long text is a large negative number (`raw` is the equation
as printed). The paper embeds texts with GLM; this project uses MiniLM, or a model behind an
OpenAI-compatible server.
"""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from stages.shared.similarity.embedders import (
    Embedder,
    cosine_similarity,
    levenshtein_similarity,
)


def compute_literal_reward(text: str, references: Sequence[str], raw: bool) -> float:
    """R_literal (eq. 7): 1 - LD / max(|Y|, |y|) in [0, 1], or with `raw` 1 - LD, at most 1."""
    if raw:
        return 1.0 - min(Levenshtein.distance(text, reference) for reference in references)
    return levenshtein_similarity(text, references)


def compute_semantic_rewards(
    embedder: Embedder, texts: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """R_semantic (eq. 8) of each text, in [-1, 1]."""
    return cosine_similarity(embedder, texts, references)
