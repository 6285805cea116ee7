"""What holds annotations against values while tests run: an int is welcome where a float is."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
