"""A toy suite, small enough to read through seqio in every test."""

import pytest

from merging.tasks import Generated, Suite


@pytest.fixture(scope="session")
def toy() -> Suite:
    material = Generated(
        "toy_suite",
        train_examples=12,
        validation_examples=5,
        test_examples=7,
        documents=20,
        instructions=9,
    )
    return Suite("toy", material)
