"""Prompts of GenEval and DPG-Bench, and the folders that their evaluators read."""

import json

import numpy as np
import pytest
from PIL import Image

from cogview_jax.commands.benchmark_layouts import check_layout, read_layout, write_layout
from cogview_jax.commands.sample_images import Reranking, text_to_image
from cogview_jax.commands.sample_inputs import JobOptions
from cogview_jax.runtime.errors import InputError
from command_runs import retold

ENTRIES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "counting", "include": [{"class": "钟", "count": 3}], "prompt": "三个钟"},
    {"tag": "colors", "include": [{"class": "bus", "count": 1, "color": "red"}], "prompt": "a bus"},
]


@pytest.fixture
def geneval(tmp_path):
    """GenEval's prompt file, with a blank line at the end."""
    file = tmp_path / "evaluation_metadata.jsonl"
    lines = [json.dumps(entry, ensure_ascii=False) for entry in ENTRIES]
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return str(file)


@pytest.fixture
def dpg(tmp_path):
    """DPG-Bench's folder of prompts."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "stanford_7.txt").write_text("a brown dog\nbeside a tree\n")
    (folder / "10.txt").write_text("a red cube")
    (folder / "README.md").write_text("not a prompt")
    return str(folder)


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


def images_of(out):
    """The images of a job by prompt number and index, from its samples.jsonl alone."""
    lines = map(json.loads, (out / "samples.jsonl").read_text().splitlines())
    by_prompt = {}
    for line in lines:
        by_prompt.setdefault(line["prompt"], []).append(pixels(out / line["file"]))
    return by_prompt


def test_geneval_finds_each_prompts_line_and_images(chain, geneval, tmp_path):
    layout, out = read_layout("geneval", geneval), tmp_path / "out"
    assert layout.prompts == ["a bench", "三个钟", "a bus"]
    options = JobOptions(num_images=2)
    text_to_image(str(chain.run / "bundle"), str(out), layout.prompts, options, layout=layout)
    made = images_of(out)
    folders = sorted((out / "geneval").iterdir())
    assert [folder.name for folder in folders] == ["00000", "00001", "00002"]
    for folder, entry in zip(folders, ENTRIES, strict=True):
        assert json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8")) == entry
        files = sorted((folder / "samples").iterdir())
        assert [file.name for file in files] == ["00000.png", "00001.png"]
        for file, expected in zip(files, made[entry["prompt"]], strict=True):
            np.testing.assert_array_equal(pixels(file), expected)


def test_a_prompt_that_is_left_out_moves_no_other(chain, geneval, tmp_path, capsys):
    lines = (tmp_path / "evaluation_metadata.jsonl").read_text(encoding="utf-8").splitlines()
    lines.insert(1, json.dumps({"prompt": " "}))
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    layout, out = read_layout("geneval", geneval), tmp_path / "out"
    bundle = str(chain.run / "bundle")
    bad = text_to_image(bundle, str(out), layout.prompts, JobOptions(), needed=0, layout=layout)
    assert bad == 1
    assert "left out, number 2 of 4" in capsys.readouterr().err
    found = {
        folder.name: json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8"))
        for folder in (out / "geneval").iterdir()
    }
    assert found == {"00000": ENTRIES[0], "00002": ENTRIES[1], "00003": ENTRIES[2]}


def test_dpg_has_the_best_images_in_two_columns(chain, dpg, tmp_path):
    """Three of four stay, the best first."""
    layout, out = read_layout("dpg", dpg), tmp_path / "out"
    assert layout.prompts == ["a red cube", "a brown dog beside a tree"]
    scorer = retold(chain, tmp_path / "scorer", "caption")
    text_to_image(
        *(str(chain.run / "bundle"), str(out), layout.prompts, JobOptions(num_images=4)),
        reranking=Reranking(scorer, keep=3),
        layout=layout,
    )
    made = images_of(out)
    assert sorted(path.name for path in (out / "dpg").iterdir()) == ["10.png", "stanford_7.png"]
    for name, prompt in (("10", "a red cube"), ("stanford_7", "a brown dog beside a tree")):
        grid = pixels(out / "dpg" / f"{name}.png")
        first, second, third = made[prompt]
        expected = np.block([[[first], [second]], [[third], [np.zeros_like(third)]]])
        np.testing.assert_array_equal(grid, expected)


def test_a_single_image_of_dpg_is_as_large_as_itself(dpg, tmp_path):
    layout, image = read_layout("dpg", dpg), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_layout(str(tmp_path), layout, [1], [[image]])
    (file,) = (tmp_path / "dpg").iterdir()
    np.testing.assert_array_equal(pixels(file), image)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 4: no JSON"),
        ("[" * 100_000, "line 4: no JSON"),
        ('["a bench"]', 'line 4: expected an object with a "prompt"'),
        ('{"prompt": 3}', 'line 4: expected an object with a "prompt"'),
    ],
)
def test_a_bad_line_is_named(geneval, line, message):
    with open(geneval, "a", encoding="utf-8") as file:
        file.write(line)
    with pytest.raises(InputError, match=message):
        read_layout("geneval", geneval)


def test_what_is_no_such_prompt_set_is_refused(geneval, dpg, tmp_path):
    for name, path, message in (
        ("geneval", None, "--layout geneval needs the benchmark's prompts: --prompts PATH"),
        ("geneval", dpg, "cannot be read as UTF-8 text|expected a file"),
        ("geneval", str(tmp_path / "none"), "cannot be read as UTF-8 text: No such file"),
        ("dpg", geneval, "expected DPG-Bench's folder of prompts"),
        ("dpg", str(tmp_path / "out"), "expected DPG-Bench's folder of prompts"),
    ):
        with pytest.raises(InputError, match=message):
            read_layout(name, path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder has no file ID\.txt"):
        read_layout("dpg", str(tmp_path / "empty"))
    (tmp_path / "blank.jsonl").write_text("\n")
    with pytest.raises(InputError, match="the file has no line with a prompt"):
        read_layout("geneval", str(tmp_path / "blank.jsonl"))


def test_too_many_images_and_those_of_an_earlier_job_are_refused(dpg, tmp_path):
    layout = read_layout("dpg", dpg)
    with pytest.raises(InputError, match="dpg takes at most 4 images of a prompt, not 5"):
        check_layout(layout, 5, str(tmp_path), interrupted=False)
    check_layout(layout, 4, str(tmp_path), interrupted=False)
    (tmp_path / "dpg").mkdir()
    with pytest.raises(InputError, match="is there, from an earlier job"):
        check_layout(layout, 4, str(tmp_path), interrupted=False)
    check_layout(layout, 4, str(tmp_path), interrupted=True)
