"""A study of three systems with names that nothing else has, and ratings of it."""

import numpy as np

from cogview_jax.evaluation.human_study import QUESTIONS, write_study
from cogview_jax.evaluation.study_ratings import append_rating, rating_of

SYSTEMS = ("quagga", "okapi", "tapir")


def images(system, captions, size=8):
    """A colour of its own for each image."""
    number = SYSTEMS.index(system)
    return [np.full((size, size, 3), (80 * number, 30 * i, 99), np.uint8) for i in range(captions)]


def small_study(folder, captions=4, seed=0):
    texts = [f"caption {i}" for i in range(captions)]
    sources = {name: f"the {name} source" for name in SYSTEMS}
    return write_study(
        folder, texts, sources, {name: images(name, captions) for name in SYSTEMS}, seed
    )


def scores(value=3, **of):
    """The same score of everything, but of some systems."""
    names = [question.name for question in QUESTIONS]
    return {system: dict.fromkeys(names, of.get(system, value)) for system in SYSTEMS}


def rate(study, rater, caption, best=SYSTEMS[0], value=3, **of):
    append_rating(study, rater, caption, rating_of(study, scores(value, **of), best))
