"""Predict the labels of the validation and test split with a trained classifier.

python -m stages.classify --run RUN --images IMAGES --records RECORDS --features FEATURES
    --model MODEL --output OUTPUT

reads   IMAGES/images, RECORDS/records.parquet, FEATURES, MODEL
writes  OUTPUT/labels.parquet, OUTPUT/parameters.json, and the tables of the paper's module

Every item is classified from both inputs. Items of the scored split (test, or validation if test
has nothing to score) are also classified from text and image alone, if the split has images. Each
paper has a module in this folder, see `ClassifierModule`.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from stages.classify.config import ClassifyConfig
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.runtime.stage import atomic_output_dir, run_stage


class ClassifierModule(Protocol):
    """The module of a paper in this folder."""

    TABLES: dict[str, pa.Schema]  # of each table that it writes, by name
    RUN_CONFIG: type[Any]  # config class of a row of params.yaml: classifiers

    def classify(
        self, corpus: CorpusFolders, model: Path, kind: Any, config: ClassifyConfig, batch_size: int
    ) -> tuple[dict[str, list[dict]], dict[str, int]]:
        """Rows of each table, and the parameter counts of the model in the folder `model`."""
        ...


def main(
    paper: ClassifierModule,
    corpus: CorpusFolders,
    model: Path,
    kind: str,
    config: ClassifyConfig,
    batch_size: int,
    output: Path,
) -> None:
    """Classify a corpus with the model in a folder and write the tables of `paper`.

    paper: its module in this folder; kind: of corpus
    """
    with atomic_output_dir(output) as folder:
        tables, parameters = paper.classify(corpus, model, kind, config, batch_size)
        for table, schema in paper.TABLES.items():
            schemas.write_parquet(folder / f"{table}.parquet", tables[table], schema)
        counts = json.dumps(parameters, indent=1)
        (folder / "parameters.json").write_text(f"{counts}\n")


def cli(run: str, images: Path, records: Path, features: Path, model: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    name = load_config(str, "classifiers", run, "model")
    paper: Any = import_module(f"stages.classify.{name}")
    run_config = load_config(paper.RUN_CONFIG, "classifiers", run)
    kind = load_config(str, "corpora", run_config.corpus, "kind")
    config = load_config(ClassifyConfig, "classify")
    corpus, batch_size = CorpusFolders(images, records, features), run_config.eval_batch_size
    main(paper, corpus, model, kind, config, batch_size, output)


if __name__ == "__main__":
    run_stage(cli)
