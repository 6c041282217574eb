"""`polymuse compare`: metrics with intervals of several runs, and the parameters that differ."""

from itertools import islice

from pipelines.comparison import (
    ComparedRun,
    list_unshared_params,
    load_run,
    tabulate_metrics,
    tabulate_params,
)
from pipelines.evaluation import NotComparableError, compare_evaluations
from stages.shared.runtime.stage import InputError

WIDTH = 120  # columns of the output
LABEL_WIDTH, CELL_WIDTH = 32, 24  # columns at most of the first cell, at least of the others
GAP = "  "


def main(names: list[str]) -> None:
    """Print both tables. Raises InputError if fewer than two runs are named, or one is unknown."""
    if len(set(names)) < len(names) or len(names) < 2:
        raise InputError("polymuse compare needs two or more different runs: name them")
    runs = [load_run(name) for name in names]
    print(format_blocks("metric", runs, tabulate_metrics(runs)))
    print("\nIntervals are two standard errors wide on each side, about 95 %.")
    for sentence in compare_with_first(runs):
        print(sentence)
    print(f"\n{format_blocks('parameter', runs, tabulate_params(runs))}")
    if sections := list_unshared_params(runs):
        print(shorten(f"\nOnly some of them have: {', '.join(sections)}", WIDTH + 1))


def compare_with_first(runs: list[ComparedRun]) -> list[str]:
    """A sentence about the first run and each other one, from a paired test on their items."""
    first, *others = runs
    sentences = []
    for other in others:
        if first.evaluation is None or other.evaluation is None:
            continue
        try:
            comparison = compare_evaluations(first.evaluation, other.evaluation)
            sentences.append(f"Paired: {comparison.describe(first.label, other.label)}")
        except NotComparableError as error:
            sentences.append(f"{first.label} and {other.label} are not paired: {error}.")
    return sentences


def format_blocks(title: str, runs: list[ComparedRun], rows: list[list[str]]) -> str:
    """The rows as aligned tables, each with as many runs as fit the width."""
    if not rows:
        return f"No {title} differs." if title == "parameter" else f"They share no {title}."
    label_width = min(LABEL_WIDTH, max(len(row[0]) for row in [[title], *rows]))
    per_block = (WIDTH - label_width) // (CELL_WIDTH + len(GAP))
    blocks = []
    columns = iter(range(1, len(runs) + 1))
    while block := list(islice(columns, per_block)):
        width = (WIDTH - label_width) // len(block) - len(GAP)
        lines = [[title, *(run.label for run in runs)], *rows]
        texts = (
            GAP.join(
                [
                    shorten(line[0], label_width).ljust(label_width),
                    *(shorten(line[column], width).ljust(min(width, 40)) for column in block),
                ]
            ).rstrip()
            for line in lines
        )
        blocks.append("\n".join(texts))
    return "\n\n".join(blocks)


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
