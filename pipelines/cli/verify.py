"""`polymuse verify`: whether inputs, code, parameters and outputs of a run match dvc.lock."""

from pipelines.evaluation import EVALUATION_STAGES, find_row
from pipelines.verification import Change, verify
from stages.shared.runtime.stage import InputError


def main(run: str) -> None:
    """Print one line for each difference. Raises InputError if there is any."""
    family, _ = find_row(run)
    result = verify(run)
    for change in result.changes:
        print(format_change(change))
    if result.changes:
        count = len(result.changes)
        raise InputError(
            f"{run} does not match dvc.lock in {count} {'place' if count == 1 else 'places'}: run "
            f"`polymuse run {EVALUATION_STAGES[family]}@{run}`, or undo the changes"
        )
    print(
        f"{run} matches dvc.lock: inputs, code, parameters and outputs of its evaluation and the "
        f"{result.num_stages - 1} stages before it"
    )


def format_change(change: Change) -> str:
    """A line such as `code     stages/clean.py was modified (clean@articles and 3 more)`."""
    first, *more = change.stages
    stages = f"{first} and {len(more)} more" if more else first
    return f"{change.kind:8} {change.text} ({stages})"
