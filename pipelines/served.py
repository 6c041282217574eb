"""Alias of pipelines.inference.pyfunc, which models logged by earlier versions name as loader."""

from pipelines.inference.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
