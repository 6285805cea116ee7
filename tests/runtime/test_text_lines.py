"""Lines of text files end where other programs end them."""

import pytest

from cogview_jax.runtime.text_lines import text_lines


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbfa\r\nb\rc\n\nd", ["a", "b", "c", "", "d"]),
        (b"a\n", ["a"]),
        (
            "a\u2028b\u0085c\x0cd\x0be\u2029f\x1cg\n星".encode(),
            ["a\u2028b\u0085c\x0cd\x0be\u2029f\x1cg", "星"],
        ),
        ("a\ufeffb".encode(), ["a\ufeffb"]),
    ],
)
def test_a_line_ends_with_a_line_feed_a_carriage_return_or_both(tmp_path, data, lines):
    assert text_lines(data) == lines
    (tmp_path / "lines").write_bytes(data)
    with open(tmp_path / "lines", encoding="utf-8-sig") as file:  # what Python itself makes of it
        assert [line.removesuffix("\n") for line in file] == lines


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"one\r\ntwo\rcaf\xe9 three", r"line 3 is no UTF-8 \(byte 0xe9\)"),
        ("a red".encode("utf-16"), r"line 1 is no UTF-8 \(byte 0xff\)"),
        (b"a\n\xed\xb3\xbf", r"line 2 is no UTF-8 \(byte 0xed\)"),
    ],
)
def test_what_is_no_utf8_is_told_by_line(data, message):
    with pytest.raises(ValueError, match=message):
        text_lines(data)
