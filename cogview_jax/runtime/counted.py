"""Numbers of things in words."""


def counted(count: int, noun: str) -> str:
    """Returns "1 line" or "1,200 lines" for the noun "line"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
