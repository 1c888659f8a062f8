import re

from frontrow.benchmarks.quality import PAGE, SECTIONS, page


def test_the_page_says_what_the_result_files_say():
    assert PAGE.read_text("utf-8") == page(), "run `python -m frontrow.benchmarks.quality`"


def test_the_page_has_every_section_and_its_pictures_are_there():
    text = PAGE.read_text("utf-8")
    assert re.findall(r"^## (.*)$", text, re.M) == [heading for heading, *_ in SECTIONS]
    for picture in re.findall(r"\]\((results/[^)]*)\)", text):
        assert (PAGE.parent / picture).is_file(), picture
