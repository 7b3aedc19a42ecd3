"""Digits in bad handwriting, and a small neural network that learns to read them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

#: From 64 pixels to 10 digits.
HIDDEN: Final = 32
#: Each digit in 7 rows of 5, as on a dot-matrix display.
GLYPHS: Final = (
    *(" ### #   ##  ### # ###  ##   # ### ", "  #   ##    #    #    #    #   ### "),
    *(" ### #   #    #   #   #   #   #####", "#####   #   #     #     ##   # ### "),
    *("   #   ##  # # #  # #####   #    # ", "######    ####     #    ##   # ### "),
    *("  ##  #   #    #### #   ##   # ### ", "#####    #   #   #   #    #    #   "),
    *(" ### #   ##   # ### #   ##   # ### ", " ### #   ##   # ####    #   #  ##  "),
)
STEPS: Final = 600
BATCH: Final = 64
RATE: Final = 0.1

Images = NDArray[np.uint8]
Model = dict[str, NDArray[np.float64]]


def write_digits(chance: np.random.Generator, count: int) -> tuple[Images, NDArray[np.int64]]:
    """``count`` digits as images of 64 bytes each, moved and smeared, and which they are."""
    digits = chance.integers(0, 10, count)
    images = np.zeros((count, 8, 8))
    for image, digit in zip(images, digits, strict=True):
        glyph = np.array([mark == "#" for mark in GLYPHS[digit]], float).reshape(7, 5)
        row, column = chance.integers(0, 2), chance.integers(0, 4)
        image[row : row + 7, column : column + 5] = glyph * chance.uniform(0.6, 1.0)
    smeared = np.clip(images + chance.normal(0, 0.12, images.shape), 0, 1)
    return (smeared * 255).astype(np.uint8).reshape(count, 64), digits


def train(chance: np.random.Generator) -> Model:
    """A model that has seen some 40 000 digits: gradient descent on the cross entropy."""
    model = {
        "first": chance.normal(0, 0.2, (64, HIDDEN)),
        "first_bias": np.zeros(HIDDEN),
        "second": chance.normal(0, 0.2, (HIDDEN, 10)),
        "second_bias": np.zeros(10),
    }
    for _ in range(STEPS):
        images, digits = write_digits(chance, BATCH)
        hidden, scores = _forward(model, images)
        error = np.exp(scores - scores.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(BATCH), digits] -= 1
        back = (error @ model["second"].T) * (hidden > 0)
        steps = {
            "second": hidden.T @ error,
            "second_bias": error.sum(axis=0),
            "first": (images / 255).T @ back,
            "first_bias": back.sum(axis=0),
        }
        for name, step in steps.items():
            model[name] -= RATE / BATCH * step
    return model


def read_digits(model: Model, images: Images) -> NDArray[np.int64]:
    """Which digits the model takes ``images`` for."""
    found: NDArray[np.int64] = _forward(model, images)[1].argmax(axis=1)
    return found


def _forward(model: Model, images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    hidden = np.maximum(images / 255 @ model["first"] + model["first_bias"], 0)
    return hidden, hidden @ model["second"] + model["second_bias"]
