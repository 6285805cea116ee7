"""Writing systems of texts, which tell languages apart without a model: Latin, Han, Cyrillic."""

import functools
import unicodedata

#: What the names of Unicode characters begin with, where the script is called otherwise.
_SCRIPTS = {
    **dict.fromkeys(("CJK", "IDEOGRAPHIC", "BOPOMOFO"), "Han"),
    **dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "Kana"),
}


def scripts_of(text: str) -> tuple[str, ...]:
    """The scripts of the letters of a text, in alphabetic order; none where it has no letter.

    Forms for other purposes count as the letters that they stand for: full width, mathematical.
    """
    found = {_script(letter) for letter in set(unicodedata.normalize("NFKC", text))}
    return tuple(sorted(found - {""}))


@functools.cache
def _script(character: str) -> str:
    """The script of a letter, which the name of every character begins with; empty of others."""
    name = unicodedata.name(character, "")
    # A modifier letter belongs to the script of its neighbours.
    if not unicodedata.category(character).startswith("L") or name.startswith("MODIFIER"):
        return ""
    first = name.split()[0] if name else ""
    return _SCRIPTS.get(first, first.capitalize())
