"""What holds annotations against values while tests run.

An int is welcome where a float is, and NumPy's whole numbers where an int is.
"""

import numpy as np
from beartype import BeartypeConf, BeartypeHintOverrides, beartype

typechecker = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True, hint_overrides=BeartypeHintOverrides({int: int | np.integer})
    )
)
