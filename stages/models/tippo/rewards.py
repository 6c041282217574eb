"""What PolishPPO rewards in a generated text: its letters and its meaning (section 2.2).

    R_literal  = 1 - LD(Y, y)              eq. 7   literal
    R_semantic = cos(emb_Y, emb_y)         eq. 8   semantic

Y a reference, y the generated text; of several references the best counts, in each reward by
itself.

Where the paper is silent: LD counts characters and is divided by the longer length, or the reward
of a long text would be a large negative number (`raw`: the equation as it stands). The paper's
embedder is GLM's; ours is MiniLM, or a model behind an OpenAI-compatible server.
"""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from stages.shared.similarity.embedders import (
    Embedder,
    cosine_similarity,
    levenshtein_similarity,
)


def compute_literal_reward(written: str, references: Sequence[str], raw: bool) -> float:
    """R_literal (eq. 7): 1 - LD / max(|Y|, |y|) in [0, 1], or with `raw` 1 - LD, below 1."""
    if raw:
        return 1.0 - min(Levenshtein.distance(written, text) for text in references)
    return levenshtein_similarity(written, references)


def compute_semantic_rewards(
    embedder: Embedder, written: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """R_semantic (eq. 8) of each text, in [-1, 1]."""
    return cosine_similarity(embedder, written, references)
