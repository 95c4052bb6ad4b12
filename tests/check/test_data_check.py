"""The check of your own images: each kind of problem, the page, the exit code."""

import json

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.check import __main__ as command
from cfmlc_jax.check import findings
from cfmlc_jax.check.findings import Options

RARE = Options(rare=2)


def picture(seed, size=(80, 64), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def save(path, image, **options):
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def clean(tmp_path):
    """A folder without a problem but the warnings of `RARE`."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        save(folder / f"{number}.png", picture(number))
    (folder / "train.csv").write_text("0.png,cat\n1.png,cat;dog\n2.png,dog\n3.png,\n")
    (folder / "val.csv").write_text("4.png,cat\n5.png,dog\n")
    return folder


def kinds(found):
    return [problem.kind for problem in found.problems]


def check(folder, options=RARE):
    return findings.check(folder, options)


def add(folder, split, line):
    with (folder / f"{split}.csv").open("a") as file:
        file.write(line + "\n")


def test_nothing_is_found_where_all_is_well(clean):
    found = check(clean)
    assert found.problems == []
    assert found.images == {"train": 4, "val": 2}
    assert found.modes == {"RGB": 6}
    assert found.sides == {"width": [80, 80, 80], "height": [64, 64, 64]}
    cat = found.classes[0]
    assert (cat.name, cat.splits["train"]) == ("cat", {"present": 2, "absent": 2, "unknown": 0})


def test_one_table_is_enough(clean):
    (clean / "val.csv").unlink()
    assert check(clean).problems == []


def test_every_bad_line_is_reported(clean):
    add(clean, "train", "gone.png,cat")
    add(clean, "train", "0.png,dog")
    add(clean, "train", "6.png,cat;-cat")
    add(clean, "train", "7.png,-dgo")
    add(clean, "train", "8.png,cat")
    for number in (6, 7):
        save(clean / f"{number}.png", picture(number))
    (clean / "8.png").write_bytes((clean / "0.png").read_bytes()[:200])
    found = check(clean)
    assert kinds(found) == ["label", "label", "listed twice", "missing", "broken"]
    texts = [problem.text for problem in found.problems]
    assert "train.csv line 7: 'cat' and '-cat' contradict each other" in texts[0]
    assert "did you mean 'dog'" in texts[1]
    assert texts[2] == "train.csv line 6: '0.png' is already in line 1"
    assert texts[3] == "train.csv line 5: no image 'gone.png'"
    assert "8.png" in texts[4]
    assert all("\n" not in text for text in texts)
    assert found.errors == found.problems


def test_the_same_picture_in_two_splits_is_a_leak(clean):
    (clean / "4.png").write_bytes((clean / "0.png").read_bytes())
    found = check(clean)
    assert kinds(found) == ["leak"]
    assert found.problems[0].text == "train: 0.png = val: 4.png (copies)"
    # Saved without loss in another format.
    save(clean / "5.bmp", picture(1))
    (clean / "val.csv").write_text("4.png,cat\n5.bmp,dog\n")
    assert check(clean).problems[1].text == "train: 1.png = val: 5.bmp (equal pixels)"


def test_the_same_picture_twice_in_a_split(clean):
    save(clean / "6.png", picture(0))
    add(clean, "train", "6.png,cat")
    assert kinds(check(clean)) == ["duplicate"]
    (clean / "train.csv").write_text((clean / "train.csv").read_text().replace("6.png,cat", "6.png,cat;dog"))
    assert kinds(check(clean)) == ["disagreement"]


def test_a_smaller_copy_looks_alike(clean):
    save(clean / "4.png", picture(0).resize((160, 128), Image.Resampling.BICUBIC))
    found = check(clean)
    assert kinds(found) == ["look-alike"]
    assert not found.errors
    # Images without contrast have nothing by which they could look alike.
    for name, grey in (("3.png", 90), ("4.png", 200)):
        save(clean / name, Image.new("RGB", (80, 64), (grey,) * 3))
    assert check(clean).problems == []


def test_rare_and_missing_classes(clean):
    (clean / "classes.txt").write_text("cat\ndog\nunicorn\n")
    found = check(clean, Options(rare=3))
    assert kinds(found) == ["no image", "rare", "rare", "no test"]
    assert found.problems[1].text == "cat: 2 training images have it, 2 are known to lack it"
    (clean / "val.csv").write_text("4.png,\n5.png,dog\n")
    assert [p.text for p in check(clean).problems if p.kind == "no test"] == [
        "cat: no image of val has it",
        "unicorn: no image of val has it",
    ]


def test_unknown_classes(clean):
    (clean / "train.csv").write_text("0.png,cat;dog\n1.png,-cat;dog\n2.png,dog\n3.png,-dog\n")
    found = check(clean, Options(rare=1, unmentioned="unknown"))
    assert kinds(found) == []
    (clean / "train.csv").write_text("0.png,cat;dog\n1.png,dog\n2.png,dog\n3.png,-dog\n")
    found = check(clean, Options(rare=1, unmentioned="unknown"))
    assert kinds(found) == ["rare", "unknown"]
    assert found.problems[1].text == "cat: unknown in 3 of 4 training images"


def test_forms_of_images(clean):
    save(clean / "0.png", picture(0, (40, 30)))
    save(clean / "1.png", picture(1, (400, 64), "L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    save(clean / "6.jpg", picture(6), exif=exif)
    add(clean, "train", "6.jpg,cat")
    found = check(clean)
    assert [(p.kind, p.text) for p in found.problems] == [
        ("small", "train: 0.png, 40 x 30 pixels"),
        ("slim", "train: 1.png, 400 x 64 pixels"),
        ("turned", "train: 6.jpg"),
    ]
    assert found.modes == {"RGB": 6, "L": 1}


def test_a_table_that_cannot_be_read_is_an_error_among_others(clean):
    (clean / "train.csv").write_text("0.png cat\n")
    found = check(clean)
    assert kinds(found) == ["table"]
    assert "train.csv line 1: '0.png cat' has no label field" in found.problems[0].text
    (clean / "train.csv").unlink()
    assert kinds(check(clean)) == ["table"]


def run(folder, *flags):
    return command.main([str(folder), f"--output={folder.parent / 'out'}", *flags])


def test_the_page_and_the_exit_code(clean, capsys):
    assert run(clean, "--rare=1") == 0
    printed = capsys.readouterr().out
    assert "4 images in train, 2 images in val, 2 classes, 0 errors, 0 warnings" in printed
    assert printed.splitlines()[-1] == f"page {clean.parent / 'out' / 'index.html'}"

    (clean / "4.png").write_bytes((clean / "0.png").read_bytes())
    add(clean, "train", "<b>.png,cat")
    assert run(clean) == 1
    printed = capsys.readouterr().out
    assert "  error: leak, 1; first train: 0.png = val: 4.png" in printed
    assert "  warning: rare, 2; first cat" in printed
    document = (clean.parent / "out" / "index.html").read_text()
    assert document.count("<img ") == 2
    assert "&lt;b&gt;.png" in document
    assert "<b>.png" not in document
    assert all(
        section in document for section in ('id="errors"', 'id="warnings"', 'id="classes"', 'id="images"')
    )
    stored = json.loads((clean.parent / "out" / "check.json").read_text())
    assert [problem["kind"] for problem in stored["errors"]] == ["missing", "leak"]
    assert stored["errors"][1]["files"] == ["0.png", "4.png"]
    assert stored["classes"][0]["splits"]["train"]["present"] == 2


@pytest.mark.parametrize(
    ("words", "message"), [(["nowhere"], "TABLE nowhere is not a folder"), ([""], "TABLE is empty")]
)
def test_bad_flags(words, message, capsys):
    assert command.main(words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
