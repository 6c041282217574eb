"""The tables that stages hand to each other: Parquet with one explicit Arrow schema each.

A `record` is an article, a captioned picture, a tweet, a post or a meme, a `chunk` a picture with
the text that belongs to it. `image` is the sha256 of the picture's file bytes, the key of images/
and of the features. `position` is the same in every table: it counts the pictures of the record, as
01_ingest took them in, from 0. It has gaps where a picture makes no chunk, and is 0 in a record
without pictures.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.shared.runtime.stage import InputError

STR, INT, FLOAT = pa.string(), pa.int32(), pa.float32()
STR_LIST, FLOAT16_LIST = pa.list_(STR), pa.list_(pa.float16())


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


TASK_LABELS = pa.list_(pa.struct([("task", STR), ("label", STR)]))  # of the tasks somebody judged
_RECORD_COLUMNS = {"id": STR, "split": STR, "language": STR, "source": STR}

# 01_ingest, by kind of corpus. A block is a picture (text null) or a text (image null).
RECORDS = {
    "articles": _schema(
        **_RECORD_COLUMNS,
        title=STR,
        blocks=pa.list_(pa.struct([("image", STR), ("text", STR)])),
    ),
    "captions": _schema(**_RECORD_COLUMNS, image=STR, captions=STR_LIST),
    "tweets": _schema(
        **_RECORD_COLUMNS, image=STR, words=STR_LIST, tags=STR_LIST
    ),  # image null: without picture
    "posts": _schema(**_RECORD_COLUMNS, image=STR, text=STR, label=STR),
    "memes": _schema(
        **_RECORD_COLUMNS, image=STR, text=STR, labels=TASK_LABELS
    ),  # text empty: not given
}
# 02_clean: the same with clean text, the original beside it.
CLEAN_RECORDS = {
    "articles": _schema(
        **_RECORD_COLUMNS,
        title=STR,
        title_original=STR,
        blocks=pa.list_(pa.struct([("image", STR), ("text", STR), ("original", STR)])),
    ),
    "captions": _schema(**_RECORD_COLUMNS, image=STR, captions=STR_LIST, originals=STR_LIST),
    "tweets": _schema(
        **_RECORD_COLUMNS, image=STR, words=STR_LIST, originals=STR_LIST, tags=STR_LIST
    ),
    "posts": _schema(**_RECORD_COLUMNS, image=STR, text=STR, original=STR, label=STR),
    "memes": _schema(**_RECORD_COLUMNS, image=STR, text=STR, original=STR, labels=TASK_LABELS),
}
IMAGES = _schema(sha256=STR, bytes=pa.binary(), width=INT, height=INT)  # 01_ingest/*/images
REJECTED_RECORDS = _schema(
    source=STR, id=STR, reason=STR
)  # 01_ingest: what was not taken in, and why
FACTS = _schema(record=STR, position=INT, slot=STR, value=STR)  # 01_ingest, sample only: the truth
# 01_ingest, sample only: where a slot is drawn, as shares of the picture's width and height
BOXES = _schema(
    record=STR, position=INT, slot=STR, left=FLOAT, top=FLOAT, right=FLOAT, bottom=FLOAT
)
FOILS = _schema(record=STR, position=INT, slot=STR, text=STR)  # 01_ingest, sample: one slot changed
# 03_inpaint: a picture and what became of it; inpainted: the same sha256 where no text was found.
# In pixels of the upright picture: boxes, and quads, the 8 numbers of 4 corners each. masked: share
# of its pixels. text: recognised, null where not asked for. mask: PNG, 255 where it was painted
# over, null without boxes
INPAINTED_IMAGES = _schema(
    image=STR,
    inpainted=STR,
    boxes=pa.list_(
        pa.struct([(edge, FLOAT) for edge in ("left", "top", "right", "bottom", "score")])
    ),
    quads=pa.list_(pa.list_(FLOAT)),
    masked=FLOAT,
    text=STR,
    mask=pa.binary(),
)
# 04_augment: memes as models read them. group: the record that it is made of, an original's own id;
# variant: 0 the original, from 1 its paraphrases; pictured: its picture in 01_ingest; text_source:
# corpus | recognised, in its picture | what paraphrased it
MEMES = _schema(
    **_RECORD_COLUMNS,
    group=STR,
    variant=INT,
    image=STR,
    pictured=STR,
    text=STR,
    text_source=STR,
    labels=TASK_LABELS,
)
EMBED_INPUTS = CLEAN_RECORDS | {"memes": MEMES}  # what embed reads, by kind of corpus
_CHUNK_COLUMNS = {
    "record": STR,
    "position": INT,
    "split": STR,
    "language": STR,
    "title": STR,
    "image": STR,
}
CHUNKS = _schema(**_CHUNK_COLUMNS, text=STR, references=STR_LIST)  # 05_chunk
# 05_chunk, articles: chunks that mscDPO compares with each other, the rows of one group together;
# rejected: who of the group may be rejected for this chunk, by their places in it, from 0
PREFERENCE_PAIRS = _schema(group=INT, record=STR, position=INT, rejected=pa.list_(INT))
# 05_chunk, articles: how alike the chunk's text is to each chunk of its article, in their order
SIMILARITIES = _schema(record=STR, position=INT, similarities=pa.list_(FLOAT))
# 11_predict; phase: sft | preference; inputs: both | topic | picture
PREDICTIONS = _schema(
    **_CHUNK_COLUMNS,
    references=STR_LIST,
    phase=STR,
    inputs=STR,
    text=STR,
    sigma=FLOAT,
    masked=FLOAT,
)
# 08_illustrate: where the picture of a chunk without one came from; similarity: of it and the title
ILLUSTRATIONS = _schema(
    record=STR,
    position=INT,
    split=STR,
    text=STR,
    image=STR,
    backend=STR,
    source=STR,
    seed=INT,
    similarity=FLOAT,
)
# 11_predict: what msaGate does to each chunk; use: train | predict; passed: g, 1 lets the topic
# pass. Probability and g are null where picture or topic is missing: there is nothing to decide.
GATES = _schema(
    record=STR,
    position=INT,
    split=STR,
    use=STR,
    mode=STR,
    sigma=FLOAT,
    mask_probability=FLOAT,
    passed=FLOAT,
)
# 11_predict: of test items from both inputs. correlation: lambda by channel, mean over patches (D);
# entropy, spread: of the fusion's attention, see stages/shared/metrics/attention.py; null where the topic
# is masked or has one token
FUSIONS = _schema(
    record=STR, position=INT, phase=STR, correlation=FLOAT16_LIST, entropy=FLOAT, spread=FLOAT
)
# 11_predict: attention, row by row. tokens: T of the topic; fusion: (P, T) from patches to them,
# empty without fusion; text: what was written; ends: how many characters of it stand once each of
# its Y tokens is there; decoder: (Y, P), the mean over layers and heads
ATTENTIONS = _schema(
    record=STR,
    position=INT,
    phase=STR,
    tokens=STR_LIST,
    fusion=FLOAT16_LIST,
    text=STR,
    ends=pa.list_(INT),
    decoder=FLOAT16_LIST,
)
# 11_predict: log p(text | picture, title) in nats; slot is "" for the reference itself
FOIL_SCORES = _schema(record=STR, position=INT, phase=STR, slot=STR, log_prob=FLOAT)
# 11_classify: labels of one item of a reader; inputs: both | text | picture; task: entities (one BIO
# tag a word) | sentiment (one label), or of memes a row for each task (one label; gold is empty
# where nobody judged); probability: of the predicted label, empty for tags; cut: words beyond the
# reader's limit, which are predicted O
LABEL_PREDICTIONS = _schema(
    record=STR,
    split=STR,
    inputs=STR,
    task=STR,
    gold=STR_LIST,
    predicted=STR_LIST,
    probability=pa.list_(FLOAT),
    cut=INT,
)
# 11_classify: MuSE's exchange in one layer (from 1) and modality (text | picture) of a chosen item;
# tokens: its pieces, none of a picture; weights: cls attention to each valid token or cell;
# exchanged: the places, from 0, of those that the other modality's mean took the place of
EXCHANGES = _schema(
    record=STR,
    layer=INT,
    modality=STR,
    tokens=STR_LIST,
    weights=FLOAT16_LIST,
    exchanged=pa.list_(INT),
)
# 11_classify: what the regularisers say of an item: nats per token of the text given the picture, bits
# per dimension of the picture given the text, a caption written of the picture; null without it
REGULARIZER_OUTPUTS = _schema(
    record=STR, split=STR, caption_nats=FLOAT, drawing_bits=FLOAT, caption=STR
)
SAMPLED_IMAGES = _schema(
    record=STR, number=INT, picture=pa.binary()
)  # 11_classify: PNG, drawn from the text
# 11_classify: modality: text | picture; where: before | after the shared projection
EMBEDDINGS = _schema(record=STR, modality=STR, where=STR, vector=FLOAT16_LIST)
# 11_classify: how MM-ORIENT behaved on an item, see `behaviour` of stages/models/mm_orient/model.py
DIAGNOSTICS = _schema(record=STR, split=STR, name=STR, value=FLOAT)
# 11_classify: where HIMA looked in an item; modality: text | picture; tokens: its pieces, none of a
# picture; weights: of pieces, or regions row by row
ATTENTION_MAPS = _schema(record=STR, modality=STR, tokens=STR_LIST, weights=FLOAT16_LIST)
# 12_evaluate: scores of one written text, null where not measured; right, wrong: names of slots
ITEM_SCORES = _schema(
    record=STR,
    position=INT,
    split=STR,
    phase=STR,
    inputs=STR,
    bleu_4=FLOAT,
    rouge_l=FLOAT,
    meteor=FLOAT,
    meteor_exact_stem=FLOAT,
    cider=FLOAT,
    bert_score=FLOAT,
    grounding=FLOAT,
    right=STR_LIST,
    wrong=STR_LIST,
)
# 12_evaluate: what TIPPo rewards in a whole article that was written from both inputs; semantic is
# null where MiniLM does not read its language
REWARDS = _schema(record=STR, split=STR, phase=STR, literal=FLOAT, semantic=FLOAT)
# 12_evaluate_classifier: one item of a reader, of memes one for each task. right: predicted entities that are
# right, or 1 for the right label, else 0; predicted, gold: how many; strict_*: the same by
# strict IOB2, span_right by their places alone; null but for entities
LABEL_SCORES = _schema(
    record=STR,
    split=STR,
    inputs=STR,
    task=STR,
    right=INT,
    predicted=INT,
    gold=INT,
    span_right=INT,
    strict_right=INT,
    strict_predicted=INT,
    strict_gold=INT,
    cut=INT,
)
# 13_judge: what a language model gave a whole article; reference: free | aware, whether it saw the
# reference article; comment: what it said before its scores
JUDGE_SCORES = _schema(
    record=STR, phase=STR, reference=STR, perspective=STR, score=FLOAT, comment=STR
)


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows (dicts with the schema's keys) as one Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def read_parquet(path: Path, schema: pa.Schema) -> list[dict]:
    """The rows of a Parquet file. Raises WrongInput if it is missing or has other columns."""
    return read_table(path, schema).to_pylist()


def read_table(path: Path, schema: pa.Schema, only: pc.Expression | None = None) -> pa.Table:
    """The same as Arrow's columns, of the rows alone that `only` holds for."""
    try:
        table = pq.read_table(path, filters=only)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro`") from None
    if table.schema.remove_metadata() != schema:
        raise InputError(f"{path} was written by another version: run `dvc repro`")
    return table


def read_json(path: Path) -> dict[str, Any]:
    """What a stage wrote beside its tables. Raises WrongInput if it is missing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro`") from None


def read_predictions(folder: Path) -> list[dict]:
    """The rows of predictions.parquet. Raises WrongInput if no test item is among them."""
    source = folder / "predictions.parquet"
    rows = read_parquet(source, PREDICTIONS)
    if not any((row["split"], row["inputs"]) == ("test", "both") for row in rows):
        raise InputError(
            f"{source} holds no test item: keep test in predict.splits of params.yaml,"
            " and give the corpus records of that split"
        )
    return rows
