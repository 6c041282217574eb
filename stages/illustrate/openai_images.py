"""Illustration by a server with OpenAI's images API, given by the name of a model.

The package `openai` retries requests that failed temporarily, after the Retry-After they name.
"""

from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from threading import Event
from typing import Literal

from openai import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    InternalServerError,
    Omit,
    OpenAI,
    PermissionDeniedError,
    RateLimitError,
    omit,
)

from stages.illustrate.base import (
    GeneratingIllustrator,
    IllustrateConfig,
    ImageGallery,
    ImageRequest,
)
from stages.shared.data import image_store
from stages.shared.llm.endpoint import load_endpoint
from stages.shared.runtime.errors import InputError, TemporaryError
from stages.shared.runtime.progress import progress_bar

# Error codes of a refused text; the other texts are still illustrated.
REFUSAL_CODES = {"content_policy_violation", "moderation_blocked"}


class OpenAIIllustrator(GeneratingIllustrator):
    """Requests images from a server. Raises InputError if no endpoint is configured."""

    def __init__(self, model: str, config: IllustrateConfig):
        self.name, self.model, self.config = f"openai:{model}", model, config.openai
        self.server = load_endpoint("illustrate.backend", "retrieve")
        self.client = OpenAI(
            api_key=self.server.api_key,
            base_url=self.server.base_url,
            max_retries=self.config.max_retries,
            timeout=self.config.timeout,
        )
        # Without the server's address: images stay valid if it moves, and no password is hashed.
        key = f"{self.name} {self.config.size}"
        self.fingerprint = sha256(key.encode()).hexdigest()
        # GPT image models always respond with base64 and reject the parameter.
        gpt = "gpt-image" in model or "chatgpt-image" in model
        self.response_format: Literal["b64_json"] | Omit = omit if gpt else "b64_json"

    def generate(self, requests: list[ImageRequest]) -> Iterator[tuple[ImageRequest, bytes]]:
        """As in the base class. After a failed request no new one is sent.

        The error is raised after the images of all running requests have been yielded.
        """
        stop, first_error = Event(), None

        def request_image(request: ImageRequest) -> bytes | None:
            try:
                return None if stop.is_set() else self._request_image(request.text)
            except BaseException:
                stop.set()  # before this thread takes its next request: nothing more is paid for
                raise

        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = {pool.submit(request_image, request): request for request in requests}
            try:
                for future in progress_bar(as_completed(futures), "request images", len(futures)):
                    if error := future.exception():
                        first_error = first_error or error
                    elif content := future.result():
                        yield futures[future], content
            finally:
                pool.shutdown(cancel_futures=True)  # also if the caller stops iterating
        if first_error:
            raise first_error

    def _request_image(self, text: str) -> bytes | None:
        """An image file, or None if the server refuses the text. Raises InputError."""
        try:
            response = self.client.images.generate(
                model=self.model,
                prompt=text,
                n=1,
                size=self.config.size,
                response_format=self.response_format,
            )
            images = [image.b64_json for image in response.data or [] if image.b64_json]
            content = b64decode(images[0], validate=True)
            image_store.validate_image(content, self.config.max_pixels)
        except (AuthenticationError, PermissionDeniedError) as error:
            # Servers quote parts of the key, so their message is not shown.
            raise self._build_error(f"HTTP {error.status_code}, the key is rejected") from None
        except APIError as error:
            if error.code in REFUSAL_CODES:
                return None
            raise self._build_error(error) from None
        except image_store.ImageError as error:
            raise self._build_error(error) from None
        # A response that does not follow the protocol is returned as is, or does not parse.
        except (AttributeError, IndexError, TypeError, ValueError):
            raise self._build_error("a response without b64_json") from None
        return content

    def _build_error(self, error: object) -> InputError:
        is_temporary = isinstance(error, APIConnectionError | InternalServerError | RateLimitError)
        kind = TemporaryError if is_temporary else InputError
        return kind(
            f"illustrate.backend: {self.name} cannot be used "
            f"({self.server.redact(str(error))[:200]}): check the name, "
            "illustrate.openai, OPENAI_API_KEY and OPENAI_BASE_URL"
        )


def load(name: str, config: IllustrateConfig, gallery: ImageGallery) -> OpenAIIllustrator:
    """The illustrator of a model. Raises InputError if no endpoint is configured."""
    return OpenAIIllustrator(name, config)
