"""A model of tiny random parts, and beside it models that caption and upsample its images."""

import dataclasses

import numpy as np
import pytest
from pipeline.conftest import model, parts
from pipeline.small import LAYOUT, MODEL
from serving.chromium import Chromium

from cogview_jax.pipeline.cogview import CogView
from cogview_jax.tokenizers.layout import make_layout

__all__ = ["model", "parts"]


@pytest.fixture(scope="module")
def models(model, parts):
    from cogview_jax.serving.service import Models

    scorer = of_task(parts, task="caption")
    upsampler = of_task(parts, task="super_resolution", grid=8)
    return Models("small", model, scorer, upsampler)


@pytest.fixture(scope="session")
def browser():
    browser = Chromium()
    yield browser
    browser.close()


def of_task(parts, **layout):
    part = dataclasses.replace(parts["transformer"], layout=dataclasses.replace(LAYOUT, **layout))
    params = dict(part.params)
    length = make_layout(part.layout, part.vocabulary).positions
    params["position_embedding"] = np.resize(params["position_embedding"], (length, MODEL.width))
    part = dataclasses.replace(part, params=params)
    return CogView(**parts | {"transformer": part})
