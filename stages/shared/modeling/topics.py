"""Topics as writers read them: token features of the encoder, and the decoder's own tokens."""

import torch
from torch import Tensor

from stages.shared.features.store import Features
from stages.shared.training.batching import Batch


class Topics:
    """The topics of a corpus, by their titles.

    A batch of B has
        has_topic (B,) bool
        topic (B, T, D_T), topic_mask (B, T)   token features, where the encoder reads the language
        topic_ids, topic_ids_mask (B, L)       the topic in the decoder's own tokens
    An item without a topic has one open position of zeros, so that attention stays finite.
    """

    def __init__(self, titles: set[str], features: Features, tokenizer, limit: int):
        """limit: most tokens of a topic"""
        self.features, self.tokenizer, self.max_tokens = features, tokenizer, limit
        self.ids = {title: self._ids(title) for title in titles}

    def _ids(self, title: str) -> list[int]:
        """Tokens of a title; its characters where topics are learned, for they recur more often."""
        if self.features.text_kind == "encoder":
            ids = self.tokenizer(title, add_special_tokens=False).input_ids
        else:
            ids = [piece for character in title for piece in self._character_ids(character)]
        return ids[: self.max_tokens]

    def _character_ids(self, character: str) -> list[int]:
        piece = self.tokenizer.convert_tokens_to_ids(character)
        if piece is not None and piece != self.tokenizer.unk_token_id:
            return [piece]
        return self.tokenizer(character, add_special_tokens=False).input_ids

    def subwords(self, title: str) -> list[str]:
        """A topic's tokens as their tokenizer spells them; without topic the open position's."""
        if self.features.text_kind == "learned":
            return self.tokenizer.convert_ids_to_tokens(self.ids[title]) or [""]
        row = self.features.text_index.get(title)
        return [""] if row is None else self.features.subwords[row][: self.max_tokens]

    def batch(self, titles: list[str]) -> Batch:
        ids = pad_sequences([self.ids[title] or [0] for title in titles], -1)
        batch = {
            "has_topic": torch.tensor([bool(self.ids[title]) for title in titles]),
            "topic_ids": ids.clamp(min=0),
            "topic_ids_mask": ids >= 0,
        }
        return batch | (
            self._encoder_features(titles) if self.features.text_kind == "encoder" else {}
        )

    def _encoder_features(self, titles: list[str]) -> Batch:
        found = [self.features.text_index.get(title) for title in titles]
        masks = [
            [True] if row is None else self.features.token_mask[row][: self.max_tokens].tolist()
            for row in found
        ]
        longest = max(sum(mask) for mask in masks)
        topic = torch.zeros(len(titles), longest, self.features.token_width)
        mask = torch.zeros(len(titles), longest, dtype=torch.bool)
        for item, (row, shown) in enumerate(zip(found, masks, strict=True)):
            length = sum(shown)
            mask[item, :length] = True
            if row is not None:
                tokens = self.features.tokens[row][:length]
                topic[item, :length] = torch.from_numpy(tokens).float()
        return {"topic": topic, "topic_mask": mask}

    def pooled(self, titles: list[str]) -> Tensor:
        """Pooled topics, zeros where there is none.  (B, D)"""
        found = [self.features.text_index.get(title) for title in titles]
        zeros = torch.zeros(self.features.text_pooled.shape[1])
        rows = self.features.text_pooled
        return torch.stack(
            [zeros if row is None else torch.from_numpy(rows[row]).float() for row in found]
        )


def pad_sequences(ids: list[list[int]], filler: int) -> Tensor:
    """(B, longest)"""
    longest = max(map(len, ids))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in ids])
