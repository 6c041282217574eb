"""Images API: pictures from a server that speaks OpenAI's protocol, by the name of a model.

The package repeats a request that is refused for now, after the Retry-After of the answer.
"""

from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from threading import Event

from openai import APIError, AuthenticationError, OpenAI, PermissionDeniedError

from stages.illustrate.base import (
    GeneratingIllustrator,
    IllustrateConfig,
    ImageGallery,
    ImageRequest,
)
from stages.shared.data import image_store
from stages.shared.llm.endpoint import load_endpoint
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError

# What a server says of a text that it will not draw; the others are drawn all the same.
REFUSAL_CODES = {"content_policy_violation", "moderation_blocked"}


class OpenAIIllustrator(GeneratingIllustrator):
    def __init__(self, model: str, params: IllustrateConfig):
        self.name, self.model, self.config = f"openai:{model}", model, params.openai
        self.server = load_endpoint("illustrate.backend", "retrieve")
        self.client = OpenAI(
            api_key=self.server.api_key,
            base_url=self.server.base_url,
            max_retries=self.config.max_retries,
            timeout=self.config.timeout,
        )
        # Without the address: a server that moves draws nothing anew, and no hash holds a password.
        decisive = f"{self.name} {self.config.size}"
        self.fingerprint = sha256(decisive.encode()).hexdigest()
        # The GPT image models answer so always and refuse to be asked for it.
        gpt = "gpt-image" in model or "chatgpt-image" in model
        self.extra_arguments = {} if gpt else {"response_format": "b64_json"}

    def generate(self, drafts: list[ImageRequest]) -> Iterator[tuple[ImageRequest, bytes]]:
        """Raises the first fault once all that was under way then has come, and is yielded."""
        stop, fault = Event(), None

        def ask(draft: ImageRequest) -> bytes | None:
            try:
                return None if stop.is_set() else self._request_image(draft.text)
            except BaseException:
                stop.set()  # here, before this thread takes the next: nothing more is paid for
                raise

        with ThreadPoolExecutor(self.config.concurrency) as pool:
            asked = {pool.submit(ask, draft): draft for draft in drafts}
            try:
                for answer in progress_bar(as_completed(asked), "ask", len(asked)):
                    if error := answer.exception():
                        fault = fault or error
                    elif content := answer.result():
                        yield asked[answer], content
            finally:
                pool.shutdown(cancel_futures=True)  # where who reads stops reading
        if fault:
            raise fault

    def _request_image(self, text: str) -> bytes | None:
        """A picture file, or None if the server will not draw this text."""
        try:
            answer = self.client.images.generate(
                model=self.model, prompt=text, n=1, size=self.config.size, **self.extra_arguments
            )
            content = b64decode(answer.data[0].b64_json, validate=True)
            image_store.validate_image(content, self.config.max_pixels)
        except (AuthenticationError, PermissionDeniedError) as error:
            # Servers repeat parts of a key, so nothing of theirs is shown.
            raise self._build_error(f"HTTP {error.status_code}, the key is not taken") from None
        except APIError as error:
            if error.code in REFUSAL_CODES:
                return None
            raise self._build_error(error) from None
        except image_store.ImageError as error:
            raise self._build_error(error) from None
        # What is no answer of the protocol comes back as it is, or does not parse.
        except (AttributeError, IndexError, TypeError, ValueError):
            raise self._build_error("an answer without b64_json") from None
        return content

    def _build_error(self, error: object) -> InputError:
        return InputError(
            f"illustrate.backend: {self.name} cannot be used "
            f"({self.server.redact(str(error))[:200]}): check the name, "
            "illustrate.openai, OPENAI_API_KEY and OPENAI_BASE_URL"
        )


def load(name: str, params: IllustrateConfig, gallery: ImageGallery) -> OpenAIIllustrator:
    return OpenAIIllustrator(name, params)
