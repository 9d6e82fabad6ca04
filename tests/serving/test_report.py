"""What a benchmark's result says to people: headline, terminal, and the page, of results that were made up."""

import builtins
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from keras_resnets.serving.report import headline, print_table, write_html


@pytest.fixture(scope="module")
def made(neighbour):
    return neighbour("serving/results.py")


@pytest.fixture
def page(tmp_path):
    """Writes a result's page and gives its text."""

    def write(result):
        write_html(result, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def printed(result, width=120):
    console = Console(record=True, width=width, file=io.StringIO())
    print_table(result, console)
    return console.export_text()


class Balanced(HTMLParser):
    """Fails where an element is closed that is not open; keeps tags, attributes and the text that is shown."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1:] != ["style"]:
            self.words.append(text)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_headline_names_the_fastest_its_cost_and_the_quickest(made):
    rows = [made.row(24.0), made.row(25.0, batch=8), made.row(80.0, "int8"), made.row(100.0, "int8", batch=8)]
    assert headline(made.result(*rows)) == [
        "int8, batch 8 is fastest: 100 images/s, 4.0 times float32's best (25.0).",
        "Its top-1 accuracy is 83.90%, float32's 84.30%, on 1,000 images.",
        "int8, batch 1 has the lowest latency: half of its calls take at most 12.5 ms, 99% at most 15.0 ms.",
    ]


def test_float32_is_compared_on_the_same_provider_and_model_only(made):
    rows = [made.row(50.0, provider="openvino"), made.row(20.0), made.row(99.0, model="resnet18")]
    first = headline(made.result(*rows, made.row(100.0, "int8")))[0]
    assert first == "resnet50, int8, cpu, batch 1 is fastest: 100 images/s, 5.0 times float32's best (20.0)."


def test_a_batch_that_is_about_as_fast_is_told(made):
    rows = [made.row(rate, batch=batch) for batch, rate in ((1, 50.0), (8, 97.0), (32, 100.0))]
    assert "Batch 8 gives 97% of its images/s already." in headline(made.result(*rows))


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        (None, "What it costs in accuracy was not measured."),
        (
            {"images": 64, "agreement": 0.995, "top1": None, "top1_float32": None, "float_layers": []},
            "It agrees with float32 on 99.50% of 64 images.",
        ),
        ({"agreement": 0.995}, "It agrees with float32 on 99.50% of the images that it was judged on."),
    ],
)
def test_what_is_known_of_the_accuracy_is_told(made, quality, words):
    assert words in headline(made.result(made.row(10.0), made.row(20.0, "int8", quality=quality)))


def test_a_gain_that_is_none_is_not_called_one(made):
    first = headline(made.result(made.row(100.0), made.row(101.0, "float16")))[0]
    assert first == "float16, batch 1 is fastest: 101 images/s, hardly more than float32's best (100)."


def test_refusals_are_counted_and_their_reasons_shown(made, page):
    why = "4 threads were asked for, and the session has 1"
    result = made.result(made.row(10.0), made.refused(why, precision="int8"), warnings=["others were busy"])
    assert headline(result)[-1] == "1 of 2 configurations was refused; the reasons are below."
    for text in (printed(result), page(result)):
        assert why in text and "resnet50, int8, cpu, batch 1, 2 threads" in text and "others were busy" in text


def test_nothing_measured_is_no_error(made, page):
    both = made.result(made.refused("no GPU"), made.refused("no GPU", batch=8))
    assert headline(both) == ["No configuration was measured: all 2 were refused."]
    assert headline(made.result()) == ["There was nothing to run."]
    for result in (both, made.result()):
        printed(result)
        assert "<svg" not in page(result)


def test_one_row_is_not_called_the_fastest(made, page):
    result = made.result(made.row(20.0))
    assert headline(result) == [
        "float32, batch 1 gives 20.0 images/s.", "Half of its calls take at most 50.0 ms, 99% at most 60.0 ms.",
    ]  # fmt: skip
    assert page(result).count("<svg") == 2  # no batches to compare, and nothing known of accuracy


def test_the_terminal_shows_each_row_beside_float32(made):
    text = printed(made.result(made.row(25.0), made.row(100.0, "int8", batch=8)), width=80)
    assert re.search(r"int8, batch 8 +80\.0 +96\.0 +100 +4\.00 +412 +8e-03 +83\.90%", text)
    assert re.search(r"float32, batch 1 +40\.0 +48\.0 +25\.0 +1\.00 +412 +4e-07 +–", text)
    assert "all: resnet50, cpu, 2 threads" in text and max(map(len, text.splitlines())) <= 80


def test_what_looks_like_markup_is_printed_as_it_is(made):
    assert "[red]net[/red]" in printed(made.result(made.row(1.0, model="[red]net[/red]"), made.row(1.0)))


def test_the_page_loads_nothing_and_runs_nothing(made, page):
    text = page(made.result(*made.sweep()))
    found = Balanced(text)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", text)
    assert not found.all("script") and not any(name.startswith("on") for _, given in found.tags for name in given)
    links = [given[name] for _, given in found.tags for name in ("src", "href", "xlink:href") if name in given]
    assert all(link.startswith("#") or link == "data:," for link in links)


def test_the_page_is_whole_and_accessible(made, page):
    found = Balanced(page(made.result(*made.sweep(), made.refused("why"))))
    ids = [given["id"] for _, given in found.tags if "id" in given]
    assert len(ids) == len(set(ids))
    assert {given["href"][1:] for given in found.all("use")} <= set(ids)
    assert found.all("html") == [{"lang": "en"}]
    pictures = found.all("svg")
    assert len(pictures) == 4 and all(given["role"] == "img" and given["aria-label"] for given in pictures)
    assert len(found.all("caption")) == len(found.all("table")) == 2
    assert {"latency", "throughput"} <= set(" ".join(given["aria-label"] for given in pictures).lower().split())


def test_the_pictures_take_the_colours_of_the_page(made, page):
    text = page(made.result(*made.sweep()))
    pictures = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--c0)" in pictures and "var(--text)" in pictures
    assert not re.findall(r"#[0-9a-f]{6}\b", pictures)  # a fixed colour would vanish in the dark


def test_names_are_escaped(made, page):
    text = page(
        made.result(
            made.row(2.0, model="<b>x</b>"), made.row(1.0, model='"$x^2$ & $title'),
            made.refused("<i>why</i>", model="<u>y</u>"), warnings=["<s>"],
        )
    )  # fmt: skip
    assert not re.search(r"<(b>x|i>|u>|s>)", text)
    assert "&lt;b&gt;x&lt;/b&gt;" in text and "&lt;i&gt;why" in text and "$title" in text
    Balanced(text)


def test_figures_that_are_missing_are_left_out(made, page):
    bare = {name: made.row(3.0)[name] for name in ("name", "model", "precision", "batch", "state", "end_to_end")}
    result = made.result(bare | {"name": "a peer", "kind": "peer"}, made.row(4.0, golden_drift=None, device_bound=None))
    text = page(result)
    assert re.search(r"^ peer, float32, batch 1 .* 3\.00 +1\.00 ", printed(result), re.MULTILINE)
    assert re.search(r"^ float32, batch 1 .* 4\.00 +1\.00 ", printed(result), re.MULTILINE)
    assert not re.search(r"\b(nan|None|inf)\b", "".join(Balanced(text).words), re.IGNORECASE)


def test_figures_of_a_gpu_are_shown(made, page):
    gpu = {"power_w": 312.4, "sm_clock_mhz": 1755.0, "gpu_memory_mb": 1800.0}
    words = Balanced(page(made.result(made.row(900.0, provider="cuda", gpu=gpu)))).words
    assert {"312", "1,755", "1,800", "GPU power W"} <= set(words)


def test_a_comparison_is_shown_the_worst_first(made, page):
    figures = {"images_per_second": {"old": 100.0, "new": 92.0, "ratio": 0.92, "low": 0.9, "high": 0.95}}
    result = made.result(
        made.row(9.0),
        comparison=[
            {"name": "one", "verdict": "no change", "figures": {}, "p": 0.4, "why": ""},
            {"name": "two", "verdict": "slower", "figures": figures, "p": 0.0031},
            {"name": "three", "verdict": "refused now", "why": "no GPU"}, {"name": "four"},
        ],
    )  # fmt: skip
    assert headline(result)[-1] == "Beside the baseline: 1 slower, 1 refused now, 1 no change."
    for text in (printed(result), page(result)):
        for words in ("two", "▼ slower", "-8.0% (-10.0% to -5.0%)", "0.003", "0.400", "no GPU", "four"):
            assert words in text


def test_scenarios_are_shown_and_called_no_mlperf_results(made, page):
    result = made.result(
        scenarios=[
            {
                "scenario": "single-stream", "target": "digits", "valid": True, "metric": "p90_ms",
                "figures": {"p90_ms": 14.2, "p99_ms": 15.5, "queries": 2400},
            },
            {"scenario": "offline", "valid": False, "reason": "2 answers were wrong", "figures": {}},
        ]
    )  # fmt: skip
    assert headline(result) == [
        "single-stream, digits: p90 14.2 ms.",
        "offline: not valid.",
        "MLPerf-style; not an MLPerf result.",
    ]
    for text in (printed(result), page(result)):
        for words in ("single-stream", "digits", "15.5", "not valid: 2 answers were wrong"):
            assert words in text
    assert "2,400" in page(result) and "not MLPerf results" in page(result)
    assert "MLPerf" not in page(made.result(made.row(9.0)))


def test_the_conditions_are_listed(made, page):
    words = Balanced(page(made.result(made.row(9.0)))).words
    facts = dict(zip(words, [*words[1:], ""], strict=True))
    assert facts["processor"] == "AMD EPYC" and facts["usable CPUs"] == "2" and facts["memory"] == "15.6 GB"
    assert facts["flags"] == "avx2, avx512f, avx512_vnni" and facts["rounds"] == "3" and "driver" not in facts


def test_many_lines_are_thinned_out_and_that_is_said(made, page):
    text = page(made.result(*made.sweep(threads=range(1, 9), batches=(1, 8))))
    assert "Of 24 lines the 12 highest are drawn." in text
    assert "Of 24 configurations the 6 of least median are drawn." in text


def test_without_matplotlib_the_page_has_no_plots_and_says_why(made, page, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name, name="matplotlib")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    text = page(made.result(made.row(9.0)))
    assert "<svg" not in text and "pip install" in text and "9.00" in text
    Balanced(text)


def test_a_page_that_could_not_be_written_leaves_the_old_one(made, tmp_path, monkeypatch):
    file = tmp_path / "report.html"
    file.write_text("old")

    def full(self, text, **options):
        with self.open("w") as half:
            half.write(text[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_html(made.result(made.row(9.0)), file)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_tf32_is_no_float32_to_be_held_against(made):
    exact, short = made.row(100.0, precision="float32"), made.row(300.0, precision="float32", options={"use_tf32": "1"})
    short["name"] += ", use_tf32=1"
    (first, *_) = headline(made.result(exact, short))
    assert "3.0 times float32's best (100)" in first
