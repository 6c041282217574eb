"""The modules of generators follow the protocol by which the stages use them."""

import pytest

from stages.shared.generation.paper import GeneratorPaper, has_gate
from stages.shared.generation.paper import load_generator_paper as load
from stages.shared.runtime.stage import InputError


@pytest.mark.parametrize("name", ["flexmuse", "tippo"])
def test_a_generator_defines_what_the_stages_use(name):
    paper = load(name)
    assert isinstance(paper, GeneratorPaper)
    assert has_gate(paper) == all(
        hasattr(paper, attribute) for attribute in ("gate", "mask_probability")
    )


def test_a_classifier_is_not_a_generator():
    assert not isinstance(load("muse"), GeneratorPaper)


def test_an_unknown_paper_is_an_input_error():
    with pytest.raises(InputError, match="there is no model mistaken"):
        load("mistaken")
