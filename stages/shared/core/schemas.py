"""The Parquet tables that stages exchange, each with an explicit Arrow schema.

A `record` is an article, a captioned image, a tweet, a post or a meme; a `chunk` is a text with its
image, or with several images in consecutive rows. `image` is the sha256 of the bytes of the image
file, the key in images/ and in the features. `position` is the same in all tables: the index of an
image among the images of its record in 01_ingest, from 0; that of a chunk is that of its first
image. It has gaps if an image makes no chunk, and is 0 in a record without images.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.shared.runtime.errors import damaged_file
from stages.shared.runtime.stage import InputError

STR, INT, FLOAT = pa.string(), pa.int32(), pa.float32()
STR_LIST, FLOAT16_LIST = pa.list_(STR), pa.list_(pa.float16())


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


TASK_LABELS = pa.list_(pa.struct([("task", STR), ("label", STR)]))  # annotated tasks only
_RECORD_COLUMNS = {"id": STR, "split": STR, "language": STR, "source": STR}

# 01_ingest, by kind of corpus. A block is an image (text null) or a text (image null). image is
# null in a tweet or post without image; the text of a meme is empty if the corpus has none.
RECORDS = {
    "articles": _schema(
        **_RECORD_COLUMNS,
        title=STR,
        blocks=pa.list_(pa.struct([("image", STR), ("text", STR)])),
    ),
    "captions": _schema(**_RECORD_COLUMNS, image=STR, captions=STR_LIST),
    "tweets": _schema(**_RECORD_COLUMNS, image=STR, words=STR_LIST, tags=STR_LIST),
    "posts": _schema(**_RECORD_COLUMNS, image=STR, text=STR, label=STR),
    "memes": _schema(**_RECORD_COLUMNS, image=STR, text=STR, labels=TASK_LABELS),
}
# 02_clean: the same with clean texts and their originals
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
REJECTED_RECORDS = _schema(source=STR, id=STR, reason=STR)  # 01_ingest
# 01_ingest, synthetic only: the true value of each slot of an image
FACTS = _schema(record=STR, position=INT, slot=STR, value=STR)
# 01_ingest, synthetic only: the box of a slot, in fractions of the image's width and height
BOXES = _schema(
    record=STR, position=INT, slot=STR, left=FLOAT, top=FLOAT, right=FLOAT, bottom=FLOAT
)
# 01_ingest, synthetic only: the reference text with one slot changed
FOILS = _schema(record=STR, position=INT, slot=STR, text=STR)
# 03_inpaint: an image and its inpainted version. inpainted: its sha256, equal to image if no text
# was detected; boxes, quads: in pixels of the upright image, a quad as 8 numbers (4 corners);
# masked: share of masked pixels; text: the recognized text, null if not requested; mask: PNG, 255
# where inpainted, null without boxes
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
# 04_augment: memes as input of the models. group: the id of the original record; variant: 0 for the
# original, from 1 for its paraphrases; pictured: the original image in 01_ingest; sentence: the
# text with its case, punctuation and digits; text_source: corpus | recognised (in the image) | the
# paraphraser
MEMES = _schema(
    **_RECORD_COLUMNS,
    group=STR,
    variant=INT,
    image=STR,
    pictured=STR,
    text=STR,
    sentence=STR,
    text_source=STR,
    labels=TASK_LABELS,
)
EMBED_INPUTS = CLEAN_RECORDS | {"memes": MEMES}  # input of the stage embed, by kind of corpus
_CHUNK_COLUMNS = {
    "record": STR,
    "position": INT,
    "split": STR,
    "language": STR,
    "title": STR,
    "image": STR,
}
# 05_chunk. A row without references is a further image of the chunk before it; its text is empty.
CHUNKS = _schema(**_CHUNK_COLUMNS, text=STR, references=STR_LIST)
PAIRS = _schema(image=STR, split=STR, texts=STR_LIST)  # 05_pair: an image and its texts
# 05_chunk, articles: the groups of chunks that mscDPO compares, the rows of a group consecutive.
# rejected: indices within the group, from 0, of chunks that may be rejected in favour of this one
PREFERENCE_PAIRS = _schema(group=INT, record=STR, position=INT, rejected=pa.list_(INT))
# 05_chunk, articles: similarity of the chunk's text to each chunk of its article, in order
SIMILARITIES = _schema(record=STR, position=INT, similarities=pa.list_(FLOAT))
# 11_predict, a row per chunk, with its first image. phase: sft | preference; inputs: both | topic |
# picture
PREDICTIONS = _schema(
    **_CHUNK_COLUMNS,
    references=STR_LIST,
    phase=STR,
    inputs=STR,
    text=STR,
    sigma=FLOAT,
    masked=FLOAT,
)
# 11_predict: texts for test chunks that are compared with those of the model. baseline:
# nearest_image | nearest_topic | consensus (texts of the train split) | shuffled_images (the model,
# with `image` of another record)
BASELINES = _schema(**_CHUNK_COLUMNS, references=STR_LIST, baseline=STR, text=STR)
# 08_illustrate: the source of the image of a chunk that had none. similarity: of image and title
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
# 11_predict: msaGate's decision for each chunk. use: train | predict; passed: g, 1 lets the topic
# pass; mask_probability and passed are null if image or topic is missing, as nothing is decided
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
# 11_predict: fusion of test items with both inputs. correlation: lambda by channel, mean over
# patches (D); entropy, spread: of the fusion's attention, see stages/shared/metrics/attention.py,
# null if the topic is masked or has one token
FUSIONS = _schema(
    record=STR, position=INT, phase=STR, correlation=FLOAT16_LIST, entropy=FLOAT, spread=FLOAT
)
# 11_predict: attention weights, row by row. tokens: T of the topic; fusion: (P, T), from patches
# to topic tokens, empty without fusion; text: the generated text; ends: its length in characters
# after each of its Y tokens; decoder: (Y, P), the mean over layers and heads
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
# 11_predict: log p(text | image, title) in nats; slot is "" for the reference itself
FOIL_SCORES = _schema(record=STR, position=INT, phase=STR, slot=STR, log_prob=FLOAT)
# 11_classify: predicted labels of one item. inputs: both | text | picture; task: entities (one BIO
# tag per word) | sentiment (one label) | a task of memes (one label; gold is empty if not
# annotated); probability: of the predicted label, empty for tags; cut: words beyond the
# classifier's limit, which are predicted O
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
# 10_fit_baselines: the same of a baseline. baseline: majority | logistic_regression |
# decision_fusion | crf; inputs: none (majority) | both | text | picture; probability: empty for crf
BASELINE_PREDICTIONS = LABEL_PREDICTIONS.append(pa.field("baseline", STR))
# 11_classify: MuSE's exchange in one layer (from 1) and modality (text | picture) of an example.
# tokens: subwords, empty for an image; weights: cls attention to each valid token or patch;
# exchanged: indices, from 0, of those replaced by the mean of the other modality
EXCHANGES = _schema(
    record=STR,
    layer=INT,
    modality=STR,
    tokens=STR_LIST,
    weights=FLOAT16_LIST,
    exchanged=pa.list_(INT),
)
# 11_classify: outputs of MuSE's regularizers. caption_nats: nats per token of the text given the
# image; drawing_bits: bits per dimension of the image given the text; caption: generated for the
# image; null without that regularizer
REGULARIZER_OUTPUTS = _schema(
    record=STR, split=STR, caption_nats=FLOAT, drawing_bits=FLOAT, caption=STR
)
# 11_classify: PNG images sampled from the text
SAMPLED_IMAGES = _schema(record=STR, number=INT, picture=pa.binary())
# 11_classify: modality: text | picture; where: before | after the shared projection
EMBEDDINGS = _schema(record=STR, modality=STR, where=STR, vector=FLOAT16_LIST)
# 11_classify: diagnostics of MM-ORIENT for an item, see `diagnostics` in
# stages/models/mm_orient/model.py
DIAGNOSTICS = _schema(record=STR, split=STR, name=STR, value=FLOAT)
# 11_classify: attention weights of HIMA for an item. modality: text | picture; tokens: subwords,
# empty for an image; weights: of subwords, or of regions row by row
ATTENTION_MAPS = _schema(record=STR, modality=STR, tokens=STR_LIST, weights=FLOAT16_LIST)
# 12_evaluate: scores of one generated text, null if not measured; right, wrong: names of slots
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
# 12_evaluate: TIPPo's rewards of a whole article generated from both inputs; semantic is null if
# MiniLM does not support its language
REWARDS = _schema(record=STR, split=STR, phase=STR, literal=FLOAT, semantic=FLOAT)
# 12_evaluate_classifier: one row per item, for memes one per item and task. right: correctly
# predicted entities, or 1 for the correct label, else 0; predicted, gold: their numbers; strict_*:
# the same by strict IOB2; span_right: by position only; both null except for entities
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
# 13_judge: a language model's scores of a whole article. reference: free | aware, whether it was
# shown the reference article; comment: its text before the scores
JUDGE_SCORES = _schema(
    record=STR, phase=STR, reference=STR, perspective=STR, score=FLOAT, comment=STR
)


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows (dicts with the schema's keys) as one Parquet file.

    Raises pyarrow.ArrowException if a value has the wrong type.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def read_parquet(path: Path, schema: pa.Schema) -> list[dict]:
    """The rows of a Parquet file.

    Raises InputError if it is missing or damaged, or has another schema.
    """
    return read_table(path, schema).to_pylist()


def read_table(path: Path, schema: pa.Schema, only: pc.Expression | None = None) -> pa.Table:
    """As `read_parquet`, but as an Arrow table, with the rows that satisfy `only`."""
    try:
        table = pq.read_table(path, filters=only)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro`") from None
    except pa.ArrowInvalid as error:
        raise damaged_file(path, error, "run `dvc repro`") from None
    if table.schema.remove_metadata() != schema:
        raise InputError(f"{path} was written by another version: run `dvc repro`")
    return table


def read_json(path: Path) -> dict[str, Any]:
    """A JSON output of a stage. Raises InputError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro`") from None
    except ValueError as error:
        raise damaged_file(path, error, "run `dvc repro`") from None


def read_predictions(folder: Path) -> list[dict]:
    """The rows of predictions.parquet. Raises InputError if it is missing or has no test item."""
    source = folder / "predictions.parquet"
    rows = read_parquet(source, PREDICTIONS)
    if not any((row["split"], row["inputs"]) == ("test", "both") for row in rows):
        raise InputError(
            f"{source} holds no test item: keep test in predict.splits of params.yaml, "
            "and give the corpus records of that split"
        )
    return rows
