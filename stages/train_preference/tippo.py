"""PolishPPO, the preference phase of TIPPo: texts are drawn, rewarded, made more or less likely.

One iteration: `rollouts` texts are drawn for each of `batch` articles; G_m weighs their two rewards
(stages/models/tippo/rewards.py), and how far a text's return lies from those it is compared with is its
advantage (eq. 6): the last `window` iterations, as in the paper, or the other texts about its
article. Then `epochs` steps of the optimizer, each over all of these texts, follow PPO's clipped
objective and are held to the SFT model. m counts iterations from 1; where the past is what they are
compared with, one before them makes the statistics and no step.

Where the paper is silent: returns of the past are weighed as those of now are, or the drift of G_m
from one m to the next would count as merit. Beside the others about its article eq. 6 is taken of
each reward, and again of the sum as G_m weighs them (GDPO, arXiv:2601.05242): letters vary three
times as much among these texts as meaning does, and would rule a sum of both as they are. The model
is that of writing: no dropout, nothing hidden, the stored prototype. Texts in a language that the
embedder does not read are left out.

Best are the weights with which one reward of validation texts has risen most, by more than `margin`
of its standard errors, while none has fallen by as many; else those of SFT. Of several looks at a
few articles one is always lucky; and in a sum of both the noise of letters hides a gain in meaning.
The phase ends when these texts have become worse by the watched score, or the policy is collapsing;
see `collapse`.
"""

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.tippo import rewards
from stages.models.tippo.model import (
    EPSILON,
    Preference,
    advantage,
    discounts,
    distance,
    policy_loss,
    total_return,
)
from stages.shared.core.config import load
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset, decoding
from stages.shared.generation import generator as generators
from stages.shared.runtime.stage import WrongInput
from stages.shared.similarity import embedders
from stages.shared.torch_setup.devices import inference
from stages.shared.training.loop import (
    Batch,
    Validation,
    batch_of,
    fingerprint,
    fit,
    seed_everything,
    to_device,
)
from stages.shared.training.losses import IGNORED, token_log_probs
from stages.train_preference.quality_monitor import Score, mean_score, score_of, write

READ_AT_ONCE = 32  # texts


class Rewarded:
    """Items with what a text about each of them earns."""

    def __init__(self, items, embedder: embedders.Embedder | None, raw: bool):
        self.items, self.embedder, self.raw = items, embedder, raw
        chunks = map(items.chunks_of, range(len(items)))
        self.references = [embedders.article_references(of_item) for of_item in chunks]

    def __len__(self) -> int:
        return len(self.items)

    def rewards(self, indices: list[int], texts: list[list[str]]) -> dict[str, Tensor]:
        """Of one text a chunk of each item: literal (B,), and semantic (B,) where it is known."""
        written = list(map(embedders.article, texts))
        references = [self.references[index] for index in indices]
        pairs = zip(written, references, strict=True)
        found = {"literal": [rewards.literal(text, of, self.raw) for text, of in pairs]}
        if self.embedder:
            found["semantic"] = rewards.semantic(self.embedder, written, references)
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def centre(returns: Tensor, deviation: str) -> tuple[Tensor, Tensor]:
    """mu_m and delta_m of eq. 6: the mean of returns, and their deviation or variance."""
    spread = returns.std(correction=0) if deviation == "std" else returns.var(correction=0)
    return returns.mean(), spread


def among_articles(values: Tensor, numbers: Preference) -> Tensor:
    """Eq. 6 of how far each text lies from the mean of those about its article.

    values (R,): `rollouts` in a row for each article  -> (R,)
    """
    means = values.view(-1, numbers.rollouts).mean(1)
    apart = values - means.repeat_interleave(numbers.rollouts)
    return advantage(apart, *centre(apart, numbers.deviation))


def labels_of(ids: Tensor, end: int) -> Tensor:
    """Written ids (R, Y + 1) as labels (R, Y), IGNORED after the end. The id of padding tells
    nothing: it may be drawn before the end like any other."""
    labels = ids[:, 1:].clone()
    ended = (labels == end).cumsum(1) - (labels == end).long() > 0
    return labels.masked_fill(ended, IGNORED)


def log_probs(model, batch: Batch, temperature: float) -> Tensor:
    """log p of each written token as it was drawn, 0 after the end.  (R, Y)

    batch: of articles; text_of (R,) the number of the article that a text is about, labels (R, Y).
    Texts of like length are read together, so that little is padded.
    """
    labels, articles = batch["labels"], model.remember(batch)
    lengths = (labels != IGNORED).sum(1)
    order, found = lengths.argsort(stable=True), []
    for texts in order.split(READ_AT_ONCE):
        memory, read = articles.rows(batch["text_of"][texts]), labels[texts, : lengths[texts].max()]
        logits = decoding.logits(model.t5, memory.hidden, memory.mask, read)
        values = token_log_probs(logits / temperature, read)
        found.append(F.pad(values, (0, labels.shape[1] - values.shape[1])))
    return torch.cat(found)[order.argsort()]


class Polish:
    """The phase: what fit asks for batches, loss and state."""

    def __init__(
        self, writer: generators.Writer, trained: Rewarded, run: generators.Run, log: Callable
    ):
        self.writer, self.trained, self.run, self.log = writer, trained, run, log
        self.numbers: Preference = generators.preference(run)
        self.by_past = self.numbers.baseline == "window"  # else texts have others of their article
        if self.by_past and run.preference.batch * self.numbers.rollouts * self.numbers.window < 2:
            raise WrongInput(
                "models.tippo.preference: with batch, rollouts and window 1 the past is one "
                "return, which has no deviation: raise one of them"
            )
        self.reference = copy.deepcopy(writer.model).eval().requires_grad_(False)
        self.iterations = -(-run.preference.steps // self.numbers.epochs)  # M
        self.past: list[dict[str, Tensor]] = []  # rewards of the last iterations
        self.rollouts: Batch = {}  # the texts of the present one
        self.prompts: list[int] = []  # the articles that they are about
        self.measures: dict[str, float] = {}  # of the present iteration and the latest step
        self.start: dict[str, float] = {}  # of what must not collapse
        self.earned: dict[str, Tensor] = {}  # (N,) by each watched article's text before step 0
        self.began, self.seconds = time.monotonic(), 0.0  # of this process; spent in drawing

    def batch_at(self, step: int) -> Batch:
        if self.by_past and not self.past:
            self.iterate(0)
        if step % self.numbers.epochs == 0:
            self.iterate(step // self.numbers.epochs + 1)
            share = self.seconds / (time.monotonic() - self.began)
            self.log({"share_of_time_in_rollouts": share}, step)
        return self.trained.items.batch(self.prompts) | self.rollouts

    def iterate(self, number: int) -> None:
        """Draw texts, reward them, and compare them."""
        schedule, numbers = self.run.preference, self.numbers
        self.prompts = batch_of(len(self.trained), schedule.batch, schedule.seed, number)
        text_of = torch.arange(schedule.batch).repeat_interleave(numbers.rollouts)
        indices = [self.prompts[place] for place in text_of.tolist()]
        seed_everything(schedule.seed, number)
        labels, texts = self.draw(indices)
        earned = self.trained.rewards(indices, texts)
        self.rollouts = self.score({"text_of": text_of, "labels": labels})
        self.rollouts["advantage"] = self.compare(earned, number).float()
        if self.by_past:
            self.past = [*self.past, earned][-numbers.window :]
        tokens = labels != IGNORED
        self.measures = {f"reward_{name}": values.mean().item() for name, values in earned.items()}
        self.measures |= {
            "return": self.returns(earned, number).mean().item(),
            # Nats a token: -log p of what was drawn.
            "entropy": -(self.rollouts["old"].sum() / tokens.sum()).item(),
            "tokens": tokens.sum(1).float().mean().item(),
        }
        self.start = {"entropy": self.measures["entropy"]} | self.start

    def returns(self, earned: dict[str, Tensor], number: int) -> Tensor:
        """G_m of each text; the literal reward alone where there is no other.  (R,)"""
        if "semantic" not in earned:
            return earned["literal"]
        return total_return(
            earned["literal"], earned["semantic"], number, self.iterations, self.numbers
        )

    def compare(self, earned: dict[str, Tensor], number: int) -> Tensor:
        """The advantage of each text by its rewards; 0 before there is a past.  (R,)"""
        numbers = self.numbers
        if not self.by_past:
            apart = {name: among_articles(values, numbers) for name, values in earned.items()}
            return among_articles(self.returns(apart, number), numbers)
        now = self.returns(earned, number)
        if not self.past:
            return torch.zeros_like(now)
        before = torch.cat([self.returns(past, number) for past in self.past])
        return advantage(now, *centre(before, numbers.deviation))

    def draw(self, indices: list[int]) -> tuple[Tensor, list[list[str]]]:
        """One text of each item in one batch: its labels, and the texts of its chunks."""
        began = time.monotonic()
        drawing = replace(
            self.run.generation, beams=1, temperature=self.numbers.temperature, top_p=1.0
        )
        self.writer.model.eval()
        written = self.writer.write(self.trained.items.batch(indices), drawing)
        labels = labels_of(written.ids.cpu(), self.writer.tokenizer.eos_token_id)
        self.seconds += time.monotonic() - began
        return labels, written.texts

    def score(self, rollouts: Batch) -> Batch:
        """With what the policy and the SFT model say of each token of them now."""
        batch = self.trained.items.batch(self.prompts) | rollouts
        batch = to_device(batch, next(self.writer.model.parameters()).device)
        with inference():
            old = log_probs(self.writer.model, batch, self.numbers.temperature)
            reference = log_probs(self.reference, batch, self.numbers.temperature)
        return rollouts | {
            "old": old.float().cpu().clone(),
            "reference": reference.float().cpu().clone(),
        }

    def loss(self, model, batch: Batch) -> dict[str, Tensor]:
        model.eval()  # fit calls train(); with any dropout it would be another policy than wrote
        new = log_probs(model, batch, self.numbers.temperature)
        mask = batch["labels"] != IGNORED
        old, reference = batch["old"], batch["reference"]
        terms = policy_loss(new, old, reference, batch["advantage"], mask, self.numbers)
        with torch.no_grad():
            moved = ((new - old).exp() - 1).abs() > self.numbers.clip
            self.measures |= {
                "clip_share": (moved & mask).sum().item() / mask.sum().item(),
                "kl_to_sft": distance(new, reference)[mask].mean().item(),
            }
        return terms

    def state(self) -> dict:
        return {
            "past": self.past,
            "rollouts": self.rollouts,
            "earned": self.earned,
            "plain": [self.prompts, self.measures, self.start],
        }

    def load_state(self, state: dict) -> None:
        self.past = [to_device(earned, torch.device("cpu")) for earned in state["past"]]
        self.rollouts = to_device(state["rollouts"], torch.device("cpu"))
        self.earned = to_device(state["earned"], torch.device("cpu"))
        self.prompts, self.measures, self.start = state["plain"]

    def noted(self) -> dict[str, float]:
        return self.measures


def collapse(
    now: dict[str, float], start: dict[str, float], max_drop: float, numbers: Preference
) -> str:
    """Why the phase has to end; "" where it may go on.

    watch: the score of validation texts, which no reward knows; characters: their mean length;
    entropy: of drawn texts; kl_to_sft: how far these are from SFT, both in nats a token.
    """
    change = now["characters"] / max(1.0, start["characters"])
    most = 1 + numbers.max_length_change
    reasons = {
        "the watched score has dropped by more than watch.max_drop": (
            start["watch"] - now["watch"] > max_drop
        ),
        "the policy is further from SFT than max_kl": now.get("kl_to_sft", 0.0) > numbers.max_kl,
        "the entropy is below min_entropy of what it was": (
            now.get("entropy", 0.0) < numbers.min_entropy * start.get("entropy", 0.0)
        ),
        "the length has changed by more than max_length_change": not 1 / most <= change <= most,
    }
    return next((reason for reason, found in reasons.items() if found), "")


def sure_gain(earned: dict[str, Tensor], start: dict[str, Tensor], margin: float) -> float:
    """The largest gain of a reward, less `margin` errors; below 0 where one has surely fallen.

    earned, start: the rewards of N texts (N,) now and before the first step
    """
    gains = torch.stack([earned[name] - before for name, before in start.items()])
    mean, error = gains.mean(1), margin * gains.std(1, correction=0) / gains.shape[1] ** 0.5
    worst, best = (mean + error).min().item(), (mean - error).max().item()
    return worst if worst < 0 else best


def validation(polish: Polish, watched: Rewarded, score: Score):
    """What texts about the first of the watched items earn, and whether anything has collapsed."""
    indices = list(range(min(len(watched), polish.run.watch.items)))

    def validate(model) -> Validation:
        texts = write(polish.writer, watched.items, indices, polish.run.generation)
        earned = watched.rewards(indices, texts)
        metrics = {f"reward_{name}": values.mean().item() for name, values in earned.items()}
        polish.earned = polish.earned or earned
        loss = -sure_gain(earned, polish.earned, polish.numbers.margin)
        metrics["watch"] = mean_score(watched.items, indices, texts, score)
        characters = [len(embedders.article(paragraphs)) for paragraphs in texts]
        metrics["characters"] = sum(characters) / len(characters)
        polish.start = metrics | polish.start
        reason = collapse(
            polish.measures | metrics, polish.start, polish.run.watch.max_drop, polish.numbers
        )
        if reason:
            print(f"PolishPPO ends: {reason}; the best weights are kept", file=sys.stderr)
        return Validation(metrics, loss, stop=bool(reason))

    return validate


def warn(numbers: Preference, iterations: int) -> None:
    """Say what the paper's own discounts leave of the rewards."""
    if numbers.discount != "literal":
        return
    weights = [discounts(m, iterations, numbers) for m in range(iterations + 1)]
    literal, semantic = weights[iterations // 2]
    lost = sum(max(pair) < EPSILON for pair in weights) / len(weights)
    print(
        f"WARNING: models.tippo.preference.discount is literal: half-way through {iterations} "
        f"iterations R_literal weighs {literal:.1e} and R_semantic {semantic:.1e}, and in "
        f"{lost:.0%} of the iterations both weigh less than the {EPSILON:g} that eq. 6 adds to the "
        "deviation, so that nothing is learned: `progress` spreads the exponents over the phase",
        file=sys.stderr,
    )


def train(
    name: str, run: generators.Run, folders: list[Path], writer: generators.Writer, log
) -> list[dict[str, float]]:
    """The steps of the phase; `writer` is left with its best weights."""
    ingest, _, chunk_folder, feature_folder, _ = folders
    cached = feature_store.read(feature_folder, chunk_folder / "features")
    numbers, limits = generators.preference(run), load(embedders.Params, "rewards")
    rows = chunk_dataset.training_chunks(chunk_folder)
    embedder = embedders.read_by(numbers.semantic, [row["language"] for row in rows], limits)

    def rewarded(rows: list[dict]) -> Rewarded:
        read = [row for row in rows if embedder is None or embedder.reads(row["language"])]
        return Rewarded(writer.items(read, cached), embedder, numbers.literal == "raw")

    trained = rewarded(rows)
    watched = rewarded(chunk_dataset.read_chunks(chunk_folder, "validation", with_picture=True))
    if not len(watched):  # few articles: watch, and choose weights, on those trained on
        watched = trained
    polish = Polish(writer, trained, run, log)
    warn(numbers, polish.iterations)
    return fit(
        writer.model,
        polish.loss,
        polish.batch_at,
        run.preference,
        name=f"train_preference@{name}",
        key=fingerprint([run.preference, run.watch, run.generation, numbers, limits], folders),
        validate=validation(polish, watched, score_of(ingest)),
        phase=polish,
        log=log,
    )
