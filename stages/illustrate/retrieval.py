"""Retrieval: the pictures of the train split whose features are nearest to the text's."""

from stages.illustrate.base import Gallery, Illustration, Illustrator, Params


class RetrieveIllustrator(Illustrator):
    name = "retrieve"

    def __init__(self, gallery: Gallery):
        self.gallery = gallery
        if not gallery.readable:
            self.obstacle = "the encoder does not read the language"
        elif gallery.empty:
            self.obstacle = "the train split has no picture of its own"

    def illustrate(self, texts: list[str], count: int, seed: int) -> list[list[Illustration]]:
        """Nothing is drawn: every seed gives the same. With an obstacle: none."""
        if self.obstacle:
            return [[] for _ in texts]
        nearest = self.gallery.nearest(texts, count)
        pictures = self.gallery.pictures({name for names in nearest for name in names})
        return [[pictures[name] for name in names] for names in nearest]


def load(name: str, params: Params, gallery: Gallery) -> RetrieveIllustrator:
    return RetrieveIllustrator(gallery)
