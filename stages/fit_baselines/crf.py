"""A linear-chain CRF on frozen token states (Lafferty et al., 2001).

p(y | x) is proportional to exp(sum_t W[y_t] x_t + b[y_t] + A[y_{t-1}, y_t]), with weights for the
first and the last tag. All weights start at zero and the loss is convex, so that only the order of
the items depends on the seed.

B items of at most W words, D features per word, K tags.
"""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchcrf import CRF

from stages.fit_baselines.config import CrfConfig
from stages.fit_baselines.features import fit_standardization
from stages.shared.metrics.classification import compute_entity_f1, extract_lenient_entities

TaggedItems = tuple[list[np.ndarray], list[list[str]]]  # features (words, D), tags of each item


class LinearChainCrf(nn.Module):
    """mean, deviation (D,): of the features, for standardization"""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: np.ndarray, deviation: np.ndarray, num_tags: int):
        super().__init__()
        self.emissions = nn.Linear(len(mean), num_tags)
        self.transitions = CRF(num_tags, batch_first=True)
        for weight in self.parameters():
            nn.init.zeros_(weight)
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("deviation", torch.from_numpy(deviation))

    def _score_tags(self, features: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Tag scores (B, W, K), and the mask of words (B, W). Every item has a word."""
        lengths = torch.tensor([len(item) for item in features])
        words = torch.from_numpy(np.concatenate(features))  # scored before padding, which is wide
        scores = self.emissions((words - self.mean) / self.deviation).split(lengths.tolist())
        padded = pad_sequence(list(scores), batch_first=True)
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]

    def loss(self, features: Sequence[np.ndarray], tags: Sequence[list[int]]) -> Tensor:
        """-log p(tags | features) in nats, mean over the items"""
        scores, mask = self._score_tags(features)
        ids = pad_sequence([torch.tensor(row) for row in tags], batch_first=True)
        return -self.transitions(scores, ids, mask, reduction="mean")

    @torch.no_grad()
    def decode(self, features: Sequence[np.ndarray], batch_size: int) -> list[list[int]]:
        """The most probable tags of each item; none for an item without words."""
        tags: list[list[int]] = [[] for _ in features]
        with_words = [index for index, item in enumerate(features) if len(item)]
        for start in range(0, len(with_words), batch_size):
            part = with_words[start : start + batch_size]
            scores, mask = self._score_tags([features[index] for index in part])
            # Typed as ByteTensor, which torch has replaced by bool tensors.
            paths = self.transitions.decode(scores, mask)  # pyright: ignore[reportArgumentType]
            for index, path in zip(part, paths, strict=True):
                tags[index] = path
        return tags


def predict_tags(
    train: TaggedItems, validation: TaggedItems, predicted: list[np.ndarray], config: CrfConfig
) -> tuple[list[list[str]], int]:
    """Fit on `train` until F1 on `validation` stops improving.  -> tags of `predicted`, epochs

    The weights of the epoch with the best F1 are used; without validation items, the last ones.
    Tags beyond the features of an item (truncated words) are ignored, and not predicted.
    """
    names = sorted({tag for tags in train[1] for tag in tags})
    items = [
        (features, [names.index(tag) for tag in tags[: len(features)]])
        for features, tags in zip(*train, strict=True)
        if len(features)
    ]
    model = LinearChainCrf(
        *fit_standardization(np.concatenate([features for features, _ in items])), len(names)
    )
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    best_f1, best_epoch, best_weights = -1.0, 0, model.state_dict()

    def decode(features: list[np.ndarray]) -> list[list[str]]:
        paths = model.decode(features, config.batch_size)
        return [[names[index] for index in path] for path in paths]

    for epoch in range(1, config.max_epochs + 1):
        for part in torch.randperm(len(items), generator=generator).split(config.batch_size):
            features, tags = zip(*(items[index] for index in part.tolist()), strict=True)
            loss = model.loss(features, tags)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        f1 = evaluate_f1(decode(validation[0]), validation[1]) if validation[0] else float(epoch)
        if f1 > best_f1:
            best_f1, best_epoch, best_weights = f1, epoch, deepcopy(model.state_dict())
        elif epoch - best_epoch >= config.patience:
            break
    model.load_state_dict(best_weights)
    return decode(predicted), best_epoch


def evaluate_f1(predicted: list[list[str]], gold: list[list[str]]) -> float:
    """Lenient entity F1; words without a predicted tag are outside entities."""
    pairs = [
        (extract_lenient_entities(tags), extract_lenient_entities(path))
        for path, tags in zip(predicted, gold, strict=True)
    ]
    return compute_entity_f1(pairs)
