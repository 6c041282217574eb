"""Illustration by retrieval: the images of the train split nearest to the text."""

from stages.illustrate.base import IllustrateConfig, Illustration, Illustrator, ImageGallery


class RetrieveIllustrator(Illustrator):
    """Finds images of the gallery by the cosine of text and image features."""

    name = "retrieve"

    def __init__(self, gallery: ImageGallery):
        self.gallery = gallery
        if not gallery.supports_language:
            self.unavailable_reason = "the encoder does not read the language"
        elif gallery.is_empty:
            self.unavailable_reason = "the train split has no picture of its own"

    def illustrate(self, texts: list[str], count: int, seed: int) -> list[list[Illustration]]:
        """As in the base class. The seed has no effect; if unavailable, all lists are empty."""
        if self.unavailable_reason:
            return [[] for _ in texts]
        nearest = self.gallery.find_nearest(texts, count)
        images = self.gallery.load_images({name for names in nearest for name in names})
        return [[images[name] for name in names] for names in nearest]


def load(name: str, config: IllustrateConfig, gallery: ImageGallery) -> RetrieveIllustrator:
    """The illustrator of a gallery; `name` and `config` are not used."""
    return RetrieveIllustrator(gallery)
