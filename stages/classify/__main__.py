"""Label the validation and test split with a trained reader.

python -m stages.classify --run RUN --images IMAGES --records RECORDS --features FEATURES --model MODEL --output OUTPUT

reads   PICTURES/images, RECORDS/records.parquet, FEATURES, MODEL
writes  TARGET/labels.parquet, parameters.json, and what the reader's own file says

Every item is labelled from both inputs; those of the split that is scored (test, or validation
where test has nothing to score) from text and picture alone too, if any of them has a picture. Each
paper says how in a file of its own beside this one, which has

    TABLES                                    name -> schema of each table that it writes
    label(name, kind, folders, params) -> rows of each table, how many weights the model has
"""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

from stages.classify.config import ClassifyConfig
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.runtime.stage import atomic_output_dir, run_stage


def main(
    name: str,
    paper: ModuleType,
    folders: list[Path],
    kind: str,
    params: ClassifyConfig,
    target: Path,
) -> None:
    with atomic_output_dir(target) as folder:
        found, parameters = paper.classify(name, kind, folders, params)
        for table, schema in paper.TABLES.items():
            schemas.write_parquet(folder / f"{table}.parquet", found[table], schema)
        counts = json.dumps(parameters, indent=1)
        (folder / "parameters.json").write_text(f"{counts}\n")


def cli(run: str, images: Path, records: Path, features: Path, model: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    name = load_config(str, "classifiers", run, "model")
    kind = load_config(str, "corpora", load_config(str, "classifiers", run, "corpus"), "kind")
    paper = import_module(f"stages.classify.{name}")
    config = load_config(ClassifyConfig, "classify")
    main(run, paper, [images, records, features, model], kind, config, output)


if __name__ == "__main__":
    run_stage(cli)
