"""Formats that corpora come in, one file each, and the sample corpus."""
