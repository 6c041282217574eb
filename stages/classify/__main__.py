"""Predict the labels of the validation and test split with a trained classifier.

python -m stages.classify --run RUN --images IMAGES --records RECORDS --features FEATURES
    --model MODEL --output OUTPUT

reads   IMAGES/images, RECORDS/records.parquet, FEATURES, MODEL
writes  OUTPUT/labels.parquet, OUTPUT/parameters.json, and the tables of the paper's module

Every item is classified from both inputs. Items of the scored split (test, or validation if test
has nothing to score) are also classified from text and image alone, if the split has images. Each
paper has a module in this folder with

    TABLES                                 name -> schema of each table that it writes
    classify(name, kind, folders, config)  -> rows of each table, parameter counts of the model
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
    config: ClassifyConfig,
    output: Path,
) -> None:
    """Classify with the run `name` and write the tables of `paper`, its module in this folder.

    folders: IMAGES, RECORDS, FEATURES, MODEL; kind: of corpus
    """
    with atomic_output_dir(output) as folder:
        tables, parameters = paper.classify(name, kind, folders, config)
        for table, schema in paper.TABLES.items():
            schemas.write_parquet(folder / f"{table}.parquet", tables[table], schema)
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
