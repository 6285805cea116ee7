"""A model of tiny random parts."""

from pipeline.conftest import model, parts

__all__ = ["model", "parts"]
