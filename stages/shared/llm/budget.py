"""The limits on tokens and failed questions of one call of `ask_questions`."""

from collections import Counter

from stages.shared.core.config import params_file_of
from stages.shared.llm.config import ChatConfig
from stages.shared.runtime.errors import InputError, TemporaryError


class Budget:
    """Counts tokens, replies and failures, and raises InputError when a limit is reached.

    section: of params.yaml, which contains `config`. model_param: dotted path of the param that
    names the model.
    """

    def __init__(self, section: str, config: ChatConfig, num_questions: int, model_param: str):
        self.section, self.config = section, config
        self.num_questions, self.model_param = num_questions, model_param
        self.total_tokens, self.num_replies = 0, 0
        self.failures: Counter[str] = Counter()
        self.num_temporary = 0  # failures

    @property
    def num_answered(self) -> int:
        return self.num_replies - self.failures.total()

    def check_tokens(self) -> None:
        """Raises InputError if no further request may be sent."""
        if self.total_tokens >= self.config.max_total_tokens:
            raise self.token_error()

    def token_error(self) -> InputError:
        return InputError(
            f"{params_file_of(self.section)}: {self.section}.max_total_tokens is "
            f"{self.config.max_total_tokens}, and "
            f"{self.total_tokens} tokens answered {self.num_answered} of {self.num_questions} "
            "questions: raise it and run again; stored answers cost nothing"
        )

    def add_tokens(self, count: int) -> None:
        self.total_tokens += count

    def add_reply(self, failure: str, is_temporary: bool = False) -> None:
        """Count a reply; failure: its reason, "" if the question was answered.

        is_temporary: see RequestFailed. Raises InputError if too many questions have failed,
        TemporaryError if all of these failures are temporary.
        """
        self.num_replies += 1
        if not failure:
            return
        self.failures[failure] += 1
        self.num_temporary += is_temporary
        failed = self.failures.total()
        if failed > self.config.max_failed_fraction * self.num_questions:
            (reason, count), *_ = self.failures.most_common(1)
            kind = TemporaryError if self.num_temporary == failed else InputError
            raise kind(
                f"params.yaml: {self.model_param}: {failed} of {self.num_questions} questions to "
                f"{self.config.model} failed, {count} of them with: {reason}; give another model, "
                f"or raise {self.section}.max_failed_fraction"
            )
