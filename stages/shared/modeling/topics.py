"""Topics as generators read them: token features of the encoder, and ids of the decoder."""

import torch
from torch import Tensor

from stages.shared.features.store import Features
from stages.shared.training.batching import Batch


class Topics:
    """The topics of a corpus, by title.

    A batch of B items has
        has_topic (B,) bool
        topic (B, T, D_T), topic_mask (B, T)   token features, if the encoder reads the language
        topic_ids, topic_ids_mask (B, L)       the topic in the decoder's tokens
    An item without a topic has one unmasked position of zeros, which keeps attention finite.
    """

    def __init__(self, titles: set[str], features: Features, tokenizer, max_tokens: int):
        """max_tokens: of a topic; longer ones are truncated"""
        self.features, self.tokenizer, self.max_tokens = features, tokenizer, max_tokens
        self.ids = {title: self._encode(title) for title in titles}

    def _encode(self, title: str) -> list[int]:
        """Token ids of a title; learned topics are split into characters, which recur more."""
        if self.features.text_kind == "encoder":
            ids = self.tokenizer(title, add_special_tokens=False).input_ids
        else:
            ids = [token for character in title for token in self._character_ids(character)]
        return ids[: self.max_tokens]

    def _character_ids(self, character: str) -> list[int]:
        token = self.tokenizer.convert_tokens_to_ids(character)
        if token is not None and token != self.tokenizer.unk_token_id:
            return [token]
        return self.tokenizer(character, add_special_tokens=False).input_ids

    def subwords(self, title: str) -> list[str]:
        """The subwords of a topic as strings; [""] without a topic, for its one position."""
        if self.features.text_kind == "learned":
            return self.tokenizer.convert_ids_to_tokens(self.ids[title]) or [""]
        row = self.features.text_index.get(title)
        return [""] if row is None else self.features.subwords[row][: self.max_tokens]

    def batch(self, titles: list[str]) -> Batch:
        """The batch described above for these titles; "" is no topic."""
        ids = pad_sequences([self.ids[title] or [0] for title in titles], -1)
        batch = {
            "has_topic": torch.tensor([bool(self.ids[title]) for title in titles]),
            "topic_ids": ids.clamp(min=0),
            "topic_ids_mask": ids >= 0,
        }
        if self.features.text_kind == "encoder":
            batch |= self._encoder_features(titles)
        return batch

    def _encoder_features(self, titles: list[str]) -> Batch:
        rows = [self.features.text_index.get(title) for title in titles]
        masks = [
            [True] if row is None else self.features.token_mask[row][: self.max_tokens].tolist()
            for row in rows
        ]
        lengths = [sum(mask) for mask in masks]
        topic = torch.zeros(len(titles), max(lengths), self.features.token_width)
        mask = torch.zeros(len(titles), max(lengths), dtype=torch.bool)
        for item, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            mask[item, :length] = True
            if row is not None:
                tokens = self.features.tokens[row][:length]
                topic[item, :length] = torch.from_numpy(tokens).float()
        return {"topic": topic, "topic_mask": mask}

    def pooled(self, titles: list[str]) -> Tensor:
        """Pooled features of topics, zeros where there is none.  (B, D)"""
        rows = [self.features.text_index.get(title) for title in titles]
        features = self.features.text_pooled
        zeros = torch.zeros(features.shape[1])
        return torch.stack(
            [zeros if row is None else torch.from_numpy(features[row]).float() for row in rows]
        )


def pad_sequences(ids: list[list[int]], filler: int) -> Tensor:
    """Sequences as a tensor, filled at the end.  -> (B, length of the longest)"""
    longest = max(map(len, ids))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in ids])
