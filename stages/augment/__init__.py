"""Paraphrases of memes, and a picture of its own for each."""
