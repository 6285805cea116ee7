"""Objectives, state, the step, the loop, the optimizer, and what is measured of them."""
