"""The section `fit_baselines` of config/evaluation.yaml."""

from typing import Annotated

from pydantic import Field as ItemField

from stages.shared.core.config import Field, config_class


@config_class
class CrfConfig:
    """Training of the linear-chain CRF, which starts from zero weights."""

    seed: int = Field(description="seed of the order of the training items")
    max_epochs: int = Field(ge=1, description="passes over the train split, at most")
    patience: int = Field(ge=1, description="epochs without improvement that end the training")
    batch_size: int = Field(ge=1, description="items per step")
    learning_rate: float = Field(gt=0, description="of Adam")


@config_class
class FitBaselinesConfig:
    # Annotated, since a bound on the list would not apply to its items
    inverse_regularization: list[Annotated[float, ItemField(gt=0)]] = Field(
        min_length=1, description="values of C; the best one on validation is used"
    )
    max_iter: int = Field(ge=1, description="iterations of L-BFGS for one value of C, at most")
    crf: CrfConfig
