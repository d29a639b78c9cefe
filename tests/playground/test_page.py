"""The built page: its size, its policy, no network; and in a browser, by mouse and by keyboard."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.proofs.playground_twin import losses_in_javascript
from tests.support.node import CHROMIUM, PAGE, needs_chromium, needs_node, run_node
from tests.support.tolerances import within

BUILT = PAGE / "clip.html"
TEXT = BUILT.read_text(encoding="utf-8")
LOCAL = re.compile(r"file:///.*/clip\.html$|blob:null/|data:")
BROWSE = Path(__file__).with_name("browse.mjs")


def test_page_is_one_small_file() -> None:
    assert len(TEXT.encode()) < 2_000_000
    assert not re.search(r"<(script|link|img|iframe|object)[^>]* src=", TEXT)
    assert re.findall(r"<link[^>]*>", TEXT) == ['<link rel="icon" href="data:,">']


@needs_node
def test_building_gives_the_same_bytes(tmp_path: Path) -> None:
    script = tmp_path / "build.mjs"
    build = (PAGE / "build.js").as_uri()
    script.write_text(
        f'import {{ buildPage }} from "{build}"; console.log(JSON.stringify(buildPage()))'
    )
    assert run_node(script) == TEXT, "docs/playground/clip.html is stale; run npm run build there"


def test_policy_names_the_scripts_and_allows_no_connection() -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', TEXT)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert not {"connect-src", "frame-src", "font-src"} & rules.keys()
    assert "unsafe-inline" not in policy and "'unsafe-eval'" not in policy and "http" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", TEXT, re.S)
    (style,) = re.findall(r"<style>(.*?)</style>", TEXT, re.S)
    for rule, source in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules[rule]


def test_code_names_no_address() -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", TEXT, re.S)
    (worker,) = re.findall(r'<script type="text/plain"[^>]*>(.*?)</script>', TEXT, re.S)
    for source in (script, worker):
        code = re.sub(r"//.*", "", source)
        assert not re.search(
            r"fetch\(|XMLHttpRequest|WebSocket|EventSource|importScripts|eval\(", code
        )
        assert "import(" not in code and "sendBeacon" not in code
        assert "http:" not in code and "https:" not in code
    assert re.findall(r'(?:href|src|action)="([^"]*)"', TEXT) == ["data:,", "#results"]


def test_page_credits_the_artists_and_carries_their_licences() -> None:
    for artist in ("Noto Emoji", "Twemoji", "EmojiOne 2", "Fluent Emoji", "Unicode CLDR"):
        assert artist in TEXT
    for owner in ("Google Inc", "Copyright (c) Microsoft Corporation", "Unicode, Inc."):
        assert owner in TEXT
    assert "CC BY 4.0" in TEXT and "Apache License" in TEXT and "UNICODE LICENSE V3" in TEXT


def test_every_control_says_what_to_try() -> None:
    (form,) = re.findall(r"<form.*?</form>", TEXT, re.S)
    for fieldset in re.findall(r"<fieldset.*?</fieldset>", form, re.S):
        assert '<p class="try">' in fieldset, fieldset[:200]


def test_lock_file_names_no_host() -> None:
    assert "resolved" not in (PAGE / "package-lock.json").read_text(encoding="utf-8")


def browse(check: str) -> Any:
    """What a check of browse.mjs saw; nothing may have been blocked, thrown or fetched."""
    got = run_node(BROWSE, str(CHROMIUM), str(BUILT), check)
    assert got["problems"] == []
    assert all(LOCAL.match(url) for url in got["urls"])
    return got["seen"]


@needs_node
@needs_chromium
def test_browser_trains_as_node_does_and_the_loss_falls() -> None:
    seen = browse("trains")
    assert seen["kind"] == "WebAssembly SIMD"
    assert seen["stayed"], "a paused run goes on"
    assert seen["last"] < 0.6 * seen["first"]
    assert seen["accuracy"] > 0.1
    same = losses_in_javascript({}, (0,), 5)[0]
    assert np.abs(np.subtract(seen["losses"], same)).max() < within("playground losses")


@needs_node
@needs_chromium
def test_keyboard_alone_is_enough() -> None:
    assert browse("keyboard") == {"batch": 32, "turned": True, "selected": 1}


@needs_node
@needs_chromium
def test_nothing_sticks_out_on_a_phone() -> None:
    seen = browse("phone")
    assert seen["page"] == 360
    assert seen["outside"] == [] and seen["small"] == []


@needs_node
@needs_chromium
def test_every_choice_runs() -> None:
    seen = browse("choices")
    assert seen["failed"] == []
    assert seen["answer"] == "Never seen: zebra. Nearest first:"


@needs_node
@needs_chromium
def test_wide_page_and_blocked_picture_are_noticed(tmp_path: Path) -> None:
    spoiled = tmp_path / "clip.html"
    wide = '<hr width="900"><img src="http://127.0.0.1:9/"><footer>'
    spoiled.write_text(TEXT.replace("<footer>", wide))
    got = run_node(BROWSE, str(CHROMIUM), str(spoiled), "phone")
    assert got["seen"]["page"] > 360 and got["seen"]["outside"]
    assert any("Content Security Policy" in str(problem) for problem in got["problems"])
