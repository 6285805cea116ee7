"""The writing systems of texts in many languages."""

import pytest

from cogview_jax.tokenizers.scripts import scripts_of


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("a red circle, 12 of them!", ("Latin",)),
        ("Ein Käfer, naïf, łódź", ("Latin",)),
        ("一个红色的圆。", ("Han",)),
        ("扁平风格的butterfly", ("Han", "Latin")),
        ("人々とネコ", ("Han", "Kana")),
        ("빨간 원", ("Hangul",)),
        ("красный круг", ("Cyrillic",)),
        ("κύκλος", ("Greek",)),
        ("دائرة حمراء", ("Arabic",)),
        ("लाल वृत्त", ("Devanagari",)),
        ("วงกลม", ("Thai",)),
        ("ＡＢＣ", ("Latin",)),  # full width
        ("ﾈｺ", ("Kana",)),  # half width
        ("𝐚 𝒃", ("Latin",)),  # of mathematics
        ("123, 4 × 5 = 20 🙂 \ue000", ()),
        ("", ()),
    ],
)
def test_scripts_are_those_of_the_letters(text, scripts):
    assert scripts_of(text) == scripts
