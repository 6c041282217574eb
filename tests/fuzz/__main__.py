"""Coverage-guided fuzzing of the parsers and the image decoder by atheris (libFuzzer).

python -m tests.fuzz [--seconds SECONDS] [TARGET ...]     as `make fuzz`

An input that raises another error than the ones that name the fault is written to
tests/fuzz/cases/TARGET, from where test_fuzz_cases.py replays it; the other targets continue.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

CASES = Path(__file__).with_name("cases")
INSTRUMENTED = ["stages.datasets", "stages.ingest", "stages.shared.data", "PIL"]
LIMITS = ["-timeout=30", "-rss_limit_mb=2048", "-max_len=20000", "-close_fd_mask=2"]
LIMITS += ["-verbosity=0", "-report_slow_units=60"]  # seconds


def fuzz(name: str, seconds: int) -> None:
    """Fuzz a target in this process, which then ends."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import PARSERS, TARGETS, list_seeds, load_format

        if name in PARSERS:
            load_format(name)
    (CASES / name).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as corpus:
        for number, seed in enumerate(list_seeds(name)):
            Path(corpus, str(number)).write_bytes(seed)
        limits = [f"-max_total_time={seconds}", f"-artifact_prefix={CASES / name}/", *LIMITS]
        atheris.Setup([sys.argv[0], *limits, corpus], TARGETS[name])
        atheris.Fuzz()


def main() -> None:
    """Fuzz each target in a process of its own. Exits with 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, help="of each target")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="of targets.py; all by default"
    )
    options = parser.parse_args()
    if options.here:
        fuzz(options.targets[0], options.seconds)
    from tests.fuzz.targets import TARGETS  # after atheris, which instruments what is imported

    failed = []
    for name in options.targets or TARGETS:
        print(f"fuzzing {name} for {options.seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "--here", "--seconds", str(options.seconds)]
        if subprocess.run([*command, name]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"findings in {CASES}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
