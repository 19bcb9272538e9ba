"""The report in a browser, opened from disk with the network off: every chart is drawn, and a broken one is noticed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from assay import provenance
from assay.plan import plan
from assay.registry import load
from assay.report import render
from assay.results import Results
from assay.store import Store
from assay.sweep import run_and_commit

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(BROWSER is None and "CI" not in os.environ, reason="no Chromium")
VOID = {"meta", "link", "img", "br", "source", "input", "hr"}


class Charts(HTMLParser):
    """Charts of a page as the browser drew it: container id → attributes, and the marks inside."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.found: dict[str, dict[str, str | None]] = {}
        self.marks: dict[str, int] = {}
        self.expected: set[str] = set()
        self.inside: tuple[str, int] | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if "data-chart" in given:
            self.expected.add(str(given["data-chart"]))
        if tag == "div" and "chart" in (given.get("class") or "").split():
            self.inside = (str(given["id"]), len(self.path))
            self.found[self.inside[0]] = given
            self.marks[self.inside[0]] = 0
        if self.inside and tag in ("path", "line", "text") and given.get("aria-roledescription"):
            self.marks[self.inside[0]] += 1
        if tag not in VOID:
            self.path.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.path and self.path.pop() != tag:
            pass
        if self.inside and len(self.path) <= self.inside[1]:
            self.inside = None


def visit(page: Path, scratch: Path, dark: bool = False) -> tuple[str, list[str]]:
    """Open a page from disk: the document when it is drawn, and what is wrong with it."""
    assert BROWSER is not None, "Chromium is needed here: install the package chromium"
    network = scratch / "network.json"
    flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={scratch / 'profile'} --enable-logging=stderr"
    flags += f" --blink-settings=preferredColorScheme={0 if dark else 1} --virtual-time-budget=10000"
    flags += f" --log-net-log={network}"
    command = [BROWSER, *flags.split(), "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = Charts()
    seen.feed(done.stdout)
    wrong = [f"console: {line.split('CONSOLE', 1)[1]}" for line in done.stderr.splitlines() if "CONSOLE" in line]
    wrong += [f"{name}: no container" for name in seen.expected - set(seen.found)]
    for name, attributes in seen.found.items():
        if attributes.get("data-drawn") != ("dark" if dark else "light") or "data-error" in attributes:
            wrong.append(f"{name}: not drawn: {attributes.get('data-error')}")
        if not seen.marks[name]:
            wrong.append(f"{name}: no marks")
    for event in json.loads(network.read_text())["events"]:
        asked = event.get("params", {})
        if str(asked.get("network_isolation_key", "")).startswith("file:") and str(asked.get("url")).startswith("http"):
            wrong.append(f"network: {asked['url']}")
    return done.stdout, wrong


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of two studies measured in this process: one complete, one not."""
    root = tmp_path_factory.mktemp("site")
    opened = []
    for name, scale, share in (("toy", "laptop", 1.0), ("mean", "smoke", 0.7)):
        study = load(str(Path(__file__).with_name(f"{name}_study.py")))
        store = Store(root / "results")
        packs = plan(study, scale)
        for pack in packs[: round(share * len(packs))]:
            run_and_commit(study, pack, store, provenance.of_run(study))
        opened.append(Results(study, scale, store))
    return render(opened, root).parent


@browser
@pytest.mark.browser
def test_every_page_draws_every_chart_with_the_network_off(site: Path, tmp_path: Path) -> None:
    for page in sorted(site.glob("*.html")):
        assert visit(page, tmp_path)[1] == []
    document, wrong = visit(site / "toy.html", tmp_path, dark=True)
    assert wrong == []
    seen = Charts()
    seen.feed(document)
    assert sorted(seen.found) == sorted(
        ["chart-scaling", "chart-plane", "chart-parity", *(f"chart-claim-TOY-{index}" for index in (1, 2, 4))]
    )
    assert seen.marks["chart-scaling"] >= 4 * 2 * 2, "points and intervals of four widths and two arms"


GALLERY = sorted((Path(__file__).parents[2] / "reports").glob("*.html"))


@browser
@pytest.mark.browser
@pytest.mark.parametrize("page", GALLERY, ids=lambda page: page.stem)
def test_the_committed_pages_draw_every_chart(page: Path, tmp_path: Path) -> None:
    assert visit(page, tmp_path)[1] == []


@browser
@pytest.mark.browser
def test_the_browser_test_sees_what_is_broken(site: Path, tmp_path: Path) -> None:
    page = (site / "toy.html").read_text(encoding="utf-8")
    shutil.copytree(site / "assets", tmp_path / "assets")
    cases = {
        "refused by Vega": (page.replace("datum.kind === 'theory'", "unknown(datum)"), "chart-scaling: not drawn"),
        "no rows": (page.replace("datum.kind === ", "datum.kind === 'no' + "), "chart-scaling: no marks"),
        "console": (page.replace("</main>", "<script>console.error('oh')</script></main>"), 'console: .*"oh"'),
        "network": (
            page.replace("</main>", '<img src="https://example.com/x.png"></main>'),
            "network: https://example",
        ),
    }
    for name, (content, sign) in cases.items():
        assert content != page, name
        broken = tmp_path / "broken.html"
        broken.write_text(content, encoding="utf-8")
        assert re.search(sign, "\n".join(visit(broken, tmp_path)[1])), name
