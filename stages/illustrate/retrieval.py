"""Retrieval: the pictures of the train split whose features are nearest to the text's."""

from stages.illustrate.base import IllustrateConfig, Illustration, Illustrator, ImageGallery


class RetrieveIllustrator(Illustrator):
    name = "retrieve"

    def __init__(self, gallery: ImageGallery):
        self.gallery = gallery
        if not gallery.supports_language:
            self.unavailable_reason = "the encoder does not read the language"
        elif gallery.is_empty:
            self.unavailable_reason = "the train split has no picture of its own"

    def illustrate(self, texts: list[str], count: int, seed: int) -> list[list[Illustration]]:
        """Nothing is drawn: every seed gives the same. With an obstacle: none."""
        if self.unavailable_reason:
            return [[] for _ in texts]
        nearest = self.gallery.find_nearest(texts, count)
        pictures = self.gallery.load_images({name for names in nearest for name in names})
        return [[pictures[name] for name in names] for names in nearest]


def load(name: str, params: IllustrateConfig, gallery: ImageGallery) -> RetrieveIllustrator:
    return RetrieveIllustrator(gallery)
