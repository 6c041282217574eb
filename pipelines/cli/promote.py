"""`polymuse promote`: make a run's model the champion of its corpus, if it is better."""

from pipelines.promotion import promote
from stages.shared.runtime.stage import InputError


def main(run: str, force: bool) -> None:
    """Print what was done. Raises InputError with the reason if the champion stays."""
    promotion = promote(run, force)
    if promotion.outcome == "refused":
        raise InputError(promotion.sentence)
    print(promotion.sentence)
