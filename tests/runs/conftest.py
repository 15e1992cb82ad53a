"""Fixtures of training tests that tests of runs share."""

from tests.training.conftest import tiny_arch

__all__ = ["tiny_arch"]
