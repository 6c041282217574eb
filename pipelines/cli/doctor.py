"""`polymuse doctor`: check the machine, the project and what runs left behind.

reads   the files of the project and of POLYMUSE_HOME; only the server at PREFECT_API_URL is asked
writes  with --fix: damaged caches are moved aside, an old mlflow.db is migrated after a backup
"""

from collections.abc import Callable

from pipelines.health import CheckResult, Problem, machine, project, state
from stages.shared.runtime.errors import InputError, describe_error

CHECKS: dict[str, Callable[[], CheckResult]] = {
    "packages": machine.check_packages,
    "weights": machine.check_weights,
    "disk": machine.check_disk,
    "project": project.check_repository,
    "params": project.check_params,
    "mlflow": project.check_tracking,
    "artifacts": project.check_artifact_addresses,
    "prefect": project.check_prefect,
    "locks": state.check_locks,
    "processes": state.check_processes,
    "caches": state.check_work_dir,
    "outputs": state.check_outputs,
}


def main(fix: bool) -> None:
    """Print one line for each check and each problem. Raises InputError if something is wrong.

    fix: first apply the repairs, each of which is announced.
    """
    count = 0
    for name, check in CHECKS.items():
        result = run_check(check)
        if fix and apply_repairs(name, result.problems):
            result = run_check(check)
        count += len(result.problems)
        lines = [f"wrong  {name:10} {problem}" for problem in result.problems]
        print("\n".join(lines or [f"ok     {name:10} {result.summary}"]), flush=True)
    if count:
        raise InputError(f"{count} {'problem' if count == 1 else 'problems'}: see the lines above")


def apply_repairs(name: str, problems: list[Problem]) -> bool:
    """Announce and apply the repairs of a check; whether there was one."""
    repairs = [(problem.text, problem.repair) for problem in problems if problem.repair]
    for text, repair in repairs:
        print(f"fix    {name:10} {text}: {repair.phrase}", flush=True)
        repair.apply()
    return bool(repairs)


def run_check(check: Callable[[], CheckResult]) -> CheckResult:
    """The result of a check; an error in it is a problem too, so that the others still run."""
    try:
        return check()
    except Exception as error:
        return CheckResult("", [Problem(describe_error(error), "see the other lines")])
