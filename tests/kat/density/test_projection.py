"""The map: stable coordinates, escaped texts, and a page that works in a browser without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from kat.density.projection import map_page, project
from latentwire.harness.errors import UserError
from tests.helpers.planted import planted
from tests.helpers.random import draws

pytestmark = pytest.mark.usefixtures("one_thread")
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror='throw 1'>\u2028<!-- & \"q'"


def test_pca_is_scikit_learns_up_to_scale_and_sign():
    x, _ = planted(0, n=300, width=32)
    xyz, shares = project(x, "pca", 0)
    theirs = PCA(3, svd_solver="full").fit(x.double().numpy())
    np.testing.assert_allclose(shares, theirs.explained_variance_ratio_, rtol=1e-6)
    expected = theirs.transform(x.double().numpy())
    expected /= np.linalg.norm(expected, axis=1).max()
    np.testing.assert_allclose(xyz.abs().numpy(), np.abs(expected), atol=1e-5)
    assert float(xyz.norm(dim=1).max()) == pytest.approx(1)


def test_the_map_does_not_depend_on_the_order_of_the_prompts():
    x, _ = planted(0, n=300, width=32)
    mixed = torch.randperm(300, generator=draws(0))
    torch.testing.assert_close(project(x[mixed], "pca", 0)[0], project(x, "pca", 0)[0][mixed], atol=1e-5, rtol=0)


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SLOW_TESTS"), reason="UMAP compiles itself for a minute; set SLOW_TESTS=1")
def test_umap_keeps_planted_clusters_together_and_is_seeded():
    pytest.importorskip("umap", reason="the extra umap is not installed")
    x, labels = planted(0, n=300, width=32, clusters=3)
    xyz, shares = project(x, "umap", 0)
    assert shares == [] and xyz.shape == (300, 3)
    assert torch.equal(xyz, project(x, "umap", 0)[0])
    near = torch.cdist(xyz, xyz).fill_diagonal_(torch.inf).argmin(1)
    inside = labels >= 0
    assert (labels[near] == labels)[inside].float().mean() > 0.95


def test_umap_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"install the extra with .*\[umap\]"):
        project(torch.randn(9, 8), "umap", 0)


@pytest.mark.parametrize(
    ("shape", "method", "reason"), [((3, 8), "pca", "at least 4"), ((9, 2), "pca", "width 3"), ((9, 8), "tsne", "tsne")]
)
def test_invalid_projections_are_refused(shape, method, reason):
    with pytest.raises(UserError, match=reason):
        project(torch.randn(shape), method, 0)


def points(count: int) -> list[dict]:
    x, _ = planted(0, n=count, width=32, clusters=4)
    xyz, _ = project(x, "pca", 0)
    return [
        {"id": f"p{i}", "x": a, "y": b, "z": c, "density": 1.0 + i, "weight": 1 / count,
         "source": ["nq_open", "<i>hh</i>"][i % 2], "text": f"What is number {i}? {HOSTILE}"}
        for i, (a, b, c) in enumerate(xyz.tolist())
    ]  # fmt: skip


def test_the_page_holds_its_data_and_makes_no_requests():
    rows = points(50)
    html = map_page(rows, "Prompt map", ["PC1", "PC2", "PC3"])
    assert "default-src 'none'" in html
    assert not re.search(
        r"(?:src|href)\s*=|@import|url\(|https?:|//cdn|fetch\(|XMLHttpRequest|WebSocket|innerHTML",
        html.split('{"title')[0],
    )
    (block,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, flags=re.DOTALL)
    data = json.loads(block)
    assert data["text"] == [row["text"] for row in rows]
    assert data["x"] == [row["x"] for row in rows]
    assert html.count("</script>") == 2 and "{{" not in html


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def opened(path: Path, folder: Path, fragment: str = "") -> tuple[dict[str, str], str, str]:
    """Return what the page recorded after drawing, its document, and the browser's log."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={folder}", "--virtual-time-budget=4000", "--enable-logging=stderr", "--dump-dom",
               f"{path.as_uri()}{fragment}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    opening = done.stdout[: done.stdout.index(">", done.stdout.index("<html")) + 1]
    return dict(re.findall(r'data-(\w+)="([^"]*)"', opening)), done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_works_in_a_browser(tmp_path):
    file = tmp_path / "map.html"
    file.write_text(map_page(points(500), "Prompt map", ["PC1", "PC2", "PC3"]), encoding="utf-8")
    recorded, document, log = opened(file, tmp_path / "one")
    assert recorded == {"errors": "0", "points": "500", "drawn": "500", "matches": "500"}
    assert "CONSOLE" not in log
    assert "500 prompts" in document
    assert "&lt;i&gt;hh&lt;/i&gt;" in document  # the name of a source is escaped
    recorded, document, log = opened(file, tmp_path / "two", "#search=number%2042&colour=density")
    assert recorded == {"errors": "0", "points": "500", "drawn": "500", "matches": "15"}  # 42, 142 to 442, 420 to 429
    assert "15 of 500 prompts" in document and "crowded" in document
    assert "CONSOLE" not in log


# Uses the page like a reader, draws it after each act, and records what it shows in the dataset.
ACTS = """
const recorded = root.dataset, canvasOf = document.getElementById("map"), after = [];
const pointer = (kind, x, y, id = 1) => canvasOf.dispatchEvent(
  new PointerEvent(kind, { pointerId: id, clientX: x, clientY: y, bubbles: true }));
canvasOf.setPointerCapture = () => {};  // made-up pointers cannot be captured
const change = (id, kind, set) => { const e = document.getElementById(id); set(e); e.dispatchEvent(new Event(kind)); };
const width = () => Math.max(...px) - Math.min(...px), area = () => pr.reduce((a, b) => a + b, 0);
const spread = () => Math.max(...pr) / Math.min(...pr), tip = document.getElementById("tip");
const legend = () => document.getElementById("legend").textContent;
const steps = [
  () => { recorded.yaw = view.yaw.toFixed(3); after.x = px[7]; after.width = width();
    pointer("pointerdown", 600, 300); pointer("pointermove", 700, 300); pointer("pointerup", 700, 300); },
  () => { recorded.turned = (view.yaw - Number(recorded.yaw)).toFixed(3); recorded.moved = px[7] !== after.x;
    view.yaw = Number(recorded.yaw); pointer("pointermove", 1, 1);
    canvasOf.dispatchEvent(new WheelEvent("wheel", { deltaY: -200, cancelable: true })); },
  () => { recorded.zoomed = (width() / after.width > 1.2); recorded.zoom = view.zoom.toFixed(3);
    pointer("pointerdown", 500, 300, 1); pointer("pointerdown", 600, 300, 2); pointer("pointermove", 700, 300, 2);
    pointer("pointerup", 700, 300, 2); pointer("pointerup", 500, 300, 1); },
  () => { recorded.pinched = (view.zoom / Number(recorded.zoom)).toFixed(2);
    document.getElementById("reset").click(); },
  () => { recorded.reset = view.zoom === 1;
    let front = 0; for (let i = 0; i < n; i++) if (pz[i] > pz[front]) front = i;
    pointer("pointermove", px[front], py[front]); recorded.front = data.id[front]; recorded.shown = tip.style.display;
    recorded.tip = tip.textContent.includes(data.id[front]) && tip.textContent.includes(data.text[front]);
    pointer("pointerleave", 0, 0); recorded.hidden = tip.style.display; },
  () => { recorded.legend = legend(); change("colour", "change", e => { e.value = "density"; }); },
  () => { recorded.recoloured = legend(); recorded.sized = spread() > 2;
    change("sized", "change", e => { e.checked = false; }); },
  () => { recorded.even = spread() < 2; change("search", "input", e => { e.value = "number 42"; }); },
  () => { recorded.count = document.getElementById("count").textContent; recorded.done = "yes"; },
];
for (const step of steps) { step(); paint(); }
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_reacts_to_its_user(tmp_path):
    """It turns, zooms, shows texts, changes colours and sizes, and searches."""
    file = tmp_path / "map.html"
    rows = points(500)
    for i, row in enumerate(rows):
        row["weight"] *= 0.25 if i % 2 else 9
    html = map_page(rows, "Prompt map", ["PC1", "PC2", "PC3"])
    file.write_text(html.replace("</body>", f"<script>{ACTS}</script></body>"), encoding="utf-8")
    recorded, _, log = opened(file, tmp_path / "one")
    assert recorded.get("done") == "yes", log
    assert recorded["errors"] == "0" and "CONSOLE" not in log
    assert (recorded["turned"], recorded["moved"]) == ("0.700", "true")  # 100 pixels
    assert (recorded["zoomed"], recorded["pinched"], recorded["reset"]) == ("true", "2.00", "true")
    assert (recorded["shown"], recorded["tip"], recorded["hidden"]) == ("block", "true", "none")
    assert "nq_open" in recorded["legend"] and recorded["recoloured"] == "crowdedrare"
    assert (recorded["sized"], recorded["even"]) == ("true", "true")
    assert (recorded["matches"], recorded["count"]) == ("15", "15 of 500 prompts")
